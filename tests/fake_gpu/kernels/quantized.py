"""What the kernels of quantised weights are given, and what must come out: see cases.py.

Blocks are those of a file, of random levels and scales; what they mean is said here a second time, in f32, as
src/ops/quantized/format.rs has it. Where they lie on a device (kernels/quantized.cuh) is said here by the table there.
"""

import numpy as np

from grid import ceil, op, read
from library import changed, given, output

PANEL = 16
# Weights of a block, bytes of it, where its f16 are and how large they may be.
FORMATS = {
    "q4_0": (32, 18, (0,), 0.2), "q4_1": (32, 20, (0, 2), 0.2), "q8_0": (32, 34, (0,), 0.01),
    "q4_k": (256, 144, (0, 2), 0.004), "q6_k": (256, 210, (208,), 0.0005),
}  # fmt: skip


def random_blocks(name, random, count):
    """`[count, bytes]` of a file."""
    _, size, scales, most = FORMATS[name]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        halves = random.uniform(-most, most, count).astype(np.float16)
        blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return blocks


def halves(blocks, at):
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def nibbles(of):
    return np.concatenate([of & 15, of >> 4], axis=1)


def six_bits(packed):
    """Scales and offsets of eight parts of Q4_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    offset = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale, offset


def levels_of(name, blocks):
    """`[count, weights]`, u8; of Q8_0 plus 128."""
    if name in ("q4_0", "q4_1"):
        return nibbles(blocks[:, 2 if name == "q4_0" else 4 :])
    if name == "q8_0":
        return blocks[:, 2:] ^ 0x80
    if name == "q4_k":
        return np.concatenate([nibbles(blocks[:, 16 + 32 * i : 48 + 32 * i]) for i in range(4)], axis=1)
    sides = []
    for side in range(2):
        low, high = blocks[:, 64 * side : 64 * side + 64], blocks[:, 128 + 32 * side : 160 + 32 * side]
        sides += [(low & 15)[:, :32] | (high & 3) << 4, (low & 15)[:, 32:] | (high >> 2 & 3) << 4]
        sides += [(low >> 4)[:, :32] | (high >> 4 & 3) << 4, (low >> 4)[:, 32:] | (high >> 6 & 3) << 4]
    return np.concatenate(sides, axis=1)


def dequantized(name, blocks):
    """`[count, weights]`, each operation rounded to f32."""
    levels, count = levels_of(name, blocks).astype(np.float32), len(blocks)
    if name == "q6_k":
        scales = halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
        return (scales[:, :, None] * (levels.reshape(count, 16, 16) - np.float32(32))).reshape(count, 256)
    if name == "q4_k":
        scales, offsets = (part.astype(np.float32) for part in six_bits(blocks[:, 4:16]))
        scales, offsets = halves(blocks, 0) * scales, halves(blocks, 2) * offsets
        return (scales[:, :, None] * levels.reshape(count, 8, 32) - offsets[:, :, None]).reshape(count, 256)
    if name == "q4_1":
        return halves(blocks, 0) * levels + halves(blocks, 2)
    return halves(blocks, 0) * (levels - np.float32(8 if name == "q4_0" else 128))


def words(of_rows):
    """Four bytes of each of sixteen rows side by side: `[units, 16, bytes]` to `[units, 16 · bytes]`."""
    units, rows, count = of_rows.shape
    return of_rows.reshape(units, rows, count // 4, 4).transpose(0, 2, 1, 3).reshape(units, -1)


def arranged(name, blocks, columns, each, past):
    """The bytes of a weight of `[columns, each]` blocks on a device; those of rows past the last are `past`."""
    weights, size, scales, _ = FORMATS[name]
    panels = ceil(columns, PANEL)
    by_row = np.full((panels * PANEL, each, size), past, np.uint8)
    by_row[:columns] = blocks.reshape(columns, each, size)
    units = by_row.reshape(panels, PANEL, each, size).transpose(0, 2, 1, 3).reshape(panels * each, PANEL, size)
    parts = [units[:, :, at : at + 2].reshape(len(units), -1) for at in scales]
    levels = levels_of(name, units.reshape(-1, size)).reshape(len(units), PANEL, weights // 32, 32)
    if name == "q4_k":
        parts.append(units[:, :, 4:16].transpose(0, 2, 1).reshape(len(units), -1))
    if name == "q6_k":
        parts.append(units[:, :, 192:208].transpose(0, 2, 1).reshape(len(units), -1))
    for i in range(weights // 32):
        of = levels[:, :, i]
        if name == "q8_0":
            parts.append(words(of))
            continue
        low = of & 15
        parts.append(words(low[:, :, :16] | low[:, :, 16:] << 4))
        if name == "q6_k":
            high = (of >> 4).reshape(len(units), PANEL, 4, 8)
            parts.append(words(high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6))
    return np.concatenate(parts, axis=1).reshape(-1)


class Weight:
    """A random one. Rows past the last have scales that are no numbers."""

    def __init__(self, name, random, columns, each):
        weights = FORMATS[name][0]
        self.columns, self.inner = columns, each * weights
        self.blocks = random_blocks(name, random, columns * each)
        self.memory = given("u8", arranged(name, self.blocks, columns, each, 0xFF))
        self.values = dequantized(name, self.blocks).reshape(columns, self.inner)


def of_each_format(function):
    """An op that goes through all formats."""

    def all_of_them(kernels, dtype, random):
        for name in FORMATS:
            yield from function(kernels, name, dtype, random)

    all_of_them.__name__ = function.__name__
    return op(all_of_them)


@of_each_format
def arrange(kernels, name, dtype, random):
    """Bytes, of no type."""
    if dtype != "f32":
        return
    size, kernel = FORMATS[name][1], f"arrange_{name}"
    for columns, each, cuts, grid in (
        (16, 1, (), 1), (1, 3, (), 2), (37, 2, (1, 5, 40), 1), (50, 5, (100,), 3), (33, 9, (), 40), (7, 1, (0, 7), 1),
    ):  # fmt: skip
        blocks = random_blocks(name, random, columns * each)
        # what rows past the last have was there before, and stays
        out = changed("u8", arranged(name, np.full_like(blocks, 0xA5), columns, each, 0xA5))
        flags = changed("u32", [2])
        ends = [*cuts, columns * each]
        for first, end in zip([0, *cuts], ends):
            blocks_grid = grid if end > first else 0
            kernels.launch(kernel, (blocks_grid,), 256, given("u8", blocks[first:end]), end - first, first, each, out, flags, 4)
        case = f"{columns} x {each} blocks in {len(ends)} pieces"
        yield kernel, case, out.read(), arranged(name, blocks, columns, each, 0xA5).astype(np.float64)
        yield kernel, case + ", all numbers", flags.read(), np.array([2.0])
    # whichever scale is none
    for at in FORMATS[name][2]:
        for strange in (np.nan, np.inf, -np.inf):
            for which in (0, 17, 39):
                blocks = random_blocks(name, random, 40)
                blocks[which, at : at + 2] = np.array([strange], np.float16).view(np.uint8)
                flags, out = changed("u32", [0]), output("u8", (48 * size,))
                kernels.launch(kernel, (1,), 256, given("u8", blocks), 40, 0, 1, out, flags, 8)
                yield kernel, f"{strange} at {at} of block {which}", flags.read(), np.array([8.0])


def rounded(dtype, values):
    """Once."""
    return read(given(dtype, values))


@of_each_format
def spell_out(kernels, name, dtype, random):
    kernel = f"spell_out_{name}_{dtype}"
    for columns, each, grid in ((16, 1, 1), (1, 3, 2), (37, 2, 1), (50, 5, 3), (33, 9, 40)):
        weight = Weight(name, random, columns, each)
        out = output(dtype, (columns, weight.inner))
        kernels.launch(kernel, (grid,), 256, weight.memory, columns, weight.inner, out)
        yield kernel, f"{columns} x {weight.inner}", out.read(), rounded(dtype, weight.values)


@of_each_format
def take_quantized_rows(kernels, name, dtype, random):
    kernel = f"take_rows_{name}_{dtype}"
    for columns, each in ((1, 1), (16, 3), (37, 2), (50, 7)):
        for rows in (0, 1, 9):
            numbers = random.integers(0, columns, rows)
            numbers[:1] = columns - 1
            weight = Weight(name, random, columns, each)
            out = output(dtype, (rows, weight.inner))
            kernels.launch(kernel, (rows,), 128, weight.memory, given("u32", numbers), weight.inner, out)
            yield kernel, f"{rows} of {columns} x {weight.inner}", out.read(), rounded(dtype, weight.values)[numbers]


@of_each_format
def quantized_rows(kernels, name, dtype, random):
    """Rows of products in columns of wider rows, whose others stay as they are."""
    sizes = (8,) if dtype == "f32" else (8, 32)
    few = FORMATS[name][0] == 256
    for rows, each, columns, bias, added, gap in (
        (1, 2, 16, False, False, 0), (8, 56, 48, True, True, 0), (3, 18, 40, False, True, 0), (7, 1, 17, True, False, 5),
        (2, 9, 33, True, True, 0), (5, 33, 5, False, False, 3), (9, 8, 16, False, False, 0), (12, 3, 31, False, True, 0),
        (16, 7, 64, True, True, 0), (32, 5, 20, False, True, 0), (25, 4, 16, True, False, 1), (0, 2, 16, False, False, 0),
    ):  # fmt: skip
        weight = Weight(name, random, columns, max(each // 8, 1) if few else each)
        # of a file's own size, so that f16 holds what comes out
        x = given(dtype, random.normal(size=(rows, weight.inner)) / weight.inner**0.5 * 10)
        of_bias = given(dtype, random.normal(size=columns)) if bias else None
        residual = given(dtype, random.normal(size=(rows, columns))) if added else None
        want = read(x) @ weight.values.astype(np.float64).T
        want = want + (read(of_bias) if bias else 0) + (read(residual) if added else 0)
        case = f"{rows} x {weight.inner} x {columns}, bias: {bias}, residual: {added}"
        blocks = ceil(rows, 8) if dtype == "f32" else 1
        for in_f32 in (0, 1):
            bits, result = [], "f32" if in_f32 else dtype
            for most in [most for most in sizes if rows <= most or dtype == "f32"]:
                kernel, got = f"rows_{most}_{name}_{dtype}", output(result, (rows, columns + gap))
                arguments = (x, rows, weight.inner, weight.memory, columns, of_bias, residual, got, columns + gap, in_f32)
                kernels.launch(kernel, (ceil(columns, PANEL), blocks), 256, *arguments)
                values = got.read()
                assert np.isnan(values[:, columns:]).all(), f"{kernel} wrote beyond its columns"
                yield kernel + (", in f32" if in_f32 and dtype != "f32" else ""), case, values[:, :columns], want
                bits.append(values[:, :columns])
            # each row by itself, and by whatever kernel, has the same bits
            kernel, alone = f"rows_8_{name}_{dtype}", []
            for row in range(rows):
                one, of_row = given(dtype, read(x)[row : row + 1]), output(result, (1, columns))
                beside = given(dtype, read(residual)[row : row + 1]) if added else None
                arguments = (one, 1, weight.inner, weight.memory, columns, of_bias, beside, of_row, columns, in_f32)
                kernels.launch(kernel, (ceil(columns, PANEL), 1), 256, *arguments)
                alone.append(of_row.read())
            differ = [(np.concatenate(alone) != got).sum() for got in bits if rows]
            yield kernel, case + ", other bits", np.array(differ), np.zeros(len(differ))
        if added:
            there, most = changed(dtype, read(residual)), sizes[-1]
            arguments = (x, rows, weight.inner, weight.memory, columns, of_bias, there, there, columns, 0)
            kernels.launch(f"rows_{most}_{name}_{dtype}", (ceil(columns, PANEL), blocks), 256, *arguments)
            yield f"rows_{most}_{name}_{dtype}", case + ", in place", there.read(), want
    # a row that is no number spoils no other
    weight, most = Weight(name, random, 20, 2), sizes[-1]
    values = random.normal(size=(11, weight.inner))
    values[1, 17] = np.nan
    x, got, kernel = given(dtype, values), output("f32", (11, 20)), f"rows_{most}_{name}_{dtype}"
    arguments = (x, 11, weight.inner, weight.memory, 20, None, None, got, 20, 1)
    kernels.launch(kernel, (2, 2 if dtype == "f32" else 1), 256, *arguments)
    yield kernel + ("" if dtype == "f32" else ", in f32"), "NaN", got.read(), read(x) @ weight.values.astype(np.float64).T
