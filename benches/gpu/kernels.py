"""How long each kernel takes on a GPU, by itself: `kernels.py LIBRARY FATBINS [--json] [--smoke] [--attention BATCH …]`.

LIBRARY is what tests/fake_gpu/kernels/build makes (it names the kernels' parameters), FATBINS the folder of kernels/build.
A time is that of one launch of several in one graph (else launching from Python would be what is timed), by the device's own
events, the median of nine rounds after two; between launches of a graph lie one or two microseconds, which are told as the time
of a launch that does next to nothing. Beside it stands what counts.py says must be moved and computed.

Sizes: those of models' batches, of which up to some ten megabytes stay in the device's cache from one launch to the next; and
large ones, each launch of which moves several times what the cache holds, for comparison with the copy that is timed in the same
way. `--attention` times the attention of BERT-base's heads in bf16 for these batches (shapes.py) and nothing else, `--smoke` runs
everything at a small size. What comes out is not looked at: check.py does that. Packages: numpy.
"""

import argparse
import contextlib
import ctypes
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/fake_gpu/kernels"))

import counts  # noqa: E402
import numpy as np  # noqa: E402
import decoder  # noqa: E402
from cases import attention_launch, ceil, tiles_of  # noqa: E402
from counts import BYTES  # noqa: E402
from device import MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED_WITHOUT_ASKING, U64, DeviceKernels  # noqa: E402
from library import narrow  # noqa: E402
from shapes import lengths_of  # noqa: E402

# name: width, heads, width between
MODELS = {"minilm": (384, 12, 1536), "bert-base": (768, 12, 3072), "bert-large": (1024, 16, 4096)}
MODELS["heads of 128"] = (1024, 8, 4096)
# hidden, query heads, heads of the cache, width of one, width between
DECODERS = {"smollm2": (576, 9, 3, 64, 1536), "llama-8b": (4096, 32, 8, 128, 14336)}
DECODERS["heads of 256"] = (2048, 8, 4, 256, 5632)
# Sequences of a step, tokens before it, tokens of each in it.
STEPS = ((1, 1000, 1), (8, 1000, 1), (64, 1000, 1), (1, 32000, 1), (1, 0, 1024), (1, 8192, 512))
FORMATS = ("bf16", "f16", "f32")
SEQUENCE = 128  # tokens, for what has sequences; long ones besides
RECORDED_BLOCKS = 1056  # of attention in a step that was recorded (`src/ops/cuda/step.rs`)
BLOCK = 1 << 22  # random values that larger arrays repeat
L2_CACHE_SIZE = 38  # CUdevice_attribute
# What a launch of a large size moves, over what the cache holds: what of it is still there from the launch before is little.
TIMES_CACHE = 8


class Array:
    """Memory of the device with random values, not zeros: those are faster."""

    def __init__(self, bench, dtype, shape, values=None):
        count = int(np.prod(shape))
        self.bytes = count * BYTES[dtype]
        self.pointer = U64()
        bench.kernels.call("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(max(self.bytes, 1)))
        data = bench.random_values(dtype, count) if values is None else narrow(dtype, values)
        data = np.ascontiguousarray(data).reshape(-1)
        for at in range(0, self.bytes, max(data.nbytes, 1)):
            size = ctypes.c_size_t(min(data.nbytes, self.bytes - at))
            bench.kernels.call("cuMemcpyHtoD_v2", U64(self.pointer.value + at), ctypes.c_void_p(data.ctypes.data), size)


class Bench:
    def __init__(self, kernels, smoke, tell):
        self.kernels, self.random, self.arrays, self.tell = kernels, np.random.default_rng(1), [], tell
        self.smoke, self.rounds = smoke, 1 if smoke else 9
        self.timed, self.blocks = set(), {}
        self.stream, self.events = U64(), [U64(), U64()]
        kernels.call("cuStreamCreate", ctypes.byref(self.stream), 1)  # not waiting for the default stream
        for event in self.events:
            kernels.call("cuEventCreate", ctypes.byref(event), 0)
        cache = ctypes.c_int()
        kernels.call("cuDeviceGetAttribute", ctypes.byref(cache), L2_CACHE_SIZE, 0)
        self.cache = cache.value
        # What a large launch moves; in a rehearsal it only has to be run.
        self.large = (1 << 16) if smoke else TIMES_CACHE * self.cache

    def random_values(self, dtype, count):
        """So many, or a block that is repeated; from another place of it each time."""
        if dtype not in self.blocks:
            block = (1 << 16) if self.smoke else BLOCK
            self.blocks[dtype] = narrow(dtype, self.random.standard_normal(block + 8192, np.float32))
        block = self.blocks[dtype]
        begin = int(self.random.integers(8192))
        return block[begin : begin + min(count, len(block) - 8192)]

    def array(self, dtype, *shape, values=None):
        self.arrays.append(Array(self, dtype, shape, values))
        return self.arrays[-1]

    def forget(self):
        for array in self.arrays:
            self.kernels.call("cuMemFree_v2", array.pointer)
        self.arrays.clear()

    def time(self, name, what, grid, block, *arguments, count, size, shared=0, batch=None):
        """`count`: bytes and operations, as counts.py has them; `size`: whose this is, a model's name or "large"."""
        kernels, function = self.kernels, self.kernels.functions[name]
        self.timed.add(name)
        if shared > SHARED_WITHOUT_ASKING:
            kernels.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        number = lambda param, a: a.pointer if isinstance(a, Array) else kernels.value(param, a)
        at = lambda a: U64(a[0].pointer.value + a[1]) if isinstance(a, tuple) else None
        values = [at(a) or number(param, a) for param, a in zip(kernels.params[name], arguments)]
        grid = tuple(grid) + (1,) * (3 - len(grid))
        launch = (function, *grid, block, 1, 1, shared, self.stream, kernels.addresses(values), None)
        us = self.middle("cuLaunchKernel", launch, self.launches(count))
        self.tell({"kernel": name, "what": what, "size": size, "batch": batch, "us": us, "bytes": count[0], "operations": count[1]})

    def copy(self):
        """What bytes are held against: a copy on the device, counted as read and written."""
        half = self.large // 2
        source, target = (self.array("f32", half // 4) for _ in range(2))
        arguments = (target.pointer, source.pointer, ctypes.c_size_t(half), self.stream)
        launches = self.launches((2 * half, 0))
        # A graph may give a copy to another part of the device than a stream does: the faster counts.
        us = min(self.middle("cuMemcpyDtoDAsync_v2", arguments, launches, queued) for queued in (self.in_graph, self.in_turn))
        record = {"kernel": "copy", "what": f"{half / 1e6:.0f} MB on the device", "size": "large", "batch": None, "us": us}
        self.tell(record | {"bytes": 2 * half, "operations": 0})
        self.forget()

    def launches(self, count):
        """Of one graph: fewer where each takes longer."""
        return 1 if self.smoke else 50 if count[0] < self.cache else 10

    def middle(self, name, arguments, launches, queued=None):
        """Microseconds a launch, the median of several rounds."""
        call = self.kernels.call
        call("cuCtxSynchronize")  # what was copied up may not be there yet, and this stream waits for no other
        took = []
        with (queued or self.in_graph)(lambda: [call(name, *arguments) for _ in range(launches)]) as queue:
            for _ in range(2 + self.rounds):
                call("cuEventRecord", self.events[0], self.stream)
                queue()
                call("cuEventRecord", self.events[1], self.stream)
                call("cuStreamSynchronize", self.stream)
                ms = ctypes.c_float()
                call("cuEventElapsedTime_v2", ctypes.byref(ms), *self.events)
                took.append(ms.value * 1e3 / launches)
        return max(statistics.median(took[2:]), 1e-3)

    @contextlib.contextmanager
    def in_graph(self, work):
        call, graph, ready = self.kernels.call, U64(), U64()
        call("cuStreamBeginCapture_v2", self.stream, 2)  # nobody else's calls are our concern
        work()
        call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, U64(0))
        yield lambda: call("cuGraphLaunch", ready, self.stream)
        call("cuGraphExecDestroy", ready)
        call("cuGraphDestroy", graph)

    @contextlib.contextmanager
    def in_turn(self, work):
        yield work


def rows(bench, dtype, model, tokens, size=None):
    (width, _, _), size = MODELS[model], size or model
    what = f"{tokens} x {width}"
    x, y, z, out = (bench.array(dtype, tokens, width) for _ in range(4))
    gamma, beta = bench.array(dtype, width), bench.array(dtype, width)
    grid = (ceil(tokens, 4),)
    count = counts.layer_norm(dtype, tokens, width)
    bench.time(f"layer_norm_{dtype}", what, grid, 128, x, tokens, width, gamma, beta, 1e-5, out, count=count, size=size)
    arguments, count = (x, y, tokens, width, gamma, beta, 1e-5, z, out), counts.add_layer_norm(dtype, tokens, width)
    bench.time(f"add_layer_norm_{dtype}", what, grid, 128, *arguments, count=count, size=size)
    tables = (counts.VOCABULARY, counts.POSITIONS, 2)
    words, positions, types = (bench.array(dtype, n, width) for n in tables)
    # positions as texts of their full length have them, one after the other
    index = np.stack([bench.random.integers(0, n, tokens) for n in tables])
    index[1] = np.arange(tokens) % counts.POSITIONS
    count = counts.embed_tokens(dtype, tokens, width, len(np.unique(index[0])))
    index = bench.array("u32", 3, tokens, values=index)
    arguments = (index, tokens, width, words, positions, types, gamma, beta, 1e-12, out)
    half = 256 // counts.BYTES[dtype]  # two rows share a warp (kernels/README.md)
    shares = width <= 512 and width % half == 0 and width // half % 2 == 1
    bench.time(f"embed_tokens_{dtype}", what, (ceil(tokens, 8 if shares else 4),), 128, *arguments, count=count, size=size)
    length = min(SEQUENCE, tokens)
    sequences = tokens // length
    offsets = bench.array("u32", sequences + 1, values=np.arange(sequences + 1) * length)
    result = bench.array("f32", sequences, width)
    arguments = (x, width, offsets, sequences, width, 0, 1, result)
    what, count = f"{sequences} of {length} x {width}", counts.pool_normalize(dtype, sequences * length, sequences, width)
    bench.time(f"pool_normalize_{dtype}", what, (sequences,), 512, *arguments, count=count, size=size)
    # what the server does in its place, and what it ends every batch with
    pooled = bench.array(dtype, sequences, width)
    arguments, count = (x, width, offsets, sequences, width, 0, pooled), counts.pool(dtype, sequences * length, sequences, width)
    bench.time(f"pool_{dtype}", what, (sequences, ceil(width, 128)), 512, *arguments, count=count, size=size)
    # of pooled rows, which are few: what they take where they are many is told of `normals` and `values`
    size = None if size == "large" else size
    what, count = f"{sequences} x {width}", counts.l2_normalize(dtype, sequences, width)
    bench.time(f"l2_normalize_{dtype}", what, (ceil(sequences, 4),), 128, pooled, sequences, width, result, count=count, size=size)
    blocks = ceil(sequences * width, 256 * 8)
    landed, words = bench.array(dtype, sequences, width), bench.array("u32", blocks * 8)
    arguments, count = (pooled, sequences * width, landed, words), counts.land(dtype, sequences * width)
    bench.time(f"land_{dtype}", what, (blocks,), 256, *arguments, count=count, size=size)
    bench.forget()


def normals(bench, dtype, rows_, width, size):
    """Rows that are brought to length one."""
    x, out = bench.array(dtype, rows_, width), bench.array("f32", rows_, width)
    count = counts.l2_normalize(dtype, rows_, width)
    bench.time(f"l2_normalize_{dtype}", f"{rows_} x {width}", (ceil(rows_, 4),), 128, x, rows_, width, out, count=count, size=size)
    bench.forget()


def activations(bench, dtype, model, tokens, size=None):
    width, size = MODELS[model][2], size or model
    x, bias = bench.array(dtype, tokens, width), bench.array(dtype, width)
    grid = (ceil(tokens * width * BYTES[dtype], 256 * 16),)
    count = counts.bias_activate(dtype, tokens, width)
    for kind, name in ((0, "gelu"), (1, "gelu tanh")):
        what = f"{tokens} x {width} {name}"
        bench.time(f"bias_activate_{dtype}", what, grid, 256, x, bias, tokens, width, kind, count=count, size=size)
    count = counts.activate(dtype, tokens * width)
    bench.time(f"activate_{dtype}", f"{tokens} x {width} gelu", grid, 256, x, tokens * width, 0, count=count, size=size)
    bench.forget()


def attention(bench, dtype, model, tokens):
    for length in sorted({min(SEQUENCE, tokens), min(512, tokens)}):
        width, heads, _ = MODELS[model]
        attend(bench, dtype, model, f"{length}x{tokens // length}", (str(width // heads), "any"))


def attend(bench, dtype, model, batch, kinds):
    width, heads, _ = MODELS[model]
    of_head, lengths = width // heads, lengths_of(batch)
    tokens, offsets = sum(lengths), np.concatenate([[0], np.cumsum(lengths)])
    packed, out = bench.array(dtype, tokens, 3 * width), bench.array(dtype, tokens, width)
    offsets = bench.array("u32", len(lengths) + 1, values=offsets)
    tiles = tiles_of(lengths)
    listed = bench.array("u32", *tiles.shape, values=tiles)
    columns = [(packed, i * width * BYTES[dtype]) for i in range(3)]
    count, what = counts.attention(dtype, lengths, width), f"{batch}, {heads} heads of {of_head}"
    for of in kinds:
        name = f"attention_{of}_{dtype}"
        block, shared = attention_launch(name, of_head)
        arguments = (*columns, 3 * width, offsets, listed, heads, of_head, of_head**-0.5, out)
        bench.time(name, what, (len(tiles), heads), block, *arguments, shared=shared, count=count, size=model, batch=batch)
    bench.forget()


def images(bench, dtype, images_, size="vit-base"):
    side, patch, width = 224, 16, 768
    each = (side // patch) ** 2
    pixels, out = bench.array("f32", images_, 3, side, side), bench.array(dtype, images_ * each, 3 * patch * patch)
    arguments, count = (pixels, images_, 3, side, side, patch, patch, out), counts.patches(dtype, images_, side, patch)
    bench.time(f"patches_{dtype}", f"{images_} of {side} x {side}", (images_ * each,), 128, *arguments, count=count, size=size)
    bench.forget()
    projected, cls, positions = (bench.array(dtype, n, width) for n in (images_ * each, 1, each + 1))
    out = bench.array(dtype, images_ * (each + 1), width)
    arguments, count = (projected, cls, positions, images_, each, width, out), counts.embed_patches(dtype, images_, each, width)
    what, grid = f"{images_} x {each + 1} x {width}", (ceil(images_ * (each + 1), 4),)
    bench.time(f"embed_patches_{dtype}", what, grid, 128, *arguments, count=count, size=size)
    bench.forget()


def of_decoder(bench, dtype, model, rows_, size=None):
    """What a decoder's step does of rows, whatever is attended to."""
    (hidden, heads, kv_heads, of_head, inner), size = DECODERS[model], size or model
    x, y, z, out, gamma = *(bench.array(dtype, rows_, hidden) for _ in range(4)), bench.array(dtype, hidden)
    grid, what = decoder.teams(dtype, rows_, hidden), f"{rows_} x {hidden}"
    count = counts.rms_norm(dtype, rows_, hidden)
    bench.time(f"rms_norm_{dtype}", what, grid, 256, x, rows_, hidden, gamma, 1e-5, out, count=count, size=size)
    arguments, count = (x, y, rows_, hidden, gamma, 1e-5, z, out), counts.add_rms_norm(dtype, rows_, hidden)
    bench.time(f"add_rms_norm_{dtype}", what, grid, 256, *arguments, count=count, size=size)
    numbers = bench.array("u32", rows_, values=bench.random.permutation(rows_))
    count = counts.take_rows(dtype, rows_, hidden)
    bench.time(f"take_rows_{dtype}", what, (rows_,), 128, x, numbers, hidden, out, count=count, size=size)
    bench.forget()
    both, out = bench.array(dtype, rows_, 2 * inner), bench.array(dtype, rows_, inner)
    grid, count = (ceil(rows_ * inner * BYTES[dtype], 256 * 16),), counts.gated(dtype, rows_, inner)
    bench.time(f"gated_{dtype}", f"{rows_} x {inner}", grid, 256, both, rows_, inner, 4, out, count=count, size=size)
    bench.forget()
    of_row, blocks = heads + 2 * kv_heads, ceil(rows_, decoder.BLOCK)
    qkv, out = bench.array(dtype, rows_, of_row * of_head), bench.array(dtype, rows_, heads * of_head)
    cache = bench.array(dtype, *decoder.cache_shape(blocks, kv_heads, of_head))
    places = bench.array("u32", rows_, values=np.arange(rows_))
    half = of_head // 2
    frequencies, turned = bench.array("f32", half, values=decoder.frequencies_of(half)), bench.array("f32", rows_, of_head)
    arguments, count = (frequencies, places, rows_, half, 1.0, turned), counts.turns(rows_, half)
    if dtype == "f32":
        bench.time("turns_f32", f"{rows_} of {half}", (ceil(rows_ * half, 256),), 256, *arguments, count=count, size=size)
    norms = [bench.array(dtype, of_head) for _ in range(2)]
    arguments = (qkv, of_row * of_head, rows_, heads, kv_heads, of_head, *norms, 1e-6, turned, places, cache, out)
    grid = (ceil(rows_ * of_row * of_head * BYTES[dtype], 128 * 32),)
    what, count = f"{rows_} x ({heads} + 2 x {kv_heads}) x {of_head}", counts.place_heads(dtype, rows_, heads, kv_heads, of_head)
    bench.time(f"place_heads_{dtype}", what, grid, 128, *arguments, count=count, size=size)
    bench.forget()


def few_rows(bench, dtype, model, rows_):
    """Products of a step with few rows: what a layer has of them, and logits."""
    hidden, heads, kv_heads, of_head, inner = (64, 2, 1, 32, 96) if bench.smoke else DECODERS[model]
    shapes = (((heads + 2 * kv_heads) * of_head, hidden), (hidden, heads * of_head), (2 * inner, hidden), (hidden, inner))
    stem = f"rows_{next(most for most in (8, 16, 32) if rows_ <= most)}"
    for (columns, into), name in [(shape, stem) for shape in shapes] + [((8 * inner, hidden), f"{stem}_to_f32")]:
        x, weight, bias = bench.array(dtype, rows_, into), bench.array(dtype, columns, into), bench.array(dtype, columns)
        added, out = bench.array(dtype, rows_, columns), bench.array("f32", rows_, columns)
        arguments, count = (x, rows_, into, weight, columns, bias, added, out), counts.product(dtype, rows_, columns, into, adds=True)
        what = f"{rows_} x {into} x {columns}"
        bench.time(f"{name}_{dtype}", what, (ceil(columns, 16),), 256, *arguments, count=count, size=model)
        bench.forget()


def packed(bench, name, columns, into):
    """Memory of a quantised weight: any bytes are one."""
    taken = counts.quantized(name, ceil(columns, 16) * 16 * into)
    return bench.array("u8", taken, values=bench.random.integers(0, 256, min(taken, BLOCK), dtype=np.uint8))


def quantized_rows(bench, dtype, model, rows_):
    """The same products with weights that stay quantised, of every format whose blocks fill their rows."""
    hidden, heads, kv_heads, of_head, inner = (256, 2, 1, 32, 256) if bench.smoke else DECODERS[model]
    shapes = [((heads + 2 * kv_heads) * of_head, hidden), (hidden, heads * of_head), (2 * inner, hidden), (hidden, inner)]
    shapes.append((8 * inner, hidden))
    for name, (weights, _) in counts.QUANTIZED.items():
        for columns, into in [(columns, into) for columns, into in shapes if into % weights == 0]:
            quantized_product(bench, (name, dtype), (rows_, columns, into), model)


def quantized_product(bench, kinds, shape, size):
    (name, dtype), (rows_, columns, into) = kinds, shape
    x, weight, bias = bench.array(dtype, rows_, into), packed(bench, name, columns, into), bench.array(dtype, columns)
    added, out = bench.array(dtype, rows_, columns), bench.array(dtype, rows_, columns)
    arguments = (x, rows_, into, weight, columns, bias, added, out, columns, 0)
    most = 8 if rows_ <= 8 or dtype == "f32" else 32
    grid = (ceil(columns, 16), ceil(rows_, 8) if dtype == "f32" else 1)
    count, what = counts.quantized_product(name, dtype, rows_, columns, into, adds=True), f"{rows_} x {into} x {columns}"
    bench.time(f"rows_{most}_{name}_{dtype}", what, grid, 256, *arguments, count=count, size=size)
    bench.forget()


def of_quantized(bench, dtype, into, moved):
    """A row that meets a weight of so many bytes, and what else is made of quantised weights, moving as many."""
    for name, (weights, block) in counts.QUANTIZED.items():
        if dtype != "f32":
            columns = max(moved // (into // weights * block) // 16, 1) * 16
            quantized_product(bench, (name, dtype), (1, columns, into), "large")
        columns = max(moved // (into * (BYTES[dtype] + 1)) // 16, 1) * 16
        weight, out, number = packed(bench, name, columns, into), bench.array(dtype, columns, into), columns * into
        what, count = f"{columns} x {into}", counts.spell_out(name, dtype, number)
        grid = (ceil(number, 256 * 16),)
        bench.time(f"spell_out_{name}_{dtype}", what, grid, 256, weight, columns, into, out, count=count, size="large")
        # sixteen rows share what is read together, and so what is read is more than is needed: no line is held against it
        numbers = bench.array("u32", columns, values=bench.random.permutation(columns))
        arguments, count = (weight, numbers, into, out), counts.take_quantized_rows(name, dtype, columns, into)
        bench.time(f"take_rows_{name}_{dtype}", what, (columns,), 128, *arguments, count=count, size=None)
        if dtype == "f32":
            # beside a copy over the bus, which takes many times as long
            source, flags = packed(bench, name, columns, into), bench.array("u32", 1, values=np.zeros(1))
            arguments = (source, number // weights, 0, into // weights, weight, flags, 1)
            grid, count = (ceil(number, 256 * 32),), counts.arrange(name, number)
            bench.time(f"arrange_{name}", f"{number // weights} blocks", grid, 256, *arguments, count=count, size=None)
        bench.forget()


def paged(bench, dtype, model, step):
    """Attention of a step to a cache in which sequences' blocks lie anywhere, by every kernel that would do."""
    (sequences, before, tokens), (_, heads, kv_heads, of_head, _) = step, DECODERS[model]
    runs = [(before, tokens)] * sequences
    count = counts.paged_attention(dtype, runs, heads, kv_heads, of_head)
    what = f"{sequences} x {tokens} after {before}, {heads} / {kv_heads} heads of {of_head}"
    described, table = decoder.tables_of(runs, bench.random)
    q, out = (bench.array(dtype, sequences * tokens, heads * of_head) for _ in range(2))
    cache = bench.array(dtype, *decoder.cache_shape(len(table), kv_heads, of_head))
    described, table = (bench.array("u32", *np.shape(values), values=values) for values in (described, table))
    group = heads // kv_heads
    for name, rows_, split in decoder.kernels_for(dtype, of_head, tokens * group):
        listed, number, parts = decoder.items_of(runs, (group, rows_), split)
        memory = bench.array("f32", max(parts, 1) * kv_heads * rows_, of_head + 4)
        finished = bench.array("u32", max(parts, 1) * kv_heads, values=np.zeros(max(parts, 1) * kv_heads))
        items = bench.array("u32", *listed.shape, values=listed)
        block, shared = decoder.paged_launch(name, of_head)
        arguments = (group, of_head, decoder.NO_WINDOW, of_head**-0.5, rows_, memory, finished, out)
        # A block for each item; and, for a token of each, as many as a recorded step has whatever there is to do.
        recorded = [ceil(RECORDED_BLOCKS, kv_heads)] if tokens == 1 else []
        for blocks in dict.fromkeys([number, *recorded]):
            said = what if blocks == number else f"{what}, {blocks} blocks each"
            grid = (blocks, kv_heads)
            bench.time(name, said, grid, block, q, cache, described, table, items, *arguments, shared=shared, count=count, size=model)
    bench.forget()


def likeliest(bench, rows_, size=None):
    vocabulary = 1 << 10 if bench.smoke else 128256
    blocks = ceil(vocabulary, 8192)
    logits, parts = bench.array("f32", rows_, vocabulary), bench.array("f32", rows_ * blocks, 4)
    finished, out = bench.array("u32", rows_, values=np.zeros(rows_)), bench.array("u32", rows_, 4)
    arguments, count = (logits, vocabulary, parts, finished, out, None), counts.likeliest(rows_, vocabulary)
    what = f"{rows_} x {vocabulary}"
    bench.time("likeliest_f32", what, (blocks, rows_), 256, *arguments, count=count, size=size or "llama-8b")
    # Of each row a token or two: counts go on from launch to launch, and nothing is written beyond the room.
    best = np.array([[0, np.float32(4.0).view(np.uint32), 0, 1]] * rows_, np.uint32)
    told, asked = bench.array("u32", rows_, 4, values=best), bench.array("f32", rows_, 2, values=np.array([[1.0, 0.0]] * rows_))
    sums, counted, most = bench.array("f32", rows_, blocks), bench.array("u32", rows_, values=np.zeros(rows_)), 1024
    pairs = bench.array("u32", rows_, most, 2)
    arguments, count = (logits, vocabulary, told, asked, most, sums, counted, pairs), counts.likely(rows_, vocabulary, 0)
    bench.time("likely_f32", what, (blocks, rows_), 256, *arguments, count=count, size=size or "llama-8b")
    scored = bench.array("u32", rows_, 2, values=np.array([[0, 7]] * rows_)), bench.array("f32", rows_)
    arguments, count = (logits, rows_, vocabulary, *scored), counts.logit_of(rows_)
    bench.time("logit_of_f32", what, (ceil(rows_, 256),), 256, *arguments, count=count, size=size or "llama-8b")
    bench.forget()


def values(bench, moved, size):
    """Kernels that know no shape, with as many values as come to so many bytes."""
    for source, target in (name.split("_")[1:] for name in sorted(bench.kernels.params) if name.startswith("cast_")):
        number = moved // (BYTES[source] + BYTES[target])
        x, out = bench.array(source, number), bench.array(target, number)
        grid, count = (ceil(number, 256 * 8),), counts.cast(source, target, number)
        bench.time(f"cast_{source}_{target}", f"{number}", grid, 256, x, number, out, count=count, size=size)
        bench.forget()
    for dtype in FORMATS:
        number = moved // BYTES[dtype]
        x, flags = bench.array(dtype, number), bench.array("u32", 1, values=np.zeros(1))
        grid, count = (min(ceil(number * BYTES[dtype], 256 * 16), 1024),), counts.finite(dtype, number)
        bench.time(f"finite_{dtype}", f"{number}", grid, 256, x, number, flags, 1, count=count, size=size)
        bench.forget()
        number //= 2
        blocks = min(ceil(number, 256 * 8), 1 << 16)
        x, out, words = bench.array(dtype, number), bench.array(dtype, number), bench.array("u32", blocks * 8)
        bench.time(f"land_{dtype}", f"{number}", (blocks,), 256, x, number, out, words, count=counts.land(dtype, number), size=size)
        bench.forget()


def large(bench):
    """Every kernel that memory bounds, moving several times what the cache holds."""
    bench.copy()
    likeliest(bench, max(bench.large // (4 * 128256), 1), "large")
    values(bench, bench.large, "large")
    for dtype in FORMATS:
        for model in ("minilm", "bert-base"):
            width, _, inner = MODELS[model]
            tokens = max(bench.large // (2 * width * BYTES[dtype]) // SEQUENCE, 1) * SEQUENCE
            rows(bench, dtype, model, tokens, "large")
            normals(bench, dtype, bench.large // (width * (BYTES[dtype] + 4)), width, "large")
            activations(bench, dtype, model, max(bench.large // (2 * inner * BYTES[dtype]), 1), "large")
        for model, (hidden, *_) in DECODERS.items():
            of_decoder(bench, dtype, model, max(bench.large // (2 * hidden * BYTES[dtype]), 1), "large")
        of_quantized(bench, dtype, 256 if bench.smoke else 4096, bench.large)
        images(bench, dtype, max(bench.large // (3 * 224 * 224 * (4 + BYTES[dtype])), 1), "large")


def everything(bench):
    x, flags = bench.array("f32", 1), bench.array("u32", 1, values=np.zeros(1))
    bench.time("finite_f32", "1 value: a launch", (1,), 256, x, 1, flags, 1, count=counts.finite("f32", 1), size="launch")
    bench.forget()
    for dtype in FORMATS:
        for model in MODELS:
            for tokens in (16,) if bench.smoke else (16, 128, 1024, 16384):
                for part in (rows, activations, attention):
                    part(bench, dtype, model, tokens)
        for model in DECODERS:
            for tokens in (16,) if bench.smoke else (1, 8, 64, 1024):
                of_decoder(bench, dtype, model, tokens)
            for tokens in (1, 8, 16, 32) if dtype != "f32" else ():
                few_rows(bench, dtype, model, tokens)
            for tokens in (1, 8, 32):
                quantized_rows(bench, dtype, model, tokens)
            for step in ((2, 300, 1), (1, 20, 40)) if bench.smoke else STEPS:
                paged(bench, dtype, model, step)
        for tokens in (1, 8, 64) if dtype == "f32" else ():
            likeliest(bench, tokens)
        for count in (1,) if bench.smoke else (1, 8, 64):
            images(bench, dtype, count)
    large(bench)
    if missed := sorted(bench.kernels.params.keys() - bench.timed):
        raise SystemExit(f"not timed: {', '.join(missed)}")


def line(told):
    us = told["us"]
    rates = f"{1e-3 * told['bytes'] / us:8.0f} GB/s {1e-6 * told['operations'] / us:8.1f} TFLOP/s"
    print(f"{told['kernel']:24} {told['what']:34} {us:9.2f} us {rates}", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Times each kernel on a GPU.")
    parser.add_argument("library", help="libcutover_kernels_cpu.so")
    parser.add_argument("fatbins", help="what kernels/build made")
    parser.add_argument("--json", action="store_true", help="a line of JSON each")
    parser.add_argument("--smoke", action="store_true", help="everything once, at a small size")
    parser.add_argument("--attention", nargs="+", metavar="BATCH", help="only attention, of these batches")
    given = parser.parse_args()
    kernels = DeviceKernels(given.library, given.fatbins)
    tell = (lambda told: print(json.dumps(told), flush=True)) if given.json else line
    bench = Bench(kernels, given.smoke, tell)
    print(f"on {kernels.device}, a cache of {bench.cache / 1e6:.0f} MB", file=sys.stderr)
    if given.attention:
        width, heads, _ = MODELS["bert-base"]
        for batch in given.attention:
            attend(bench, "bf16", "bert-base", batch, (str(width // heads),))
    else:
        everything(bench)


if __name__ == "__main__":
    main()
