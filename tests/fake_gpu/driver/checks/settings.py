"""Failures on command, counters, the report, the environment."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading

from .gpu import BAD, MIB, NOT_FOUND, NOT_READY, OK, OOM, U64, Gpu

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _elsewhere(folder, script, **settings):
    """Runs `script` in a process of its own, with FAKE_GPU_… set; its own report, and what it printed."""
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "report-%p.json")
        environment = {**os.environ, **{f"FAKE_GPU_{name}": str(value) for name, value in settings.items()}, "FAKE_GPU_REPORT": path}
        text = f"import ctypes, sys; sys.path.insert(0, {HERE!r}); from checks.gpu import *; folder = {folder!r}\n{script}"
        done = subprocess.run([sys.executable, "-B", "-c", text], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        files = os.listdir(work)
        assert len(files) == 1 and "%" not in files[0], files
        with open(os.path.join(work, files[0])) as file:
            return json.load(file), done.stdout.split()


def _alloc(g, name="cuMemAlloc_v2", *more):
    return g(name, ctypes.byref(U64()), 64, *more)


def the_nth_allocation_fails(g):
    s, pool = g.stream(), g.pool()
    g.set("fail_alloc", 3)
    assert [_alloc(g), _alloc(g, "cuMemHostAlloc", 0), _alloc(g), _alloc(g)] == [OK, OK, OOM, OK]
    g.set("fail_alloc_kinds", 2)
    g.set("fail_alloc", 1)
    assert [_alloc(g), _alloc(g, "cuMemAllocAsync", s), _alloc(g, "cuMemHostAlloc", 0)] == [OK, OK, OOM]
    g.set("fail_alloc_kinds", 4)
    g.set("fail_alloc", 1)
    growing = [_alloc(g), _alloc(g, "cuMemAllocFromPoolAsync", pool, s), _alloc(g, "cuMemAllocFromPoolAsync", pool, s)]
    assert growing == [OK, OOM, OK]
    g.set("fail_alloc_kinds", 7)
    g.set("fail_alloc_from", 1)
    g.set("fail_alloc", 2)
    assert [_alloc(g), _alloc(g), _alloc(g), _alloc(g, "cuMemHostAlloc", 0)] == [OK, OOM, OOM, OOM]
    g.set("forget_failures", 0)
    assert _alloc(g) == OK and g.get("misuses") == 0


def the_nth_call_of_a_name_fails_as_told(g):
    s = g.stream()
    g.set("fail:cuStreamSynchronize:999", 2)
    assert [g("cuStreamSynchronize", s) for _ in range(4)] == [0, 999, 0, 0]
    g.set("fail:cuStreamSynchronize:2", -2)
    assert [g("cuStreamSynchronize", s) for _ in range(4)] == [0, 2, 2, 2]
    assert g.get("calls:cuStreamSynchronize") == 8
    assert g.cuda.fake_gpu_set(b"no such key", ctypes.c_longlong(1)) == 1 and g.get("no such key") == -1


def a_sticky_error_stays_and_takes_all_work_with_it(g):
    a, b, at, host = g.stream(), g.stream(), g.plain(64), g.pinned(64)
    g.set("fault_launch", 2)
    g.ok("cuMemcpyDtoHAsync_v2", host, at, 64, b)
    poke = g.function("poke")
    assert g.launch(poke, U64(at), U64(0), stream=a) == OK
    assert g.launch(poke, U64(at), U64(1), stream=a) == OK
    g.fails(700, "cuStreamSynchronize", a)
    assert g.get("launches") == 1 and g.get("pending") == 0
    for call, arguments in {"cuStreamSynchronize": (b,), "cuMemFree_v2": (at,), "cuEventCreate": (ctypes.byref(U64()), 0)}.items():
        g.fails(700, call, *arguments)
    g.ok("cuDevicePrimaryCtxRelease_v2", 0)
    g.fails(700, "cuDevicePrimaryCtxRetain", ctypes.byref(U64()), 0)  # only a new process helps
    text = ctypes.c_char_p()
    g.ok("cuGetErrorName", 700, ctypes.byref(text))
    assert text.value == b"CUDA_ERROR_ILLEGAL_ADDRESS"
    g.ok("cuGetErrorString", 700, ctypes.byref(text))
    assert g("cuGetErrorName", 12345, ctypes.byref(text)) == BAD


def a_launch_that_stalls_holds_up_who_waits_for_it_and_nobody_else(g):
    a, b, at, other = g.stream(), g.stream(), g.plain(64), g.plain(64)
    g.set("stall_launch", 2)
    poke, ended = g.function("poke"), threading.Event()
    assert g.launch(poke, U64(at), U64(0), stream=a) == OK
    assert g.launch(poke, U64(at), U64(1), stream=a) == OK
    event = g.event(a)
    assert [g("cuEventQuery", event) for _ in range(20)] == [NOT_READY] * 20
    assert g.get("launches") == 1 and g.get("stalling") == 1
    behind = g.stream()
    g.ok("cuStreamWaitEvent", behind, event, 0)
    assert [g("cuStreamQuery", behind) for _ in range(5)] == [NOT_READY] * 5

    def wait():
        g.ok("cuCtxSetCurrent", g.context)
        g.sync(a)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    g.up(other, b"x" * 64, b)
    assert g.down(other, 64, b) == b"x" * 64
    assert not ended.wait(0.2)
    g.set("stalling", 0)
    assert ended.wait(20)
    thread.join()
    assert g.get("launches") == 2 and g("cuEventQuery", event) == OK


def counters_tell_what_was_done(g):
    s, pool = g.stream(), g.pool()
    at, plain = g.pooled(pool, 64, s), g.plain(64)
    g.up(at, b"x" * 64, s)
    g.ok("cuMemcpyDtoDAsync_v2", plain, at, 60, s)
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    told = [g.get(key) for key in ("allocations", "frees", "copies", "copied_bytes", "launches", "pool_growths")]
    assert told == [2, 1, 2, 124, 0, 1], told
    assert g.get("free") == g.free_memory()


def the_report_tells_what_is_left(g):
    s, pool = g.stream(), g.pool()
    at, plain, pinned, event = g.pooled(pool, 100, s), g.plain(50), g.pinned(30), g.event(s)
    g.function("poke")
    host = ctypes.create_string_buffer(64)
    g.ok("cuMemHostRegister_v2", ctypes.addressof(host), 64, 0)
    told = g.report()
    left = {key: told[key] for key in ("device_allocations", "device_allocations_bytes", "pinned_buffers", "pinned_buffers_bytes",
                                       "registered_buffers", "pools", "streams", "events", "modules", "graphs", "graph_execs",
                                       "contexts_retained", "misuses", "pending_operations")}
    assert left == {"device_allocations": 2, "device_allocations_bytes": 150, "pinned_buffers": 1, "pinned_buffers_bytes": 30,
                    "registered_buffers": 1, "pools": 1, "streams": 1, "events": 1, "modules": 1, "graphs": 0, "graph_execs": 0,
                    "contexts_retained": 1, "misuses": 0, "pending_operations": 2}, left
    assert {one["bytes"] for one in told["device_allocations_first"]} == {50, 100}
    g.ok("cuMemHostUnregister", ctypes.addressof(host))
    g.ok("cuMemFreeAsync", at, s)
    assert g.report()["device_allocations"] == 1  # freed, though the free has not run
    g.sync(s)
    g.ok("cuEventDestroy_v2", event)
    g.ok("cuMemFreeHost", pinned)
    g.ok("cuMemPoolDestroy", pool)
    g.ok("cuDevicePrimaryCtxRelease_v2", 0)
    told = g.report()
    assert told["lost_with_context"] == {"buffers": 1, "bytes": 50, "streams": 1, "modules": 1}, told["lost_with_context"]
    assert told["contexts_retained"] == 0 and told["free"] == told["total"] and plain
    g.fails(201, "cuDevicePrimaryCtxRelease_v2", 0)


def a_context_that_was_released_is_of_no_use_to_anybody(g):
    s, old = g.stream(), g.context
    g.ok("cuDevicePrimaryCtxRelease_v2", 0)
    g.fails(709, "cuCtxSynchronize")
    g.fails(201, "cuCtxSetCurrent", old)
    new = g.out("cuDevicePrimaryCtxRetain", 0)
    assert new != old
    g.fails(709, "cuCtxSynchronize")
    g.ok("cuCtxSetCurrent", new)
    g.ok("cuCtxSynchronize")
    g.fails(400, "cuStreamSynchronize", s)


def a_cut_report_says_how_long_it_is(g):
    buffer = ctypes.create_string_buffer(b"x" * 20)
    g.cuda.fake_gpu_report.restype = ctypes.c_longlong
    length = g.cuda.fake_gpu_report(buffer, ctypes.c_longlong(10))
    assert length > 500 and buffer.raw[:10] == b'{"devices\0' and buffer.raw[10:11] == b"x"


def a_process_reports_as_it_ends(folder):
    told, _ = _elsewhere(folder, "g = Gpu(folder); g.plain(77); g.stream()")
    assert (told["device_allocations_bytes"], told["streams"]) == (77, 1)


def settings_come_from_the_environment(folder):
    script = "g = Gpu(folder); s = g.stream()\nprint(g.free_memory(), g('cuStreamSynchronize', s), g('cuStreamSynchronize', s))"
    script += "\nprint(g('cuMemAlloc_v2', ctypes.byref(U64()), 64), g('cuCtxSynchronize'))"
    told, printed = _elsewhere(folder, script, TOTAL=600 * MIB, CONTEXT_BYTES=100 * MIB, FAIL_ALLOC=1,
                               FAIL="cuStreamSynchronize:500:2,cuCtxSynchronize:999:1+")
    assert printed == [str(500 * MIB), "0", str(NOT_FOUND), str(OOM), "999"], printed
    assert told["total"] == 600 * MIB


def without_a_device_cuinit_says_so(folder):
    _, printed = _elsewhere(folder, "g = Gpu(folder, context=False)\nprint(g('cuInit', 0))", DEVICES=0)
    assert printed == ["100"]


def a_setting_that_is_no_number_ends_the_process(folder):
    done = subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({folder!r} + '/libcuda.so').cuInit(0)"],
                          env={**os.environ, "FAKE_GPU_TOTAL": "much"}, capture_output=True, text=True)
    assert done.returncode != 0 and "FAKE_GPU_TOTAL=much is no number" in done.stderr


def a_setting_that_does_not_exist_ends_the_process(folder):
    done = subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({folder!r} + '/libcuda.so').cuInit(0)"],
                          env={**os.environ, "FAKE_GPU_TOTLA": "1"}, capture_output=True, text=True)
    assert done.returncode != 0 and "FAKE_GPU_TOTLA is no setting" in done.stderr


def nothing_works_before_cuinit(folder):
    g = Gpu(folder, context=False)
    g.fails(3, "cuDeviceGetCount", ctypes.byref(ctypes.c_int()))
    g.fails(3, "cuStreamCreate", ctypes.byref(U64()), 0)
    assert g.out("cuDriverGetVersion", of=ctypes.c_int) == 13000
