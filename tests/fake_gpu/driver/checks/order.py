"""When work runs, and for whom: streams, events, contexts."""

import ctypes
import threading
import time

from .gpu import ILLEGAL, MIB, NO_CONTEXT, NO_HANDLE, NON_BLOCKING, NOT_READY, OK, peek, poke


def a_pinned_source_is_read_when_the_copy_runs(g):
    s, device, host = g.stream(), g.plain(64), g.pinned(64)
    poke(host, b"a" * 64)
    g.ok("cuMemcpyHtoDAsync_v2", device, host, 64, s)
    poke(host, b"b" * 64)  # too early: nobody waited
    assert g.down(device, 64, s) == b"b" * 64


def a_pageable_source_is_read_when_the_copy_is_called(g):
    s, device = g.stream(), g.plain(64)
    host = ctypes.create_string_buffer(b"a" * 64)
    g.ok("cuMemcpyHtoDAsync_v2", device, host, 64, s)
    host.raw = b"b" * 65
    assert g.down(device, 64, s) == b"a" * 64


def what_is_copied_down_to_pinned_memory_is_there_only_after_the_wait(g):
    s, device, host = g.stream(), g.plain(64), g.pinned(64)
    g.up(device, b"x" * 64, s)
    g.ok("cuMemcpyDtoHAsync_v2", host, device, 64, s)
    assert peek(host, 64) == b"\xff" * 64
    g.sync(s)
    assert peek(host, 64) == b"x" * 64


def an_event_waits_for_what_came_before_it_and_no_more(g):
    s, device, host = g.stream(), g.plain(64), g.pinned(64)
    g.up(device, b"1" * 64, s)
    g.ok("cuMemcpyDtoHAsync_v2", host, device, 64, s)
    event = g.event(s)
    g.ok("cuMemcpyDtoHAsync_v2", host + 32, device, 32, s)
    g.up(device, b"2" * 64, s)
    g.ok("cuMemcpyDtoHAsync_v2", host, device, 64, s)
    g.ok("cuEventSynchronize", event)
    assert peek(host, 64) == b"1" * 64
    assert g.get("pending") == 3
    g.sync(s)
    assert peek(host, 64) == b"2" * 64


def a_stream_that_does_not_wait_sees_old_bytes(g):
    a, b, device = g.stream(), g.stream(), g.plain(64)
    g.up(device, b"x" * 64, a)
    assert g.down(device, 64, b) == b"\xff" * 64


def a_stream_that_waits_for_an_event_sees_new_bytes(g):
    a, b, device = g.stream(), g.stream(), g.plain(64)
    g.up(device, b"x" * 64, a)
    event = g.event(a)
    g.ok("cuStreamWaitEvent", b, event, 0)
    g.up(device, b"y" * 64, a)
    g.ok("cuEventRecord", event, a)  # recorded again: b waits for the first record
    assert g.down(device, 64, b) == b"x" * 64
    g.ok("cuStreamWaitEvent", b, event, 0)
    assert g.down(device, 64, b) == b"y" * 64


def a_query_is_not_ready_at_first_and_ready_in_the_end(g):
    s, device = g.stream(), g.plain(64)
    for _ in range(5):
        g.up(device, b"x" * 64, s)
    event = g.event(s)
    asked = 0
    while (code := g("cuEventQuery", event)) == NOT_READY:
        asked += 1
    assert code == OK and asked == 6, asked
    g.set("query_steps", 4)
    for _ in range(6):
        g.up(device, b"x" * 64, s)
    assert [g("cuStreamQuery", s) for _ in range(3)] == [NOT_READY, NOT_READY, OK]


def a_stream_that_is_destroyed_still_runs_what_it_holds(g):
    s, device, host = g.stream(), g.plain(64), g.pinned(64)
    g.up(device, b"x" * 64, s)
    g.ok("cuMemcpyDtoHAsync_v2", host, device, 64, s)
    g.ok("cuStreamDestroy_v2", s)
    assert peek(host, 64) == b"\xff" * 64
    g.fails(NO_HANDLE, "cuStreamSynchronize", s)
    g.ok("cuCtxSynchronize")
    assert peek(host, 64) == b"x" * 64


def the_default_stream_waits_for_blocking_streams_only(g):
    blocking, free = g.stream(0), g.stream()
    one, two, host = g.plain(64), g.plain(64), g.pinned(128)
    g.up(one, b"x" * 64, blocking)
    g.up(two, b"y" * 64, free)
    g.ok("cuMemcpyDtoHAsync_v2", host, one, 64, 0)
    g.ok("cuMemcpyDtoHAsync_v2", host + 64, two, 64, 0)
    g.sync(0)
    assert peek(host, 128) == b"x" * 64 + b"\xff" * 64


def a_copy_without_a_stream_does_not_wait_for_other_streams(g):
    s, pool = g.stream(), g.pool()
    at = g.pooled(pool, 64, s)
    g.ok("cuMemcpyHtoD_v2", at, b"x" * 64, 64)  # before the allocation took place
    g.fails(ILLEGAL, "cuStreamSynchronize", 0)


def everything_can_be_run_newest_first(g):
    def who_is_last():
        a, b, device = g.stream(), g.stream(), g.plain(1)
        g.up(device, b"a", a)
        g.up(device, b"b", b)
        g.ok("cuCtxSynchronize")
        return g.down(device, 1, a)

    assert who_is_last() == b"b"
    g.set("newest_first", 1)
    assert who_is_last() == b"a"


def events_take_the_time_in_which_work_ran(g):
    s, device = g.stream(), g.plain(MIB)
    g.set("copy_bytes_per_second", 20 * MIB)
    start = g.event(s)
    g.up(device, b"x" * MIB, s)
    end = g.event(s)
    ms = ctypes.c_float()
    g.fails(NOT_READY, "cuEventElapsedTime_v2", ctypes.byref(ms), start, end)
    g.sync(s)
    g.ok("cuEventElapsedTime_v2", ctypes.byref(ms), start, end)
    assert 49 < ms.value < 500, ms.value
    g.ok("cuEventRecord", start, s)  # again: the first record counts no more
    g.ok("cuEventRecord", end, s)
    g.sync(s)
    g.ok("cuEventElapsedTime_v2", ctypes.byref(ms), start, end)
    assert 0 <= ms.value < 49, ms.value
    timeless = g.event(s, flags=2)
    g.fails(NO_HANDLE, "cuEventElapsedTime_v2", ctypes.byref(ms), start, timeless)


def a_slow_copy_keeps_nobody_else_from_the_device(g):
    g.set("copy_bytes_per_second", 4 * MIB)
    slow, quick = g.stream(), g.stream()
    big, small = g.plain(2 * MIB), g.plain(64)
    g.up(big, b"x" * 2 * MIB, slow)

    def wait():
        g.ok("cuCtxSetCurrent", g.context)
        g.sync(slow)

    waiter = threading.Thread(target=wait)
    began = time.monotonic()
    waiter.start()
    for _ in range(10):
        assert g.down(small, 64, quick)
    others = time.monotonic() - began
    waiter.join()
    took = time.monotonic() - began
    assert took > 0.49 and others < took / 2, (others, took)


def two_threads_may_use_it_at_once(g):
    def work(mark):
        g.ok("cuCtxSetCurrent", g.context)
        s, pool = g.stream(), g.pool()
        for i in range(150):
            at = g.pooled(pool, 4096, s)
            g.up(at, bytes([mark, i]) * 2048, s)
            good.append(g.down(at, 4096, s) == bytes([mark, i]) * 2048)
            g.ok("cuMemFreeAsync", at, s)
        g.sync(s)

    good = []
    threads = [threading.Thread(target=work, args=(mark,)) for mark in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(good) == 300 and all(good)
    assert g.get("misuses") == 0


def a_thread_without_a_context_is_refused_and_counted(g):
    got = []
    s = g.stream()

    def work():
        got.append(g("cuStreamSynchronize", s))
        got.append(g("cuMemFreeAsync", 0, 0))  # of a default stream
        g.ok("cuCtxPushCurrent_v2", g.context)
        got.append(g("cuStreamSynchronize", s))
        g.out("cuCtxPopCurrent_v2")
        got.append(g("cuCtxSynchronize"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert got == [NO_CONTEXT, NO_CONTEXT, OK, NO_CONTEXT], got
    assert g.get("calls_without_context") == 3 and g.get("misuses") == 3


def pooled_memory_can_be_freed_in_a_named_stream_without_a_context(g):
    s, pool = g.stream(), g.pool()
    at = g.pooled(pool, 64, s)
    g.ok("cuCtxSetCurrent", 0)
    g.ok("cuMemFreeAsync", at, s)
    assert g.used(pool) == 0


def a_context_that_is_named_need_not_be_current(g):
    s, at = g.stream(), g.plain(4)
    g.up(at, b"abcd", s)
    g.ok("cuCtxSetCurrent", 0)
    g.ok("cuCtxSynchronize_v2", g.context)
    assert g.get("pending") == 0 and g.out("cuCtxGetDevice_v2", g.context, of=ctypes.c_int) == 0
    g.fails(NO_CONTEXT, "cuCtxSynchronize_v2", 0)
    g.fails(NO_CONTEXT, "cuCtxSynchronize_v2", g.context + 1)


def handles_are_never_given_out_twice(g):
    s, event = g.stream(), g.event()
    g.ok("cuStreamDestroy_v2", s)
    g.ok("cuEventDestroy_v2", event)
    assert g.stream() != s and g.event() != event
    g.fails(NO_HANDLE, "cuStreamDestroy_v2", s)
    g.fails(NO_HANDLE, "cuEventRecord", event, 0)
    g.fails(NO_HANDLE, "cuEventQuery", event)
    assert g.get("misuses") == 3


def each_thread_has_a_default_stream_of_its_own(g):
    device, host = g.plain(64), g.pinned(64)

    def work():
        g.ok("cuCtxSetCurrent", g.context)
        g.ok("cuMemcpyDtoHAsync_v2", host, device, 64, 2)

    g.up(device, b"x" * 64, 1)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    g.sync(2)  # this thread's, where nothing is queued
    assert peek(host, 64) == b"\xff" * 64
    g.sync(0)  # the legacy one waits for those of every thread
    assert peek(host, 64) == b"x" * 64


def what_the_device_is_can_be_asked(g):
    asked = {10: 32, 16: 132, 75: 9, 76: 0, 97: 232448, 115: 1, 78: 1, 1: 1024}
    for attribute, want in asked.items():
        value = ctypes.c_int()
        g.ok("cuDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        assert value.value == want, (attribute, value.value)
    name, uuid = ctypes.create_string_buffer(64), ctypes.create_string_buffer(16)
    g.ok("cuDeviceGetName", name, 64, 0)
    g.ok("cuDeviceGetUuid_v2", uuid, 0)
    assert b"Fake" in name.value and any(uuid.raw)
    g.fails(101, "cuDeviceGet", ctypes.byref(ctypes.c_int()), 1)
    assert g.out("cuCtxGetDevice", of=ctypes.c_int) == 0


def a_priority_can_be_set_later(g):
    s, priority = g.out("cuStreamCreateWithPriority", NON_BLOCKING, -9), ctypes.c_int()
    g.ok("cuStreamGetPriority", s, ctypes.byref(priority))
    assert priority.value == -5  # the highest that there is
    value = (ctypes.c_int * 16)(-3)
    g.ok("cuStreamSetAttribute", s, 8, value)
    g.ok("cuStreamGetPriority", s, ctypes.byref(priority))
    assert priority.value == -3
    value[0] = -6
    assert g("cuStreamSetAttribute", s, 8, value) == 1
