// Memory outside of pools: cuMemAlloc, cuMemFree, and host memory that the device can reach (pinned and registered).
#include <cstring>

#include "gpu.h"

namespace fake {

// The driver takes the device's memory in pages of 2 MiB; small allocations share them.
static void account(uint64_t bytes, bool more) {
  Gpu& g = gpu();
  uint64_t& sum = bytes < MIB ? g.small_bytes : g.plain_bytes;
  uint64_t size = bytes < MIB ? round_up(bytes, 512) : round_up(bytes, 2 * MIB);
  more ? sum += size : sum -= size;
}

static CUresult free_plain(std::unique_lock<std::mutex>& lock, uint64_t at) {
  // It waits for everything, as the vendor's does.
  if (CUresult code = run_all(lock)) return code;
  observe();
  account(gpu().regions[at].bytes, false);
  end_region(at);
  count("frees");
  return SUCCESS;
}

// Allowed where nothing is in flight any more; but this house frees what a pool gave in stream order, so it counts as misuse.
static CUresult free_pooled_at_once(uint64_t at) {
  Region& region = gpu().regions[at];
  misuse(0, "0x%llx comes from a pool and is freed with cuMemFree%s", (unsigned long long)at,
         pending() ? ", while work is queued" : "");
  region.promised = false;
  pool_return(*region.pool, region.bytes);
  end_region(at);
  count("frees");
  return SUCCESS;
}

static CUresult pin(void** at, size_t bytes) {
  if (!at || bytes == 0) return misuse(INVALID_VALUE, "0 bytes, or nowhere to tell the address");
  if (CUresult code = unsafe_in_capture()) return code;
  if (fail_allocation(PINNED_MEMORY)) return OUT_OF_MEMORY;
  uint64_t base = take_block(bytes, Kind::pinned);
  if (base == 0) return OUT_OF_MEMORY;
  gpu().arena.poison(base, bytes);
  count("pinned_allocations");
  *at = reinterpret_cast<void*>(base);
  return SUCCESS;
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* at, size_t bytes) {
  Call call("cuMemAlloc_v2", CONTEXT);
  if (call.refused()) return call.result;
  if (!at || bytes == 0) return misuse(INVALID_VALUE, "0 bytes, or nowhere to tell the address");
  if (CUresult code = unsafe_in_capture()) return code;
  if (fail_allocation(DEVICE_MEMORY)) return OUT_OF_MEMORY;
  account(bytes, true);
  uint64_t base = vram_used() <= vram_total() ? take_block(bytes, Kind::plain) : 0;
  if (base == 0) {
    account(bytes, false);
    return OUT_OF_MEMORY;
  }
  gpu().arena.poison(base, bytes);
  count("allocations");
  *at = base;
  return SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr at) {
  Call call("cuMemFree_v2", CONTEXT);
  if (call.refused()) return call.result;
  if (at == 0) return SUCCESS;
  if (CUresult code = unsafe_in_capture()) return code;
  auto found = gpu().regions.find(at);
  if (found == gpu().regions.end() || !found->second.promised)
    return misuse(INVALID_VALUE, "0x%llx is not allocated: freed twice, or never given out", (unsigned long long)at);
  if (found->second.kind == Kind::plain) return free_plain(call.lock, at);
  if (found->second.kind == Kind::pooled) return free_pooled_at_once(at);
  return misuse(INVALID_VALUE, "0x%llx is not device memory that cuMemFree can free", (unsigned long long)at);
}

EXPORT CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
  Call call("cuMemHostAlloc", CONTEXT);
  if (call.refused()) return call.result;
  if (flags > 7) return misuse(INVALID_VALUE, "flags %u", flags);
  return pin(at, bytes);
}

EXPORT CUresult cuMemAllocHost_v2(void** at, size_t bytes) {
  Call call("cuMemAllocHost_v2", CONTEXT);
  return call.refused() ? call.result : pin(at, bytes);
}

EXPORT CUresult cuMemFreeHost(void* pointer) {
  Call call("cuMemFreeHost", CONTEXT);
  if (call.refused()) return call.result;
  if (CUresult code = unsafe_in_capture()) return code;
  uint64_t at = uint64_t(pointer);
  auto found = gpu().regions.find(at);
  if (found == gpu().regions.end() || found->second.kind != Kind::pinned)
    return misuse(INVALID_VALUE, "%p is not pinned memory: freed twice, or never given out", pointer);
  if (queued_work_touches(at, found->second.bytes)) misuse(0, "pinned memory is freed while queued work uses it");
  end_region(at);
  return SUCCESS;
}

EXPORT CUresult cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  Call call("cuMemHostRegister_v2", CONTEXT);
  if (call.refused()) return call.result;
  if (!pointer || bytes == 0 || flags > 15) return misuse(INVALID_VALUE, "nothing, or flags %u", flags);
  if (CUresult code = unsafe_in_capture()) return code;
  if (fail_allocation(PINNED_MEMORY)) return OUT_OF_MEMORY;
  uint64_t base = uint64_t(pointer);
  auto next = gpu().regions.lower_bound(base);
  bool overlaps = next != gpu().regions.end() && next->first < base + bytes;
  if (overlaps || (find_region(base, 0) && find_region(base, 1)))
    return misuse(HOST_MEMORY_ALREADY_REGISTERED, "%p is registered, or pinned, already", pointer);
  Region region;
  region.base = base;
  region.bytes = bytes;
  region.kind = Kind::registered;
  gpu().regions[base] = region;
  return SUCCESS;
}

EXPORT CUresult cuMemHostUnregister(void* pointer) {
  Call call("cuMemHostUnregister", CONTEXT);
  if (call.refused()) return call.result;
  if (CUresult code = unsafe_in_capture()) return code;
  auto found = gpu().regions.find(uint64_t(pointer));
  if (found == gpu().regions.end() || found->second.kind != Kind::registered)
    return misuse(HOST_MEMORY_NOT_REGISTERED, "%p is not registered", pointer);
  if (queued_work_touches(found->first, found->second.bytes)) misuse(0, "host memory is unregistered while queued work uses it");
  gpu().regions.erase(found);
  return SUCCESS;
}

// The device sees pinned memory at the host's own address.
EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* at, void* pointer, unsigned flags) {
  Call call("cuMemHostGetDevicePointer_v2", CONTEXT);
  if (call.refused()) return call.result;
  Region* region = find_region(uint64_t(pointer), 1);
  if (flags != 0 || !region || region->kind < Kind::pinned) return misuse(INVALID_VALUE, "%p is not pinned memory", pointer);
  *at = uint64_t(pointer);
  return SUCCESS;
}

EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes, CUdeviceptr at) {
  Call call("cuMemGetAddressRange_v2", CONTEXT);
  if (call.refused()) return call.result;
  Region* region = find_region(at, 1);
  if (!region || !region->promised) return misuse(NOT_FOUND, "nothing is allocated at 0x%llx", (unsigned long long)at);
  if (base) *base = region->base;
  if (bytes) *bytes = region->bytes;
  return SUCCESS;
}
