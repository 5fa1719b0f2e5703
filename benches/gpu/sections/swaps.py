"""20 swaps of a model of several GB under load: nothing fails, and its memory is back at its start each time.

Packages: numpy.
"""

import reclaims
from server import Server, model_folder
from told import Section
from weights import LARGE, large


def main():
    section = Section("swaps")
    versions, size = large(section)
    section.figure("bytes of a version", size / 1e9, "GB")
    models = section.work / "models"
    model_folder(models, "large", LARGE, versions)
    swaps = section.of(20, 3)
    with Server(section, models) as server:
        section.figure("from start to listening, digests unknown", server.started_after, "s")
        pace = section.of(("--load", "60%", "--steady", "10s"), ("--rate", "5", "--steady", "1s"))
        # The second version's digests become known before anything is measured.
        server.switch("large@b")
        server.switch("large@a")
        told = server.bench(
            "swap", "--model", "large", "--versions", "a,b", "--switches", swaps, "--hold", "200ms", "--pause", "500ms",
            "--limit", "4m", "--pid", server.process.pid, "--corpus", section.of(512, 16), *pace,
        )  # fmt: skip
        section.same("switches", told["switches"], swaps)
        section.figure("requests a second", told["rate"])
        audit = told["audit"]
        section.figure("requests", told["requests"])
        section.same("requests that failed", told["requests"] - audit["answers"], 0)
        wrong = sum(audit[kind] for kind in ("stale", "early", "foreign", "unstamped"))
        section.same("answers of a version that was not to give them", wrong, 0)
        section.figure("p99, steady", told["steady"]["p99_ms"], "ms")
        section.figure("p99 from promote to its answer, over steady", told["p99_over_steady"]["takeovers"])
        reclaims.judge(section, server.rollouts("large"), told["cycles"])
        for cycle in (c for c in told["cycles"] if c["error"]):
            section.write("a switch that failed", cycle["error"], holds=False)
    section.end()


main()
