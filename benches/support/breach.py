"""Rollouts of a version with faults, one after the other, until each is taken back by itself.

Told is what the server wrote down: `breach_to_store_ms`, from when the answer that proves the breach came to the store. What
clients saw is counted too: a request that fails is one that promise 7 was to rescue.
"""

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

FAULTS = {
    "fails, 1 in 3": 'kind = "error"\nrate = 0.33',
    "not finite, 1 in 10": 'kind = "non-finite"\nrate = 0.1',
    "100 ms slower": 'kind = "delay"\ndelay = "100ms"',
}
WAYS = {"window": {}, "canary of 50 %": {"canary": [50], "canary_step": "10m", "wait": "none"}}
RATE = 300
LONGEST_S = 60


class Server:
    """Serves the bundled digits with a fault."""

    def __init__(self, cutover: str, fault: str):
        self.work = tempfile.TemporaryDirectory()
        config = Path(self.work.name) / "cutover.toml"
        config.write_text(f'[[faults]]\nversion = "digits@v2"\nat = "serving"\n{fault}\n')
        command = [cutover, "serve", "--model", "digits", "--config", str(config), "--allow-faults"]
        command += ["--state", f"{self.work.name}/state", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if found := re.search(r"listens on (\S+)", line):
                self.url = found[1]
                break
        else:
            raise SystemExit("the server did not start")
        load = [cutover, "bench", "serve", "--url", self.url, "--model", "digits", "--rate", str(RATE)]
        self.load = subprocess.Popen([*load, "--duration", "1h", "--json", "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ask(self, path: str, order: dict | None = None) -> dict:
        body = None if order is None else json.dumps(order).encode()
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LONGEST_S) as answer:
            return json.load(answer)

    def taken_back(self, order: dict) -> float | None:
        """Promotes, and returns how long the breach took to be answered, in milliseconds; None where there was none in time."""
        rollout, until = self.ask("/models/digits@v2/promote", order)["id"], time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            told = self.ask(f"/admin/rollouts/{rollout}")
            if told["phase"] == "rolled_back":
                return told["figures"]["breach_to_store_ms"]
            if told["phase"] not in ("reserving", "loading", "warming", "validating", "ready", "canary", "observing", "reclaiming"):
                raise SystemExit(f"{told['phase']}: {told.get('reason')}")
            time.sleep(0.02)
        self.ask(f"/admin/rollouts/{rollout}/abort", {})
        return None

    def stop(self) -> None:
        self.load.terminate()
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cutover", required=True)
    parser.add_argument("--times", type=int, required=True)
    options = parser.parse_args()
    for fault, order in FAULTS.items():
        server = Server(options.cutover, order)
        try:
            measure(server, fault, options.times)
        finally:
            server.stop()


def measure(server: Server, fault: str, times: int) -> None:
    # A ratio needs a reference.
    time.sleep(5)
    for way, order in WAYS.items():
        took = [server.taken_back(order)]
        if took[0] is None:
            print(f"{fault:<20} {way:<15} not taken back within {LONGEST_S} s")
            continue
        took = sorted([*took, *(server.taken_back(order) for _ in range(times - 1))])
        print(f"{fault:<20} {way:<15} median {statistics.median(took):7.3f} ms, slowest {took[-1]:7.3f} ms of {len(took)}")


main()
