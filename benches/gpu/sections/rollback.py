"""Going back: within the window over HTTP, where it is a pointer store; after it from disk; and, where the server knows
`[rollout] park`, from parked host memory, against the bandwidth of pinned copies. Packages: numpy.
"""

import statistics
import time

import floors
from server import Server, model_folder
from told import Section
from weights import LARGE, large

TIMES = 20
# How model.toml asks for parking. A server that does not know the key says so, and the kind is not run.
PARK = '[rollout]\npark = "host"\n'


def back(server):
    """A rollback over HTTP as its client sees it: the milliseconds, and the rollout."""
    began = time.perf_counter()
    rollout = server.post("/admin/rollback", {"model": "large"})
    return (time.perf_counter() - began) * 1e3, rollout


def instant(section, server):
    took, stores = [], []
    for _ in range(section.of(TIMES, 3)):
        server.promote("large@b", observe="10m")
        ms, rollout = back(server)
        ended = server.phase(rollout["id"], "rolled_back")
        kinds = ended["kind"]
        took.append(ms)
        stores.append(ended["figures"]["rollback_store_us"])
    section.same("within the window, the kind", kinds, "instant")
    section.same("live after it", server.live("large"), "a")
    section.figure("instant, over HTTP, in the middle", statistics.median(took), "ms")
    section.timing("instant, over HTTP, the slowest", max(took), 5.0, "ms")
    section.figure("of it the store, the slowest", max(stores), "us")


def cold(section, server, kind="cold", ready=lambda: None):
    """The rollout that went back after the window had been settled, and `ready` had what it waits for."""
    server.switch("large@b")
    ready()
    ms, rollout = back(server)
    ended = server.phase(rollout["id"], "observing", "settled")
    section.same("after the window, the kind", ended["kind"], kind)
    section.same(f"live after it ({kind})", server.live("large"), "a")
    section.figure(f"{kind}, over HTTP", ms, "ms")
    server.post("/admin/settle", {"model": "large"})
    return ended


def is_parked(server, version):
    """Whether a version waits in host memory, whole."""
    return any(p["version"] == version and p["ready"] for p in server.memory()["parked"])


def parked(section, versions):
    models = section.work / "models"
    model_folder(models, "large", LARGE + PARK, versions)
    with Server(section, models) as server:
        refused = server.get("/models/large").get("not_serving") or ""
        if "park" in refused:
            section.figure("parked: not run, this server has no `[rollout] park`", "-")
            return
        pinned, _ = floors.measure(section, versions["b"] / "model.safetensors")
        rates = []
        ready = lambda: server.until("the version before is parked", lambda: is_parked(server, "a"))
        for _ in range(section.of(1, 1)):
            figures = cold(section, server, "parked", ready)["figures"]
            rates.append(figures["loaded_bytes"] / figures["weights_ms"] / 1e6)
        section.figure("parked, back at", statistics.median(rates), "GB/s")
        share = statistics.median(rates) / pinned * 100
        section.timing("parked, over the bandwidth of pinned copies", share, 80.0, "%", most=False)


def main():
    section = Section("rollback")
    versions, _ = large(section)
    models = section.work / "models"
    model_folder(models, "large", LARGE, versions)
    with section.part("instant and cold"), Server(section, models) as server:
        # Both versions' digests become known.
        server.switch("large@b")
        server.switch("large@a")
        instant(section, server)
        figures = cold(section, server)["figures"]
        section.figure("cold, loaded at", figures["loaded_bytes"] / figures["weights_ms"] / 1e6, "GB/s")
    with section.part("parked"):
        parked(section, versions)
    section.end()


main()
