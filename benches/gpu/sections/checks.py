"""Whether this machine's driver and GPU do what everything else was built on: every kernel against its reference in double
precision (tests/fake_gpu/kernels/check.py), and the driver's answers against those that the fake one gives
(tests/fake_gpu/driver/check). First of all sections: where this fails, no later figure means anything. Packages: numpy.
"""

import pathlib
import re
import subprocess
import sys

from told import Section

FORMATS = ("f32", "f16", "bf16")
# What is rehearsed: the fake driver runs kernels on the processor, slowly.
REHEARSED = ("cast", "finite")


def kernels(section):
    folder = section.bundle
    command = [sys.executable, folder / "tests/fake_gpu/kernels/check.py", folder / "lib/libcutover_kernels_cpu.so"]
    command += [*section.of((), REHEARSED), "--device", folder / "kernels"]
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment())
    print(run.stdout + run.stderr, flush=True)
    found = re.search(r"(\d+) passed, (\d+) failed", run.stdout)
    if not found:
        section.write("kernels were checked", 0, "kernels", "all of them", False)
        return
    section.figure("kernels within their tolerance", int(found[1]), "kernels")
    section.same("kernels beyond their tolerance, or not run", int(found[2]), 0, "kernels")
    rows = re.findall(r"^(\w+) +\d+ +(\S+) +(\S+) +\S+", run.stdout, re.M)
    for format in FORMATS:
        of = [(float(error), float(limit), name) for name, error, limit in rows if name.endswith(f"_{format}")]
        # What must be exact has no share: it is among the failed, or not.
        shares = [(error / limit, name) for error, limit, name in of if limit > 0]
        if shares:
            share, name = max(shares)
            section.at_most(f"{format}: the largest error over its limit ({name})", share, 1.0)


def driver(section):
    command = [sys.executable, section.bundle / "tests/fake_gpu/driver/check", "--device", *section.of((), ("fake",))]
    variables = section.environment()
    if section.fake:
        variables["LD_LIBRARY_PATH"] = str(fake_with_its_own_kernels(section))
    run = subprocess.run(command, capture_output=True, text=True, env=variables)
    print(run.stdout + run.stderr, flush=True)
    said = re.search(r"the vendor's driver says otherwise in: (.*)", run.stdout)
    section.same("where the driver answers otherwise than modelled", said[1] if said else "it could not be asked", "none")


def fake_with_its_own_kernels(section):
    """The fake driver has whatever kernels lie beside it: here those that its checks launch."""
    folder = section.work / "driver"
    folder.mkdir()
    for library in ("libcuda.so.1", "libcublasLt.so.13"):
        (folder / library).symlink_to(section.fake.resolve() / library)
    source = pathlib.Path(__file__).parents[3] / "tests/fake_gpu/driver/check_kernels.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(["g++", *flags, source, "-o", folder / "libcutover_kernels_cpu.so"], check=True)
    return folder


def main():
    section = Section("checks")
    with section.part("kernels"):
        kernels(section)
    with section.part("driver"):
        driver(section)
    section.end()


main()
