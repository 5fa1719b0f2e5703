"""`/v1/embeddings` of minilm, one text a request, against onnxruntime's Python API on the same texts.

Each round times onnxruntime at every batch size on the whole corpus sorted by length (its best order: padding costs
least), then the server with 1, 8 and 32 clients, each alone on the machine. The server is held against the batch size
that was onnxruntime's best over all rounds. Medians of the rounds' ratios.
"""

import statistics
import subprocess
import time
from pathlib import Path

from encoder import Encoder
from server import THREADS, Server, arguments

BATCHES = [1, 2, 4, 8, 16, 32]
CLIENTS = [1, 8, 32]
CORPUS = 256


def texts(binary: str) -> list[str]:
    printed = subprocess.run([binary, "bench", "texts", "--corpus", str(CORPUS)], check=True, capture_output=True)
    return printed.stdout.decode().splitlines()


def once(encoder: Encoder, batches: list[list[str]]) -> float:
    """Texts a second."""
    began = time.perf_counter()
    for batch in batches:
        encoder.embed(batch)
    return sum(map(len, batches)) / (time.perf_counter() - began)


def main() -> None:
    args = arguments(seconds=6)
    version = Path(args.models) / "minilm" / "f32"
    encoder = Encoder(version, THREADS)
    off = encoder.check(version / "golden.jsonl")
    if off > 1e-5:
        raise SystemExit(f"onnxruntime's embeddings are {off} off the golden ones: nothing to compare")
    corpus = sorted(texts(args.binary), key=encoder.length)
    print(f"{CORPUS} texts, {statistics.mean(map(encoder.length, corpus)):.1f} tokens on average; medians of {args.rounds} rounds")
    cut = {size: [corpus[i : i + size] for i in range(0, CORPUS, size)] for size in BATCHES}
    server = Server(args.binary, args.models, "minilm")
    theirs = {size: [] for size in BATCHES}
    ours = {clients: [] for clients in CLIENTS}
    for number in range(args.rounds):
        for size in BATCHES:
            encoder.embed(cut[size][-1])
            theirs[size].append(once(encoder, cut[size]))
        for clients in CLIENTS:
            ours[clients].append(server.asked(clients, args.seconds, "--dialect", "openai", "--corpus", str(CORPUS)))
        told = [f"{theirs[size][-1]:.1f}" for size in BATCHES], [f"{ours[c][-1]['throughput']:.1f}" for c in CLIENTS]
        print(f"round {number}: onnxruntime {' '.join(told[0])}, server {' '.join(told[1])}", flush=True)
    server.stop()
    for size in BATCHES:
        print(f"onnxruntime, batches of {size:2}: {statistics.median(theirs[size]):6.1f} texts/s")
    best = max(BATCHES, key=lambda size: statistics.median(theirs[size]))
    for clients in CLIENTS:
        rates = [level["throughput"] for level in ours[clients]]
        ratio = statistics.median(rate / other for rate, other in zip(rates, theirs[best]))
        tail = statistics.median(level["latency"]["p99_ms"] / level["latency"]["p50_ms"] for level in ours[clients])
        print(
            f"server, {clients:2} clients: {statistics.median(rates):6.1f} texts/s, {ratio:.2f} of onnxruntime's best"
            f" (batches of {best}), p99 {tail:.2f} x its median"
        )


if __name__ == "__main__":
    main()
