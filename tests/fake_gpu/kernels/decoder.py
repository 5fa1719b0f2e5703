"""What the kernels of models that write are given, and what must come out: see cases.py.

A cache begins as NaN, and only what a sequence wrote of its blocks is put into it: a key that is read though nobody wrote it,
or though it lies before the window, would be seen.
"""

import numpy as np

from elementwise import exact, some_values
from grid import VECTORS, WIDE, WIDTHS, ceil, op, read
from library import changed, given, output

BLOCK = 16  # tokens of a block of the cache
PART = 256  # keys of a part
ALL_PARTS = 0xFFFFFFFF
NO_WINDOW = 2**31 - 1
# A row that is nobody's: its key goes nowhere.
NOWHERE = 0xFFFFFFFF
# Where counts of parts begin, where that is not at once.
FAR = 7
# What fills 16 bytes.
VECTOR = {"f32": 4, "f16": 8, "bf16": 8}

# --- rows


def root_mean_squared(x, gamma, eps):
    with np.errstate(invalid="ignore"):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * read(gamma)


def team_of(dtype, width):
    team = 32
    while team < 256 and team * 4 * VECTOR[dtype] < width:
        team *= 2
    return team


def teams(dtype, rows, width):
    """The grid: a row is a team's."""
    return (ceil(rows * team_of(dtype, width), 256),)


@op
def rms_norm(kernels, dtype, random):
    name, summed = f"rms_norm_{dtype}", f"add_rms_norm_{dtype}"
    for width in WIDTHS + WIDE + VECTORS + (2048, 4096, 4100, 9000):
        for rows, shift in ((0, False), (1, False), (9, False), (5, True)):
            eps = float(random.choice([1e-6, 1e-5]))
            gamma = given(dtype, random.normal(size=width) + 1, shift and width % 2 == 0)
            x, residual = (given(dtype, random.normal(size=(rows, width)) * 3 + mean, shift) for mean in (1, -2))
            case, grid = f"{rows} x {width}{', not aligned' if shift else ''}", teams(dtype, rows, width)
            out = output(dtype, (rows, width), shift)
            kernels.launch(name, grid, 256, x, rows, width, gamma, eps, out)
            yield name, case, out.read(), root_mean_squared(read(x), gamma, eps)
            total = read(x) + read(residual)
            for keep in (False, True):
                out = output(dtype, (rows, width), shift)
                kept = output(dtype, (rows, width), shift) if keep else None
                kernels.launch(summed, grid, 256, x, residual, rows, width, gamma, eps, kept, out)
                yield summed, case, out.read(), root_mean_squared(total, gamma, eps)
                if keep:
                    yield summed, case + ", sum", kept.read(), total
    # rows that are no numbers or all 0, and an ordinary one after each
    for width in (31, 576, 4096, 9000):
        values = random.normal(size=(8, width))
        values[0, width // 2], values[2, -1], values[4] = np.nan, np.inf, 0
        gamma, x = given(dtype, random.normal(size=width)), given(dtype, values)
        out = output(dtype, (8, width))
        kernels.launch(name, teams(dtype, 8, width), 256, x, 8, width, gamma, 1e-5, out)
        yield name, f"{width}, strange rows", out.read(), root_mean_squared(read(x), gamma, 1e-5)
    # one of all that is not aligned, and written where it was read
    for width in (576, 4096, 4099):
        for off in range(5):
            x, residual = (changed(dtype, random.normal(size=(3, width)), number == off) for number in range(2))
            gamma = given(dtype, random.normal(size=width), off == 2)
            out, kept = (output(dtype, (3, width), number == off) for number in (3, 4))
            arguments = (3, width, gamma, 1e-5)
            total, grid = read(x) + read(residual), teams(dtype, 3, width)
            kernels.launch(summed, grid, 256, x, residual, *arguments, kept, out)
            yield summed, f"{width}, argument {off} not aligned", out.read(), root_mean_squared(total, gamma, 1e-5)
            yield summed, f"{width}, argument {off} not aligned, sum", kept.read(), total
            kernels.launch(summed, grid, 256, x, residual, *arguments, x, residual)
            yield summed, f"{width}, in place", x.read(), total
            yield summed, f"{width}, in place", residual.read(), root_mean_squared(total, gamma, 1e-5)
            before = read(x)
            kernels.launch(name, grid, 256, x, *arguments, x)
            yield name, f"{width}, in place", x.read(), root_mean_squared(before, gamma, 1e-5)


@op
def gated(kernels, dtype, random):
    name = f"gated_{dtype}"
    for kind in range(8):
        for rows, width, shifts, blocks in (
            (0, 8, (), 1), (1, 1, (), 1), (3, 31, (), 2), (5, 1536, (), 4), (2, 1000, (0,), 3), (2, 1000, (1,), 1), (40, 24, (), 2),
        ):
            both = given(dtype, some_values(random, (rows, 2 * width)), 0 in shifts)
            out = output(dtype, (rows, width), 1 in shifts)
            kernels.launch(name, (blocks,), 256, both, rows, width, kind, out)
            gate, up = read(both)[:, :width], read(both)[:, width:]
            with np.errstate(invalid="ignore"):
                yield name, f"kind {kind}, {rows} x {width}, not aligned: {shifts}", out.read(), exact(kind, gate) * up
    for width in VECTORS + (3, 5, 6, 7, 9):
        rows = 1 + 5000 // width
        both, out = given(dtype, random.normal(size=(rows, 2 * width))), output(dtype, (rows, width))
        kernels.launch(name, (2,), 256, both, rows, width, 4, out)
        yield name, f"{rows} x {width}", out.read(), exact(4, read(both)[:, :width]) * read(both)[:, width:]


@op
def take_rows(kernels, dtype, random):
    name = f"take_rows_{dtype}"
    for width in WIDTHS + WIDE + VECTORS:
        for rows, shifts in ((0, ()), (1, ()), (9, ()), (4, (0,)), (4, (1,))):
            numbers = random.integers(0, 50, rows)
            numbers[:1], numbers[1:2] = 49, 0
            values = random.normal(size=(50, width))
            values[np.setdiff1d(np.arange(50), numbers)] = np.nan
            table, out = given(dtype, values, 0 in shifts), output(dtype, (rows, width), 1 in shifts)
            kernels.launch(name, (rows,), 128, table, given("u32", numbers), width, out)
            yield name, f"{rows} x {width}, not aligned: {shifts}", out.read(), read(table)[numbers]
    if dtype == "f32":
        # Words of any kind: tokens, which are no numbers to reckon with as f32.
        words, numbers = random.integers(0, 2**32, 36), 4 * np.arange(9)
        table, out = given("u32", words), output("u32", (9,))
        kernels.launch(name, (9,), 128, table, given("u32", numbers), 1, out)
        yield name, "the first of four words", out.read(), words[numbers].astype(np.float64)


# --- products of few rows


@op
def few_rows(kernels, dtype, random):
    """For tensor cores only."""
    if dtype == "f32":
        return
    for rows, inner, columns, bias, added in (
        (1, 64, 16, False, False), (8, 4096, 48, True, True), (3, 576, 40, False, True), (7, 8, 17, True, False), (2, 1000, 33, True, True),
        (5, 1536, 5, False, False), (9, 264, 16, False, False), (12, 40, 31, False, True), (1, 14336, 16, False, False),
        (16, 1032, 64, True, True), (17, 576, 33, True, True), (32, 264, 20, False, True), (25, 96, 16, False, False),
    ):
        weight, x = (given(dtype, random.normal(size=(count, inner)) / inner**0.25) for count in (columns, rows))
        of_bias = given(dtype, random.normal(size=columns)) if bias else None
        residual = given(dtype, random.normal(size=(rows, columns))) if added else None
        want = read(x) @ read(weight).T + (read(of_bias) if bias else 0) + (read(residual) if added else 0)
        grid = (ceil(columns, 16),)
        for result in (dtype, "f32"):
            bits = []
            for most in [most for most in (8, 16, 32) if rows <= most]:
                name = f"rows_{most}_{dtype}" if result == dtype else f"rows_{most}_to_f32_{dtype}"
                case, got = f"{rows} x {inner} x {columns}, bias: {bias}, residual: {added}", output(result, (rows, columns))
                kernels.launch(name, grid, 256, x, rows, inner, weight, columns, of_bias, residual, got)
                yield name, case, got.read(), want
                bits.append(got.read())
            # each row by itself, and by whatever kernel, has the same bits
            alone, name = [], f"rows_8_{dtype}" if result == dtype else f"rows_8_to_f32_{dtype}"
            for row in range(rows):
                one, of_row = given(dtype, read(x)[row : row + 1]), output(result, (1, columns))
                beside = given(dtype, read(residual)[row : row + 1]) if added else None
                kernels.launch(name, grid, 256, one, 1, inner, weight, columns, of_bias, beside, of_row)
                alone.append(of_row.read())
            bits = [(np.concatenate(alone) != got).sum() for got in bits]
            yield name, case + ", other bits", np.array(bits), np.zeros(len(bits))
        if added:
            there = changed(dtype, read(residual))
            kernels.launch(f"rows_32_{dtype}", grid, 256, x, rows, inner, weight, columns, of_bias, there, there)
            yield f"rows_32_{dtype}", case + ", in place", there.read(), want
    # a row that is no number spoils no other
    values = random.normal(size=(11, 128))
    values[1, 77] = np.nan
    x, weight, got = given(dtype, values), given(dtype, random.normal(size=(20, 128)) / 10), output("f32", (11, 20))
    kernels.launch(f"rows_16_to_f32_{dtype}", (2,), 256, x, 11, 128, weight, 20, None, None, got)
    yield f"rows_16_to_f32_{dtype}", "NaN", got.read(), read(x) @ read(weight).T


# --- logits


@op
def likeliest(kernels, dtype, random):
    """Of one type only."""
    if dtype != "f32":
        return
    name = "likeliest_f32"
    for rows, vocabulary, blocks, spread, shift in (
        (1, 1, 1, 1, False), (3, 96, 1, 1, False), (2, 32000, 8, 3, False), (4, 49152, 5, 1, False), (2, 1003, 3, 10, False),
        (3, 1004, 16, 30, True), (1, 128256, 16, 2, False), (2, 7, 4, 1, False), (0, 64, 2, 1, False), (5, 4097, 2, 1, False),
    ):
        values = (random.normal(size=(rows, vocabulary)) * spread).astype(np.float32)
        if vocabulary > 1000:
            values[0, 500:] = -np.inf  # tokens that may not be
            values[-1, [3, vocabulary // 2, -1]] = values[-1].max() + 1  # as likely as each other
        for strange in (None, np.nan, np.inf, -np.inf):
            given_values = values.copy()
            if strange is not None and rows > 1:
                given_values[1] = -np.inf if strange == -np.inf else given_values[1]
                given_values[1, vocabulary // 3] = strange
            logits, out = given("f32", given_values, shift), output("u32", (rows, 4))
            parts, finished = output("f32", (max(rows, 1) * blocks, 4)), changed("u32", np.zeros(max(rows, 1)))
            counts = changed("u32", np.full(rows, 9)) if shift or rows == 4 else None
            kernels.launch(name, (blocks, rows), 256, logits, vocabulary, parts, finished, out, counts)
            assert not finished.read().any(), f"{name} leaves counts behind"
            assert counts is None or not counts.read().any(), f"{name} does not clear counts"
            parts.read()
            stored, case = read(logits), f"{rows} x {vocabulary} by {blocks}, {strange}"
            good = (stored < np.inf).all(axis=1)
            got = out.values.copy()
            out.read()
            yield name, case + ", numbers", got[:, 3].astype(np.float64), good * 1.0
            # Also of rows that are no numbers: the next step reads it before anybody looks.
            yield name, case + ", beyond the vocabulary", np.array([float((got[:, 0] >= vocabulary).sum())]), np.zeros(1)
            got, stored = got[good], stored[good]
            others = (got[:, 0] != stored.argmax(axis=1)).sum()
            yield name, case + ", other tokens", np.array([float(others)]), np.zeros(1)
            floats = got.view(np.float32).astype(np.float64)
            best = stored.max(axis=1, initial=-np.inf)
            yield name, case + ", logits", floats[:, 1], best
            with np.errstate(invalid="ignore", divide="ignore"):
                logarithm = np.where(np.isinf(best), best, best + np.log(np.exp(stored - best[:, None]).sum(axis=1)))
            yield name, case + ", logarithms", floats[:, 2], logarithm


@op
def logit_of(kernels, dtype, random):
    """Of one type only."""
    if dtype != "f32":
        return
    for rows, vocabulary in (1, 1), (32, 128256), (300, 97), (5, 1004):
        values = random.normal(size=(rows, vocabulary)).astype(np.float32)
        asked = random.integers(0, vocabulary, (rows, 2)).astype(np.uint32)
        asked[0, 1] = vocabulary - 1
        if rows > 1:
            asked[1, 1] = vocabulary  # no token of it
            values[2, asked[2, 1]] = -np.inf
        out = output("f32", (rows,))
        kernels.launch("logit_of_f32", (-(-rows // 256),), 256, given("f32", values), rows, vocabulary, given("u32", asked), out)
        wanted = np.append(values, np.full((rows, 1), np.nan), axis=1)[np.arange(rows), np.minimum(asked[:, 1], vocabulary)]
        yield "logit_of_f32", f"{rows} of {vocabulary}", out.read(), wanted.astype(np.float64)


@op
def likely(kernels, dtype, random):
    """Of one type only."""
    if dtype != "f32":
        return
    name = "likely_f32"
    for rows, vocabulary, blocks, most, shift in (
        (1, 1, 1, 4, False), (3, 96, 1, 96, False), (4, 32000, 8, 64, False), (5, 1003, 3, 100, True), (4, 128256, 16, 1024, False),
        (4, 7, 4, 8, False), (0, 64, 2, 8, False), (5, 4097, 2, 16, False),
    ):
        values = (random.normal(size=(rows, vocabulary)) * 3).astype(np.float32)
        told = np.zeros((rows, 4), np.uint32)
        if rows > 3:
            values[0, vocabulary // 2 :] = -np.inf  # tokens that may not be
            values[1] = -np.inf
            values[2, vocabulary // 3] = np.nan
        good = (values < np.inf).all(axis=1)
        best = np.where(good, values.max(axis=1, initial=-np.inf), 0).astype(np.float32)
        told[:, 1], told[:, 3] = best.view(np.uint32), good
        asked = np.stack([random.uniform(0.5, 2, rows), random.uniform(2, 9, rows)], axis=1).astype(np.float32)
        asked[-1:, 0] = 0 if rows > 4 else asked[-1:, 0]  # nothing is asked of it
        counts, sums, out = changed("u32", np.zeros(rows)), output("f32", (rows, blocks)), output("u32", (rows, most, 2))
        arguments = given("f32", values, shift), vocabulary, given("u32", told), given("f32", asked), most
        kernels.launch(name, (blocks, rows), 256, *arguments, sums, counts, out)
        wanted = good & (asked[:, 0] != 0) & (best > -np.inf)
        case = f"{rows} x {vocabulary} by {blocks}, room for {most}"
        with np.errstate(invalid="ignore"):
            weights = np.exp((values - best[:, None]).astype(np.float64) * asked[:, :1])
            near = (values >= (best - asked[:, 1])[:, None]) & wanted[:, None]
        yield name, case + ", sums", sums.read().sum(axis=1), np.where(wanted, weights.sum(axis=1), 0)
        found = counts.read()
        yield name, case + ", counts", found, near.sum(axis=1).astype(np.float64)
        others = 0
        for row in range(rows):
            pairs = out.values[row, : min(int(found[row]), most)]
            ids = pairs[:, 0]
            right = len(set(ids)) == len(ids) and near[row, ids].all() and (pairs[:, 1] == values[row, ids].view(np.uint32)).all()
            others += not right
        yield name, case + ", other tokens", np.array([float(others)]), np.zeros(1)


# --- heads on their way to attention


def turns_of(frequencies, positions, factor):
    """Angles as f32 has them."""
    angles = (frequencies.astype(np.float32)[None] * positions.astype(np.float32)[:, None]).astype(np.float64)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * factor


def frequencies_of(half, base=10_000.0):
    return base ** (-np.arange(half) / half)


@op
def turns(kernels, dtype, random):
    """Of one type only."""
    if dtype != "f32":
        return
    for half, rows, blocks in ((4, 0, 1), (1, 3, 1), (10, 40, 1), (64, 77, 3), (128, 5, 2)):
        positions = random.integers(0, 1 << 17, rows)
        positions[:3] = (0, 1, (1 << 20) - 1)[: len(positions[:3])]
        for factor in (1.0, 1.25):
            frequencies, out = given("f32", frequencies_of(half)), output("f32", (rows, 2, half))
            kernels.launch("turns_f32", (blocks,), 256, frequencies, given("u32", positions), rows, half, factor, out)
            yield "turns_f32", f"{rows} of {half}", out.read(), turns_of(read(frequencies), positions, factor)
    # every angle of a turn, and quarters of it
    angles = np.concatenate([np.linspace(0, 7, 3000), np.arange(9) * np.pi / 2]).astype(np.float32)
    frequencies, out = given("f32", angles), output("f32", (2, 2, len(angles)))
    kernels.launch("turns_f32", (9,), 256, frequencies, given("u32", [1, 1000]), 2, len(angles), 1.0, out)
    yield "turns_f32", "a turn", out.read(), turns_of(read(frequencies), np.array([1, 1000]), 1.0)


def cache_shape(blocks, kv_heads, width):
    return blocks, kv_heads, 2, BLOCK, width


@op
def place_heads(kernels, dtype, random):
    name = f"place_heads_{dtype}"
    for width, heads, kv_heads, rows, gap, shifts, grid in (
        (64, 4, 2, 7, 0, (), 3), (128, 4, 1, 9, 0, (), 2), (8, 3, 3, 5, 0, (), 1), (20, 3, 1, 6, 0, (), 1), (2, 2, 2, 4, 0, (), 1),
        (16, 4, 2, 1, 8, (), 1), (96, 2, 2, 3, 0, (), 5), (256, 2, 1, 3, 0, (), 2), (64, 2, 2, 3, 0, (0,), 1), (64, 2, 2, 3, 0, (1,), 1),
        (64, 2, 2, 3, 0, (2,), 1), (64, 2, 2, 3, 3, (), 1), (64, 2, 1, 0, 0, (), 1), (128, 9, 3, 33, 16, (), 4), (254, 1, 1, 2, 0, (), 1),
    ):
        for norms in (False, True):
            hidden = (heads + 2 * kv_heads) * width
            values = random.normal(size=(rows, hidden + gap))
            values[:, hidden:] = np.nan
            qkv = given(dtype, values, 0 in shifts)
            gammas = [given(dtype, random.normal(size=width) + 1) for _ in range(2)] if norms else [None, None]
            turns = given("f32", turns_of(frequencies_of(width // 2), random.integers(0, 500, rows), 1.1))
            blocks = 5
            places = random.permutation(blocks * BLOCK)[:rows]
            # the last of some are nobody's
            theirs = np.arange(rows) < (rows if rows < 6 else rows - 2)
            before = random.normal(size=cache_shape(blocks, kv_heads, width))
            cache = changed(dtype, before, 1 in shifts)
            kept = read(cache)
            out = output(dtype, (rows, heads * width), 2 in shifts)
            memory = given("u32", np.where(theirs, places, NOWHERE))
            kernels.launch(
                name, (grid,), 128, qkv, hidden + gap, rows, heads, kv_heads, width, *gammas, 1e-6, turns, memory, cache, out
            )  # fmt: skip
            x = read(qkv)[:, :hidden].reshape(rows, heads + 2 * kv_heads, width)
            q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
            if norms:
                q, k = root_mean_squared(q, gammas[0], 1e-6), root_mean_squared(k, gammas[1], 1e-6)
            q, k = (turned(part, read(turns)) for part in (q, k))
            case = f"{rows} x ({heads} + {kv_heads}) x {width}, norms: {norms}, not aligned: {shifts}"
            yield name, case, out.read(), q.reshape(rows, heads * width)
            block, slot = places[theirs] // BLOCK, places[theirs] % BLOCK
            kept[block, :, 0, slot], kept[block, :, 1, slot] = k[theirs], v[theirs]
            yield name, case + ", cache", cache.read(), kept


def turned(x, turns):
    """`x`: `[rows, heads, width]`."""
    half = x.shape[-1] // 2
    first, second, cosine, sine = x[..., :half], x[..., half:], turns[:, 0, None], turns[:, 1, None]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


# --- attention to a cache


def tables_of(runs, random):
    """Of `[(position of the first, tokens)]`: what kernels are told of each, and the blocks of all, in any order."""
    counts = [ceil(first + tokens, BLOCK) for first, tokens in runs]
    numbers = random.permutation(sum(ceil(count, 4) * 4 for count in counts))
    described, row, at = [], 0, 0
    for (first, tokens), count in zip(runs, counts):
        described.append((row, first, tokens, at))
        row, at = row + tokens, at + ceil(count, 4) * 4
    return np.array(described).reshape(-1, 4), numbers


def items_of(runs, shape, split, window=NO_WINDOW, far=False):
    """`shape`: query heads of a head, and rows of a block. With parts apart, or all of them one block's; and how many items there
    are, and parts in memory. `far`: items do not follow their head, nor do their counts begin where others may."""
    (group, rows), items, parts = shape, [], 0
    for number, (first, tokens) in enumerate(runs):
        for row in range(0, tokens * group, rows):
            last = min(row + rows, tokens * group) - 1
            low, end = max(first + row // group + 1 - window, 0), first + last // group + 1
            numbers = range(low // PART, ceil(end, PART))
            items += [(number, row, part, parts) for part in (numbers if split else [ALL_PARTS])]
            parts += len(numbers) if split else 0
    head = [len(items), 3 if far else 1, FAR if far else 0, 0]
    between = [[0xFFFFFFFF] * 4] * 2 if far else []
    return np.array([head, *between, *items], dtype=np.uint32), len(items), parts


def paged_launch(name, width):
    """Threads of a block, and bytes of shared memory."""
    if "_decode_" in name or "_prefill_" in name:
        return 128, 2 * 2 * 64 * width * 2  # two buffers of keys and of values, a warp's or the block's
    padded = ceil(width, 4) * 4 + 4
    return 128, 4 * ((16 + 2 * 32) * padded + 16 * 32)


def kernels_for(dtype, width, rows):
    """Those that may be given runs of so many rows: their names, the rows of a block, and whether parts are apart."""
    yield f"paged_{128 if width <= 128 else 256}_{dtype}", 16, rows <= 16
    if dtype != "f32" and width in (64, 128):
        yield (f"paged_decode_{width}_{dtype}", 16, True) if rows <= 16 else (f"paged_prefill_{width}_{dtype}", 64, False)


class Step:
    """A step of runs, their queries, and a cache in which their keys lie."""

    def __init__(self, dtype, runs, shape, random, window=NO_WINDOW, spread=1.0):
        self.dtype, self.runs, self.window = dtype, runs, window
        self.group, self.kv_heads, self.width = shape
        rows = sum(tokens for _, tokens in runs)
        self.q = given(dtype, random.normal(size=(rows, self.kv_heads * self.group * self.width)) * spread)
        self.described, table = tables_of(runs, random)
        cache = np.full(cache_shape(len(table), self.kv_heads, self.width), np.nan)
        self.places = []
        for (first, tokens), (_, _, _, at) in zip(runs, self.described):
            end = first + tokens
            both = random.normal(size=(2, end, self.kv_heads, self.width))
            both[0] *= spread
            # what no row of the run sees may be anybody's
            both[:, : max(first + 1 - window, 0)] = np.nan
            block, slot = table[at + np.arange(end) // BLOCK], np.arange(end) % BLOCK
            for number in range(2):
                cache[block, :, number, slot] = both[number]
            self.places.append((block, slot))
        self.cache, self.table = given(dtype, cache), given("u32", table)

    def wanted(self):
        stored, q = read(self.cache), read(self.q).reshape(-1, self.kv_heads, self.group, self.width)
        out = np.zeros_like(q)
        for (row, first, tokens, _), (block, slot) in zip(self.described, self.places):
            for t in range(tokens):
                position = first + t
                seen = slice(max(position + 1 - self.window, 0), position + 1)
                keys, values = (stored[block[seen], :, number, slot[seen]] for number in range(2))
                for head in range(self.kv_heads):
                    scores = q[row + t, head] @ keys[:, head].T * self.width**-0.5
                    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                    out[row + t, head] = weights / weights.sum(axis=1, keepdims=True) @ values[:, head]
        return out.reshape(len(q), self.kv_heads * self.group * self.width)

    def attend(self, kernels, name, rows, split, blocks=None):
        """With a block for each item, or with so many."""
        items, count, parts = items_of(self.runs, (self.group, rows), split, self.window, blocks is not None)
        block, shared = paged_launch(name, self.width)
        # what is left in memory is whole fours and what is said of them
        memory = output("f32", (max(parts, 1) * self.kv_heads * rows, ceil(self.width, 4) * 4 + 4))
        finished = changed("u32", np.zeros(FAR + max(parts, 1) * self.kv_heads))
        out = output(self.dtype, self.q.shape)
        shape = (self.group, self.width, self.window, float(self.width**-0.5), rows, memory, finished, out)
        tables = given("u32", self.described), self.table, given("u32", items)
        grid = (count if blocks is None else blocks, self.kv_heads)
        kernels.launch(name, grid, block, self.q, self.cache, *tables, *shape, shared=shared)
        memory.read()
        assert not finished.read().any(), f"{name} leaves counts behind"
        return out.read()


def attended(kernels, dtype, step):
    """What every kernel makes of a step that may be given it, and what it should."""
    want, case = step.wanted(), f"{step.runs} x {(step.group, step.kv_heads, step.width)}, window {step.window}"
    rows = max([tokens * step.group for _, tokens in step.runs], default=1)
    plain, *tensor = kernels_for(dtype, step.width, rows)
    split = step.attend(kernels, plain[0], 16, True)
    yield plain[0], case, split, want
    # the same to the bit, as one block's and with others beside it
    whole = step.attend(kernels, plain[0], 16, False)
    yield plain[0], case + ", whole", whole, want
    yield plain[0], case + ", whole and in parts", np.array([(whole != split).sum()]), np.zeros(1)
    for name, rows, apart in (plain, *tensor):
        once = step.attend(kernels, name, rows, apart)
        if name != plain[0]:
            yield name, case, once, want
        if "_prefill_" in name or not step.runs:
            continue
        # and so by fewer blocks than there are items, and by more
        for blocks in (1, 3, 40):
            again = step.attend(kernels, name, rows, apart, blocks)
            yield name, case + f", in parts by {blocks} blocks", np.array([(again != once).sum()]), np.zeros(1)


@op
def paged_attention(kernels, dtype, random):
    for runs, shape, window, spread in (
        (((0, 1),), (4, 2, 64), NO_WINDOW, 1),
        (((255, 1), (256, 1), (257, 1), (15, 1), (16, 1), (700, 1)), (2, 2, 64), NO_WINDOW, 1),
        (((0, 40), (700, 3), (33, 1), (511, 2)), (3, 1, 128), NO_WINDOW, 1),
        (((0, 70), (5, 1)), (1, 2, 20), NO_WINDOW, 1),
        (((600, 1), (0, 9), (300, 20)), (2, 1, 64), 19, 1),
        (((600, 1), (300, 20)), (7, 1, 8), 256, 2),
        (((530, 5),), (4, 1, 64), 1, 1),
        (((250, 12),), (17, 1, 32), NO_WINDOW, 1),
        (((40, 1), (300, 2)), (1, 1, 256), NO_WINDOW, 1),
        (((40, 3),), (2, 1, 255), 30, 1),
        (((3, 2),), (1, 1, 1), NO_WINDOW, 1),
        ((), (2, 1, 64), NO_WINDOW, 1),
        # for tensor cores: few rows and all of them, windows that begin within a block, several parts
        (((600, 1), (31, 1), (512, 1), (271, 1)), (4, 2, 128), NO_WINDOW, 2),
        (((600, 2), (31, 1), (0, 2)), (8, 1, 128), 300, 1),
        (((600, 2), (900, 1)), (7, 1, 64), 20, 1),
        (((0, 16), (240, 16), (500, 1)), (1, 2, 64), NO_WINDOW, 1),
        (((0, 130), (77, 33), (64, 1)), (1, 2, 128), NO_WINDOW, 1),
        (((0, 65), (250, 40)), (4, 1, 128), 70, 2),
        (((190, 20), (3, 70)), (7, 1, 64), 5, 1),
        (((300, 9),), (32, 1, 64), NO_WINDOW, 1),
    ):  # fmt: skip
        yield from attended(kernels, dtype, Step(dtype, runs, shape, random, window, spread))
    # a key and a value that are NaN: whoever sees them, and nobody before
    for width in (64, 128, 40):
        for tokens in (1, 2, 40):
            step = Step(dtype, ((300, tokens), (20, tokens)), (4, 1, width), random)
            for kind in range(2):
                values = read(step.cache)
                block, slot = (places[300 + tokens - 1] for places in step.places[0])
                values[block, 0, kind, slot, 1] = np.nan
                broken = Step(dtype, step.runs, (4, 1, width), np.random.default_rng(3))
                broken.q, broken.cache, broken.places = step.q, given(dtype, values), step.places
                broken.described, broken.table = step.described, step.table
                # its tile may be spoilt, since nothing times NaN is NaN; others are not
                for name, case, got, want in attended(kernels, dtype, broken):
                    if "in parts" not in case:
                        yield name, case + ", NaN", got[tokens:], want[tokens:]
                        last = got[tokens - 1]
                        yield name, case + ", NaN, its own", np.array([np.isnan(last).any()]) * 1.0, np.ones(1)
