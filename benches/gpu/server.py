"""A server of the bundle on the GPU, and the clients of `cutover bench`, for the sections of `benches/gpu/run`.

It knows the HTTP interface and nothing of what is asked over it. Who waits for something waits for the server's own answer:
the line that says that it listens, a promote that answers when it is settled, or a rollout's record, asked again until it says
what is waited for. Packages: none.
"""

import contextlib
import http.client
import json
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse

# A server that has not come up, or a rollout that has not ended, after so many seconds will not.
PATIENCE = 120
# A connection that has idled for longer is not used again: the server closes it some time.
IDLE = 30


class Server:
    """Serves the folder `models` until it is stopped; used as a context manager."""

    def __init__(self, section, models, config="", faults=False, state=None, environment=None):
        self.section, self.state = section, state or section.work / "state"
        if state is None:
            shutil.rmtree(self.state, ignore_errors=True)
        self.log = section.work / "server.log"
        self.report = section.work / "fake_gpu.json"
        written = section.work / "cutover.toml"
        written.write_text(config)
        command = [section.bundle / "bin/cutover", "serve", "--device", "cuda:0", "--listen", "127.0.0.1:0"]
        command += ["--models", models, "--state", self.state, "--config", written]
        command += ["--allow-faults"] if faults else []
        variables = section.environment() | {"FAKE_GPU_REPORT": str(self.report)} | (environment or {})
        self.report.unlink(missing_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables, cwd=section.work)
        self.url, self.connection, self.used = None, None, 0.0
        began = time.monotonic()
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        for line in self.process.stdout:
            if found := re.search(r"listens on (http://\S+)", line):
                self.url = found[1].rstrip("/")
                break
        watch.cancel()
        if not self.url:
            raise RuntimeError(f"the server did not come up: {self.last_words()}")
        self.started_after = time.monotonic() - began
        # What else it says must not fill the pipe.
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.stop(judged=error[0] is None)

    def last_words(self):
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, judged=True):
        """Ends it as its supervisor would. On a fake driver, what it left there must be nothing."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if judged:
            self.section.same("the server's exit code, told to stop", code, 0)
        if judged and self.section.fake:
            report = json.loads(self.report.read_text())
            left = ("device_allocations", "pinned_buffers", "contexts_retained", "misuses", "calls_without_context")
            self.section.same("left with the fake driver, or misused", sum(report[kind] for kind in left), 0)

    # the interface
    def ask(self, method, path, body=None, timeout=PATIENCE, kind="application/json"):
        """Status, headers and the body, as JSON where it is. The connection is kept."""
        if self.connection and time.monotonic() - self.used > IDLE:
            self.connection.close()
            self.connection = None
        if self.connection is None:
            self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=timeout)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        try:
            self.connection.request(method, path, data, {"content-type": kind} if data is not None else {})
            reply = self.connection.getresponse()
            content = reply.read()
            self.used = time.monotonic()
        except BaseException:
            self.connection.close()
            self.connection = None
            raise
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        return reply.status, reply.headers, json.loads(content) if is_json and content else content

    def get(self, path):
        status, _, body = self.ask("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {body}")
        return body

    def post(self, path, body=None, expect=200):
        status, _, answer = self.ask("POST", path, body or {})
        if status != expect:
            raise RuntimeError(f"POST {path} {body}: {status} {answer}, expected {expect}")
        return answer

    def promote(self, reference, expect=200, **order):
        return self.post(f"/models/{reference}/promote", order, expect)

    def switch(self, reference):
        """Promotes and settles; the rollout, whole."""
        promoted = self.promote(reference, observe="0s", wait="settled")
        return self.get(f"/admin/rollouts/{promoted['id']}") if "id" in promoted else promoted

    def memory(self):
        return self.get("/admin/memory")

    def live(self, model):
        return (self.get(f"/models/{model}")["live"] or {}).get("version")

    def rollouts(self, model):
        return self.get(f"/admin/rollouts?model={model}&limit=1000")["rollouts"]

    def until(self, what, look, every=0.01, patience=PATIENCE):
        """Asks again until `look` gives something."""
        began = time.monotonic()
        while time.monotonic() - began < patience:
            if found := look():
                return found
            time.sleep(every)
        raise RuntimeError(f"not within {patience} s: {what}")

    def phase(self, rollout, *phases):
        """The rollout, once it is in one of these phases."""
        look = lambda: self.get(f"/admin/rollouts/{rollout}")
        return self.until(f"{rollout} is {' or '.join(phases)}", lambda: (r := look())["phase"] in phases and r)

    # the clients
    def bench(self, kind, *arguments):
        """What `cutover bench` found; `failed` where it was not content."""
        told = self.section.work / f"bench-{kind}.json"
        told.unlink(missing_ok=True)
        command = [self.section.bundle / "bin/cutover", "bench", kind, "--url", self.url, "--json", told]
        command += map(str, arguments)
        if kind != "chat" and "--images" not in arguments:
            command += ["--images", self.section.bundle / "models/digits/samples"]
        run = subprocess.run(command, capture_output=True, text=True, env=self.section.environment())
        if not told.exists():
            raise RuntimeError(f"bench {kind} {' '.join(map(str, arguments))}: {run.stdout}{run.stderr}")
        return json.loads(told.read_text()) | {"failed": run.returncode != 0}

    @contextlib.contextmanager
    def under_load(self, model, clients, seconds):
        """Clients beside what is done meanwhile; what they found comes in the dictionary that is given."""
        found = {}
        arguments = ("--model", model, "--clients", clients, "--duration", f"{seconds}s", "--warmup", "0s")
        thread = threading.Thread(target=lambda: found.update(self.bench("serve", *arguments)["levels"][0]))
        thread.start()
        try:
            yield found
        finally:
            thread.join()


def failures(level):
    """Requests of a bench's level, and how many of them were not answered well."""
    return level["latency"]["requests"], sum(level["latency"]["failures"].values())


def digits_folder(section, models, toml):
    """The bundled digits, v1 and v2, with their golden cases; in a rehearsal with two of them."""
    digits = section.bundle / "models/digits"
    folder = model_folder(models, "digits", toml, {version: digits / version for version in ("v1", "v2")})
    golden = (digits / "golden.jsonl").read_text().splitlines(keepends=True)
    (folder / "golden.jsonl").write_text("".join(golden[: section.of(None, 2)]))


def model_folder(models, name, toml, versions):
    """A model of the repository: its model.toml, and its versions as links to where they are."""
    folder = pathlib.Path(models) / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(toml)
    for version, place in versions.items():
        (folder / version).symlink_to(place, target_is_directory=True)
    return folder
