"""Memory: what is alive, what pools and the device count, and what misuse is told."""

import ctypes

from .gpu import BAD, ILLEGAL, MIB, OK, OOM, U64, peek


def fresh_memory_is_not_a_number_and_freed_memory_is_poisoned(g):
    s, pool = g.stream(), g.pool()
    at = g.pooled(pool, 1000, s)
    assert g.down(at, 1000, s) == b"\xff" * 1000
    g.up(at, b"x" * 1000, s)
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    assert peek(at, 1000) == b"\xff" * 1000


def an_address_is_not_given_out_again_however_many_there_were(g):
    s, pool, seen = g.stream(), g.pool(), set()
    for i in range(40_000):  # more than the kernel allows mappings
        at = g.pooled(pool, 1000, s)
        g.ok("cuMemFreeAsync", at, s)
        if i % 100 == 99:
            g.sync(s)
        seen.add(at)
    assert len(seen) == 40_000
    with open("/proc/self/maps") as maps:
        assert len(maps.readlines()) < 12_000  # those in quarantine, not all that ever were


def addresses_are_aligned_to_256_and_no_more(g):
    s, pool = g.stream(), g.pool()
    all_of_them = [g.pooled(pool, size, s) for size in (1, 300, 600, 5000)]
    assert all(at % 256 == 0 for at in all_of_them) and any(at % 512 for at in all_of_them)


def copies_outside_of_an_allocation_are_refused(g):
    s, at, other = g.stream(), g.plain(1000), g.plain(4000)
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", at, b"x" * 1001, 1001, s)
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", at - 1, b"x", 1, s)
    g.fails(BAD, "cuMemcpyDtoDAsync_v2", at, other, 1004, s)
    g.fails(BAD, "cuMemsetD8Async", at + 999, 0, 2, s)
    g.fails(BAD, "cuMemsetD32Async", at + 2, 0, 1, s)
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", 0x1000, b"x", 1, s)
    g.ok("cuMemsetD8Async", at + 999, 0, 1, s)
    assert g.get("misuses") == 6
    assert "past the end of an allocation of 1000" in g.report()["misuse_messages"][0]


def freed_memory_cannot_be_used_or_freed_again(g):
    s, pool = g.stream(), g.pool()
    at, plain, pinned = g.pooled(pool, 64, s), g.plain(64), g.pinned(64)
    g.ok("cuMemFreeAsync", at, s)
    g.fails(BAD, "cuMemFreeAsync", at, s)  # though the free has not run yet
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", at, b"x", 1, s)
    g.ok("cuMemFree_v2", plain)
    g.fails(BAD, "cuMemFree_v2", plain)
    g.ok("cuMemFreeHost", pinned)
    g.fails(BAD, "cuMemFreeHost", pinned)
    g.fails(BAD, "cuMemFree_v2", pinned)
    assert g.get("misuses") == 5


def a_free_goes_where_the_memory_came_from(g):
    s, pool = g.stream(), g.pool()
    at, plain = g.pooled(pool, 64, s), g.plain(64)
    g.fails(BAD, "cuMemFreeAsync", plain, s)
    g.sync(s)
    g.ok("cuMemFree_v2", at)  # the vendor allows it; this house does not
    assert g.get("misuses") == 2
    assert g.used(pool) == 0 and "freed with cuMemFree" in g.report()["misuse_messages"][1]


def memory_used_in_another_stream_before_its_allocation_is_a_fault(g):
    a, b, pool = g.stream(), g.stream(), g.pool()
    at = g.pooled(pool, 64, a)
    g.ok("cuMemsetD8Async", at, 1, 64, b)
    g.fails(ILLEGAL, "cuStreamSynchronize", b)
    g.fails(ILLEGAL, "cuStreamSynchronize", a)  # for good
    g.fails(ILLEGAL, "cuMemAlloc_v2", ctypes.byref(U64()), 64)
    assert "before the allocation took place" in g.report()["misuse_messages"][0]


def memory_used_in_another_stream_after_its_free_is_a_fault(g):
    a, b, pool = g.stream(), g.stream(), g.pool()
    at = g.pooled(pool, 64, a)
    g.sync(a)
    g.ok("cuMemsetD8Async", at, 1, 64, b)
    g.ok("cuMemFreeAsync", at, a)
    g.sync(a)
    g.fails(ILLEGAL, "cuStreamSynchronize", b)


def memory_handed_over_by_an_event_is_fine(g):
    a, b, pool = g.stream(), g.stream(), g.pool()
    at = g.pooled(pool, 64, a)
    g.ok("cuStreamWaitEvent", b, g.event(a), 0)
    g.ok("cuMemsetD8Async", at, 1, 64, b)
    g.ok("cuStreamWaitEvent", a, g.event(b), 0)
    g.ok("cuMemFreeAsync", at, a)
    g.ok("cuCtxSynchronize")
    assert g.get("misuses") == 0


def a_pool_counts_as_an_h100_did(g):
    g.set("total", 81079 * MIB)
    s, pool, before = g.stream(), g.pool(), g.free_memory()
    size = 20 * MIB + 256 * 37
    g.set("poison", 0)  # 4 GiB of it would be written, twice
    g.set("quarantine", 0)
    for _ in range(2):
        tensors = [g.pooled(pool, size, s) for _ in range(200)]
        assert (g.used(pool), g.reserved(pool)) == (200 * size, 4032 * MIB)
        assert g.free_memory() == before - 4032 * MIB
        for at in tensors:
            g.ok("cuMemFreeAsync", at, s)
        assert g.used(pool) == 0
        g.ok("cuMemPoolTrimTo", pool, 0)
        assert g.reserved(pool) == 4032 * MIB  # nobody has synchronised
        g.ok("cuStreamSynchronize", s)
        g.ok("cuMemPoolTrimTo", pool, 0)
        assert g.reserved(pool) == 0 and g.free_memory() == before
    at = g.pooled(pool, 1000, s)
    assert (g.used(pool), g.reserved(pool)) == (1000, 32 * MIB)


def without_a_threshold_a_synchronise_gives_everything_back(g):
    s, pool = g.stream(), g.pool()
    g.ok("cuMemFreeAsync", g.pooled(pool, 70 * MIB, s), s)
    assert g.reserved(pool) == 96 * MIB
    g.sync(s)
    assert g.reserved(pool) == 0


def a_threshold_keeps_memory_until_it_is_trimmed(g):
    s, pool = g.stream(), g.pool()
    g.ok("cuMemPoolSetAttribute", pool, 4, ctypes.byref(U64(64 * MIB)))
    assert g.of_pool(pool, 4) == 64 * MIB
    at, small = g.pooled(pool, 130 * MIB, s), g.pooled(pool, 10, s)
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    assert g.reserved(pool) == 64 * MIB
    g.ok("cuMemPoolTrimTo", pool, 40 * MIB)
    assert g.reserved(pool) == 64 * MIB
    g.ok("cuMemPoolTrimTo", pool, 0)
    assert g.reserved(pool) == 32 * MIB and g.used(pool) == 10  # what is in use stays
    assert g.of_pool(pool, 6) == 160 * MIB and g.of_pool(pool, 8) == 130 * MIB + 10
    g.ok("cuMemPoolSetAttribute", pool, 8, ctypes.byref(U64(0)))
    assert g.of_pool(pool, 8) == 10
    g.fails(BAD, "cuMemPoolSetAttribute", pool, 7, ctypes.byref(U64(0)))
    g.ok("cuMemFreeAsync", small, s)


def freed_memory_cannot_be_read_once_much_was_freed_after_it(g):
    g.set("quarantine", 4096 * 4)
    s, pool = g.stream(), g.pool()
    at = g.pooled(pool, 4096, s)
    for block in [at] + [g.pooled(pool, 4096, s) for _ in range(5)]:
        g.ok("cuMemFreeAsync", block, s)
    g.sync(s)
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[:2] for line in maps]
    bounds = [([int(end, 16) for end in where.split("-")], rights) for where, rights in ranges]
    assert [rights for (low, high), rights in bounds if low <= at < high] == ["---p"]


def a_stream_reuses_at_once_what_it_freed_and_others_do_not(g):
    a, b, pool = g.stream(), g.stream(), g.pool()
    g.ok("cuMemFreeAsync", g.pooled(pool, 32 * MIB, a), a)
    g.ok("cuMemFreeAsync", g.pooled(pool, 32 * MIB, a), a)
    assert g.reserved(pool) == 32 * MIB
    at = g.pooled(pool, 32 * MIB, b)
    assert g.reserved(pool) == 64 * MIB
    g.ok("cuMemFreeAsync", at, b)
    g.ok("cuCtxSynchronize")
    assert g.reserved(pool) == 0


def max_size_bounds_a_pool_and_hurts_nobody_else(g):
    s, pool, other = g.stream(), g.pool(256 * MIB), g.pool()
    g.fails(OOM, "cuMemAllocFromPoolAsync", ctypes.byref(U64()), 512 * MIB, pool, s)
    at = g.pooled(pool, 200 * MIB, s)
    g.fails(OOM, "cuMemAllocFromPoolAsync", ctypes.byref(U64()), 200 * MIB, pool, s)
    g.ok("cuMemFreeAsync", g.pooled(other, 200 * MIB, s), s)
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    g.pooled(pool, 256 * MIB, s)
    assert g.get("misuses") == 0  # to be refused is no misuse


def the_device_is_as_large_as_it_is_told_to_be(g):
    g.set("total", 1024 * MIB)
    g.set("context_bytes", 500 * MIB)
    s, pool = g.stream(), g.pool()
    assert g.free_memory() == 524 * MIB
    small = g.plain(100)
    assert g.free_memory() == 522 * MIB
    at = g.pooled(pool, 500 * MIB, s)
    assert g.free_memory() == 10 * MIB
    g.fails(OOM, "cuMemAllocFromPoolAsync", ctypes.byref(U64()), 20 * MIB, pool, s)
    g.fails(OOM, "cuMemAlloc_v2", ctypes.byref(U64()), 11 * MIB)
    plain = g.plain(10 * MIB)
    assert g.free_memory() == 0
    g.ok("cuMemFree_v2", plain)
    g.ok("cuMemFree_v2", small)
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    assert g.free_memory() == 524 * MIB
    assert g.out("cuDeviceTotalMem_v2", 0) == 1024 * MIB


def a_pool_that_is_destroyed_keeps_what_is_in_use(g):
    s, pool, before = g.stream(), g.pool(), g.free_memory()
    at = g.pooled(pool, 10, s)
    g.ok("cuMemPoolDestroy", pool)
    g.fails(BAD, "cuMemPoolTrimTo", pool, 0)
    g.ok("cuMemsetD8Async", at, 1, 10, s)
    assert g.free_memory() == before - 32 * MIB
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    assert g.free_memory() == before
    default = g.out("cuDeviceGetDefaultMemPool", 0)
    g.fails(BAD, "cuMemPoolDestroy", default)


def host_memory_is_registered_once_and_counts_as_pinned(g):
    s, device = g.stream(), g.plain(4096)
    host = ctypes.create_string_buffer(8192)
    at = ctypes.addressof(host)
    g.fails(713, "cuMemHostUnregister", at)
    g.ok("cuMemHostRegister_v2", at, 4096, 0)
    g.fails(712, "cuMemHostRegister_v2", at + 100, 10, 0)
    g.ok("cuMemcpyHtoDAsync_v2", device, at, 4096, s)
    host.raw = b"y" * 8192
    assert g.down(device, 4096, s) == b"y" * 4096
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", device, at + 4000, 200, s)  # pinned in part
    g.ok("cuMemcpyHtoDAsync_v2", device, at, 10, s)
    misuses = g.get("misuses")
    g.ok("cuMemHostUnregister", at)  # too early
    assert g.get("misuses") == misuses + 1


def what_was_registered_in_pieces_is_copied_from_and_let_go_of_in_pieces(g):
    s, device = g.stream(), g.plain(8192)
    host = ctypes.create_string_buffer(b"x" * 8192, 8192)
    at = ctypes.addressof(host)
    g.ok("cuMemHostRegister_v2", at, 4096, 1)
    g.ok("cuMemHostRegister_v2", at + 4096, 4096, 1)
    g.ok("cuMemcpyHtoDAsync_v2", device, at, 4096, s)
    g.ok("cuMemcpyHtoDAsync_v2", device + 4096, at + 4096, 4096, s)
    g.fails(BAD, "cuMemcpyHtoDAsync_v2", device, at + 4000, 200, s)  # side by side is not one
    assert g.get("misuses") == 1 and g.report()["registered_buffers_bytes"] == 8192
    host.raw = b"y" * 8192
    assert g.down(device, 8192, s) == b"y" * 8192  # taken when they ran
    g.ok("cuMemHostUnregister", at + 4096)
    g.fails(713, "cuMemHostUnregister", at + 4096)
    g.ok("cuMemcpyHtoDAsync_v2", device, at, 4096, s)
    g.sync(s)
    g.ok("cuMemHostUnregister", at)
    report = g.report()
    assert (report["registered_buffers"], report["pinned_buffers"], g.get("misuses")) == (0, 0, 2)


def registering_fails_on_command_and_registers_nothing(g):
    host = ctypes.create_string_buffer(8192)
    at = ctypes.addressof(host)
    g.set("fail:cuMemHostRegister_v2:2", 2)
    g.ok("cuMemHostRegister_v2", at, 4096, 1)
    g.fails(OOM, "cuMemHostRegister_v2", at + 4096, 4096, 1)
    g.fails(713, "cuMemHostUnregister", at + 4096)
    g.set("fail_alloc_kinds", 2)
    g.set("fail_alloc", 1)
    g.fails(OOM, "cuMemHostRegister_v2", at + 4096, 4096, 1)
    g.ok("cuMemHostRegister_v2", at + 4096, 4096, 1)
    assert g.report()["registered_buffers"] == 2


def pinned_memory_freed_under_a_copy_is_misuse(g):
    s, device, host = g.stream(), g.plain(64), g.pinned(64)
    g.ok("cuMemcpyHtoDAsync_v2", device, host, 64, s)
    g.ok("cuMemFreeHost", host)
    assert g.get("misuses") == 1
    g.fails(ILLEGAL, "cuStreamSynchronize", s)


def fills_and_copies_do_what_they_say(g):
    s, a, b = g.stream(), g.plain(12), g.plain(12)
    g.ok("cuMemsetD32Async", a, 0x01020304, 3, s)
    g.ok("cuMemsetD8Async", a, 9, 2, s)
    g.ok("cuMemcpyDtoDAsync_v2", b + 4, a, 8, s)
    assert g.down(b, 12, s) == b"\xff" * 4 + b"\x09\x09\x02\x01\x04\x03\x02\x01"
    g.sync(s)
    g.ok("cuMemsetD32_v2", a, 5, 1)
    assert g.down(a, 4, 0) == b"\x05\0\0\0"
    assert g("cuMemcpyDtoH_v2", ctypes.create_string_buffer(4), a, 4) == OK
