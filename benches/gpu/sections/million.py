"""The bundled digits under load: 1,000,000 requests over 100 swaps, of which none fails; the store and the gap of each switch.

Where a million do not fit the section's time, as many as do are made and the line says so. Packages: none.
"""

import statistics

import reclaims
from server import Server, digits_folder
from told import Section

DIGITS = """
task = "image-classify"
live = "v1"
[gate]
max_latency_ratio = 1000.0
latency_rounds = 4
[observe]
window = "10m"
golden_every = "10m"
max_p99_ratio = 1000.0
"""


def main():
    section = Section("million")
    models = section.work / "models"
    digits_folder(section, models, DIGITS)
    swaps, requests = section.of((100, 1_000_000), (4, 200))
    with Server(section, models) as server:
        pace = section.of(("--load", "60%", "--steady", "10s"), ("--rate", "20", "--steady", "1s"))
        told = server.bench(
            "swap", "--model", "digits", "--versions", "v1,v2", "--switches", swaps, "--requests", requests,
            "--hold", "500ms", "--pause", "500ms", "--limit", section.of("5m", "40s"), "--pid", server.process.pid, *pace,
        )  # fmt: skip
        judge(section, told, server.rollouts("digits"), (swaps, requests))
    section.end()


def judge(section, told, rollouts, wanted):
    swaps, requests = wanted
    audit = told["audit"]
    section.same("switches", told["switches"], swaps)
    section.figure("requests a second", told["rate"])
    section.at_least("requests", told["requests"], requests)
    section.same("requests that failed", told["requests"] - audit["answers"], 0)
    wrong = sum(audit[kind] for kind in ("stale", "early", "foreign", "unstamped"))
    section.same("answers of a version that was not to give them", wrong, 0)
    section.figure("p50, steady", told["steady"]["p50_ms"], "ms")
    section.figure("p99, steady", told["steady"]["p99_ms"], "ms")
    section.figure("p99 from promote to its answer, over steady", told["p99_over_steady"]["takeovers"])
    stores = sorted(cycle["figures"]["store_ns"] for cycle in told["cycles"] if "store_ns" in cycle["figures"])
    if stores:
        section.timing("the store of a switch, in the middle", statistics.median(stores), 1000, "ns")
        section.timing("the store of a switch, the slowest", stores[-1], 1000, "ns")
    # Settled rollouts know it: the longest time within a second of the store in which work waited and the engine stood.
    gaps = sorted(r["figures"]["downtime_ms"] for r in rollouts if "downtime_ms" in r["figures"])
    if gaps:
        batch = told["steady"]["p50_ms"]
        section.figure("work waited while the engine stood, in the middle", statistics.median(gaps), "ms")
        section.timing("work waited while the engine stood, the longest (to reach: one batch)", gaps[-1], batch, "ms")
    reclaims.judge(section, rollouts, told["cycles"])
    for cycle in (c for c in told["cycles"] if c["error"]):
        section.write("a switch that failed", cycle["error"], holds=False)


main()
