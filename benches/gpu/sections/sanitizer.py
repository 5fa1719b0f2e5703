"""compute-sanitizer over the kernels: memcheck, racecheck and initcheck over all cases of every kernel
(tests/fake_gpu/kernels/check.py), and over tests of models (tests/gpu): every fixture in every format, and recorded steps of
decoders. Where the machine has no compute-sanitizer, or does not let it run, that is what is told. Packages: numpy.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

from told import Section

# Where the toolkit has it when it is not on the path.
SANITIZER = shutil.which("compute-sanitizer", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")
TOOLS = ("memcheck", "racecheck", "initcheck")
# Seconds of the section: whatever has not ended by then is told as that.
ALL = 450
# Where one tool takes longer than its share, the next ones still have theirs.
SHARE = 110
MODELS = "encoders::every_fixture_gives_the_reference_outputs_in_every_format"
RECORDED = "decoders::recorded::a_recorded_step_tells_what_the_same_step_does_op_by_op"
REHEARSED = ("finite",)
# How each tool begins what it found: no summary comes of a run that was ended.
FINDING = re.compile(r"^========= (?:Invalid|Uninitialized|Error|Program hit|(?:Error: |Warning: )?Race|Potential)", re.M)
# Exit code of compute-sanitizer where it found something, so that it is none of the program's own.
FOUND = 86


def grid(section, ops):
    folder = section.bundle
    check = folder / "tests/fake_gpu/kernels/check.py"
    return [sys.executable, check, folder / "lib/libcutover_kernels_cpu.so", *ops, "--device", folder / "kernels"]


def under(section, tool, command, seconds):
    """Exit code and what was said; no code where it ran out of time. In a rehearsal the command runs by itself."""
    before = [SANITIZER, "--tool", tool, "--target-processes", "all", "--error-exitcode", str(FOUND)]
    command = [*([] if section.fake else before), *command]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    # In a session of its own: what it started has to end with it.
    run = subprocess.Popen(command, env=section.environment(), cwd=section.bundle, start_new_session=True, **pipes)
    try:
        said, _ = run.communicate(timeout=seconds)
        return run.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        said, _ = run.communicate()
        return None, said


def cannot(section):
    """Why it cannot be used here; nothing where it can."""
    if section.fake:
        return None
    if not SANITIZER:
        return "there is no compute-sanitizer"
    code, said = under(section, "memcheck", grid(section, ("finite",)), 120)
    if code == 0:
        return None
    complaint = re.search(r"=========.*(?:not supported|[Ee]rror:|Unable|denied).*", said)
    return (complaint[0] if complaint else f"exit {code}: {said[-300:]}").strip("= ")


def judged(section, tool, what, code, said):
    print(said[-3000:], flush=True)
    named = f"{tool}, {what}"
    # A line for each process: "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (…)".
    found = [int(count) for count in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", said)]
    if section.fake:
        section.same(f"{what}, without {tool}: exit code", code, 0)
    elif code is None:
        section.same(f"{named}: findings until its share of the time was over", len(FINDING.findall(said)), 0)
    elif not found:
        section.write(f"{named}: findings", f"it gave no summary, exit {code}", line="0", holds=False)
    else:
        section.same(f"{named}: findings", sum(found), 0)
        section.same(f"{named}: its exit code", code, 0)


def main():
    section = Section("sanitizer")
    began = time.monotonic()
    reason = cannot(section)
    if reason:
        section.figure("compute-sanitizer: not run", reason)
        section.end()
    def test(named):
        return [section.bundle / "bin/gpu-tests", "--exact", named, "--test-threads", "1", "--nocapture"]

    works = [(tool, "the kernels' cases", grid(section, section.of((), REHEARSED))) for tool in TOOLS]
    # Not initcheck: what looks products up reads memory that nobody has written, and what comes of it is used by nobody.
    works += [(tool, "recorded steps", test(RECORDED)) for tool in section.of(TOOLS[:2], TOOLS[:1])]
    works += [(tool, "models of every fixture", test(MODELS)) for tool in section.of(TOOLS, TOOLS[:1])]
    for tool, what, command in works:
        left = ALL - (time.monotonic() - began)
        if left < 5:
            section.figure(f"{tool}, {what}: no time was left for it", "-")
            continue
        with section.part(f"{tool}, {what}"):
            judged(section, tool, what, *under(section, tool, command, min(SHARE, left)))
    section.end()


main()
