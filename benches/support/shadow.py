"""Pairs of equal lengths of load: the other version staged, and staged with a shadow of a share of the requests.

Which of a pair comes first changes from pair to pair. In both the candidate is resident, so that nothing differs but the
shadow. Told: the p99 of each, the median of the pairs' ratios, and what the shadow compared and let go of.
"""

import argparse
import json
import statistics
import subprocess
import urllib.request

LOAD = 0.4


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ["cutover", "url", "model", "versions"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--realtime", action="store_true")
    return parser.parse_args()


def asked(options: argparse.Namespace, *more: str) -> dict:
    """What one level of `cutover bench serve` found."""
    command = [options.cutover, "bench", "serve", "--url", options.url, "--model", options.model, "--json", "-"]
    command += ["--warmup", "1s", "--duration", f"{options.seconds}s", *more]
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


def one(options: argparse.Namespace, other: str, rate: float, share: float) -> tuple[dict, dict]:
    """The latencies with `other` staged, and what its shadow says."""
    order = {"shadow": share} if share else {}
    staged = post(options, f"/models/{options.model}@{other}/stage", order)
    level = asked(options, "--rate", f"{rate:.0f}")
    seen = get(options, f"/admin/rollouts/{staged['id']}")["figures"].get("shadow", {})
    post(options, f"/admin/rollouts/{staged['id']}/abort", {})
    return level, seen


def main() -> None:
    options = parsed()
    _, other = options.versions.split(",")
    rate = LOAD * statistics.median(asked(options, "--clients", "8")["throughput"] for _ in range(3))
    print(f"{options.model}: {rate:.0f} requests a second, {LOAD:.0%} of the capacity; {options.pairs} pairs of {options.seconds} s")
    one(options, other, rate, options.share)
    ratios, halves, plain, shadowed, compared, dropped = [], [], [], [], 0, 0
    for pair in range(options.pairs):
        order = [0.0, options.share] if pair % 2 == 0 else [options.share, 0.0]
        found = {share: one(options, other, rate, share) for share in order}
        (without, _), (beside, seen) = found[0.0], found[options.share]
        ratios.append(beside["latency"]["p99_ms"] / without["latency"]["p99_ms"])
        halves.append(beside["latency"]["p50_ms"] / without["latency"]["p50_ms"])
        plain.append(without["latency"]["p99_ms"])
        shadowed.append(beside["latency"]["p99_ms"])
        compared += seen.get("samples", 0)
        dropped += seen.get("dropped", 0)
    median = statistics.median
    print(f"p99 with nothing beside: {median(plain):.3f} ms; with a shadow of {options.share:.0%}: {median(shadowed):.3f} ms")
    print(f"ratio of p99, median of pairs: {median(ratios):.3f} (of all: {' '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})")
    print(f"ratio of medians: {median(halves):.3f}")
    print(f"compared {compared}, let go of {dropped}")


main()
