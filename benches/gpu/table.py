"""A run of `benches/gpu/run` as a dated JSON file and a Markdown table, and several runs as one.

    table.py write FOLDER/NAME --lines FILE --sections FILE --about FILE [--rehearse FAKE]
    table.py join FOLDER JSON …       of a section that several have, the last one's lines

A rehearsal says so and is never written below benches/results. Packages: none.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "numpy", "triton", "pillow")
TIMED_OUT = {124, 137}


def said(*command):
    """What a program prints, or nothing where there is no such program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine(rehearsed):
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    gpu = "fake driver" if rehearsed else said(*query) or "a GPU that nvidia-smi does not tell"
    cuda = "none" if rehearsed else said("sh", "-c", "nvidia-smi | sed -n 's/.*CUDA Version: \\([0-9.]*\\).*/\\1/p'")
    return {"gpu": gpu, "cuda": cuda or "unknown", "processors": os.cpu_count(), "kernel": platform.release()}


def sections_of(file):
    for line in file.read_text().splitlines():
        name, status, seconds = line.split("\t")
        yield {"section": name, "exit": int(status), "seconds": int(seconds)}


def write(given):
    sections = list(sections_of(given.sections))
    lines = [json.loads(line) for line in given.lines.read_text().splitlines()]
    for section in sections:
        # A section that judged its lines says 1 where one does not hold; anything else went wrong on the way.
        judged = any(line["section"] == section["section"] and line["holds"] is False for line in lines)
        if section["exit"] in TIMED_OUT or (section["exit"] != 0 and not judged):
            ended = "it ran out of time" if section["exit"] in TIMED_OUT else f"exit {section['exit']}"
            line = {"name": "the section's end", "value": ended, "unit": "", "line": "all of it is run", "holds": False}
            lines.append({"section": section["section"], **line})
    now = datetime.datetime.now(datetime.UTC)
    run = {"date": f"{now:%Y-%m-%d}", "rehearsal": bool(given.rehearse), **json.loads(given.about.read_text())}
    run |= {**machine(given.rehearse), "versions": versions(), "sections": sections, "lines": lines}
    save(given.place.parent, run, given.place.name)


def join(given):
    runs = [json.loads(file.read_text()) for file in given.files]
    whole = dict(runs[-1])
    whole["sections"], whole["lines"] = [], []
    for key in ("commit", "gpu"):
        if len({run[key] for run in runs}) > 1:
            raise SystemExit(f"table.py: these runs have not the same {key}")
    for number, run in enumerate(runs):
        later = {section["section"] for other in runs[number + 1 :] for section in other["sections"]}
        whole["sections"] += [section for section in run["sections"] if section["section"] not in later]
        whole["lines"] += [line for line in run["lines"] if line["section"] not in later]
    save(given.folder, whole, f"run-{whole['date']}")


def save(folder, run, name):
    results = pathlib.Path(__file__).resolve().parents[1] / "results"
    if run["rehearsal"] and folder.resolve().is_relative_to(results):
        raise SystemExit("table.py: figures of a rehearsal are no results")
    (folder / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(run))
    judged = [line["holds"] for line in run["lines"] if line["holds"] is not None]
    print(f"\n{folder / name}.md: {sum(judged)} lines hold, {len(judged) - sum(judged)} do not")
    for line in (line for line in run["lines"] if line["holds"] is False):
        print(f"  {line['section']}: {line['name']}: {line['value']} {line['unit']}, to reach: {line['line']}")


def markdown(run):
    title = "# A rehearsal on the fake driver: no figure here means anything" if run["rehearsal"] else f"# {run['gpu']}"
    packages = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    where = f"commit {run['commit']}, CUDA {run['cuda']}, {run['processors']} processors"
    text = [title, "", f"`benches/gpu/run`, {run['date']}, {where}.", f"{packages}; rustc {run['rustc']}, nvcc {run['nvcc']}.", ""]
    for section in run["sections"]:
        text += [f"## {section['section']} ({section['seconds']} s)", ""]
        text += ["| what | value | to reach | holds |", "| --- | --- | --- | --- |"]
        for line in (line for line in run["lines"] if line["section"] == section["section"]):
            holds = {None: "", True: "yes", False: "**no**"}[line["holds"]]
            cells = [line["name"], f"{line['value']} {line['unit']}".strip(), line["line"] or "", holds]
            text.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        text.append("")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    writing = commands.add_parser("write")
    writing.add_argument("place", type=pathlib.Path)
    for name in ("lines", "sections", "about"):
        writing.add_argument(f"--{name}", type=pathlib.Path, required=True)
    writing.add_argument("--rehearse")
    writing.set_defaults(do=write)
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=pathlib.Path)
    joining.add_argument("files", type=pathlib.Path, nargs="+")
    joining.set_defaults(do=join)
    given = parser.parse_args()
    given.do(given)


main()
