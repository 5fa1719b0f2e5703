"""Blue's p99 through the load of a green version of several GB, with blue at 60 % of what it can do: against its steady p99, at
each setting of the throttle. Packages: numpy.
"""

from server import Server, model_folder
from told import Section
from weights import LARGE, large

# The settings of `model.toml`'s `[rollout] throttle` to run with; None leaves the key away. Today's server has no such key: once
# it has, list here what it takes, as it is written in TOML, for example '"4GB/s"'.
THROTTLE_KEY = "throttle"
THROTTLES = (None,)


def main():
    section = Section("beside")
    versions, _ = large(section)
    rate = None
    for throttle in THROTTLES:
        with section.part(f"throttle {throttle}"):
            rate = setting(section, versions, throttle, rate)
    section.end()


def setting(section, versions, throttle, rate):
    """One run; the rate at which blue was asked, so that all settings are run at the same."""
    named = "as it is by default" if throttle is None else f"throttle {throttle}"
    toml = LARGE + ("" if throttle is None else f"[rollout]\n{THROTTLE_KEY} = {throttle}\n")
    models = section.work / "models"
    model_folder(models, "large", toml, versions)
    with Server(section, models) as server:
        # So that digests are known: what is measured is the load.
        server.switch("large@b")
        server.switch("large@a")
        if section.fake:
            pace = ("--rate", "5", "--steady", "1s", "--corpus", "16")
        else:
            pace = ("--rate", rate, "--steady", "20s") if rate else ("--load", "60%", "--steady", "20s")
        told = server.bench(
            "swap", "--model", "large", "--versions", "a,b", "--switches", section.of(60, 2), "--hold", "100ms",
            "--pause", "1s", "--limit", "3m", *pace,
        )  # fmt: skip
        tell(section, named, told)
        loads = [r["figures"] for r in server.rollouts("large") if "load_ms" in r["figures"]]
        section.figure(f"{named}: green loaded at", loads[0]["loaded_bytes"] / loads[0]["load_ms"] / 1e6, "GB/s")
        return told["rate"]


def tell(section, named, told):
    section.figure(f"{named}: requests a second", told["rate"])
    section.same(f"{named}: requests that failed", told["requests"] - told["audit"]["answers"], 0)
    steady = told["steady"]["p99_ms"]
    section.figure(f"{named}: p99, steady", steady, "ms")
    for phase in told["phases"]:
        latency = phase["latency"]
        if latency["p99_ms"] is None or latency["requests"] < 100:
            section.figure(f"{named}: requests in {phase['phase']}, too few to judge", latency["requests"])
            continue
        ratio = latency["p99_ms"] / steady
        what = f"{named}: p99 in {phase['phase']} over steady ({latency['requests']} requests)"
        section.timing(what, ratio, 1.10, "") if phase["phase"] == "loading" else section.figure(what, ratio)
    section.timing(f"{named}: p99 from promote to its answer over steady", told["p99_over_steady"]["takeovers"], 1.10, "")


main()
