"""What a change of models costs texts that are being written: per-token p99 of live streams of a model of Llama 8B's shape while
another version of it loads, is validated and takes over, against their steady p99. The versions have no byte in common.

Packages: numpy.
"""

import time

import writers
from server import Server, model_folder
from told import Section

CLIENTS = 8
# Tokens in a phase below which its p99 says nothing.
ENOUGH = 500


def main():
    section = Section("decode-swap")
    began = time.monotonic()
    versions = {name: writers.version(section, name, seed) for name, seed in (("a", 5), ("b", 6))}
    section.figure("writing the models", time.monotonic() - began, "s")
    models = section.work / "models"
    model_folder(models, "llama", writers.toml(section), versions)
    with Server(section, models) as server:
        # Digests become known: what is measured is the load.
        server.switch("llama@b")
        server.switch("llama@a")
        pace = section.of(("--duration", "15s", "--warmup", "3s", "--pause", "5s"), ("--duration", "1s", "--warmup", "0s"))
        told = server.bench(
            "chat", "--model", "llama", "--versions", "a,b", "--switches", section.of(8, 2), "--hold", "200ms", "--limit", "120s",
            "--clients", section.of(CLIENTS, 2), "--max-tokens", section.of(256, 8), "--ignore-eos", "--prompt-words", 20, *pace,
        )  # fmt: skip
        tell(section, told)
    section.end()


def tell(section, told):
    section.same("answers that failed, or that were not of the version that they began on", told["passed"], True)
    section.same("switches", told["switches"], told["switches_wanted"])
    section.figure("tokens a second, changes among them", told["tokens_per_second"])
    between = told["between_tokens"]
    steady = between["steady"]["p99_ms"]
    section.figure("from token to token, p99, steady", steady, "ms")
    for phase in between["phases"]:
        latency = phase["latency"]
        if latency["requests"] < ENOUGH:
            section.figure(f"tokens in {phase['phase']}, too few to judge", latency["requests"])
            continue
        section.figure(f"p99 in {phase['phase']} over steady ({latency['requests']} tokens)", latency["p99_ms"] / steady, "times")
    taking = between["takeovers"]
    section.figure("from token to token, p99, from promote to its answer", taking["p99_ms"], "ms")
    if taking["p99_ms"] is not None:
        what = f"p99 while green loads, is validated and takes over, over steady ({taking['requests']} tokens)"
        section.timing(what, taking["p99_ms"] / steady, 1.10, "times")
    section.figure("the longest from token to token", max(between["steady"]["max_ms"], taking["max_ms"] or 0.0), "ms")


main()
