"""The kernels as functions of Python, and memory that they cannot misuse unseen.

A buffer ends at a page that may not be touched, what lies round its values is NaN and looked at afterwards, an input
cannot be written, an output begins as NaN. It must not know what any kernel computes.
"""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

STORED = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "f64": np.float64, "u32": np.uint32, "u8": np.uint8}


def narrow(dtype, values):
    """As `dtype` stores them; bf16 as the upper halves of f32, rounded to nearest even."""
    if dtype != "bf16":
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(STORED[dtype])
    single = np.asarray(values, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(single), 0x7FFF, rounded).astype(np.uint16)


def widen(dtype, stored):
    single = stored if dtype != "bf16" else (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is one
        return single.astype(np.float64)


class Buffer:
    """Device memory of one array."""

    def __init__(self, dtype, stored, shape, writable, shift):
        self.dtype, self.shape, self.writable = dtype, tuple(shape), writable
        kind = np.dtype(STORED[dtype])
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * kind.itemsize
        # 16 bytes are where CUDA's allocations would be aligned; one value further they are not
        room = -(-self.bytes // 16) * 16 + (16 if shift else 0)
        self.pages = -(-max(room, 16) // PAGE) * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.base = LIBC.mmap(None, self.pages + PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert self.base not in (None, ctypes.c_void_p(-1).value), "no memory"
        assert LIBC.mprotect(self.base + self.pages, PAGE, 0) == 0  # PROT_NONE
        self.start = self.pages - room + (kind.itemsize if shift else 0)
        self.address = self.base + self.start
        self.all = np.frombuffer((ctypes.c_ubyte * self.pages).from_address(self.base), dtype=np.uint8)
        self.all[:] = 0xFF
        self.values = self.all[self.start :][: self.bytes].view(kind).reshape(self.shape)
        if stored is not None:
            self.values[...] = stored
        if not writable:
            assert LIBC.mprotect(self.base, self.pages, mmap.PROT_READ) == 0

    def read(self):
        """What it holds, widened; what lies round it must be as it was."""
        for round_it in (self.all[: self.start], self.all[self.start + self.bytes :]):
            assert (round_it == 0xFF).all(), "memory beside an output was written"
        return widen(self.dtype, self.values)

    def columns(self, first):
        """The same rows from a column on."""
        return Columns(self, first * self.values.itemsize)

    def __del__(self):
        if getattr(self, "base", None):
            LIBC.munmap(self.base, self.pages + PAGE)


class Columns:
    """A pointer into a buffer, which lives as long."""

    def __init__(self, buffer, offset):
        self.buffer, self.address = buffer, buffer.address + offset


def given(dtype, values, shift=False):
    """An input: read-only."""
    stored = narrow(dtype, values)
    return Buffer(dtype, stored, stored.shape, False, shift)


def changed(dtype, values, shift=False):
    """An input that is written over."""
    stored = narrow(dtype, values)
    return Buffer(dtype, stored, stored.shape, True, shift)


def output(dtype, shape, shift=False):
    return Buffer(dtype, None, shape, True, shift)


class Entry(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("params", ctypes.c_int),
        ("sizes", ctypes.POINTER(ctypes.c_ubyte)),
        ("is_pointer", ctypes.POINTER(ctypes.c_ubyte)),
    ]


class Kernels:
    """Every kernel that a library names, to be launched by name; how is for those who inherit."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        count = ctypes.c_int.in_dll(self.library, "cutover_kernel_count").value
        table = (Entry * count).in_dll(self.library, "cutover_kernels")
        self.params = {
            entry.name.decode(): [(entry.sizes[i], bool(entry.is_pointer[i])) for i in range(entry.params)]
            for entry in table
        }
        self.launched = set()

    def launch(self, name, grid, block, *arguments, shared=0):
        """An empty grid is not launched, as a driver would not."""
        params = self.params[name]
        assert len(params) == len(arguments), f"{name} takes {len(params)} parameters, {len(arguments)} were given"
        self.launched.add(name)
        grid = tuple(grid) + (1,) * (3 - len(grid))
        if 0 not in grid:
            self.run(name, grid, block, list(zip(params, arguments)), shared)

    @staticmethod
    def value(param, argument):
        """A number as a kernel gets it."""
        size, is_pointer = param
        if is_pointer:
            assert argument is None, f"{argument} is not memory"
            return ctypes.c_void_p(None)
        if isinstance(argument, float):
            assert size == 4
            return ctypes.c_float(argument)
        return {4: ctypes.c_int32, 8: ctypes.c_int64}[size](argument)

    @staticmethod
    def addresses(values):
        return (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])


class CpuKernels(Kernels):
    device = "the CPU"

    def order_threads(self, order):
        self.library.cutover_thread_order(ctypes.c_uint(order))

    def run(self, name, grid, block, arguments, shared):
        is_memory = lambda argument: isinstance(argument, (Buffer, Columns))
        values = [ctypes.c_void_p(a.address) if is_memory(a) else self.value(param, a) for param, a in arguments]
        three = ctypes.c_uint * 3
        call = getattr(self.library, "cpu_" + name)
        call(three(*grid), three(block, 1, 1), ctypes.c_uint(shared), self.addresses(values))
