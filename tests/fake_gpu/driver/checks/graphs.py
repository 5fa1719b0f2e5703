"""Stream capture and graphs."""

import ctypes
import threading

from .gpu import BAD, F32, ILLEGAL, MIB, OK, OOM, U64, floats, pack, poke

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
UNSUPPORTED, INVALIDATED, UNMATCHED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED, WRONG_THREAD = 900, 901, 903, 904, 905, 906, 907, 908


def _begin(g, s, mode=THREAD_LOCAL):
    g.ok("cuStreamBeginCapture_v2", s, mode)


def _end(g, s):
    return g.out("cuStreamEndCapture", s, last=True)


def _instantiate(g, graph, flags=0):
    return g.out("cuGraphInstantiateWithFlags", graph, flags)


def _status(g, s):
    status = ctypes.c_int()
    g.ok("cuStreamIsCapturing", s, ctypes.byref(status))
    return status.value


def a_capture_runs_nothing_and_a_launch_replays_it(g):
    s, at, to, host = g.stream(), g.plain(8), g.plain(8), g.pinned(8)
    scale, params = g.function("scale"), None
    _begin(g, s)
    assert _status(g, s) == 1
    g.ok("cuMemcpyHtoDAsync_v2", at, host, 8, s)
    params = (U64(to), U64(at), F32(2))
    assert g.launch(scale, *params, block=2, stream=s) == OK
    params[2].value = 9  # taken already
    graph = _end(g, s)
    assert _status(g, s) == 0
    number = U64()
    g.ok("cuGraphGetNodes", graph, None, ctypes.byref(number))
    assert number.value == 2
    run = _instantiate(g, graph)
    g.ok("cuGraphDestroy", graph)
    g.ok("cuGraphUpload", run, s)
    assert g.down(to, 8, s) == b"\xff" * 8
    for value in (1.0, 5.0):
        poke(host, pack([value, value]))  # read anew by each launch
        g.ok("cuGraphLaunch", run, s)
        assert floats(g.down(to, 8, s)) == [2 * value] * 2
    assert g.get("launches") == 2 and g.get("graph_launches") == 2
    g.ok("cuGraphLaunch", run, s)
    g.ok("cuGraphExecDestroy", run)  # the launch that is queued still runs
    g.fails(BAD, "cuGraphLaunch", run, s)
    g.sync(s)
    assert g.get("graph_launches") == 3


def another_stream_can_join_a_capture_and_must_come_back(g):
    a, b, one, two = g.stream(), g.stream(), g.plain(4), g.plain(4)

    def capture(join):
        _begin(g, a)
        g.ok("cuMemsetD8Async", one, 7, 4, a)
        g.ok("cuStreamWaitEvent", b, g.event(a), 0)
        assert _status(g, b) == 1
        g.ok("cuMemcpyDtoDAsync_v2", two, one, 4, b)
        back = g.event(b)
        if join:
            g.ok("cuStreamWaitEvent", a, back, 0)
        return back

    capture(False)
    g.fails(UNMATCHED, "cuStreamEndCapture", b, ctypes.byref(U64()))
    g.fails(INVALIDATED, "cuStreamEndCapture", a, ctypes.byref(U64()))
    back = capture(False)
    g.fails(CAPTURED, "cuEventQuery", back)
    g.fails(UNJOINED, "cuStreamEndCapture", a, ctypes.byref(U64()))
    assert _status(g, b) == 0
    g.fails(CAPTURED, "cuStreamWaitEvent", b, back, 0)
    capture(True)
    g.ok("cuGraphLaunch", _instantiate(g, _end(g, a)), a)
    assert g.down(two, 4, a) == b"\7" * 4


def waiting_for_a_stream_that_captures_breaks_the_capture(g):
    s, at = g.stream(), g.plain(4)
    for call in ("cuStreamSynchronize", "cuStreamQuery"):
        _begin(g, s)
        g.fails(UNSUPPORTED, call, s)
        assert _status(g, s) == 2
        g.fails(INVALIDATED, "cuMemsetD8Async", at, 1, 4, s)
        graph = U64(5)
        g.fails(INVALIDATED, "cuStreamEndCapture", s, ctypes.byref(graph))
        assert graph.value == 0 and _status(g, s) == 0


def what_is_unsafe_in_a_capture_depends_on_its_mode(g):
    s, event, got = g.stream(), g.event(), {}

    def elsewhere(modes, call, *arguments):
        g.ok("cuCtxSetCurrent", g.context)
        own = ctypes.c_int(modes[1])
        g.ok("cuThreadExchangeStreamCaptureMode", ctypes.byref(own))
        assert own.value == GLOBAL  # what a thread begins with
        got[modes] = g(call, *arguments)

    for call, arguments in (("cuMemHostAlloc", (ctypes.byref(U64()), 64, 0)), ("cuEventQuery", (event,)), ("cuStreamQuery", (g.stream(),))):
        for modes in ((GLOBAL, GLOBAL), (GLOBAL, THREAD_LOCAL), (GLOBAL, RELAXED), (THREAD_LOCAL, GLOBAL), (RELAXED, GLOBAL)):
            _begin(g, s, modes[0])
            thread = threading.Thread(target=elsewhere, args=(modes, call, *arguments))
            thread.start()
            thread.join()
            assert _status(g, s) == (2 if modes == (GLOBAL, GLOBAL) else 1)
            g("cuStreamEndCapture", s, ctypes.byref(U64()))
        assert [code for code in got.values()] == [UNSUPPORTED, OK, OK, OK, OK], got
    for call in ("cuMemAlloc_v2", "cuCtxSynchronize", "cuMemcpyHtoD_v2"):
        at = g.plain(4)
        arguments = {"cuMemAlloc_v2": (ctypes.byref(U64()), 4), "cuMemcpyHtoD_v2": (at, b"abcd", 4)}.get(call, ())
        _begin(g, s, THREAD_LOCAL)
        g.fails(UNSUPPORTED, call, *arguments)
        g.fails(INVALIDATED, "cuStreamEndCapture", s, ctypes.byref(U64()))
        _begin(g, s, RELAXED)
        g.ok(call, *arguments)
        _end(g, s)


def a_capture_is_its_threads_and_its_streams_own(g):
    s, other, blocking, at = g.stream(), g.stream(), g.stream(0), g.plain(4)
    outside, got = g.event(other), []
    g.ok("cuMemsetD8Async", at, 1, 4, other)
    g.ok("cuEventRecord", outside, other)
    _begin(g, s)
    g.fails(401, "cuStreamBeginCapture_v2", s, 0)

    def end():
        g.ok("cuCtxSetCurrent", g.context)
        got.append(g("cuStreamEndCapture", s, ctypes.byref(U64())))

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert got == [WRONG_THREAD]
    # And ended by it.
    g.fails(401, "cuStreamEndCapture", s, ctypes.byref(U64()))
    _begin(g, s)
    g.fails(ISOLATION, "cuStreamWaitEvent", s, outside, 0)
    g.fails(INVALIDATED, "cuStreamEndCapture", s, ctypes.byref(U64()))
    g.fails(401, "cuStreamEndCapture", s, ctypes.byref(U64()))
    g.fails(UNSUPPORTED, "cuStreamBeginCapture_v2", 0, 0)
    _begin(g, blocking)
    g.fails(IMPLICIT, "cuMemsetD8Async", at, 1, 4, 0)
    g.fails(INVALIDATED, "cuStreamEndCapture", blocking, ctypes.byref(U64()))


def a_graph_that_reads_freed_memory_is_a_fault(g):
    s, pool, to = g.stream(), g.pool(), g.plain(4)
    at = g.pooled(pool, 4, s)
    _begin(g, s)
    g.ok("cuMemcpyDtoDAsync_v2", to, at, 4, s)
    run = _instantiate(g, _end(g, s))
    g.ok("cuGraphLaunch", run, s)
    g.sync(s)
    g.ok("cuMemFreeAsync", at, s)
    g.ok("cuGraphLaunch", run, s)
    assert "a node of a graph" in g.report()["misuse_messages"][0]
    g.fails(ILLEGAL, "cuStreamSynchronize", s)


def memory_of_a_graph_comes_back_when_it_is_trimmed(g):
    s, before = g.stream(), g.free_memory()
    _begin(g, s)
    for _ in range(20):
        at = g.out("cuMemAllocAsync", 64 * MIB, s)
        g.ok("cuMemsetD8Async", at, 3, 64, s)
        g.ok("cuMemFreeAsync", at, s)
    graph = _end(g, s)
    run = _instantiate(g, graph)
    assert g.free_memory() == before
    g.ok("cuGraphLaunch", run, s)
    g.sync(s)
    assert g.free_memory() == before - 64 * MIB  # as an H100 said: one after the other they share it
    g.ok("cuDeviceGraphMemTrim", 0)
    assert g.free_memory() == before
    g.set("total", g.get("total") - before + 60 * MIB)
    g.fails(OOM, "cuGraphLaunch", run, s)
    g.ok("cuGraphExecDestroy", run)
    g.ok("cuGraphDestroy", graph)
    assert g.report()["device_allocations"] == 0


def a_graph_that_leaves_memory_is_not_launched_twice(g):
    s = g.stream()
    for flags, misuses in ((1, 0), (0, 1)):
        _begin(g, s)
        at = g.out("cuMemAllocAsync", 64, s)
        run = _instantiate(g, _end(g, s), flags)
        g.ok("cuGraphLaunch", run, s)
        g.ok("cuGraphLaunch", run, s)
        g.sync(s)
        assert g.get("misuses") == misuses
        g.ok("cuMemFreeAsync", at, s)
        g.sync(s)
    assert g.report()["graph_memory_used"] == 0
