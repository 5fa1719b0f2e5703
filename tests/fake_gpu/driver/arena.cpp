// Where the bytes of "device" and pinned memory lie: one reserved range of host addresses, handed out upwards and never twice.
// A block ends at a page that cannot be touched, so that reading or writing far past it faults at once; the margins up to there
// are filled and looked at when it is freed. Knows nothing of pools, streams or the driver's counting.
#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "gpu.h"

namespace fake {

constexpr uint64_t PAGE = 4096;
constexpr uint64_t ALIGNMENT = 256;  // what the vendor promises at least, and no more
constexpr int MARGIN = 0xfb;
constexpr size_t MOST_IN_QUARANTINE = 4096;  // blocks: each is a mapping of its own, and the kernel counts those

static uint64_t padded(uint64_t bytes) { return round_up(bytes, ALIGNMENT); }
static uint64_t pages(uint64_t bytes) { return round_up(padded(bytes), PAGE); }
static uint64_t first_page(uint64_t base) { return base / PAGE * PAGE; }

// Mapped anew rather than protected: what was never written merges with its neighbours into one mapping.
static void forget(uint64_t from, uint64_t room) {
  void* at = reinterpret_cast<void*>(from);
  mmap(at, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  madvise(at, room, MADV_DONTDUMP);
}

bool Arena::reserve() {
  for (uint64_t size = 8ull << 40; size >= 64ull << 30; size /= 2) {
    void* at = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    madvise(at, size, MADV_DONTDUMP);
    first_ = next_ = uint64_t(at);
    last_ = first_ + size;
    return true;
  }
  return false;
}

// The test's machine is at its limits, not the device that it plays: this must not be taken for the other.
static uint64_t no_room(uint64_t bytes, const char* why) {
  fprintf(stderr, "fake gpu: the host has no room for %llu bytes: %s\n", (unsigned long long)bytes, why);
  return 0;
}

uint64_t Arena::take(uint64_t bytes) {
  if (first_ == 0 && !reserve()) return no_room(bytes, "no range of addresses can be reserved");
  uint64_t room = pages(bytes);
  if (next_ + room + PAGE > last_) return no_room(bytes, "its range of addresses is used up");
  if (mprotect(reinterpret_cast<void*>(next_), room, PROT_READ | PROT_WRITE) != 0) return no_room(bytes, strerror(errno));
  uint64_t base = next_ + room - padded(bytes);
  next_ += room + PAGE;
  return base;
}

void Arena::poison(uint64_t base, uint64_t bytes) {
  uint64_t begin = first_page(base), end = base + padded(bytes);
  memset(reinterpret_cast<void*>(begin), MARGIN, base - begin);
  if (setting("poison")) memset(reinterpret_cast<void*>(base), POISON, bytes);
  memset(reinterpret_cast<void*>(base + bytes), MARGIN, end - base - bytes);
}

bool Arena::margins_whole(uint64_t base, uint64_t bytes) const {
  auto whole = [](uint64_t from, uint64_t to) {
    for (auto* at = reinterpret_cast<const unsigned char*>(from); at < reinterpret_cast<const unsigned char*>(to); ++at)
      if (*at != MARGIN) return false;
    return true;
  };
  return whole(first_page(base), base) && whole(base + bytes, base + padded(bytes));
}

void Arena::retire(uint64_t base, uint64_t bytes) {
  uint64_t begin = first_page(base), room = base + padded(bytes) - begin;
  uint64_t most = uint64_t(setting("quarantine"));
  if (room > most) return forget(begin, room);
  memset(reinterpret_cast<void*>(begin), POISON, room);
  quarantine_.push_back({begin, room});
  quarantined_ += room;
  while (quarantined_ > most || quarantine_.size() > MOST_IN_QUARANTINE) {
    auto [from, size] = quarantine_.front();
    quarantine_.pop_front();
    quarantined_ -= size;
    forget(from, size);
  }
}

}  // namespace fake
