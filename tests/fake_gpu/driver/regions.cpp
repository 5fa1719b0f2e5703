// Which memory is alive, in the order of calls and in the order of execution, and what the device has left. Both orders matter:
// a copy queued before a free may run after it only where somebody forgot to wait.
#include <algorithm>

#include "gpu.h"

namespace fake {

Region* find_region(uint64_t at, uint64_t bytes) {
  auto& regions = gpu().regions;
  auto found = regions.upper_bound(at);
  if (found == regions.begin()) return nullptr;
  Region& region = std::prev(found)->second;
  return at - region.base <= region.bytes && bytes <= region.bytes - (at - region.base) ? &region : nullptr;
}

static void explain(const Touch& touch, const char* what, const char* when) {
  unsigned long long at = touch.at, bytes = touch.bytes;
  const char* does = touch.writes ? "writes" : "reads";
  Region* start = find_region(touch.at, 0);
  if (start && start->promised && start->alive)
    misuse(0, "%s %s%s %llu bytes at 0x%llx, past the end of an allocation of %llu at 0x%llx", what, does, when, bytes, at,
           (unsigned long long)start->bytes, (unsigned long long)start->base);
  else if (start && !start->alive && start->promised)
    misuse(0, "%s %s%s %llu bytes at 0x%llx before the allocation took place in its stream", what, does, when, bytes, at);
  else
    misuse(0, "%s %s%s %llu bytes at 0x%llx, where nothing is allocated%s", what, does, when, bytes, at,
           gpu().arena.owns(touch.at) ? " (any more)" : "");
}

bool promised(const Touch& touch, const char* what) {
  Region* region = find_region(touch.at, touch.bytes);
  if (region && region->promised) return true;
  explain(touch, what, "");
  return false;
}

bool alive(const Touch& touch, const char* what) {
  Region* region = find_region(touch.at, touch.bytes);
  if (region && region->alive) return true;
  explain(touch, what, " (when it ran)");
  return false;
}

uint64_t vram_total() { return uint64_t(setting("total")); }

uint64_t vram_used() {
  Gpu& g = gpu();
  uint64_t used = g.context ? uint64_t(setting("context_bytes")) : 0;
  used += g.plain_bytes + round_up(g.small_bytes, 2 * MIB) + g.graph_reserved;
  for (auto& [handle, pool] : g.pools) used += pool->reserved;
  for (auto& pool : g.orphans) used += pool->reserved;
  return used;
}

uint64_t vram_free() { return vram_total() - std::min(vram_used(), vram_total()); }

uint64_t take_block(uint64_t bytes, Kind kind) {
  Gpu& g = gpu();
  uint64_t base = g.arena.take(bytes);
  if (base == 0) return 0;
  Region region;
  region.base = base;
  region.bytes = bytes;
  region.kind = kind;
  g.regions[base] = region;
  return base;
}

// The memory is gone, in the order of execution.
void end_region(uint64_t base) {
  Gpu& g = gpu();
  auto found = g.regions.find(base);
  if (found == g.regions.end()) return;
  Region& region = found->second;
  if (region.kind != Kind::registered) {
    if (region.alive && !g.arena.margins_whole(base, region.bytes))
      misuse(0, "something wrote beside the allocation of %llu bytes at 0x%llx", (unsigned long long)region.bytes,
             (unsigned long long)base);
    g.arena.retire(base, region.bytes);
  }
  g.regions.erase(found);
}

void drop_memory() {
  Gpu& g = gpu();
  while (!g.regions.empty()) end_region(g.regions.begin()->first);
  g.plain_bytes = g.small_bytes = 0;
  g.graph_used = g.graph_reserved = 0;
  auto empty = [](Pool& pool) {
    pool.used = pool.reserved = pool.live = 0;
    pool.unobserved.clear();
  };
  g.orphans.clear();
  for (auto& [handle, pool] : g.pools) empty(*pool);
}

}  // namespace fake
