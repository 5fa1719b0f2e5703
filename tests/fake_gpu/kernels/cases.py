"""What each kernel is given, and what must come out.

An op is a function `(kernels, dtype, random)` that yields `(kernel, case, got, want)`. References are plain numpy in double
precision, of inputs as they are stored.
"""

import numpy as np

from library import changed, given, output, widen

WIDTHS = (1, 31, 384, 768, 1000)
# beyond what a warp holds in registers, with and without 16-byte accesses
WIDE = (1024, 1032, 1029, 3072)
OPS = {}


def op(function):
    OPS[function.__name__] = function
    return function


def limit(name, of_dtype):
    """What is allowed of a kernel: of its element type, but f32 where it rounds to nothing less."""
    return of_dtype


def ceil(a, b):
    return -(-a // b)


def read(buffer):
    return widen(buffer.dtype, buffer.values)


# --- rows


def normalized(x, gamma, beta, eps):
    x, gamma, beta = x.astype(np.float64), read(gamma), read(beta)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * gamma + beta


def norm_inputs(random, dtype, width, shift=False):
    return [given(dtype, random.normal(size=width) + mean, shift) for mean in (1, 0)]


@op
def layer_norm(kernels, dtype, random):
    name, summed = f"layer_norm_{dtype}", f"add_layer_norm_{dtype}"
    for width in WIDTHS + WIDE:
        for rows, shift in ((0, False), (1, False), (7, False), (5, True)):
            eps = float(random.choice([1e-12, 1e-5]))
            gamma, beta = norm_inputs(random, dtype, width, shift and width % 2 == 0)
            x, residual = (given(dtype, random.normal(size=(rows, width)) * 3 + mean, shift) for mean in (8, -2))
            case = f"{rows} x {width}{', not aligned' if shift else ''}"
            grid = (ceil(rows, 4),)
            out = output(dtype, (rows, width), shift)
            kernels.launch(name, grid, 128, x, rows, width, gamma, beta, eps, out)
            yield name, case, out.read(), normalized(read(x), gamma, beta, eps)
            total = read(x) + read(residual)
            for keep in (False, True):
                out = output(dtype, (rows, width), shift)
                kept = output(dtype, (rows, width), shift) if keep else None
                kernels.launch(summed, grid, 128, x, residual, rows, width, gamma, beta, eps, kept, out)
                yield summed, case, out.read(), normalized(total, gamma, beta, eps)
                if keep:
                    yield summed, case + ", sum", kept.read(), total
    # written where it was read
    for width in (384, 1000, 1032, 1029):
        gamma, beta = norm_inputs(random, dtype, width)
        x, residual = (changed(dtype, random.normal(size=(6, width))) for _ in range(2))
        first, second = read(x), read(residual)
        kernels.launch(summed, (2,), 128, x, residual, 6, width, gamma, beta, 1e-5, x, residual)
        yield summed, f"{width}, in place", x.read(), first + second
        yield summed, f"{width}, in place", residual.read(), normalized(first + second, gamma, beta, 1e-5)
        x = changed(dtype, first)
        kernels.launch(name, (2,), 128, x, 6, width, gamma, beta, 1e-5, x)
        yield name, f"{width}, in place", x.read(), normalized(first, gamma, beta, 1e-5)
