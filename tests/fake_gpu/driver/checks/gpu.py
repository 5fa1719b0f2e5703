"""The fake driver through ctypes, for `check`: calls by name, and small helpers. Knows nothing of what is checked."""

import ctypes
import json
import os
import struct
import typing

MIB = 1 << 20
OK, BAD, OOM, NOT_READY, ILLEGAL = 0, 1, 2, 600, 700
NO_CONTEXT, NO_HANDLE, NOT_FOUND = 201, 400, 500
NON_BLOCKING = 1
U64, I32, F32 = ctypes.c_uint64, ctypes.c_int, ctypes.c_float


class Stricter(typing.NamedTuple):
    """What the fake driver answers on purpose, where the vendor's lets a mistake pass."""

    fake: int
    vendor: int


class Gpu:
    """A process's driver; `Gpu(folder)` also makes a context current unless it is told not to. Without a folder: the vendor's."""

    def __init__(self, folder, context=True):
        self.cuda = ctypes.CDLL(os.path.join(folder, "libcuda.so") if folder else "libcuda.so.1")
        self.folder = folder
        if context:
            self.ok("cuInit", 0)
            self.context = self.out("cuDevicePrimaryCtxRetain", 0)
            self.ok("cuCtxSetCurrent", self.context)

    def __call__(self, name, *arguments):
        library = self.lt if name.startswith("cublas") else self.cuda
        whole = [U64(a & (2**64 - 1)) if isinstance(a, int) else a for a in arguments]
        return getattr(library, name)(*whole)

    @property
    def lt(self):
        return ctypes.CDLL(os.path.join(self.folder, "libcublasLt.so.13"))

    def ok(self, name, *arguments):
        code = self(name, *arguments)
        assert code == OK, f"{name} gave {code}; {self.report()['misuse_messages'][-1:] if self.folder else ''}"

    def fails(self, code, name, *arguments):
        got = self(name, *arguments)
        assert got == code, f"{name} gave {got}, not {code}"

    def out(self, name, *arguments, last=False, of=U64):
        """What a call tells through its first pointer, or through its last."""
        told = of()
        where = (*arguments, ctypes.byref(told)) if last else (ctypes.byref(told), *arguments)
        self.ok(name, *where)
        return told.value

    # streams and events
    def stream(self, flags=NON_BLOCKING):
        return self.out("cuStreamCreate", flags)

    def event(self, stream=None, flags=0):
        event = self.out("cuEventCreate", flags)
        if stream is not None:
            self.ok("cuEventRecord", event, stream)
        return event

    def sync(self, stream):
        self.ok("cuStreamSynchronize", stream)

    # memory
    def pool(self, max_size=0):
        props = struct.pack("<iiiiQQH54x", 1, 0, 1, 0, 0, max_size, 0)
        return self.out("cuMemPoolCreate", ctypes.create_string_buffer(props, 88))

    def pooled(self, pool, size, stream):
        return self.out("cuMemAllocFromPoolAsync", size, pool, stream)

    def of_pool(self, pool, attribute):
        return self.out("cuMemPoolGetAttribute", pool, attribute, last=True)

    def used(self, pool):
        return self.of_pool(pool, 7)

    def reserved(self, pool):
        return self.of_pool(pool, 5)

    def plain(self, size):
        return self.out("cuMemAlloc_v2", size)

    def pinned(self, size):
        return self.out("cuMemHostAlloc", size, 0)

    def free_memory(self):
        free, total = U64(), U64()
        self.ok("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def up(self, to, data, stream):
        self.ok("cuMemcpyHtoDAsync_v2", to, bytes(data), len(data), stream)

    def down(self, at, size, stream):
        """Into pageable memory, so it is waited for."""
        buffer = ctypes.create_string_buffer(size)
        self.ok("cuMemcpyDtoHAsync_v2", buffer, at, size, stream)
        return buffer.raw

    # kernels
    def function(self, name):
        module = self.out("cuModuleLoadData", b"any bytes")
        return self.out("cuModuleGetFunction", module, name.encode())

    def launch(self, function, *params, grid=1, block=1, shared=0, stream=0):
        return self("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, shared, stream, addresses(params), None)

    # control
    def set(self, key, value):
        assert self.cuda.fake_gpu_set(key.encode(), ctypes.c_longlong(value)) == 0, key

    def get(self, key):
        self.cuda.fake_gpu_get.restype = ctypes.c_longlong
        return self.cuda.fake_gpu_get(key.encode())

    def report(self):
        buffer = ctypes.create_string_buffer(1 << 20)
        self.cuda.fake_gpu_report(buffer, ctypes.c_longlong(len(buffer)))
        return json.loads(buffer.value)


def addresses(params):
    if not params:
        return None
    array = (ctypes.c_void_p * len(params))(*[ctypes.addressof(p) for p in params])
    array.values = params  # which live as long as it does
    return array


def poke(at, data):
    ctypes.memmove(ctypes.c_void_p(at), bytes(data), len(data))


def peek(at, size):
    return ctypes.string_at(ctypes.c_void_p(at), size)


def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def pack(values):
    return struct.pack(f"<{len(values)}f", *values)
