"""What this machine can do at best, through the driver alone: bytes a second from pinned memory to the device, and from the
page cache to pinned memory. A load of the server is held against the smaller. And bytes a second that a copy on the device reads
and writes, which a step of a model that writes is held against.

`measure` and `on_device` are for sections; they run this file as a process of its own, so that no context is left beside the
server: `floors.py FILE TOTAL_MIB`, `floors.py on-device TOTAL_MIB`. Packages: none.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time

U64 = ctypes.c_uint64
SLOT = 8 << 20
ROUNDS = 4
COPIES = 10


class Driver:
    """One context, and a block of pinned memory."""

    def __init__(self, pinned):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        context, host = U64(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)
        self.call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(pinned), 0)
        self.host, self.pinned = host.value, pinned
        ctypes.memset(self.host, 0x5A, pinned)

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} says {code}")

    def close(self):
        self.call("cuMemFreeHost", ctypes.c_void_p(self.host))
        self.call("cuDevicePrimaryCtxRelease_v2", 0)


def to_device(driver, total, slot):
    """GB/s of pinned copies of `slot` bytes, all of them queued; the best of some rounds."""
    device, stream = U64(), U64()
    driver.call("cuMemAlloc_v2", ctypes.byref(device), ctypes.c_size_t(total))
    driver.call("cuStreamCreate", ctypes.byref(stream), 1)
    slots, rates = driver.pinned // slot, []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i in range(total // slot):
            source = ctypes.c_void_p(driver.host + i % slots * slot)
            driver.call("cuMemcpyHtoDAsync_v2", U64(device.value + i * slot), source, ctypes.c_size_t(slot), stream)
        driver.call("cuStreamSynchronize", stream)
        rates.append(total // slot * slot / (time.perf_counter() - began) / 1e9)
    driver.call("cuStreamDestroy_v2", stream)
    driver.call("cuMemFree_v2", device)
    return max(rates)


def within_device(driver, total):
    """GB/s that copies of so many bytes read and write together; the best of some rounds."""
    places, stream, rates = [U64(), U64()], U64(), []
    for place in places:
        driver.call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(total))
    driver.call("cuStreamCreate", ctypes.byref(stream), 1)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(COPIES):
            driver.call("cuMemcpyDtoDAsync_v2", places[1], places[0], ctypes.c_size_t(total), stream)
        driver.call("cuStreamSynchronize", stream)
        rates.append(COPIES * 2 * total / (time.perf_counter() - began) / 1e9)
    driver.call("cuStreamDestroy_v2", stream)
    for place in places:
        driver.call("cuMemFree_v2", place)
    return max(rates)


def from_page_cache(driver, path, readers):
    """GB/s of so many threads that read a file into pinned slots of their own; the best of some rounds."""
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    slot = min(SLOT, driver.pinned // readers)
    views = [memoryview((ctypes.c_char * slot).from_address(driver.host + i * slot)) for i in range(readers)]
    rates = []
    for _ in range(ROUNDS):
        blocks, lock = iter(range(0, size, slot)), threading.Lock()

        def read(view):
            while True:
                with lock:
                    at = next(blocks, None)
                if at is None:
                    return
                os.preadv(file, [view], at)

        threads = [threading.Thread(target=read, args=(view,)) for view in views]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(size / (time.perf_counter() - began) / 1e9)
    os.close(file)
    return max(rates)


def measure(section, file):
    """The best pinned copies to the device, and the best copies out of the page cache, in GB/s; all of them are told."""
    subprocess.run(["sync"], check=True)  # or the disk is still written to meanwhile
    command = [sys.executable, __file__, file, str(section.of(2048, 8))]
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment())
    if run.returncode != 0:
        raise RuntimeError(f"the floors could not be measured: {run.stderr}")
    told = json.loads(run.stdout)
    for mib, rate in told["pinned"].items():
        section.figure(f"pinned to device, {mib} MiB at a time", rate, "GB/s")
    for readers, rate in told["page_cache"].items():
        section.figure(f"page cache to pinned, {readers} readers", rate, "GB/s")
    return max(told["pinned"].values()), max(told["page_cache"].values())


def on_device(section):
    """GB/s that a copy on the device reads and writes together, of more than any cache holds."""
    command = [sys.executable, __file__, "on-device", str(section.of(1024, 8))]
    run = subprocess.run(command, capture_output=True, text=True, env=section.environment())
    if run.returncode != 0:
        raise RuntimeError(f"the floor could not be measured: {run.stderr}")
    rate = json.loads(run.stdout)["on_device"]
    section.figure("a copy on the device, read and written", rate, "GB/s")
    return rate


def main():
    path, total = sys.argv[1], int(sys.argv[2]) << 20
    if path == "on-device":
        driver = Driver(1 << 20)
        rate = within_device(driver, total)
        driver.close()
        print(json.dumps({"on_device": rate}))
        return
    driver = Driver(min(total, 256 << 20))
    pinned = {slot: to_device(driver, total, slot << 20) for slot in (8, 64) if slot << 20 <= driver.pinned}
    readers = [count for count in (1, 2, 4, 8, 12, 16) if count == 1 or count <= (os.cpu_count() or 1)]
    cache = {count: from_page_cache(driver, path, count) for count in readers}
    driver.close()
    print(json.dumps({"pinned": pinned, "page_cache": cache}))


if __name__ == "__main__":
    main()
