"""Holds every kernel against a reference in double precision: `check.py LIBRARY [OP …]`.

LIBRARY is what `build` beside this file makes. Prints the largest error of each kernel over all of its cases, relative to
each value and to the root of the case's mean square, and fails beyond 1e-5 for f32, 2e-3 for f16 and 1.5e-2 for bf16, on a
result that is not finite, and when a kernel of the library was not run. Every case is run with the threads of a block
taking turns in three orders. Packages: requirements.txt beside it.
"""

import faulthandler
import sys
import time

import numpy as np

import cases
from library import Kernels

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


def main():
    faulthandler.enable()
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    kernels = Kernels(sys.argv[1])
    wanted = sys.argv[2:] or list(cases.OPS)
    failed = []
    print(f"{'kernel':28} {'cases':>6} {'error':>9} {'limit':>9} {'seconds':>8}")
    for op in wanted:
        for dtype in LIMITS:
            # the name of a kernel -> (cases, worst error, of which case)
            worst, began = {}, time.time()
            for order in ORDERS:
                kernels.order_threads(order)
                for name, case, got, want in cases.OPS[op](kernels, dtype, np.random.default_rng(7)):
                    count, error, of = worst.get(name, (0, -1.0, None))
                    this = error_of(got, want)
                    worst[name] = (count + 1, *max((error, of), (this, case), key=lambda pair: pair[0]))
            seconds = (time.time() - began) / max(len(worst), 1)
            for name, (count, error, of) in worst.items():
                limit = cases.limit(name, LIMITS[dtype])
                bad = not error <= limit
                print(f"{name:28} {count:6} {error:9.1e} {limit:9.1e} {seconds:8.1f}{f'  FAILED: {of}' if bad else ''}", flush=True)
                if bad:
                    failed.append(name)
    if not sys.argv[2:]:
        failed += [f"{name} (not run)" for name in kernels.params if name not in kernels.launched]
    print(f"{len(kernels.launched) - len(failed)} passed, {len(failed)} failed" if not failed else f"failed: {', '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
