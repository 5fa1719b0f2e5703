"""How fast a green version of several GB loads, digests known, page cache warm, blue idle: against the smaller of what pinned
copies to the device and copies out of the page cache reach on this machine in the same run. What digests cost is told apart.

Packages: numpy.
"""

import statistics

import floors
from server import Server, model_folder
from told import Section
from weights import LARGE, large

LOADS = 6


def main():
    section = Section("load")
    versions, size = large(section)
    floor = min(floors.measure(section, versions["b"] / "model.safetensors"))
    section.figure("the smaller of the best of both", floor, "GB/s")
    models = section.work / "models"
    model_folder(models, "large", LARGE, versions)
    with Server(section, models) as server:
        first = server.switch("large@b")
        loading = next(phase["ms"] for phase in first["phases"] if phase["phase"] == "loading")
        digests = loading - first["figures"]["load_ms"]
        section.figure("computing the digests of a version at first sight", digests, "ms")
        section.figure("digests", size / max(digests, 0.001) / 1e6, "GB/s")
        rates = []
        for turn in range(section.of(LOADS, 2)):
            rollout = server.switch(f"large@{'ab'[turn % 2]}")
            figures = rollout["figures"]
            rates.append(figures["loaded_bytes"] / figures["weights_ms"] / 1e6)
        section.same("bytes of the last load", figures["loaded_bytes"], size, "bytes")
        section.figure("a green load, the slowest", min(rates), "GB/s")
        section.figure("a green load, in the middle", statistics.median(rates), "GB/s")
        share = statistics.median(rates) / floor * 100
        section.timing("a green load, in the middle, over the floor", share, 90.0, "%", most=False)
        whole = [phase["ms"] for phase in rollout["phases"]]
        section.figure("of the last load, weights", figures["weights_ms"], "ms")
        section.figure("of the last load, making its first passes ready", figures.get("graphs_ms", 0.0), "ms")
        section.figure("the last load, all of it", figures["load_ms"], "ms")
        section.figure("the last of these rollouts, from promote to settled", sum(whole), "ms")
    section.end()


main()
