"""Start to ready, resident size, and what is added to one request. Only the standard library; see `benches/start`."""

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request

# How many clients make the peak.
LOAD = 32
SECONDS = 10


def status(pid: int, key: str) -> float:
    """MiB, as the kernel tells it (proc_pid_status(5))."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(rf"^{key}:\s+(\d+) kB", file.read(), re.M)[1]) / 1024


class Server:
    def __init__(self, binary: str, models: str, state: str, *which: str):
        command = [binary, "serve", "--models", models, "--state", state, "--listen", "127.0.0.1:0"]
        command += [argument for model in which for argument in ("--model", model)]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        # Said once every model serves: the moment at which /ready turns to 200.
        for line in self.process.stdout:
            if found := re.search(r"listens on (\S+)", line):
                self.url, self.seconds = found[1], time.perf_counter() - began
                break
        else:
            raise SystemExit("the server did not start")
        with urllib.request.urlopen(f"{self.url}/ready") as answer:
            assert answer.status == 200
        self.resident = status(self.process.pid, "VmRSS")
        self.binary = binary

    def asked(self, model: str, clients: int, seconds: int, *more: str) -> dict:
        command = [self.binary, "bench", "serve", "--model", model, "--url", self.url, "--clients", str(clients)]
        command += ["--duration", f"{seconds}s", "--warmup", "1s", "--json", "-", *more]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["levels"][0]

    def worked(self, model: str) -> dict:
        """Nanoseconds and counts of each stage so far."""
        with urllib.request.urlopen(f"{self.url}/v2/models/{model}/stats") as answer:
            return json.load(answer)["model_stats"][0]["inference_stats"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def added(server: Server, model: str) -> tuple[float, float, float]:
    """Milliseconds of one request at a time: its median as the client sees it, the mean of its work, the difference."""
    before = server.worked(model)
    # One and the same input, so that the mean of its work is near its median.
    median = server.asked(model, 1, 5, "--corpus", "1")["latency"]["p50_ms"]
    after = server.worked(model)
    work = 0.0
    for stage in ("compute_input", "compute_infer", "compute_output"):
        count, ns = (after[stage][key] - before[stage][key] for key in ("count", "ns"))
        work += ns / count / 1e6
    return median, work, median - work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    seconds, resident, peaks = [], [], []
    with tempfile.TemporaryDirectory() as state:
        # The first start records what the folders hold; it is told by itself.
        for number in range(args.rounds + 1):
            server = Server(args.binary, args.models, state, "minilm")
            if number == 0:
                print(f"minilm, first start with an empty state folder: ready in {server.seconds * 1e3:.0f} ms")
            else:
                seconds.append(server.seconds * 1e3), resident.append(server.resident)
            if number == args.rounds:
                server.asked("minilm", LOAD, SECONDS, "--dialect", "openai")
                peaks.append(status(server.process.pid, "VmHWM"))
            server.stop()
        print(f"minilm, ready in: median {statistics.median(seconds):.0f} ms, worst {max(seconds):.0f} ms of {args.rounds}")
        print(f"minilm, resident at ready: median {statistics.median(resident):.1f} MiB, worst {max(resident):.1f} MiB")
        print(f"minilm, peak resident after {SECONDS} s of {LOAD} clients: {max(peaks):.1f} MiB")
        server = Server(args.binary, args.models, state, "digits", "minilm")
        for model in ("digits", "minilm"):
            median, work, more = added(server, model)
            print(
                f"{model}, one request at a time: median {median:.3f} ms as the client sees it, of which preparing, the"
                f" pass and finishing are {work:.3f} ms (mean): {more:.3f} ms added"
            )
        server.stop()


if __name__ == "__main__":
    main()
