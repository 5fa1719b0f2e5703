"""`/v1/embeddings` of encoders of the base sizes in bf16 against the bare loop of forward passes on the same GPU in the same run:
texts a second at saturation, and what HTTP adds to a forward at low load. The loop has the same texts, tokenized beforehand, cut
into the batches that as many clients make (`cutover bench forward --clients`). Packages: numpy.
"""

import bare
import weights
from server import Server, failures
from told import Section

TOKENS = 16384
CONFIG = f"[device]\nbatch_tokens = {TOKENS}\n"
# Clients, and texts of a request.
LEVELS = ((64, 1), (512, 1), (16, 32), (64, 32))
REHEARSED = ((2, 2),)
ROUNDS = 2


class Side:
    """Both ways to ask one model, at one level of load."""

    def __init__(self, section, server, name, clients, batch):
        self.section, self.server, self.name, self.clients, self.batch = section, server, name, clients, batch
        # The same texts on both sides, each several times in a round.
        self.corpus = section.of(max(2048 // batch, 16), 8)

    def bare(self):
        models = self.section.work / "models"
        return bare.clients(self.section, models, f"{self.name}@a", self.clients, self.batch, self.corpus, TOKENS)

    def served(self):
        pace = self.section.of(("--duration", "3s", "--warmup", "1s"), ("--duration", "200ms", "--warmup", "0s"))
        return self.server.bench(
            "serve", "--model", self.name, "--dialect", "openai", "--clients", self.clients, "--batch", self.batch,
            "--corpus", self.corpus, *pace,
        )["levels"][0]  # fmt: skip


def mean(told, of):
    return sum(of(one) for one in told) / len(told)


def rounds(section, side):
    """The server's rounds, and the loop's before and after each."""
    loop, served = [side.bare()], []
    for _ in range(section.of(ROUNDS, 1)):
        served.append(side.served())
        loop.append(side.bare())
    for level in served:
        section.same(f"{side.name}, {side.clients} clients: requests that failed", failures(level)[1], 0)
    return loop, served


def saturated(section, server, name):
    """At the level at which the server answers most."""
    best = (0.0, 0.0, None)
    for clients, batch in section.of(LEVELS, REHEARSED):
        side = Side(section, server, name, clients, batch)
        loop, served = rounds(section, side)
        alone = mean(loop, lambda told: told["texts_per_s"])
        rate = mean(served, lambda level: level["throughput"]) * batch
        what = f"{name}, {clients} clients of {batch}"
        section.figure(f"{what}: bare loop", alone, "texts/s")
        section.figure(f"{what}: texts of a pass of it", mean(loop, lambda told: told["texts_a_pass"]))
        section.figure(f"{what}: served", rate, "texts/s")
        section.figure(f"{what}: served, of the bare loop", rate / alone * 100, "%")
        section.figure(f"{what}: p99", mean(served, lambda level: level["latency"]["p99_ms"]), "ms")
        best = max(best, (rate, rate / alone * 100, what))
    section.timing(f"{name}: served over bare at saturation ({best[2]})", best[1], 90.0, "%", most=False)


def low_load(section, server, name):
    """One client: what it waits for beyond the forward is tokenizing, HTTP, JSON and the way to the engine."""
    loop, served = rounds(section, Side(section, server, name, 1, 1))
    alone, asked = mean(loop, lambda told: told["p50_ms"]), mean(served, lambda level: level["latency"]["p50_ms"])
    section.figure(f"{name}, one client: a forward, in the middle", alone, "ms")
    section.figure(f"{name}, one client: an answer, in the middle", asked, "ms")
    section.timing(f"{name}, one client: HTTP adds", asked - alone, 0.3, "ms")


def main():
    section = Section("served")
    for name in section.of(("bert-base", "minilm"), ("bert-base",)):
        with section.part(name):
            folder, _ = weights.figured(section, name)
            with Server(section, bare.repository(section, name, weights.LARGE_CROWD, folder), config=CONFIG) as server:
                low_load(section, server, name)
                saturated(section, server, name)
    section.end()


main()
