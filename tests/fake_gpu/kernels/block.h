// The threads of a block on a CPU: who they are, and where they meet.
//
// A thread runs until it has to wait for others: all of its block at a barrier, all lanes of its warp at a warp-wide
// function. What a device would leave undefined ends the process with a line that says what was wrong: lanes that meet at
// different functions or not at all, a mask that is not the whole warp, a barrier that some threads have left behind, a block
// of a size that the kernel was not made for, shared memory written past its end. It must not know any kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fake_gpu {

struct Index {
    unsigned x, y, z;
};

constexpr unsigned WARP_LANES = 32;
constexpr size_t SHARED_LIMIT = 227 * 1024;  // of a block, on sm_90

// What the lanes of a warp bring to a warp-wide function, and what each takes away.
struct Meeting {
    alignas(16) unsigned char brought[WARP_LANES][64];
    alignas(16) unsigned char taken[WARP_LANES][64];
};

struct Block;
struct Thread;

// What is true of a thread, above its stack.
struct Place {
    Index thread;
    unsigned lane;
    const Index *block, *block_size, *grid;
    Thread* me;
    Block* of;
};

// Stacks begin at multiples of this, so that a thread finds its place by where it is: what belongs to a thread of the host takes a
// call to find. At different places of a page, too, or all of them would compete for the same lines of the cache.
constexpr uintptr_t STACK_BYTES = 256 * 1024, COLOURS = 256, COLOUR_BYTES = 128;
static_assert(sizeof(Place) <= COLOUR_BYTES);

inline Place& place_above(uintptr_t at) {
    return *reinterpret_cast<Place*>((at | (STACK_BYTES - 1)) + 1 - COLOUR_BYTES * (1 + at / STACK_BYTES % COLOURS));
}
// Of the thread that runs now.
inline const Place& here() { return place_above(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))); }

[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

inline unsigned lane() { return here().lane; }
void block_barrier();

// Brings `bytes` of `value` and waits for every lane in `mask`; the last to come runs `complete` for all. What was brought
// and what `complete` left stay as they are until the lanes meet again.
const Meeting& meet(const char* what, unsigned mask, const void* value, size_t bytes, void (*complete)(Meeting&));

// Copies that a thread has started and not yet waited for: done only when it waits, so that reading too early reads NaN.
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_for_copies(unsigned still_running);

// Runs a grid: `kernel(arguments)` by every thread of every block.
struct Launch {
    const char* name;
    const unsigned* grid;
    const unsigned* block;
    unsigned shared_bytes;
    unsigned threads_expected;  // of a block: what the kernel was made for
};
void run(const Launch& launch, void (*kernel)(void** arguments), void** arguments);

}  // namespace fake_gpu

// Dynamic shared memory: filled with NaN before each block.
alignas(1024) extern thread_local unsigned char dynamic_shared[];

// In which order threads get their turns: 0 first to last, 1 last to first, else shuffled, seeded with it. Results must not
// depend on it.
extern "C" void cutover_thread_order(unsigned order);
