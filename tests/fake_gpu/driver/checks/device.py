"""What the fake driver answers where the vendor's can be asked the same: every case yields (what, answer, what is modelled).

`check` holds the fake to these; `check --device` puts them to the driver of a machine that has a GPU and tells where it
says otherwise: then it is right, and the fake has to be changed; unless what it lets pass is a mistake of whoever calls, which the
fake refuses on purpose (`Stricter`). Only calls whose outcome is defined, so that nothing crashes.
"""

import ctypes
import threading

from .gpu import BAD, I32, MIB, NO_CONTEXT, NO_HANDLE, NOT_FOUND, OK, U64, Stricter

PTX = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry noop()\n{\nret;\n}\n"
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


# What the vendor's driver lets pass (seen with 580.159, H100), and its header does not promise.
_WITHOUT = Stricter(NO_CONTEXT, OK)


def _elsewhere(g, call, *arguments, context=True):
    got = []

    def work():
        if context:
            g("cuCtxSetCurrent", g.context)
        got.append(g(call, *arguments))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return got[0]


def _end(g, s):
    return g("cuStreamEndCapture", s, ctypes.byref(U64()))


def calls_without_a_context(g):
    s, pool, event, told = g.stream(), g.pool(), g.event(), ctypes.byref(U64())
    g.sync(s)
    kept = g.pooled(pool, 64, s)
    for want, call, *arguments in (
        (_WITHOUT, "cuStreamSynchronize", s),
        (_WITHOUT, "cuStreamQuery", s),
        (_WITHOUT, "cuEventQuery", event),
        (_WITHOUT, "cuEventRecord", event, s),
        (NO_CONTEXT, "cuMemAlloc_v2", told, 64),
        (NO_CONTEXT, "cuMemHostAlloc", told, 64, 0),
        (NO_CONTEXT, "cuStreamCreate", told, 0),
        (NO_CONTEXT, "cuModuleLoadData", told, PTX),
        (NO_CONTEXT, "cuMemGetInfo_v2", told, told),
        (_WITHOUT, "cuMemsetD8Async", kept, 0, 1, s),
        (NO_CONTEXT, "cuMemAllocAsync", told, 64, 0),
        (OK, "cuMemAllocAsync", told, 64, s),
        (OK, "cuMemAllocFromPoolAsync", told, 64, pool, s),
        (NO_CONTEXT, "cuMemFreeAsync", kept, 0),
        (OK, "cuMemFreeAsync", kept, s),
        (OK, "cuMemPoolTrimTo", pool, 0),
        (OK, "cuDeviceGraphMemTrim", 0),
    ):
        yield f"{call} on a thread without a context", _elsewhere(g, call, *arguments, context=False), want


def frees_that_do_not_fit(g):
    s, pool = g.stream(), g.pool()
    at, plain, pinned = g.pooled(pool, 64, s), g.plain(64), g.pinned(64)
    yield "cuMemFreeAsync of plain memory", g("cuMemFreeAsync", plain, s), Stricter(BAD, OK)
    plain = g.plain(64)
    yield "cuMemFree of pinned memory", g("cuMemFree_v2", pinned), BAD
    g.ok("cuMemFreeAsync", at, s)
    yield "cuMemFreeAsync twice", g("cuMemFreeAsync", at, s), BAD
    g.ok("cuMemFree_v2", plain)
    yield "cuMemFree twice", g("cuMemFree_v2", plain), BAD
    g.ok("cuMemFreeHost", pinned)
    yield "cuMemFreeHost twice", g("cuMemFreeHost", pinned), BAD
    yield "cuMemFree of 0", g("cuMemFree_v2", 0), OK
    yield "cuMemAlloc of nothing", g("cuMemAlloc_v2", ctypes.byref(U64()), 0), BAD
    yield "cuMemAllocAsync of nothing", g("cuMemAllocAsync", ctypes.byref(U64()), 0, s), Stricter(BAD, OK)
    yield "destroying the default pool", g("cuMemPoolDestroy", g.out("cuDeviceGetDefaultMemPool", 0)), BAD


def memory_of_the_host(g):
    s, device = g.stream(), g.plain(8192)
    host = ctypes.create_string_buffer(4 * 8192)
    at = ctypes.addressof(host) + 8192 & ~4095
    yield "unregistering what is not registered", g("cuMemHostUnregister", at), 713
    g.ok("cuMemHostRegister_v2", at, 4096, 0)
    yield "registering twice", g("cuMemHostRegister_v2", at, 4096, 0), 712
    yield "copying what is pinned in part", g("cuMemcpyHtoDAsync_v2", device, at, 8192, s), BAD
    g.sync(s)
    g.ok("cuMemHostUnregister", at)


def counts_of_a_pool(g):
    s, other, pool, before = g.stream(), g.stream(), g.pool(256 * MIB), g.free_memory()
    told = ctypes.byref(U64())
    yield "more than maxSize", g("cuMemAllocFromPoolAsync", told, 512 * MIB, pool, s), 2
    at = g.pooled(pool, 1000, s)
    yield "used, reserved of 1000 bytes", (g.used(pool), g.reserved(pool)), (1000, 32 * MIB)
    yield "what the device has less", before - g.free_memory(), 32 * MIB
    g.ok("cuMemFreeAsync", at, s)
    yield "used after the free", g.used(pool), 0
    g.ok("cuMemPoolTrimTo", pool, 0)
    yield "reserved after a trim without a synchronise", g.reserved(pool), 32 * MIB
    g.sync(s)
    yield "reserved after the synchronise, threshold 0", g.reserved(pool), 0
    g.ok("cuMemFreeAsync", g.pooled(pool, 32 * MIB, s), s)
    g.ok("cuMemFreeAsync", g.pooled(pool, 32 * MIB, s), s)
    yield "reserved when a stream reuses what it freed", g.reserved(pool), 32 * MIB
    g.sync(s)
    yield "a high-water mark set to 5", g("cuMemPoolSetAttribute", pool, 8, ctypes.byref(U64(5))), BAD
    yield "used set", g("cuMemPoolSetAttribute", pool, 7, ctypes.byref(U64(0))), BAD
    g.ok("cuMemPoolSetAttribute", pool, 4, ctypes.byref(U64(64 * MIB)))
    g.ok("cuMemFreeAsync", g.pooled(pool, 100 * MIB, s), s)
    g.sync(s)
    yield "reserved with a threshold of 64 MiB", g.reserved(pool), 64 * MIB
    g.ok("cuMemPoolTrimTo", pool, 0)
    yield "and trimmed", g.reserved(pool), 0
    at = g.pooled(pool, 64, other)
    g.sync(other)
    g.ok("cuMemPoolDestroy", pool)
    yield "destroyed with memory in use: what the device has less", before - g.free_memory(), 32 * MIB
    g.ok("cuMemFreeAsync", at, other)
    g.sync(other)
    yield "and after its free", before - g.free_memory(), 0


def events_and_priorities(g):
    s, ms = g.stream(), ctypes.byref(ctypes.c_float())
    timeless, never, one = g.event(s, flags=2), g.event(), g.event(s)
    g.sync(s)
    yield "elapsed time of a timeless event", g("cuEventElapsedTime_v2", ms, one, timeless), NO_HANDLE
    yield "elapsed time of one never recorded", g("cuEventElapsedTime_v2", ms, one, never), NO_HANDLE
    yield "asking for one never recorded", g("cuEventQuery", never), OK
    yield "waiting for one never recorded", g("cuStreamWaitEvent", s, never, 0), OK
    yield "an event between processes that takes the time", g("cuEventCreate", ctypes.byref(U64()), 4), BAD
    high, got = g.out("cuStreamCreateWithPriority", 1, -99), I32()
    g.ok("cuStreamGetPriority", high, ctypes.byref(got))
    yield "the priority of a stream made with -99", got.value, -5
    value = (I32 * 16)(-6)
    yield "setting a priority of -6", g("cuStreamSetAttribute", s, 8, value), Stricter(BAD, OK)


def shapes_of_launches(g):
    module = g.out("cuModuleLoadData", PTX)
    noop = g.out("cuModuleGetFunction", module, b"noop")
    yield "a function that is not there", g("cuModuleGetFunction", ctypes.byref(U64()), module, b"other"), NOT_FOUND
    for grid, block, shared, want in (
        ((1, 1, 1), (1024, 1, 1), 0, OK), ((1, 1, 1), (1025, 1, 1), 0, BAD), ((1, 1, 1), (1, 1, 65), 0, BAD), ((0, 1, 1), (1, 1, 1), 0, BAD),
        ((1, 65536, 1), (1, 1, 1), 0, BAD), ((1, 65535, 1), (1, 1, 1), 0, OK), ((1, 1, 1), (64, 32, 1), 0, BAD),
        ((1, 1, 1), (1, 1, 1), 48 << 10, OK), ((1, 1, 1), (1, 1, 1), (48 << 10) + 4, BAD),
    ):
        got = g("cuLaunchKernel", noop, *grid, *block, shared, 0, None, None)
        yield f"a grid of {grid}, blocks of {block}, {shared} bytes shared", got, want
    yield "228 KiB of shared memory allowed", g("cuFuncSetAttribute", noop, 8, 228 << 10), BAD
    yield "227 KiB of shared memory allowed", g("cuFuncSetAttribute", noop, 8, 227 << 10), OK
    yield "and used", g("cuLaunchKernel", noop, 1, 1, 1, 1, 1, 1, 227 << 10, 0, None, None), OK
    g.ok("cuCtxSynchronize")


def what_breaks_a_capture(g):
    s, other, blocking, at, told = g.stream(), g.stream(), g.stream(0), g.plain(64), ctypes.byref(U64())
    event, status = g.event(other), I32()
    g.sync(other)
    yield "ending no capture", _end(g, s), 401
    yield "a capture of the legacy stream", g("cuStreamBeginCapture_v2", 0, RELAXED), 900
    for mode, own, others in ((GLOBAL, 900, 900), (THREAD_LOCAL, 900, OK), (RELAXED, OK, OK)):
        for call, *arguments in (("cuMemAlloc_v2", told, 64), ("cuMemHostAlloc", told, 64, 0), ("cuEventQuery", event),
                                 ("cuEventSynchronize", event), ("cuStreamQuery", other), ("cuStreamSynchronize", other)):
            for where, run, want in (("its thread", g, own), ("another thread", lambda *a: _elsewhere(g, *a), others)):
                g.ok("cuStreamBeginCapture_v2", s, mode)
                yield f"{call} on {where}, mode {mode}", run(call, *arguments), want
                yield "and ending that capture", _end(g, s), 901 if want else OK
    g.ok("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
    yield "beginning it twice", g("cuStreamBeginCapture_v2", s, THREAD_LOCAL), 401
    yield "ending it on another thread", _elsewhere(g, "cuStreamEndCapture", s, told), 908
    yield "ending it then: that one had ended it", _end(g, s), 401
    g.ok("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
    yield "synchronising it", g("cuStreamSynchronize", s), 900
    g.ok("cuStreamIsCapturing", s, ctypes.byref(status))
    yield "its status then", status.value, 2
    yield "ending it after that", _end(g, s), 901
    g.ok("cuStreamBeginCapture_v2", blocking, THREAD_LOCAL)
    yield "the legacy stream beside it", g("cuMemsetD8Async", at, 0, 1, 0), 906
    yield "ending it after that, too", _end(g, blocking), 901
    g.ok("cuEventRecord", event, other)
    g.ok("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
    yield "waiting for an event from outside", g("cuStreamWaitEvent", s, event, 0), 905
    yield "and ending it", _end(g, s), 901


def forks_and_joins(g):
    s, other = g.stream(), g.stream()
    g.ok("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
    fork = g.event(s)
    g.ok("cuStreamWaitEvent", other, fork, 0)
    back = g.event(other)
    yield "asking for a captured event", g("cuEventQuery", back), 907
    yield "ending it in the other stream", _end(g, other), 903
    yield "ending it then, which that one broke", _end(g, s), 901
    at = g.plain(64)
    for work, want in ((False, Stricter(904, OK)), (True, 904)):
        s, other = g.stream(), g.stream()
        g.ok("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
        g.ok("cuStreamWaitEvent", other, g.event(s), 0)
        g.event(other)
        if work:
            g.ok("cuMemsetD8Async", at, 0, 1, other)
        yield f"ending it unjoined, where the other has work: {work}", _end(g, s), want
