"""How long each kernel takes on a GPU, by itself: `kernels.py LIBRARY FATBINS [--smoke]`.

LIBRARY is what tests/fake_gpu/kernels/build makes (it names the kernels' parameters), FATBINS the folder of kernels/build.
For shapes of encoders (MiniLM, BERT base and large, ViT base) and batches of 16 to 16,384 tokens it prints microseconds a
launch, as the least of 5 rounds of 50 launches in one graph (else launching from Python would be what is timed), and what
moved or was multiplied in that time. Up to some ten megabytes stay in the device's cache from one launch to the next. `--smoke` runs everything once at a small size. What
comes out is not looked at: check.py does that. Packages: numpy.
"""

import argparse
import ctypes
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/fake_gpu/kernels"))

import numpy as np  # noqa: E402
from cases import attention_launch, ceil, tiles_of  # noqa: E402
from device import MAX_DYNAMIC_SHARED_SIZE_BYTES, SHARED_WITHOUT_ASKING, U64, DeviceKernels  # noqa: E402
from library import STORED, narrow  # noqa: E402

BYTES = {dtype: np.dtype(kind).itemsize for dtype, kind in STORED.items()}
# name: width, heads, width between
MODELS = {"minilm": (384, 12, 1536), "bert-base": (768, 12, 3072), "bert-large": (1024, 16, 4096)}
MODELS["heads of 128"] = (1024, 8, 4096)
SEQUENCE = 128  # tokens, for what has sequences; long ones besides


class Array:
    """Memory of the device with random values, not zeros: those are faster."""

    def __init__(self, bench, dtype, shape, values=None):
        self.bytes = int(np.prod(shape)) * BYTES[dtype]
        self.pointer = U64()
        bench.kernels.call("cuMemAlloc_v2", ctypes.byref(self.pointer), ctypes.c_size_t(self.bytes))
        stored = narrow(dtype, bench.random.standard_normal(shape, np.float32) if values is None else values)
        data = np.ascontiguousarray(stored)
        bench.kernels.call("cuMemcpyHtoD_v2", self.pointer, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(self.bytes))


class Bench:
    def __init__(self, kernels, smoke):
        self.kernels, self.random, self.arrays = kernels, np.random.default_rng(1), []
        self.rounds, self.launches = (1, 1) if smoke else (5, 50)
        self.stream, self.events = U64(), [U64(), U64()]
        kernels.call("cuStreamCreate", ctypes.byref(self.stream), 1)  # not waiting for the default stream
        for event in self.events:
            kernels.call("cuEventCreate", ctypes.byref(event), 0)

    def array(self, dtype, *shape, values=None):
        self.arrays.append(Array(self, dtype, shape, values))
        return self.arrays[-1]

    def forget(self):
        for array in self.arrays:
            self.kernels.call("cuMemFree_v2", array.pointer)
        self.arrays.clear()

    def time(self, name, what, grid, block, *arguments, shared=0, moved=0, multiplied=0):
        """`moved`: bytes read and written at least; `multiplied`: multiplications, each with an addition."""
        kernels, function = self.kernels, self.kernels.functions[name]
        if shared > SHARED_WITHOUT_ASKING:
            kernels.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        number = lambda param, a: a.pointer if isinstance(a, Array) else kernels.value(param, a)
        at = lambda a: U64(a[0].pointer.value + a[1]) if isinstance(a, tuple) else None
        values = [at(a) or number(param, a) for param, a in zip(kernels.params[name], arguments)]
        grid = tuple(grid) + (1,) * (3 - len(grid))
        launch = (function, *grid, block, 1, 1, shared, self.stream, kernels.addresses(values), None)
        us = max(self.least(launch), 1e-3)
        rate = f"{2e-6 * multiplied / us:8.1f} TFLOP/s" if multiplied else f"{1e-3 * moved / us:8.0f} GB/s"
        print(f"{name:24} {what:34} {us:9.2f} us {rate}", flush=True)

    def least(self, launch):
        """Microseconds a launch."""
        call, graph, ready = self.kernels.call, U64(), U64()
        call("cuCtxSynchronize")  # what was copied up may not be there yet, and this stream waits for no other
        call("cuStreamBeginCapture_v2", self.stream, 2)  # nobody else's calls are our concern
        for _ in range(self.launches):
            call("cuLaunchKernel", *launch)
        call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, U64(0))
        took = []
        for _ in range(1 + self.rounds):
            call("cuEventRecord", self.events[0], self.stream)
            call("cuGraphLaunch", ready, self.stream)
            call("cuEventRecord", self.events[1], self.stream)
            call("cuStreamSynchronize", self.stream)
            ms = ctypes.c_float()
            call("cuEventElapsedTime_v2", ctypes.byref(ms), *self.events)
            took.append(ms.value * 1e3 / self.launches)
        call("cuGraphExecDestroy", ready)
        call("cuGraphDestroy", graph)
        return min(took[1:])


def rows(bench, dtype, model, tokens):
    width, _, _ = MODELS[model]
    what, size = f"{tokens} x {width}", tokens * width * BYTES[dtype]
    x, y, z, out = (bench.array(dtype, tokens, width) for _ in range(4))
    gamma, beta = bench.array(dtype, width), bench.array(dtype, width)
    grid = (ceil(tokens, 4),)
    bench.time(f"layer_norm_{dtype}", what, grid, 128, x, tokens, width, gamma, beta, 1e-5, out, moved=2 * size)
    arguments = (x, y, tokens, width, gamma, beta, 1e-5, z, out)
    bench.time(f"add_layer_norm_{dtype}", what, grid, 128, *arguments, moved=4 * size)
    words, positions, types = (bench.array(dtype, n, width) for n in (30522, 512, 2))
    index = np.stack([bench.random.integers(0, n, tokens) for n in (30522, 512, 2)])
    index = bench.array("u32", 3, tokens, values=index)
    arguments = (index, tokens, width, words, positions, types, gamma, beta, 1e-12, out)
    bench.time(f"embed_tokens_{dtype}", what, grid, 128, *arguments, moved=3 * size)
    length = min(SEQUENCE, tokens)
    sequences = tokens // length
    offsets = bench.array("u32", sequences + 1, values=np.arange(sequences + 1) * length)
    result = bench.array("f32", sequences, width)
    arguments = (x, width, offsets, sequences, width, 0, 1, result)
    bench.time(f"pool_normalize_{dtype}", f"{sequences} of {length} x {width}", (sequences,), 512, *arguments, moved=size)
    # what the server does in its place, and what it ends every batch with
    pooled = bench.array(dtype, sequences, width)
    arguments, blocks = (x, width, offsets, sequences, width, 0, pooled), ceil(width, 256)
    bench.time(f"pool_{dtype}", f"{sequences} of {length} x {width}", (sequences, blocks), 512, *arguments, moved=size)
    count, what = sequences * width, f"{sequences} x {width}"
    arguments, moved = (pooled, sequences, width, result), count * (BYTES[dtype] + 4)
    bench.time(f"l2_normalize_{dtype}", what, (ceil(sequences, 4),), 128, *arguments, moved=moved)
    blocks = ceil(count, 256 * 8)
    landed, words = bench.array(dtype, sequences, width), bench.array("u32", blocks * 8)
    moved = 2 * count * BYTES[dtype]
    bench.time(f"land_{dtype}", what, (blocks,), 256, pooled, count, landed, words, moved=moved)
    bench.forget()


def activations(bench, dtype, model, tokens):
    width = MODELS[model][2]
    x, bias = bench.array(dtype, tokens, width), bench.array(dtype, width)
    size = tokens * width * BYTES[dtype]
    grid = (ceil(size, 256 * 16),)
    for kind, name in ((0, "gelu"), (1, "gelu tanh")):
        what = f"{tokens} x {width} {name}"
        bench.time(f"bias_activate_{dtype}", what, grid, 256, x, bias, tokens, width, kind, moved=2 * size)
    bench.forget()


def attention(bench, dtype, model, tokens):
    width, heads, _ = MODELS[model]
    of_head = width // heads
    for length in sorted({min(SEQUENCE, tokens), min(512, tokens)}):
        lengths = (length,) * (tokens // length)
        packed, out = bench.array(dtype, tokens, 3 * width), bench.array(dtype, tokens, width)
        offsets = bench.array("u32", len(lengths) + 1, values=np.arange(len(lengths) + 1) * length)
        tiles = tiles_of(lengths)
        listed = bench.array("u32", *tiles.shape, values=tiles)
        columns = [(packed, i * width * BYTES[dtype]) for i in range(3)]
        for of in (of_head, "any"):
            name = f"attention_{of}_{dtype}"
            block, shared = attention_launch(name, of_head)
            arguments = (*columns, 3 * width, offsets, listed, heads, of_head, of_head**-0.5, out)
            what = f"{len(lengths)} of {length} x {heads} x {of_head}"
            multiplied = 2 * tokens * length * width
            bench.time(name, what, (len(tiles), heads), block, *arguments, shared=shared, multiplied=multiplied)
    bench.forget()


def images(bench, dtype, count):
    size, side, patch, width = 4 * count * 3 * 224 * 224, 224, 16, 768
    each = (side // patch) ** 2
    pixels, out = bench.array("f32", count, 3, side, side), bench.array(dtype, count * each, 3 * patch * patch)
    arguments = (pixels, count, 3, side, side, patch, out)
    moved = size + size // 4 * BYTES[dtype]
    bench.time(f"patches_{dtype}", f"{count} of {side} x {side}", (count * each,), 128, *arguments, moved=moved)
    projected, cls, positions = (bench.array(dtype, n, width) for n in (count * each, 1, each + 1))
    out = bench.array(dtype, count * (each + 1), width)
    arguments = (projected, cls, positions, count, each, width, out)
    moved = 2 * count * each * width * BYTES[dtype]
    what, grid = f"{count} x {each + 1} x {width}", (ceil(count * (each + 1), 4),)
    bench.time(f"embed_patches_{dtype}", what, grid, 128, *arguments, moved=moved)
    bench.forget()


def values(bench, count):
    for source, target in (("f32", "bf16"), ("f16", "bf16"), ("bf16", "f32")):
        x, out = bench.array(source, count), bench.array(target, count)
        grid = (ceil(count, 256 * 8),)
        moved = count * (BYTES[source] + BYTES[target])
        bench.time(f"cast_{source}_{target}", f"{count}", grid, 256, x, count, out, moved=moved)
        bench.forget()
    for dtype in ("f32", "bf16"):
        x, flags = bench.array(dtype, count), bench.array("u32", 1, values=np.zeros(1))
        grid = (min(ceil(count * BYTES[dtype], 256 * 16), 1024),)
        bench.time(f"finite_{dtype}", f"{count}", grid, 256, x, count, flags, 1, moved=count * BYTES[dtype])
        bench.forget()


def main():
    parser = argparse.ArgumentParser(description="Times each kernel on a GPU.")
    parser.add_argument("library", help="libcutover_kernels_cpu.so")
    parser.add_argument("fatbins", help="what kernels/build made")
    parser.add_argument("--smoke", action="store_true", help="everything once, at a small size")
    given = parser.parse_args()
    kernels = DeviceKernels(given.library, given.fatbins)
    bench = Bench(kernels, given.smoke)
    print(f"on {kernels.device}")
    for dtype in ("bf16", "f32"):
        for model in MODELS:
            for tokens in (16,) if given.smoke else (16, 128, 1024, 16384):
                for part in (rows, activations, attention):
                    part(bench, dtype, model, tokens)
        for count in (1,) if given.smoke else (1, 8, 64):
            images(bench, dtype, count)
    values(bench, 5000 if given.smoke else 1 << 26)


if __name__ == "__main__":
    main()
