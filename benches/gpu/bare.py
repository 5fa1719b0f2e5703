"""Forward passes of the bundle's own binary without a server: `cutover bench forward`. Packages: none."""

import json
import statistics
import subprocess

from server import model_folder

SECONDS = 0.6


def forward(section, models, reference, *arguments):
    """What it told."""
    told = section.work / "bench-forward.json"
    told.unlink(missing_ok=True)
    command = [section.bundle / "bin/cutover", "bench", "forward", reference, "--models", models, "--device", "cuda:0"]
    command += ["--json", told, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment(), cwd=section.work)
    if run.returncode != 0:
        raise RuntimeError(f"bench forward {reference}: {run.stdout}{run.stderr}")
    return json.loads(told.read_text())


def batches(section, models, reference, named):
    """Each of the batches `named`, in their order."""
    pace = section.of(("--duration", f"{SECONDS * 1000:.0f}ms", "--warmup", "300ms"), ("--duration", "1ms", "--warmup", "0s"))
    return forward(section, models, reference, "--batches", ",".join(named), *pace)["batches"]


def clients(section, models, reference, count, batch, corpus, tokens):
    """What so many clients could be answered at most, as `cutover bench serve` asks them."""
    pace = section.of(("--duration", "3s", "--warmup", "1s"), ("--duration", "50ms", "--warmup", "0s"))
    arguments = ("--clients", count, "--batch", batch, "--corpus", corpus, "--batch-tokens", tokens, *pace)
    return forward(section, models, reference, *arguments)["clients"][0]


def repository(section, name, toml, folder):
    """A folder of models with one version, `NAME@a`."""
    models = section.work / "models"
    model_folder(models, name, toml, {"a": folder})
    return models


def middle(rounds, key):
    """The median of a figure, for each batch of several rounds."""
    return [statistics.median(told[key] for told in same) for same in zip(*rounds)]
