"""The same kernels on a device, through the driver, which may be the fake one.

Takes the place of `library.CpuKernels`: every buffer goes there with what lies round it and comes back. It must not know what
any kernel computes.
"""

import ctypes
import pathlib

import numpy as np

from library import Buffer, Columns, Kernels

SHARED_WITHOUT_ASKING = 48 * 1024
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute
U64 = ctypes.c_ulonglong


class DeviceKernels(Kernels):
    """The kernels of a folder of fatbins, with the parameters that the CPU's library says they have."""

    def __init__(self, library, fatbins):
        super().__init__(library)
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, context, name = ctypes.c_int(), U64(), ctypes.create_string_buffer(100)
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDeviceGetName", name, 100, device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.device = name.value.decode()
        self.images = [path.read_bytes() for path in sorted(pathlib.Path(fatbins).glob("*.fatbin"))]
        assert self.images, f"no fatbin in {fatbins}"
        self.modules = []
        for image in self.images:
            module = U64()
            self.call("cuModuleLoadData", ctypes.byref(module), image)
            self.modules.append(module)
        self.functions = {name: self.function(name) for name in self.params}

    def call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        assert code == 0, f"{name} says {code}"

    def function(self, name):
        function = U64()
        for module in self.modules:
            if self.driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0:
                return function
        raise AssertionError(f"no fatbin has {name}")

    def order_threads(self, order):
        """The device's own."""

    def run(self, name, grid, block, arguments, shared):
        copies = {}
        values = [self.on_device(param, argument, copies) for param, argument in arguments]
        function = self.functions[name]
        if shared > SHARED_WITHOUT_ASKING:
            self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        self.call("cuLaunchKernel", function, *grid, block, 1, 1, shared, None, self.addresses(values), None)
        self.call("cuCtxSynchronize")
        for buffer, pointer in copies.values():
            self.bring_back(name, buffer, pointer)

    def on_device(self, param, argument, copies):
        """An argument as the kernel gets it; buffers go to the device, each once."""
        if not isinstance(argument, (Buffer, Columns)):
            return self.value(param, argument)
        buffer = getattr(argument, "buffer", argument)
        if buffer.base not in copies:
            pointer = U64()
            self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(buffer.pages))
            self.call("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(buffer.base), ctypes.c_size_t(buffer.pages))
            copies[buffer.base] = buffer, pointer
        return U64(copies[buffer.base][1].value + argument.address - buffer.base)

    def bring_back(self, name, buffer, pointer):
        came = np.empty(buffer.pages, dtype=np.uint8)
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(came.ctypes.data), pointer, ctypes.c_size_t(buffer.pages))
        self.call("cuMemFree_v2", pointer)
        if buffer.writable:
            buffer.all[:] = came
        else:
            assert (buffer.all == came).all(), f"{name} wrote to an input"
