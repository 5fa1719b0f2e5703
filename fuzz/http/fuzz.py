"""Fuzzes a real server's HTTP routes with schemathesis, by the server's own description of them.

Runs in a Python that has what requirements.txt pins (`run` makes one, and so does tests/interfaces/schemathesis.rs). A round is one
server, with models of every task in a folder of its own, and one run of schemathesis against it: promotes, rollbacks and
drops are meant and happen. Rounds alternate between a server that lets everybody in and one that asks for an admin token
and an API key (or are all of one kind: `--server`). A round fails when schemathesis has found something, when the server said that something went wrong
inside, when it does not answer a plain request afterwards, or when it does not end in order with its ledger whole.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIXTURES = ROOT / "tests/fixtures"
DIGITS = ROOT / "models/digits"

TOKEN = "the-admin-token-of-a-fuzzed-server"
KEY = "the-api-key-of-a-fuzzed-server"

# Timings of tiny models say nothing, and a window must pass while somebody waits for it.
SETTINGS = """
[gate]
max_latency_ratio = 1000.0
latency_rounds = 2
case_timeout = "20s"
[observe]
window = "1s"
golden_every = "1h"
max_p99_ratio = 1000.0
"""

# What a round begins with: a task, its first version, and the folders of its versions.
MODELS = {
    "digits": ("image-classify", "v1", {version: DIGITS / version for version in ("v1", "v2", "v3")}),
    "tiny": ("embed", "one", {"one": FIXTURES / "bert-embed-mean", "two": FIXTURES / "bert-embed-mean"}),
    "mood": ("classify", "one", {"one": FIXTURES / "bert-classify", "two": FIXTURES / "bert-classify"}),
    "writer": ("generate", "a", {version: FIXTURES / "gguf/tiny.gguf" for version in ("a", "b")}),
    "order": ("rerank", "one", {"one": FIXTURES / "bert-rerank", "two": FIXTURES / "bert-rerank"}),
}

# What a server says only when something is wrong with it.
WRONG = ("panicked", "failed inside", "ERROR")


def main():
    options = arguments()
    began, number, failed = time.monotonic(), 0, []
    kinds = [options.server] if options.server else ["open", "locked"]
    while True:
        seed = options.seed + number
        locked = kinds[number % len(kinds)] == "locked"
        print(f"\n== round {number}: seed {seed}, {'locked' if locked else 'open'}", flush=True)
        if not round_of(options, seed, locked, whole=number < len(kinds)):
            failed.append(seed)
        number += 1
        minutes = (time.monotonic() - began) / 60
        print(f"== after {minutes:.1f} minutes: {number} rounds, failed with seeds {failed or 'none'}", flush=True)
        # Each kind of server, once at least.
        if number >= len(kinds) and minutes >= options.minutes:
            return 1 if failed else 0
        while options.pause_while and options.pause_while.exists():
            time.sleep(1)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cutover", type=pathlib.Path, default=ROOT / "target/release/cutover", help="the binary")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next one has the next")
    parser.add_argument("--minutes", type=float, default=0, help="rounds are begun for so long; one of each kind at least")
    parser.add_argument("--server", choices=["open", "locked"], help="rounds of this kind only")
    parser.add_argument("--examples", type=int, default=100, help="at most, for each operation and phase")
    parser.add_argument("--round", type=int, metavar="SECONDS", help="fuzz on for so long in each round")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/fuzz-http", help="for reports of failed rounds")
    parser.add_argument("--pause-while", type=pathlib.Path, metavar="FILE", help="begin no round while it exists")
    return parser.parse_args()


def round_of(options, seed, locked, whole):
    with tempfile.TemporaryDirectory(prefix="cutover-fuzz-") as site:
        site = pathlib.Path(site)
        lay(site, locked)
        server = Server(options.cutover, site, locked)
        try:
            problems = schemathesis(options, server.url, site, seed, locked, whole)
            # It is written when a run ends by itself.
            if (site / "seen.json").exists():
                seen = json.loads((site / "seen.json").read_text())
                print(f"{sum(seen.values())} answers: {by_status(seen)}", flush=True)
                problems += unreached(server, seen) if whole else []
            problems += server.still_answers()
        finally:
            problems_of_end = server.end()
        problems += problems_of_end + server.said_wrong() + ledger(options.cutover, site)
        for problem in problems:
            print(f"round with seed {seed}: {problem}", flush=True)
        if problems:
            kept = options.work / f"failed-{seed}-{'locked' if locked else 'open'}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(site, kept, ignore=shutil.ignore_patterns("models"))
            print(f"its log, ledger and report are in {kept}", flush=True)
        return not problems


def lay(site, locked):
    """A folder with models, as the tests serve them, and what the server asks for."""
    for name, (task, live, versions) in MODELS.items():
        folder = site / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(f'task = "{task}"\nlive = "{live}"\n{SETTINGS}')
        for version, source in versions.items():
            if source.is_dir():
                shutil.copytree(source, folder / version)
            else:
                (folder / version).mkdir()
                shutil.copy(source, folder / version)
    shutil.copy(DIGITS / "golden.jsonl", site / "models/digits/golden.jsonl")
    # One that cannot be loaded.
    (site / "models/digits/broken").mkdir()
    (site / "models/digits/broken/config.json").write_text("{}")
    (site / "cutover.toml").write_text("[tei]\nmodel = 'tiny'\n")
    for name, secret in (("token", TOKEN), ("keys", f"fuzzer:{KEY}")):
        (site / name).write_text(secret + "\n")
        (site / name).chmod(0o600)
    config = (HERE / "schemathesis.toml").read_text()
    if locked:
        ways = {"admin-token": ("bearer", TOKEN), "api-key": ("bearer", KEY), "x-api-key": ("api_key", KEY)}
        config += "".join(f'\n[auth.openapi.{way}]\n{kind} = "{value}"\n' for way, (kind, value) in ways.items())
    (site / "schemathesis.toml").write_text(config)


class Server:
    """`cutover serve` on a free port."""

    def __init__(self, binary, site, locked):
        self.log, self.headers = site / "server.log", {}
        command = [binary, "serve", "--listen", "127.0.0.1:0", "--device", "cpu", "--config", site / "cutover.toml"]
        command += ["--models", site / "models", "--state", site / "state"]
        if locked:
            command += ["--admin-token-file", site / "token", "--api-key-file", site / "keys"]
            self.headers = {"Authorization": f"Bearer {KEY}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        mark, self.url = "Cutover listens on ", None
        for line in self.process.stdout:
            if line.startswith(mark):
                self.url = line.removeprefix(mark).split()[0]
                break
        # Nobody reads on what it says for people; it must not wait for somebody to.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        if self.url is None:
            sys.exit(f"the server did not come up:\n{self.log.read_text()}")

    def still_answers(self):
        """A plain question to the model of each task, after all that was done to them."""
        questions = {"tiny": ["a text"], "mood": ["a text"], "order": [["a", "b"]]}
        problems = []
        for model, inputs in questions.items():
            body = json.dumps({"inputs": inputs}).encode()
            request = urllib.request.Request(f"{self.url}/models/{model}/infer", body, self.headers)
            try:
                urllib.request.urlopen(request, timeout=30).read()
            except OSError as error:
                problems.append(f"{model} does not answer any more: {error}")
        return problems

    def end(self):
        """It ends by itself when it is told to, however its models are."""
        if self.process.poll() is not None:
            return [f"the server is gone: exit status {self.process.returncode}"]
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return ["the server did not end within a minute of SIGTERM"]
        return [f"the server ended with status {status}"] if status else []

    def said_wrong(self):
        lines = self.log.read_text(errors="replace").splitlines()
        return [f"the server said: {line}" for line in lines if any(word in line for word in WRONG)]


def schemathesis(options, url, site, seed, locked, whole):
    """One run; what is to be said of it."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", site / "schemathesis.toml", "run"]
    command += [f"{url}/openapi.json", "--seed", seed, "--max-examples", options.examples]
    command += ["--report", "ndjson", "--report-dir", site / "report"]
    if options.round:
        command += ["--max-time", options.round]
    if not whole:
        # The first two phases ask the same in every round.
        command += ["--phases", "fuzzing,stateful"]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "127.0.0.1"}
    environment["FUZZ_SEEN"] = str(site / "seen.json")
    status = subprocess.run([str(part) for part in command], cwd=site, env=environment).returncode
    if status < 0:
        return [f"schemathesis was ended by {signal.Signals(-status).name}"]
    return ["schemathesis found something, or could not go on"] if status else []


def by_status(seen):
    statuses = collections.Counter()
    for name, count in seen.items():
        statuses[name.rpartition(" ")[2]] += count
    return ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))


# Weights that add up, of versions that there are, do not come about by chance, nor does what needs an experiment or a shadow: the
# tests of traffic and of the description ask these.
NOT_BY_CHANCE = {
    # Names of the page's own files.
    "GET /page/{file}",
    "POST /admin/experiments",
    "DELETE /admin/experiments/{name}",
    "GET /admin/plots/agreement",
    "GET /admin/rollouts/{id}/shadow",
    "POST /v1/feedback",
}


def unreached(server, seen):
    """Routes whose requests were all refused for what they were: what stands behind them was not asked at all."""
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    # The document itself is left out by schemathesis.
    routes = [f"{method.upper()} {path}" for path, item in paths.items() for method in item if path != "/openapi.json"]
    # 409 is a rollout's state, or a model's, that does not allow it.
    reached = {name.rpartition(" ")[0] for name in seen if name.endswith((" 200", " 202", " 409"))}
    told = {route: {name: n for name, n in seen.items() if name.startswith(f"{route} ")} for route in routes}
    missed = [route for route in routes if route not in reached and route not in NOT_BY_CHANCE]
    return [f"nothing got as far as {route}: {told[route]}" for route in missed]


def ledger(binary, site):
    command = [str(binary), "history", "--verify", "--state", str(site / "state")]
    done = subprocess.run(command, capture_output=True, text=True)
    return [f"the ledger is not whole: {done.stdout}{done.stderr}"] if done.returncode else []


if __name__ == "__main__":
    sys.exit(main())
