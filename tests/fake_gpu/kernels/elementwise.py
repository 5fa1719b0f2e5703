"""What kernels are given that go over values which have nothing to do with each other, and what must come out: see cases.py."""

import math

import numpy as np

from grid import TAILS, VECTORS, WIDTHS, op, read
from library import changed, given, narrow, output, widen

def exact(kind, x):
    with np.errstate(over="ignore", invalid="ignore"):
        sigmoid = lambda y: 1 / (1 + np.exp(-y))
        return [
            lambda: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))),
            lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            lambda: x * sigmoid(1.702 * x),
            lambda: np.where(x < 0, 0, x),
            lambda: x * sigmoid(x),
            lambda: np.tanh(x),
            lambda: sigmoid(x),
            lambda: x,
        ][kind]()


def some_values(random, shape):
    """Where activations bend, where they are flat, and where `exp` would be infinite; what is no number first."""
    values = random.normal(size=shape) * 4
    flat = values.reshape(-1)
    flat[1::97] *= 30
    if flat.size > 4:
        flat[:5] = np.nan, 0, -200, np.inf, -np.inf
    return values


@op
def activate(kernels, dtype, random):
    name, biased = f"activate_{dtype}", f"bias_activate_{dtype}"
    for kind in range(8):
        for count, shift, blocks in ((0, False, 1), (1, False, 1), (4999, False, 3), (8192, False, 2), (515, True, 1)):
            x = changed(dtype, some_values(random, count), shift)
            before = read(x)
            kernels.launch(name, (blocks,), 256, x, count, kind)
            yield name, f"kind {kind}, {count}", x.read(), exact(kind, before)
        for width in WIDTHS + (3072,):
            for rows, shift, blocks in ((0, False, 0), (1, False, 1), (11, False, 2), (5, True, 3)):
                x = changed(dtype, some_values(random, (rows, width)), shift)
                bias = given(dtype, random.normal(size=width), shift)
                before = read(x) + read(bias)
                kernels.launch(biased, (blocks,), 256, x, bias, rows, width, kind)
                yield biased, f"kind {kind}, {rows} x {width}", x.read(), exact(kind, before)
    for count in TAILS:
        for shift in (False, True):
            x = changed(dtype, some_values(random, count), shift)
            before = read(x)
            kernels.launch(name, (2,), 256, x, count, 0)
            yield name, f"a tail, {count}", x.read(), exact(0, before)
    # rows of few vectors, of which a step of the grid passes many; either of the two not aligned; rows of nothing
    for width in (0, 2, 3, 5, 6, 7, 9, 15) + VECTORS:
        for x_shift, bias_shift in ((False, False), (True, False), (False, True)):
            rows = 1 + 5000 // max(width, 1)
            x = changed(dtype, some_values(random, (rows, width)), x_shift)
            bias = given(dtype, random.normal(size=width), bias_shift)
            before = read(x) + read(bias)
            kernels.launch(biased, (2,), 256, x, bias, rows, width, 1)
            yield biased, f"{rows} x {width}, not aligned: {x_shift}, {bias_shift}", x.read(), exact(1, before)


def every(dtype):
    """Every value of a format of 16 bits."""
    bits = np.arange(2**16, dtype=np.uint16)
    return widen(dtype, bits.view(np.float16) if dtype == "f16" else bits)


def as_cast(x, target):
    with np.errstate(over="ignore", invalid="ignore"):
        single = read(x).astype(np.float32)  # as the kernel reads it
    return widen(target, narrow(target, single))


@op
def cast(kernels, dtype, random):
    pairs = [(dtype, other) for other in ("f32", "f16", "bf16") if other != dtype]
    for source, target in pairs + ([("f64", "f32")] if dtype == "f32" else []):
        name = f"cast_{source}_{target}"
        for count, shift, blocks in ((0, False, 1), (1, False, 1), (70001, False, 3), (4096, False, 1), (33, True, 2)):
            values = random.normal(size=count) * 10.0 ** random.integers(-12, 12, count)
            special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 65519.9, 65520.0, 6e-8, 2.9e-8, 6.1e-5, 1 + 2**-11, 1 + 3 * 2**-11]
            values[: len(special)] = special[:count]
            x, out = given(source, values, shift), output(target, (count,), shift)
            kernels.launch(name, (blocks,), 256, x, count, out)
            yield name, f"{count}", out.read(), as_cast(x, target)
        for count in TAILS:
            for x_shift, out_shift in ((False, False), (True, False), (False, True)):
                x, out = given(source, random.normal(size=count), x_shift), output(target, (count,), out_shift)
                kernels.launch(name, (1,), 256, x, count, out)
                yield name, f"a tail, {count}, not aligned: {x_shift}, {out_shift}", out.read(), as_cast(x, target)
        if source in ("f16", "bf16"):
            x, out = given(source, every(source)), output(target, (2**16,))
            kernels.launch(name, (3,), 256, x, 2**16, out)
            yield name, "every value there is", out.read(), as_cast(x, target)


@op
def finite(kernels, dtype, random):
    name, copying = f"finite_{dtype}", f"land_{dtype}"
    largest = {"f32": 3.4e38, "f16": 65504.0, "bf16": 3.38e38}[dtype]
    for count, shift, blocks in ((0, False, 1), (1, False, 1), (700, False, 1), (70001, False, 9), (33, True, 2)):
        for bad in (None, np.nan, np.inf, -np.inf):
            # anywhere: the first, the last, one between
            for at in {0, count - 1, count // 3} if bad is not None and count > 0 else {0}:
                values = random.normal(size=count)
                values[1:3] = (largest, -largest)[: max(count - 1, 0)]
                if bad is not None and count > 0:
                    values[at] = bad
                x, flags = given(dtype, values, shift), changed("u32", np.array([1, 0xFFFFFFFF]))
                kernels.launch(name, (blocks,), 256, x, count, flags, 4)
                found = bad is not None and count > 0
                case = f"{count}, {bad} at {at}"
                yield name, case, flags.read(), np.array([5 if found else 1, 0xFFFFFFFF], dtype=np.float64)
                # a word for each warp, of which one has seen it; both sides of the copy as they may lie
                for shifted in (shift, not shift):
                    out, words = output(dtype, (count,), shifted), output("u32", (blocks * 8,))
                    kernels.launch(copying, (blocks,), 256, x, count, out, words)
                    yield copying, case, out.read(), read(x)
                    said = words.read()
                    yield copying, case + ", words", np.array([said.sum(), said.max()]), np.array([1.0, 1.0]) * found


    # the one that is bad at every place of every tail
    for count in TAILS:
        for at in range(count):
            values = random.normal(size=count)
            values[at] = (np.nan, np.inf, -np.inf)[at % 3]
            x, flags = given(dtype, values), changed("u32", np.zeros(1))
            kernels.launch(name, (1,), 256, x, count, flags, 1)
            yield name, f"a tail, {count}, at {at}", flags.read(), np.array([1.0])
            out, words = output(dtype, (count,)), output("u32", (8,))
            kernels.launch(copying, (1,), 256, x, count, out, words)
            yield copying, f"a tail, {count}, at {at}", out.read(), read(x)
            yield copying, f"a tail, {count}, at {at}, words", words.read().sum(keepdims=True), np.array([1.0])
    if dtype != "f32":
        numbers = every(dtype)[np.isfinite(every(dtype))]
        x, flags = given(dtype, numbers), changed("u32", np.zeros(1))
        kernels.launch(name, (9,), 256, x, len(numbers), flags, 1)
        yield name, "every number there is", flags.read(), np.array([0.0])
        out, words = output(dtype, numbers.shape), output("u32", (9 * 8,))
        kernels.launch(copying, (9,), 256, x, len(numbers), out, words)
        yield copying, "every number there is", out.read(), numbers
        yield copying, "every number there is, words", words.read(), np.zeros(9 * 8)
