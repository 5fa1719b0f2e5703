"""What every section of `benches/gpu/run` shares: how it is called, and how its lines are written.

A line is {section, name, value, unit, line, holds}: `line` is what was to be reached and `holds` whether it was; both are null
where a figure is only told. Lines are written as they come, so that a section that dies later loses none. Where `--rehearse`
names the folder of a fake driver, everything is small and no figure means anything. It must not know what a section asks.
Packages: none.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import sys
import traceback


class Section:
    def __init__(self, name):
        parser = argparse.ArgumentParser()
        parser.add_argument("--bundle", type=pathlib.Path, required=True, help="what benches/gpu/bundle made")
        parser.add_argument("--lines", type=pathlib.Path, required=True, help="the file that lines are added to")
        parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for models and servers' states")
        parser.add_argument("--rehearse", type=pathlib.Path, metavar="FAKE", help="the folder of the fake driver")
        given = parser.parse_args()
        self.name, self.bundle, self.lines, self.fake = name, given.bundle.resolve(), given.lines, given.rehearse
        self.shared = given.work.resolve()
        self.work = self.shared / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.failed = False

    def of(self, real, rehearsed):
        """A size, by whether this is a rehearsal."""
        return rehearsed if self.fake else real

    def write(self, name, value, unit="", line=None, holds=None):
        value = float(f"{value:.7g}") if isinstance(value, float) else value
        told = {"section": self.name, "name": name, "value": value, "unit": unit, "line": line, "holds": holds}
        with self.lines.open("a") as file:
            file.write(json.dumps(told) + "\n")
        mark = {None: "", True: "  holds", False: "  DOES NOT HOLD"}[holds]
        aim = f" ({line})" if line else ""
        print(f"{self.name}: {name}: {value} {unit}{aim}{mark}", flush=True)
        self.failed |= holds is False

    def figure(self, name, value, unit=""):
        self.write(name, value, unit)

    def at_most(self, name, value, limit, unit="", why=None):
        aim = why or f"at most {limit} {unit}".strip()
        self.write(name, value, unit, aim, value is not None and value <= limit)

    def at_least(self, name, value, limit, unit="", why=None):
        aim = why or f"at least {limit} {unit}".strip()
        self.write(name, value, unit, aim, value is not None and value >= limit)

    def same(self, name, value, wanted, unit=""):
        self.write(name, value, unit, f"{wanted} {unit}".strip(), value == wanted)

    def timing(self, name, value, limit, unit, most=True):
        """A figure of speed: judged on a GPU only."""
        if self.fake:
            self.figure(name, value, unit)
        elif most:
            self.at_most(name, value, limit, unit)
        else:
            self.at_least(name, value, limit, unit)

    def torch(self):
        """PyTorch; or nothing in a rehearsal that has none, whose other half is rehearsed all the same."""
        if self.fake and importlib.util.find_spec("torch") is None:
            self.figure("PyTorch's side: not rehearsed, there is no torch here", "-")
            return None
        return importlib.import_module("torch")

    @contextlib.contextmanager
    def part(self, name):
        """A part that others do not rest on: where it breaks, a line says so and the next one is run."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.write(f"{name}: broke off", f"{type(error).__name__}: {error}"[:500], line="it is run to its end", holds=False)

    def environment(self):
        """Where programs find the driver and cuBLAS: the fake one's folder, or what came with PyTorch, if it came."""
        environment = dict(os.environ)
        folders = [self.fake.resolve()] if self.fake else libraries_of_torch()
        known = [environment["LD_LIBRARY_PATH"]] if environment.get("LD_LIBRARY_PATH") else []
        environment["LD_LIBRARY_PATH"] = ":".join([*map(str, folders), *known])
        environment["CARGO_MANIFEST_DIR"] = str(self.bundle)
        return environment

    def end(self):
        sys.exit(1 if self.failed else 0)


def libraries_of_torch():
    found = importlib.util.find_spec("nvidia")
    places = [pathlib.Path(place) for place in (found.submodule_search_locations or [])] if found else []
    return [folder for place in places for folder in sorted(place.glob("*/lib"))]
