"""No room, on purpose: a version that cannot fit is refused with the sum before a byte is read; and when somebody else takes
the device's memory between the reservation and the allocation, the promote is refused, blue serves on, and the next promote
works. Packages: numpy.
"""

import ctypes
import json
import multiprocessing
import shutil

import weights
from server import Server, failures, model_folder
from told import Section

SERVED = "the crowd's requests that failed"


def too_large(section, models, versions):
    """A version whose files are one hole of a size that no device has."""
    size = weights.shape(section, 4096, 32, 16384, 1)
    vast = size | {"hidden": 4096, "heads": 32, "inner": 16384, "layers": 500}
    place = section.work / "vast"
    shutil.rmtree(place, ignore_errors=True)
    weights.encoder(place, weights.tokenizer_of(section)[0], vast, "bf16", 0, hollow=True)
    model_folder(models, "unfit", weights.LARGE, {"a": versions["a"], "vast": place})
    return weights.size_bytes(vast, "bf16")


def refused_with_the_sum(section, server, needs):
    status, _, body = server.ask("POST", "/models/unfit@vast/promote", {"accept_contract_change": True})
    section.same("a version that cannot fit", status, 507)
    error = body["error"]
    section.same("its kind", error["kind"], "no_room")
    section.same("its weights, as the sum has them", error["details"].get("weights"), needs, "bytes")
    section.figure("what it said", error["message"])
    section.same("live after it", server.live("unfit"), "a")


def hog(leave, orders, answers):
    """Another process that, when told, takes all of the device's memory but `leave` bytes, and lets go when told again."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_size_t()
    assert cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    answers.put("ready")
    orders.get()
    held = []
    piece = 1 << 30
    while True:
        assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        pointer = ctypes.c_uint64()
        if free.value - leave < 2 << 20:
            break
        piece = min(piece, free.value - leave)
        if cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(piece)) == 0:
            held.append(pointer)
        elif piece > 2 << 20:
            piece //= 2
        else:
            break
    answers.put(free.value)
    orders.get()
    for pointer in held:
        assert cuda.cuMemFree_v2(pointer) == 0
    answers.put("free")


def taken_meanwhile(section, models, size):
    """While green's digests are computed its room is reserved and not yet taken: then another process takes it."""
    with Server(section, models) as server:
        context = multiprocessing.get_context("spawn")
        orders, answers = context.Queue(), context.Queue()
        other = context.Process(target=hog, args=(size // 4, orders, answers), daemon=True)
        other.start()
        assert answers.get(timeout=60) == "ready"
        with server.under_load("large", 4, 20) as found:
            rollout = server.promote("large@b", expect=202, wait="none", observe="10m")["id"]
            server.phase(rollout, "loading", "warming", "validating", "observing", "failed")
            orders.put("take")
            section.figure("free on the device once another process took it", answers.get(timeout=60) / 1e6, "MB")
            ended = server.phase(rollout, "failed", "observing", "refused")
            section.same("a promote whose room another process took", ended["phase"], "failed")
            section.same("its kind", (ended["error"] or {}).get("kind"), "no_room")
            section.figure("what it said", (ended["error"] or {}).get("message"))
            section.same("live after it", server.live("large"), "a")
            orders.put("let go")
            assert answers.get(timeout=60) == "free"
            server.promote("large@b", observe="10m")
            section.same("live after the next promote", server.live("large"), "b")
        section.figure("the crowd's requests", failures(found)[0])
        section.same(SERVED, failures(found)[1], 0)
        other.join()


def one_allocation_fails(section, models):
    """The same with a fake driver, which has no other processes: one of green's allocations is refused."""
    with Server(section, models) as server:
        pass
    counts = json.loads(server.report.read_text())["counts"]
    first = sum(counts[kind] for kind in ("allocations", "pinned_allocations", "pool_growths")) + 1
    with Server(section, models, environment={"FAKE_GPU_FAIL_ALLOC": str(first)}) as server:
        status, _, body = server.ask("POST", "/models/large@b/promote", {"observe": "10m"})
        section.same("a promote whose allocation fails", (status, body["error"]["kind"]), (507, "no_room"))
        with server.under_load("large", 2, 1) as found:
            pass
        section.same(SERVED, failures(found)[1], 0)
        section.same("live after it", server.live("large"), "a")
        server.promote("large@b", observe="10m")
        section.same("live after the next promote", server.live("large"), "b")


def main():
    section = Section("oom")
    versions, size = weights.large(section)
    models = section.work / "models"
    shutil.rmtree(models, ignore_errors=True)
    with section.part("a version that cannot fit"):
        needs = too_large(section, models, versions)
        with Server(section, models) as server:
            refused_with_the_sum(section, server, needs)
    shutil.rmtree(models)
    model_folder(models, "large", weights.LARGE, versions)
    with section.part("room that another process took"):
        if section.fake:
            one_allocation_fails(section, models)
        else:
            taken_meanwhile(section, models, size)
    section.end()


if __name__ == "__main__":
    main()
