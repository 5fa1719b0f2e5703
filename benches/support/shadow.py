"""Pairs of short pieces of load beside a staged version: without a shadow, and with one of a share of the requests.

The version is staged once and the share changed between pieces, so that nothing differs but the shadow; which of a pair comes
first changes from pair to pair. A machine whose processors others use as well stands still for milliseconds now and then,
which only ever adds to a p99: so besides the median over all pieces that of the quieter half is told, of each kind.
"""

import argparse
import json
import random
import statistics
import subprocess
import urllib.request

# Of the capacity: with more, the generator and the server wait for each other on two processors.
LOAD = 0.2


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ["cutover", "url", "model", "versions"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--realtime", action="store_true")
    return parser.parse_args()


def asked(options: argparse.Namespace, *more: str) -> dict:
    """What one level of `cutover bench serve` found."""
    command = [options.cutover, "bench", "serve", "--url", options.url, "--model", options.model, "--json", "-"]
    command += ["--warmup", "300ms", "--duration", f"{options.seconds}s", *more]
    command += ["--realtime"] if options.realtime else []
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(told.stdout)["levels"][0]


def post(options: argparse.Namespace, path: str, order: dict) -> dict:
    body = json.dumps(order).encode()
    request = urllib.request.Request(options.url + path, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def get(options: argparse.Namespace, path: str) -> dict:
    with urllib.request.urlopen(options.url + path, timeout=60) as answer:
        return json.load(answer)


def quieter(found: list[float]) -> float:
    """The mean of the lower half."""
    return statistics.mean(sorted(found)[: max(len(found) // 2, 1)])


def interval(ratios: list[float]) -> tuple[float, float]:
    """Within what the median of pairs lies with 95 %: of 2,000 draws with replacement (a percentile bootstrap)."""
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[1949]


def main() -> None:
    options = parsed()
    _, other = options.versions.split(",")
    capacity = statistics.median(asked(options, "--clients", "8")["throughput"] for _ in range(5))
    rate = LOAD * capacity
    print(f"{options.model}: {rate:.0f} requests a second, {LOAD:.0%} of the capacity; {options.pairs} pairs of {options.seconds} s")
    rollout = post(options, f"/models/{options.model}@{other}/stage", {})["id"]

    def piece(share: float) -> dict:
        post(options, f"/models/{options.model}@{other}/stage", {"shadow": share})
        latency = asked(options, "--rate", f"{rate:.0f}")["latency"]
        seen = get(options, f"/admin/rollouts/{rollout}/shadow") if share else {}
        return {"p99": latency["p99_ms"], "p50": latency["p50_ms"], "compared": seen.get("samples", 0), "dropped": seen.get("dropped", 0)}

    piece(0.0)
    piece(options.share)
    found = {0.0: [], options.share: []}
    for pair in range(options.pairs):
        for share in [0.0, options.share] if pair % 2 == 0 else [options.share, 0.0]:
            found[share].append(piece(share))
    post(options, f"/admin/rollouts/{rollout}/abort", {})
    for quantile in ["p99", "p50"]:
        plain, shadowed = ([piece[quantile] for piece in found[share]] for share in [0.0, options.share])
        ratios = sorted(beside / without for beside, without in zip(shadowed, plain))
        low, high = interval(ratios)
        print(
            f"{quantile}: without {statistics.median(plain):.3f} ms, with {statistics.median(shadowed):.3f} ms;"
            f" ratio of medians {statistics.median(shadowed) / statistics.median(plain):.3f},"
            f" of the quieter halves {quieter(shadowed) / quieter(plain):.3f},"
            f" median of pairs {statistics.median(ratios):.3f} (95 %: {low:.3f} to {high:.3f})"
        )
    compared, dropped = (sum(piece[what] for piece in found[options.share]) for what in ["compared", "dropped"])
    print(f"compared {compared}, let go of {dropped}")


main()
