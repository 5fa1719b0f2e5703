"""What each kernel is given, and what must come out.

An op is a function `(kernels, dtype, random)` that yields `(kernel, case, got, want)`. References are plain numpy in double
precision, of inputs as they are stored. What no kernel may read is NaN: outputs before they are written, rows of tables that are
not asked for, rows past the last and columns between rows; past its end memory cannot be touched at all.
"""

import numpy as np

import decoder  # noqa: F401, ops of models that write
import quantized  # noqa: F401, ops of weights that stay quantised
import elementwise  # noqa: F401, ops of values that have nothing to do with each other
from grid import OPS, VECTORS, WIDE, WIDTHS, ceil, op, read
from library import changed, given, output


def limit(name, of_dtype):
    """What is allowed of a kernel: of its element type, but f32's where it rounds to nothing less."""
    if name.startswith(("cast_", "finite_", "land_", "take_rows_", "arrange_", "spell_out_")):
        return 0.0
    if "_to_f32_" in name or name.endswith(", in f32"):
        return 5e-5  # tensor cores cut off some of what they add up
    return 1e-5 if name.startswith(("pool_normalize_", "l2_normalize_")) else of_dtype


# --- rows


def normalized(x, gamma, beta, eps):
    x, gamma, beta = x.astype(np.float64), read(gamma), read(beta)
    with np.errstate(invalid="ignore"):
        centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * gamma + beta


def norm_inputs(random, dtype, width, shift=False):
    return [given(dtype, random.normal(size=width) + mean, shift) for mean in (1, 0)]


@op
def layer_norm(kernels, dtype, random):
    name, summed = f"layer_norm_{dtype}", f"add_layer_norm_{dtype}"
    for width in WIDTHS + WIDE + VECTORS:
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
    # rows that are no numbers, all 0, or far from 0 (where a single pass would cancel), and an ordinary one after each
    for width in (31, 384, 1024, 1032, 1029):
        values = random.normal(size=(9, width))
        values[0, width // 2], values[2, -1], values[4], values[6] = np.nan, np.inf, 0, values[6] * 8 + 250
        gamma, beta = norm_inputs(random, dtype, width)
        x, residual = given(dtype, values), given(dtype, random.normal(size=(9, width)) * (np.arange(9) != 4)[:, None])
        out, other = output(dtype, (9, width)), output(dtype, (9, width))
        kernels.launch(name, (3,), 128, x, 9, width, gamma, beta, 1e-5, out)
        kernels.launch(summed, (3,), 128, x, residual, 9, width, gamma, beta, 1e-5, None, other)
        yield name, f"{width}, strange rows", out.read(), normalized(read(x), gamma, beta, 1e-5)
        yield summed, f"{width}, strange rows", other.read(), normalized(read(x) + read(residual), gamma, beta, 1e-5)
    # one of all that is not aligned
    for off in range(6):
        width, moved = 384, [number == off for number in range(6)]
        x, residual = (given(dtype, random.normal(size=(5, width)), shift) for shift in moved[:2])
        gamma, beta = (given(dtype, random.normal(size=width), shift) for shift in moved[2:4])
        out, kept = (output(dtype, (5, width), shift) for shift in moved[4:])
        kernels.launch(summed, (2,), 128, x, residual, 5, width, gamma, beta, 1e-5, kept, out)
        total = read(x) + read(residual)
        yield summed, f"argument {off} not aligned", out.read(), normalized(total, gamma, beta, 1e-5)
        yield summed, f"argument {off} not aligned, sum", kept.read(), total
        out = output(dtype, (5, width), moved[4])
        kernels.launch(name, (2,), 128, x, 5, width, gamma, beta, 1e-5, out)
        yield name, f"argument {off} not aligned", out.read(), normalized(read(x), gamma, beta, 1e-5)
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


@op
def embed_tokens(kernels, dtype, random):
    name, sizes = f"embed_tokens_{dtype}", (50, 520, 3)
    for width in WIDTHS + WIDE + VECTORS:
        for tokens, typed, shift in (
            (0, True, ()), (1, False, ()), (9, True, ()), (8, True, ()), (6, False, (0, 1)), (5, True, (0, 1, 2)), (5, True, (2,)),
        ):
            index = np.stack([random.integers(0, rows, tokens) for rows in sizes])
            if tokens > 1:
                index[:, 0], index[:, -1] = 0, np.array(sizes) - 1  # the first and the last row of each
            values = [random.normal(size=(rows, width)) for rows in sizes]
            for table, rows in zip(values, index):
                table[np.setdiff1d(np.arange(len(table)), rows)] = np.nan
            tables = [given(dtype, table, number in shift) for number, table in enumerate(values)]
            if not typed:
                index[2] = 2**31  # not to be read
            gamma, beta = norm_inputs(random, dtype, width)
            types = tables[2] if typed else None
            memory = given("u32", index)
            total = sum(read(table)[rows] for table, rows in list(zip(tables, index))[: 3 if typed else 2])
            want = normalized(total, gamma, beta, 1e-12)
            # two rows share a warp where a width is an odd number of half a warp's vectors; blocks to spare do nothing
            half = 16 * (4 if dtype == "f32" else 8)
            shared = width <= 512 and width % half == 0 and width // half % 2 == 1
            for blocks in {ceil(tokens, 8 if shared else 4), ceil(tokens, 4)}:
                out = output(dtype, (tokens, width))
                kernels.launch(name, (blocks,), 128, memory, tokens, width, *tables[:2], types, gamma, beta, 1e-12, out)
                yield name, f"{tokens} x {width} by {blocks} blocks, not aligned: {shift}", out.read(), want


# --- sequences

LENGTHS = ((1,), (3,), (17, 1, 64), (600, 2), (1, 0, 5), (0, 4), (), (15, 16, 31, 33), (63, 65, 130))


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)


def pooled(x, offsets, kind):
    rows = [x[a:b] for a, b in zip(offsets[:-1], offsets[1:])]
    how = [lambda r: r.mean(axis=0), lambda r: r[0], lambda r: r.max(axis=0)][kind]
    width = x.shape[1]
    return np.array([how(r) if len(r) else np.full(width, np.nan) for r in rows]).reshape(len(rows), width)


def unit(x):
    with np.errstate(invalid="ignore"):
        length = np.sqrt((x**2).sum(axis=-1, keepdims=True))
        return x / np.where(length < 1e-12, 1e-12, length)


@op
def pool(kernels, dtype, random):
    name, normalizing, alone = (f"{stem}_{dtype}" for stem in ("pool", "pool_normalize", "l2_normalize"))
    for width, gap, shift in (
        (1, 0, False), (31, 0, False), (384, 0, False), (768, 768, False), (1000, 3, True), (1032, 8, False),
        (8, 0, False), (128, 8, False), (256, 4, False), (257, 0, False), (264, 0, True),
    ):
        for lengths in LENGTHS:
            offsets, stride = offsets_of(lengths), width + gap
            total, sequences = int(offsets[-1]), len(lengths)
            values = random.normal(size=(total + 2, stride)) + 0.5
            values[:, width:], values[total:] = np.nan, np.nan
            if total > 130:
                # not to be lost, and of this column only
                values[total // 2, :3] = (np.nan, np.inf, -np.inf)[: min(width, 3)]
            x, memory = given(dtype, values, shift), given("u32", offsets)
            for kind in range(3):
                want = pooled(read(x)[:total, :width], offsets, kind)
                case = f"kind {kind}, {lengths} x {width}"
                for blocks in (1, 3):
                    out = output(dtype, (sequences, width), shift)
                    kernels.launch(name, (sequences, blocks), 512, x, stride, memory, sequences, width, kind, out)
                    yield name, case, out.read(), want
                for normalize in (0, 1):
                    out = output("f32", (sequences, width), shift)
                    arguments = (x, stride, memory, sequences, width, kind, normalize, out)
                    kernels.launch(normalizing, (sequences,), 512, *arguments)
                    yield normalizing, case, out.read(), unit(want) if normalize else want
    for width in WIDTHS + (1032,) + VECTORS:
        for rows, x_shift, out_shift in ((0, False, False), (1, False, False), (8, False, False), (7, True, False), (5, False, True)):
            values = random.normal(size=(rows, width))
            if rows > 4:
                values[1], values[2, 0], values[3], values[4, -1] = 0, np.nan, 1e-7, np.inf
            x, out = given(dtype, values, x_shift), output("f32", (rows, width), out_shift)
            kernels.launch(alone, (ceil(rows, 4),), 128, x, rows, width, out)
            yield alone, f"{rows} x {width}, not aligned: {x_shift}, {out_shift}", out.read(), unit(read(x))


# --- images


def unfolded(pixels, tall, wide):
    images, channels, height, width = pixels.shape
    down, across = height // tall, width // wide
    whole = pixels[:, :, : down * tall, : across * wide].reshape(images, channels, down, tall, across, wide)
    return whole.transpose(0, 2, 4, 1, 3, 5).reshape(images * down * across, channels * tall * wide)


@op
def patches(kernels, dtype, random):
    name, embedding = f"patches_{dtype}", f"embed_patches_{dtype}"
    squares = (
        (0, 3, 32, 32, 16), (1, 1, 8, 8, 4), (2, 3, 64, 48, 16), (3, 3, 29, 45, 14), (1, 4, 33, 40, 8), (2, 2, 7, 5, 1),
        (2, 3, 16, 16, 16), (1, 3, 15, 40, 16), (2, 1, 17, 41, 8), (1, 3, 70, 66, 32),
    )
    others = ((2, 3, 24, 32, 8, 16), (2, 2, 33, 40, 16, 8), (1, 3, 14, 20, 7, 4), (1, 1, 9, 16, 3, 16))
    for images, channels, height, width, tall, wide in (*((*square, square[-1]) for square in squares), *others):
        values = random.normal(size=(images, channels, height, width))
        if values.size:
            values[0, -1, 0, 0] = np.inf
        # past the patches that fill an image nothing is read
        values[..., height // tall * tall :, :], values[..., width // wide * wide :] = np.nan, np.nan
        for x_shift, out_shift in ((False, False), (True, False), (False, True)):
            pixels = given("f32", values, x_shift)
            rows = images * (height // tall) * (width // wide)
            out = output(dtype, (rows, channels * tall * wide), out_shift)
            kernels.launch(name, (rows,), 128, pixels, images, channels, height, width, tall, wide, out)
            case = f"{pixels.shape} by {tall} x {wide}, not aligned: {x_shift}, {out_shift}"
            yield name, case, out.read(), unfolded(read(pixels), tall, wide)
    for width in WIDTHS + (1032,) + VECTORS:
        for images, count, shift in ((0, 4, ()), (1, 1, ()), (3, 9, ()), (2, 5, range(4)), (2, 3, (1,)), (2, 3, (3,))):
            projected, cls, positions = (
                given(dtype, random.normal(size=(rows, width)), number in shift)
                for number, rows in enumerate((images * count, 1, count + 1))
            )
            out = output(dtype, (images * (count + 1), width), 3 in shift)
            grid = (ceil(images * (count + 1), 4),)
            kernels.launch(embedding, grid, 128, projected, cls, positions, images, count, width, out)
            each = read(projected).reshape(images, count, width)
            first = np.broadcast_to(read(cls), (images, 1, width))
            want = (np.concatenate([first, each], axis=1) + read(positions)).reshape(-1, width)
            yield embedding, f"{images} of {count} x {width}", out.read(), want


# --- attention

QUERIES = 64


def tiles_of(lengths):
    tiles = [(s, first) for s, length in enumerate(lengths) for first in range(0, length, QUERIES)]
    return np.array(tiles, dtype=np.uint32).reshape(-1, 2)


def attended(q, k, v, lengths, heads, scale):
    """`q`, `k`, `v`: `[tokens, heads, width]`."""
    out, offsets = np.zeros_like(q), offsets_of(lengths)
    for first, end in zip(offsets[:-1], offsets[1:]):
        for head in range(heads):
            scores = q[first:end, head] @ k[first:end, head].T * scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True)) if end > first else scores
            out[first:end, head] = weights / weights.sum(axis=1, keepdims=True) @ v[first:end, head]
    return out


def plain_shared(width):
    """Bytes: queries, keys, values and probabilities, in f32."""
    padded, keys = ceil(width, 4) * 4 + 4, 64 if width <= 64 else 32
    return 4 * ((64 + 2 * keys) * padded + 64 * (keys + 4))


def attention_launch(name, width):
    """Threads of a block, and bytes of shared memory."""
    if "_any_" in name or name.endswith("_f32"):
        return 256, plain_shared(width)
    return 128, 4 * 64 * width * 2  # two buffers of keys and values


class Packed:
    """q, k and v as columns of one matrix; what lies between its rows is NaN, which would be seen."""

    def __init__(self, dtype, values, heads, width, shift=False):
        self.heads, self.width = heads, width
        hidden = heads * width
        rows = np.full((len(values), 3 * hidden + (1 if shift else 0)), np.nan)
        rows[:, : 3 * hidden] = values.reshape(len(values), 3 * hidden)
        self.memory, self.stride = given(dtype, rows, shift), rows.shape[1]
        self.columns = [self.memory.columns(i * hidden) for i in range(3)]
        stored = read(self.memory)[:, : 3 * hidden].reshape(-1, 3, heads, width)
        self.q, self.k, self.v = (stored[:, i] for i in range(3))

    def attend(self, kernels, dtype, lengths, shift=False):
        """What every kernel of this width makes of it, and what it should."""
        total, scale = sum(lengths), self.width**-0.5
        want = attended(self.q, self.k, self.v, lengths, self.heads, scale).reshape(total, self.heads * self.width)
        # Two tiles of an empty sequence at the end, as tables have that are filled up.
        empty = np.array([(len(lengths), 0)] * (2 if lengths else 0), dtype=np.uint32).reshape(-1, 2)
        offsets = given("u32", offsets_of((*lengths, 0)))
        tiles = given("u32", np.concatenate([tiles_of(lengths), empty]))
        for of in [self.width] * (self.width in (32, 64, 128)) + ["any"]:
            name = f"attention_{of}_{dtype}"
            block, shared = attention_launch(name, self.width)
            out = output(dtype, want.shape, shift)
            shape = (self.stride, offsets, tiles, self.heads, self.width, float(scale), out)
            kernels.launch(name, (len(tiles.values), self.heads), block, *self.columns, *shape, shared=shared)
            yield name, f"{lengths} x {self.heads} x {self.width}", out.read(), want


@op
def attention(kernels, dtype, random):
    for width, heads, lengths, shift, spread in (
        (32, 2, (1,), False, 1), (32, 3, (5, 0, 64, 65, 1), False, 1), (32, 1, (600,), False, 1), (32, 2, (33, 7), True, 1),
        (64, 2, (1, 2, 63), False, 1), (64, 1, (192, 128), False, 1), (64, 1, (130, 3, 200), False, 2),
        (64, 2, (17, 80), True, 1), (64, 2, (), False, 1),
        (128, 1, (1, 66), False, 1), (128, 2, (31, 129), False, 2), (128, 2, (40,), True, 1),
        (1, 2, (3, 70), False, 1), (31, 2, (65, 1), False, 1), (80, 2, (64, 100), False, 1), (96, 1, (33,), True, 1),
        (256, 2, (1, 70), False, 1), (255, 1, (40,), False, 1),
        (32, 1, (), False, 1), (128, 1, (), False, 1), (32, 12, (9, 70), False, 2), (64, 3, (65,), True, 2), (128, 1, (97,), True, 1),
        (48, 2, (33,), False, 1), (160, 1, (65, 2), True, 1),
    ):
        values = random.normal(size=(sum(lengths), 3, heads, width)) * spread
        yield from Packed(dtype, values, heads, width, shift).attend(kernels, dtype, lengths, shift)
    # every number of queries and keys that fragments of 16 and buffers of 64 leave over
    for width in (32, 64, 128, 20):
        lengths = (1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 47, 48, 49, 56, 63, 64, 65, 0, 79, 80, 81, 127, 128, 129)
        values = random.normal(size=(sum(lengths), 3, 1, width))
        yield from Packed(dtype, values, 1, width).attend(kernels, dtype, lengths)
    # scores of -∞ for all keys of the first step, a query and a value that are NaN: what is theirs, and no more
    for width in (32, 64, 128, 40):
        lengths = (130, 40, 70)
        values = random.normal(size=(sum(lengths), 3, 2, width))
        values[:, 0, :, 0] = np.abs(values[:, 0, :, 0]) + 0.1
        values[:64, 1, :, 0] = -np.inf
        values[100, 0, 0, 3] = np.nan
        values[130 + 39, 2, 1, 5] = np.nan
        yield from Packed(dtype, values, 2, width).attend(kernels, dtype, lengths)
