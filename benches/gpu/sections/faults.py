"""Faults on purpose (`--allow-faults`): a green version that errs, panics, answers NaN or hangs. After the switch the window goes
back by itself while every request is answered 200; before it the gate refuses and blue never notices. A hang costs the process,
since nobody can stop a forward pass on a GPU, and the next start serves the version before. Packages: none.
"""

from server import Server, digits_folder, failures
from told import Section

# No verdict on timings; the window lasts until something ends it.
DIGITS = """
task = "image-classify"
live = "v1"
[gate]
max_latency_ratio = 1000.0
latency_rounds = 2
[observe]
window = "10m"
golden_every = "10m"
max_p99_ratio = 1000.0
"""


def fault(kind, at, rate=1.0):
    return f'[[faults]]\nversion = "digits@v2"\nkind = "{kind}"\nat = "{at}"\nrate = {rate}\n'


def served(section, models, config):
    return Server(section, models, config=config, faults=True)


def after_the_switch(section, models, kind, rule):
    with served(section, models, fault(kind, "serving", 0.3)) as server:
        with server.under_load("digits", section.of(16, 4), section.of(15, 12)) as found:
            rollout = server.promote("v2", observe="10m")["id"]
            ended = server.phase(rollout, "rolled_back")
        asked, failed = failures(found)
        section.same(f"{kind} while serving: ended", (ended["phase"], ended["kind"]), ("rolled_back", "instant"))
        section.same(f"{kind} while serving: the rule is in the reason", rule in ended["reason"], True)
        section.figure(f"{kind} while serving: requests", asked)
        section.same(f"{kind} while serving: requests that failed", failed, 0)
        section.same(f"{kind} while serving: live", server.live("digits"), "v1")


def before_the_switch(section, models, kind, at):
    what = f"{kind} in the {at}"
    with served(section, models, fault(kind, at)) as server:
        with server.under_load("digits", section.of(16, 4), section.of(5, 8)) as found:
            status, _, body = server.ask("POST", "/models/v2/promote", {"observe": "10m"})
        section.same(f"{what}: refused with", status, 422)
        section.figure(f"{what}: what it said", (body.get("error") or {}).get("message"))
        section.same(f"{what}: requests that failed", failures(found)[1], 0)
        section.same(f"{what}: live", server.live("digits"), "v1")


def hang(section, models):
    """A forward pass that never returns: the watchdog records it and ends the process."""
    config = '[device]\nstall_after = "2s"\n'
    image = (section.bundle / "models/digits/samples/7.png").read_bytes()
    with served(section, models, config + fault("hang", "serving")) as server:
        server.promote("v2", observe="10m")
        status, _, _ = server.ask("POST", "/models/digits/infer", image, kind="image/png")
        section.figure("hang while serving: its request was answered", status)
        section.same("hang while serving: the process's exit code", server.process.wait(60), 70)
        state = server.state
    with Server(section, models, state=state) as server:
        section.same("hang while serving: live after the next start", server.live("digits"), "v1")
        reason = server.rollouts("digits")[0]
        section.same("hang while serving: the rollout's end", reason["phase"], "rolled_back")
        section.figure("hang while serving: its reason", reason["reason"])


def hang_in_the_gate(section, models):
    """On a GPU the gate runs where everything runs: green's hang is found by the watchdog, and the next start knows only blue."""
    config = '[device]\nstall_after = "2s"\n'
    with served(section, models, config + fault("hang", "gate")) as server:
        server.promote("v2", expect=202, wait="none")
        section.same("hang in the gate: the process's exit code", server.process.wait(60), 70)
        state = server.state
    with Server(section, models, state=state) as server:
        section.same("hang in the gate: live after the next start", server.live("digits"), "v1")


def main():
    section = Section("faults")
    models = section.work / "models"
    digits_folder(section, models, DIGITS)
    for kind, rule in (("error", "error rate"), ("panic", "error rate"), ("non-finite", "non-finite")):
        with section.part(f"{kind} while serving"):
            after_the_switch(section, models, kind, rule)
    for kind, at in (("error", "load"), ("non-finite", "gate"), ("panic", "gate")):
        with section.part(f"{kind} in the {at}"):
            before_the_switch(section, models, kind, at)
    for name, part in (("hang while serving", hang), ("hang in the gate", hang_in_the_gate)):
        with section.part(name):
            part(section, models)
    section.end()


main()
