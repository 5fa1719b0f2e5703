// Memory pools and stream-ordered memory: cuMemPool…, cuMemAllocAsync, cuMemFreeAsync. What a pool uses falls with the call that
// frees; what it holds of the device only after the host has synchronised past that free. Fragmentation is not modelled.
#include <algorithm>

#include "gpu.h"

namespace fake {

uint64_t Pool::held() const {
  uint64_t sum = used;
  for (auto& one : unobserved) sum += one.bytes;
  return sum;
}

static uint64_t bound(const Pool& pool) { return pool.max_size ? round_up(pool.max_size, POOL_STEP) : vram_total(); }

// Makes room for `bytes`: what is free in the pool, then what the same stream freed before, then more of the device.
CUresult pool_reserve(Pool& pool, uint64_t bytes, uint64_t stream) {
  uint64_t spare = pool.reserved - pool.held(), own = 0;
  for (auto& one : pool.unobserved)
    if (one.stream == stream) own += one.bytes;
  uint64_t again = std::min(own, bytes > spare ? bytes - spare : 0);
  uint64_t more = round_up(bytes - std::min(bytes, spare + again), POOL_STEP);
  if (more > 0) {
    if (fail_allocation(POOL_GROWTH)) return OUT_OF_MEMORY;
    if (pool.reserved + more > bound(pool) || more > vram_free()) return OUT_OF_MEMORY;
    count("pool_growths");
  }
  for (auto& one : pool.unobserved) {
    if (one.stream != stream) continue;
    uint64_t part = std::min(one.bytes, again);
    one.bytes -= part;
    again -= part;
  }
  pool.reserved += more;
  pool.reserved_high = std::max(pool.reserved_high, pool.reserved);
  pool.used += bytes;
  pool.used_high = std::max(pool.used_high, pool.used);
  ++pool.live;
  return SUCCESS;
}

void pool_return(Pool& pool, uint64_t bytes) {
  pool.used -= bytes;
  --pool.live;
}

static void release(Pool& pool, uint64_t keep) {
  pool.reserved = std::min(pool.reserved, round_up(std::max(std::min(keep, pool.reserved), pool.held()), POOL_STEP));
}

void observe() {
  Gpu& g = gpu();
  for (auto& [handle, pool] : g.pools) release(*pool, pool->threshold);
  auto& orphans = g.orphans;
  for (auto& pool : orphans) release(*pool, 0);
  orphans.erase(std::remove_if(orphans.begin(), orphans.end(), [](auto& p) { return p->held() == 0; }), orphans.end());
}

static std::shared_ptr<Pool> default_pool() {
  Gpu& g = gpu();
  if (!g.default_pool) {
    g.default_pool = std::make_shared<Pool>();
    g.default_pool->id = new_handle();
    g.default_pool->is_default = true;
    g.pools[g.default_pool->id] = g.default_pool;
    g.current_pool = g.default_pool;
  }
  return g.default_pool;
}

static std::shared_ptr<Pool> find_pool(CUmemoryPool handle, CUresult* code) {
  auto found = gpu().pools.find(handle);
  if (found != gpu().pools.end()) return found->second;
  *code = misuse(INVALID_VALUE, "no such pool: 0x%llx", (unsigned long long)handle);
  return nullptr;
}

// In a capture the memory belongs to the graph: it has its address now and exists while the graph runs.
static CUresult allocate_in_graph(CUdeviceptr* at, uint64_t bytes, const std::shared_ptr<Stream>& stream) {
  uint64_t base = take_block(bytes, Kind::graph);
  if (base == 0) return OUT_OF_MEMORY;
  gpu().regions[base].alive = false;
  Graph* graph = stream->capture->graph.get();  // which keeps this operation
  graph->blocks.push_back(base);
  Op op;
  op.what = "cuMemAllocAsync";
  op.graph_bytes = (long long)bytes;
  op.run = [base, bytes, graph] {
    Gpu& g = gpu();
    Region& region = g.regions[base];
    if (region.alive && !graph->auto_free) misuse(0, "a graph was launched again before the memory that it left was freed");
    if (!region.alive) g.graph_used += bytes;
    region.alive = true;
    g.arena.poison(base, bytes);
    g.graph_used_high = std::max(g.graph_used_high, g.graph_used);
    return SUCCESS;
  };
  *at = base;
  return enqueue(stream, std::move(op));
}

static CUresult allocate(CUdeviceptr* at, size_t bytes, std::shared_ptr<Pool> pool, CUstream handle) {
  CUresult code = SUCCESS;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if (!at || bytes == 0) return misuse(INVALID_VALUE, "0 bytes, or nowhere to tell the address");
  if (fail_allocation(DEVICE_MEMORY)) return OUT_OF_MEMORY;
  if (stream->capture) return allocate_in_graph(at, bytes, stream);
  if ((code = pool_reserve(*pool, bytes, stream->id))) return code;
  uint64_t base = take_block(bytes, Kind::pooled);
  if (base == 0) {
    pool_return(*pool, bytes);
    return OUT_OF_MEMORY;
  }
  gpu().regions[base].pool = pool;
  gpu().regions[base].alive = false;
  count("allocations");
  Op op;
  op.what = "cuMemAllocAsync";
  op.run = [base, bytes] {
    gpu().regions[base].alive = true;
    gpu().arena.poison(base, bytes);
    return SUCCESS;
  };
  *at = base;
  return enqueue(stream, std::move(op));
}

// Memory that a graph allocated: freed in the capture by a node, or outside of it once the graph has run.
static CUresult free_of_graph(uint64_t base, const std::shared_ptr<Stream>& stream) {
  Op op;
  op.what = "cuMemFreeAsync";
  op.graph_bytes = -(long long)gpu().regions[base].bytes;
  op.run = [base] {
    Gpu& g = gpu();
    auto found = g.regions.find(base);
    if (found == g.regions.end() || !found->second.alive) return SUCCESS;
    found->second.alive = false;
    g.graph_used -= found->second.bytes;
    return SUCCESS;
  };
  return enqueue(stream, std::move(op));
}

static CUresult free_pooled(Region& region, const std::shared_ptr<Stream>& stream) {
  static uint64_t tokens = 0;
  uint64_t token = ++tokens, base = region.base;
  auto pool = region.pool;
  region.promised = false;
  pool_return(*pool, region.bytes);
  pool->unobserved.push_back({token, stream->id, region.bytes});
  count("frees");
  Op op;
  op.what = "cuMemFreeAsync";
  op.run = [pool, token, base] {
    auto& all = pool->unobserved;
    all.erase(std::remove_if(all.begin(), all.end(), [&](auto& one) { return one.token == token; }), all.end());
    Region& gone = gpu().regions[base];
    if (!gone.alive) misuse(0, "the free of 0x%llx ran before its allocation", (unsigned long long)base);
    end_region(base);
    return SUCCESS;
  };
  return enqueue(stream, std::move(op));
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  Call call("cuDeviceGetDefaultMemPool", INITIALISED);
  if (call.refused()) return call.result;
  if (device != 0) return INVALID_DEVICE;
  *pool = default_pool()->id;
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
  Call call("cuDeviceGetMemPool", INITIALISED);
  if (call.refused()) return call.result;
  if (device != 0) return INVALID_DEVICE;
  default_pool();
  *pool = gpu().current_pool->id;
  return SUCCESS;
}

EXPORT CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool handle) {
  Call call("cuDeviceSetMemPool", INITIALISED);
  CUresult code = call.result;
  if (call.refused()) return code;
  if (device != 0) return INVALID_DEVICE;
  default_pool();
  if (auto pool = find_pool(handle, &code)) gpu().current_pool = pool;
  return code;
}

EXPORT CUresult cuMemPoolCreate(CUmemoryPool* handle, const CUmemPoolProps* props) {
  Call call("cuMemPoolCreate", DEVICE);
  if (call.refused()) return call.result;
  if (!handle || !props || props->alloc_type != 1 || props->location.type != 1 || props->location.id != 0)
    return misuse(INVALID_VALUE, "not pinned memory of device 0");
  if (props->handle_types != 0) return misuse(NOT_SUPPORTED, "handles between processes are not modelled");
  auto pool = std::make_shared<Pool>();
  pool->id = *handle = new_handle();
  pool->max_size = props->max_size;
  gpu().pools[pool->id] = pool;
  return SUCCESS;
}

EXPORT CUresult cuMemPoolDestroy(CUmemoryPool handle) {
  Call call("cuMemPoolDestroy", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto pool = find_pool(handle, &code);
  if (!pool) return code;
  if (pool->is_default) return misuse(INVALID_VALUE, "the default pool cannot be destroyed");
  pool->destroyed = true;
  gpu().pools.erase(handle);
  if (gpu().current_pool == pool) gpu().current_pool = gpu().default_pool;
  // What is still allocated stays until it is freed.
  if (pool->held() > 0) gpu().orphans.push_back(pool);
  return SUCCESS;
}

EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep) {
  Call call("cuMemPoolTrimTo", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  if (auto pool = find_pool(handle, &code)) release(*pool, keep);
  return code;
}

EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool handle, int attribute, void* value) {
  Call call("cuMemPoolGetAttribute", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto pool = find_pool(handle, &code);
  if (!pool) return code;
  auto* wide = static_cast<uint64_t*>(value);
  switch (attribute) {
    case POOL_REUSE_EVENTS:
    case POOL_REUSE_OPPORTUNISTIC:
    case POOL_REUSE_INTERNAL: *static_cast<int*>(value) = pool->reuse[attribute]; return SUCCESS;
    case POOL_RELEASE_THRESHOLD: *wide = pool->threshold; return SUCCESS;
    case POOL_RESERVED: *wide = pool->reserved; return SUCCESS;
    case POOL_RESERVED_HIGH: *wide = pool->reserved_high; return SUCCESS;
    case POOL_USED: *wide = pool->used; return SUCCESS;
    case POOL_USED_HIGH: *wide = pool->used_high; return SUCCESS;
    default: return misuse(INVALID_VALUE, "attribute %d", attribute);
  }
}

EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool handle, int attribute, void* value) {
  Call call("cuMemPoolSetAttribute", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto pool = find_pool(handle, &code);
  if (!pool) return code;
  uint64_t wide = attribute >= POOL_RELEASE_THRESHOLD ? *static_cast<uint64_t*>(value) : 0;
  switch (attribute) {
    case POOL_REUSE_EVENTS:
    case POOL_REUSE_OPPORTUNISTIC:
    case POOL_REUSE_INTERNAL: pool->reuse[attribute] = *static_cast<int*>(value) != 0; return SUCCESS;
    case POOL_RELEASE_THRESHOLD: pool->threshold = wide; return SUCCESS;
    case POOL_RESERVED_HIGH:
      if (wide != 0) return misuse(INVALID_VALUE, "a high-water mark can only be set to 0");
      pool->reserved_high = pool->reserved;
      return SUCCESS;
    case POOL_USED_HIGH:
      if (wide != 0) return misuse(INVALID_VALUE, "a high-water mark can only be set to 0");
      pool->used_high = pool->used;
      return SUCCESS;
    default: return misuse(INVALID_VALUE, "attribute %d cannot be set", attribute);
  }
}

EXPORT CUresult cuMemAllocAsync(CUdeviceptr* at, size_t bytes, CUstream stream) {
  Call call("cuMemAllocAsync", DEVICE);
  if (call.refused()) return call.result;
  default_pool();
  return allocate(at, bytes, gpu().current_pool, stream);
}

EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr* at, size_t bytes, CUmemoryPool handle, CUstream stream) {
  Call call("cuMemAllocFromPoolAsync", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto pool = find_pool(handle, &code);
  return pool ? allocate(at, bytes, pool, stream) : code;
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr at, CUstream handle) {
  Call call("cuMemFreeAsync", DEVICE);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  auto found = gpu().regions.find(at);
  if (found == gpu().regions.end() || !found->second.promised)
    return misuse(INVALID_VALUE, "0x%llx is not allocated: freed twice, or never given out", (unsigned long long)at);
  Region& region = found->second;
  if (region.kind == Kind::graph) return free_of_graph(at, stream);
  if (region.kind != Kind::pooled) return misuse(INVALID_VALUE, "0x%llx does not come from a pool", (unsigned long long)at);
  if (stream->capture) return misuse(INVALID_VALUE, "a capture frees memory from before it");
  return free_pooled(region, stream);
}
