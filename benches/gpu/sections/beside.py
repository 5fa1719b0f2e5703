"""Blue's p99 through the load of a green version of several GB, with blue at 60 % of what it can do: against its steady p99, at
each setting of the throttle. Packages: numpy.
"""

from server import Server, model_folder
from told import Section
from weights import LARGE, large

# What model.toml's `[rollout] throttle` is set to, in turn. None leaves the key away: that setting is judged, the others are told.
KEY = "throttle"
SETTINGS = (None, '"none"', '"2GB/s"', '"8GB/s"', '"16GB/s"')
# Requests in a phase below which its p99 says nothing.
ENOUGH = 500


def main():
    section = Section("beside")
    versions, _ = large(section)
    rate = None
    for setting in section.of(SETTINGS, SETTINGS[:2]):
        with section.part(named(setting)):
            rate = run(section, versions, setting, rate)
    section.end()


def named(setting):
    return "by default" if setting is None else f"{KEY} = {setting}"


def run(section, versions, setting, rate):
    """The rate at which blue was asked, so that every setting is run at the same."""
    toml = LARGE + ("" if setting is None else f"[rollout]\n{KEY} = {setting}\n")
    models = section.work / "models"
    model_folder(models, "large", toml, versions)
    with Server(section, models) as server:
        # Digests become known: what is measured is the load.
        server.switch("large@b")
        server.switch("large@a")
        if section.fake:
            pace = ("--rate", "5", "--steady", "1s", "--corpus", "16")
        else:
            pace = ("--rate", rate, "--steady", "8s") if rate else ("--load", "60%", "--steady", "8s")
        told = server.bench(
            "swap", "--model", "large", "--versions", "a,b", "--switches", section.of(40, 2), "--hold", "100ms",
            "--pause", "800ms", "--limit", "50s", *pace,
        )  # fmt: skip
        tell(section, setting, told)
        loads = [cycle["figures"] for cycle in told["cycles"] if "load_ms" in cycle["figures"]]
        rates = sorted(load["loaded_bytes"] / load["weights_ms"] / 1e6 for load in loads)
        section.figure(f"{named(setting)}: green loaded at, in the middle", rates[len(rates) // 2], "GB/s")
        section.figure(f"{named(setting)}: loads that gave way", sum(load.get("load_eased", 0) > 0 for load in loads))
        return told["rate"]


def tell(section, setting, told):
    name = named(setting)
    section.figure(f"{name}: requests a second", told["rate"])
    section.figure(f"{name}: switches", told["switches"])
    section.same(f"{name}: requests that failed", told["requests"] - told["audit"]["answers"], 0)
    steady = told["steady"]["p99_ms"]
    section.figure(f"{name}: p99, steady", steady, "ms")
    judge = section.figure if setting is not None else lambda what, ratio: section.timing(what, ratio, 1.10, "")
    for phase in told["phases"]:
        latency = phase["latency"]
        if latency["requests"] < ENOUGH:
            section.figure(f"{name}: requests in {phase['phase']}, too few to judge", latency["requests"])
            continue
        tell_ratio = judge if phase["phase"] == "loading" else section.figure
        tell_ratio(f"{name}: p99 in {phase['phase']} over steady ({latency['requests']} requests)", latency["p99_ms"] / steady)
    judge(f"{name}: p99 from promote to its answer over steady", told["p99_over_steady"]["takeovers"])


main()
