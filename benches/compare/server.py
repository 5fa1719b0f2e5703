"""A server of this machine, started for a comparison and asked by `cutover bench serve`."""

import argparse
import json
import re
import subprocess
import tempfile

# Both sides of a comparison get the same processors.
THREADS = 2


def arguments(seconds: int) -> argparse.Namespace:
    """What every comparison is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=seconds)
    return parser.parse_args()


class Server:
    def __init__(self, binary: str, models: str, model: str):
        self.binary, self.model = binary, model
        self.state = tempfile.TemporaryDirectory()
        command = [binary, "serve", "--model", model, "--models", models, "--state", self.state.name]
        command += ["--listen", "127.0.0.1:0", "--threads", str(THREADS)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if found := re.search(r"listens on (\S+)", line):
                self.url = found[1]
                return
        raise SystemExit("the server did not start")

    def asked(self, clients: int, seconds: int, *more: str) -> dict:
        """What one level of `cutover bench serve` found."""
        command = [self.binary, "bench", "serve", "--model", self.model, "--url", self.url, *more]
        command += ["--clients", str(clients), "--duration", f"{seconds}s", "--warmup", "1s"]
        told = subprocess.run([*command, "--json", "-"], check=True, capture_output=True)
        return json.loads(told.stdout)["levels"][0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
