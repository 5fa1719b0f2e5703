"""Modules and launches, with the kernels of check_kernels.cpp."""

import ctypes
import os
import shutil
import tempfile

from .gpu import BAD, F32, I32, ILLEGAL, NO_HANDLE, NOT_FOUND, OK, U64, Gpu, addresses, floats, pack


def _scale(g, to, source, by, stream=0, **shape):
    return g.launch(g.function("scale"), U64(to), U64(source), F32(by), stream=stream, **shape)


def a_kernel_computes_when_it_is_waited_for(g):
    s, source, to = g.stream(), g.plain(40), g.plain(40)
    g.up(source, pack([1.0] * 10), s)
    assert _scale(g, to, source, 2.5, s, grid=2, block=5) == OK
    assert g.get("launches") == 0
    g.up(source, pack([3.0] * 10), s)
    assert floats(g.down(to, 40, s)) == [2.5] * 10
    assert g.get("launches") == 1


def parameters_are_taken_when_the_kernel_is_launched(g):
    s, source, to = g.stream(), g.plain(4), g.plain(4)
    g.up(source, pack([1.0]), s)
    scale, by = g.function("scale"), F32(2)
    params = (U64(to), U64(source), by)
    assert g.launch(scale, *params, stream=s) == OK
    by.value = 7
    params[0].value = 0
    assert floats(g.down(to, 4, s)) == [2.0]


def names_are_those_of_the_kernels_library(g):
    module = g.out("cuModuleLoadData", b"any")
    g.fails(NOT_FOUND, "cuModuleGetFunction", ctypes.byref(U64()), module, b"no_such_kernel")
    one = g.out("cuModuleGetFunction", module, b"poke")
    assert g.out("cuModuleGetFunction", module, b"poke") == one
    g.ok("cuModuleUnload", module)
    g.fails(NO_HANDLE, "cuModuleUnload", module)
    at = g.plain(4)
    assert g.launch(one, U64(at), U64(0)) == NO_HANDLE


def without_the_kernels_library_any_name_will_do(folder):
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(os.path.join(folder, "libcuda.so.1"), os.path.join(alone, "libcuda.so"))
        g = Gpu(alone)
        at = g.plain(4)
        g.ok("cuMemsetD8_v2", at, 0, 4)
        assert g.launch(g.function("whatever"), U64(at)) == OK
        assert g.down(at, 4, 0) == b"\0" * 4 and g.get("launches") == 1


def shapes_are_held_to_the_devices_limits(g):
    at = g.plain(4)
    poke = g.function("poke")

    def launch(grid, block, shared=0):
        return g("cuLaunchKernel", poke, *grid, *block, shared, 0, addresses((U64(at), U64(0))), None)

    assert launch((1, 1, 1), (1024, 1, 1)) == OK
    assert launch((2**31 - 1, 65535, 65535), (1, 1, 64)) == OK
    for grid, block in [((0, 1, 1), (1, 1, 1)), ((1, 65536, 1), (1, 1, 1)), ((1, 1, 65536), (1, 1, 1)), ((2**31, 1, 1), (1, 1, 1)),
                        ((1, 1, 1), (1025, 1, 1)), ((1, 1, 1), (1, 1, 65)), ((1, 1, 1), (32, 33, 1)), ((1, 1, 1), (0, 1, 1))]:
        assert launch(grid, block) == BAD, (grid, block)
    assert g.get("misuses") == 8


def more_shared_memory_has_to_be_asked_for(g):
    at, poke = g.plain(4), g.function("poke")
    assert g.launch(poke, U64(at), U64(0), shared=48 * 1024) == OK
    assert g.launch(poke, U64(at), U64(0), shared=48 * 1024 + 4) == BAD
    g.fails(BAD, "cuFuncSetAttribute", poke, 8, 227 * 1024 + 1)
    g.ok("cuFuncSetAttribute", poke, 8, 227 * 1024)
    assert g.launch(poke, U64(at), U64(0), shared=227 * 1024) == OK
    value = I32()
    g.ok("cuFuncGetAttribute", ctypes.byref(value), 8, poke)
    assert value.value == 227 * 1024


def a_smaller_device_allows_less_shared_memory_and_says_so(g):
    value, poke = I32(), g.function("poke")
    optin = lambda: (g.ok("cuDeviceGetAttribute", ctypes.byref(value), 97, 0), value.value)[1]
    assert optin() == 227 * 1024
    g.set("shared_optin", 99 * 1024)
    assert optin() == 99 * 1024
    g.fails(BAD, "cuFuncSetAttribute", poke, 8, 99 * 1024 + 1)
    g.ok("cuFuncSetAttribute", poke, 8, 99 * 1024)


def a_kernel_given_freed_memory_is_a_fault(g):
    s, pool, source = g.stream(), g.pool(), g.plain(4)
    to = g.pooled(pool, 4, s)
    g.ok("cuMemFreeAsync", to, s)
    assert _scale(g, to, source, 1, s) == OK  # a launch tells of it later
    assert "parameter 0 of scale" in g.report()["misuse_messages"][0]
    g.fails(ILLEGAL, "cuStreamSynchronize", s)
    g.fails(ILLEGAL, "cuCtxSynchronize")
    assert g.get("sticky") == ILLEGAL


def a_pointer_just_past_the_end_is_allowed(g):
    source = g.plain(256)
    assert _scale(g, source + 256, source, 1, grid=1, block=1) == OK
    assert g.get("misuses") == 0


def a_kernel_that_runs_far_past_its_memory_is_a_fault(g):
    s, at = g.stream(), g.plain(4)
    assert g.launch(g.function("poke"), U64(at), U64(5000), stream=s) == OK
    g.fails(ILLEGAL, "cuStreamSynchronize", s)
    assert "poke touched" in g.report()["misuse_messages"][0]


def the_first_byte_past_the_padding_is_a_fault_already(g):
    s, at, other = g.stream(), g.plain(4), g.plain(4)  # that the next block is there changes nothing
    assert g.launch(g.function("poke"), U64(at), U64(64), stream=s) == OK
    g.fails(ILLEGAL, "cuStreamSynchronize", s)
    assert other > at


def a_kernel_that_runs_a_little_past_its_memory_is_told_at_the_free(g):
    s, pool = g.stream(), g.pool()
    at = g.pooled(pool, 1000, s)
    assert g.launch(g.function("poke"), U64(at), U64(250), stream=s) == OK
    g.sync(s)
    assert g.get("misuses") == 0
    g.ok("cuMemFreeAsync", at, s)
    g.sync(s)
    assert "wrote beside the allocation of 1000" in g.report()["misuse_messages"][0]


def a_kernel_that_follows_a_null_pointer_is_a_fault(g):
    source = g.plain(4)
    assert _scale(g, 0, source, 1) == OK  # whether it may be null is the kernel's own business
    assert g.get("misuses") == 0
    g.fails(ILLEGAL, "cuCtxSynchronize")


def a_kernel_reaches_pinned_memory(g):
    s, host, to = g.stream(), g.pinned(8), g.plain(8)
    ctypes.memmove(host, pack([1.5, 2.0]), 8)
    assert _scale(g, to, host, 2, s, block=2) == OK
    assert floats(g.down(to, 8, s)) == [3.0, 4.0]


def a_launch_with_a_configuration_is_the_same(g):
    source, to, s = g.plain(4), g.plain(4), g.stream()
    g.up(source, pack([2.0]), s)

    class Config(ctypes.Structure):
        _fields_ = [("shape", ctypes.c_uint * 7), ("stream", U64), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint)]

    cluster = (ctypes.c_uint * 18)(4, 0, 2, 1, 1)
    config = Config((ctypes.c_uint * 7)(1, 1, 1, 1, 1, 1, 0), s, None, 0)
    params = addresses((U64(to), U64(source), F32(4)))
    scale = g.function("scale")
    g.ok("cuLaunchKernelEx", ctypes.byref(config), scale, params, None)
    assert floats(g.down(to, 4, s)) == [8.0]
    config.attributes, config.count = ctypes.addressof(cluster), 1
    g.fails(BAD, "cuLaunchKernelEx", ctypes.byref(config), scale, params, None)  # a grid of 1 in clusters of 2
