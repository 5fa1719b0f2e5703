"""Holds every kernel against a reference in double precision: `check.py LIBRARY [--device FATBINS] [OP …]`.

LIBRARY is what `build` beside this file makes; with `--device` the kernels of a folder of fatbins run on a GPU instead. Prints the largest error of each kernel over all of its cases, relative to
each value and to the root of the case's mean square, and fails beyond 1e-5 for f32, 2e-3 for f16 and 1.5e-2 for bf16, on a
result that is not finite, and when a kernel of the library was not run. Every case is run with the threads of a block
taking turns in three orders. Packages: requirements.txt beside it.
"""

import argparse
import faulthandler
import sys
import time

import numpy as np

import cases
from device import DeviceKernels
from library import CpuKernels

LIMITS = {"f32": 1e-5, "f16": 2e-3, "bf16": 1.5e-2}
ORDERS = (0, 1, 12345)  # first to last, last to first, shuffled


def error_of(got, want):
    """The largest difference, relative to the value and the root mean square of all; infinite where one is not finite."""
    assert got.shape == want.shape, f"{got.shape} values where {want.shape} are expected"
    if got.size == 0:
        return 0.0
    # what is to be NaN or infinite must be just that, everything else finite
    strange = ~np.isfinite(want)
    if not np.array_equal(got[strange], want[strange], equal_nan=True) or not np.isfinite(got[~strange]).all():
        return np.inf
    got, want = got[~strange], want[~strange]
    if got.size == 0:
        return 0.0
    scale = np.abs(want) + np.sqrt(np.mean(want * want))
    difference = np.abs(got - want)
    return float(np.max(np.divide(difference, scale, out=np.where(difference > 0, np.inf, 0.0), where=scale > 0)))


def arguments():
    parser = argparse.ArgumentParser(description="Holds every kernel against a reference in double precision.")
    parser.add_argument("library", help="libcutover_kernels_cpu.so, which `build` makes")
    parser.add_argument("--device", metavar="FATBINS", help="run what kernels/build made, on a GPU")
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"only these of {', '.join(cases.OPS)}")
    return parser.parse_args()


def run(kernels, op, dtype):
    """For each kernel of an op: how many cases, the largest error, and which case's."""
    worst = {}
    for order in ORDERS if isinstance(kernels, CpuKernels) else ORDERS[:1]:
        kernels.order_threads(order)
        for name, case, got, want in cases.OPS[op](kernels, dtype, np.random.default_rng(7)):
            count, error, of = worst.get(name, (0, -1.0, None))
            this = error_of(got, want)
            worst[name] = (count + 1, this, case) if not this <= error else (count + 1, error, of)
    return worst


def main():
    faulthandler.enable()
    given = arguments()
    kernels = DeviceKernels(given.library, given.device) if given.device else CpuKernels(given.library)
    print(f"on {kernels.device}")
    print(f"{'kernel':28} {'cases':>6} {'error':>9} {'limit':>9} {'seconds':>8}")
    failed = set()
    for op, dtype in [(op, dtype) for op in given.ops or cases.OPS for dtype in LIMITS]:
        began = time.time()
        worst = run(kernels, op, dtype)
        seconds = (time.time() - began) / max(len(worst), 1)
        for name, (count, error, case) in worst.items():
            limit = cases.limit(name, LIMITS[dtype])
            said = ""
            if not error <= limit:
                failed.add(name)
                said = f"  FAILED: {case}"
            print(f"{name:28} {count:6} {error:9.1e} {limit:9.1e} {seconds:8.1f}{said}", flush=True)
    if not given.ops:
        missed = kernels.params.keys() - kernels.launched
        failed |= missed
        for name in sorted(missed):
            print(f"{name} was not run")
    print(f"{len(kernels.launched | failed) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
