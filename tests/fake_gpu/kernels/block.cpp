// Runs blocks one after the other, the threads of a block in turns: see block.h.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
// The sanitizer is told of switches between the host and a thread only.
constexpr bool BY_WAY_OF_HOST = true;
#else
constexpr bool BY_WAY_OF_HOST = false;
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif

#include "context.h"

alignas(1024) thread_local unsigned char dynamic_shared[fake_gpu::SHARED_LIMIT + 256];

namespace fake_gpu {

constexpr unsigned char CANARY = 0xa5;
constexpr size_t MOST_THREADS = 1024;

struct Warp {
    Meeting meetings[2];  // taken in turns: nobody comes to the next but one before all have left this one
    unsigned present = 0;
    unsigned arrived = 0;
    unsigned rounds = 0;
    const char* what = nullptr;
};

struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
    unsigned group;
};

struct Thread {
    Context context;
    Place* place = nullptr;
    unsigned number = 0;
    bool done = false;
    // Waits while `*counter` is still `seen`.
    const unsigned* counter = nullptr;
    unsigned seen = 0;
    const char* waits_for = "";
    std::vector<Copy> copies;
    unsigned groups = 0;
};

// Stacks are mapped once for a thread of the host, each above a page that may not be touched.
struct Stacks {
    char* mapped = nullptr;
    size_t ready = 0;
    static constexpr size_t ALL = (MOST_THREADS + 1) * STACK_BYTES;

    char* get(size_t i) {
        if (mapped == nullptr) {
            void* all = mmap(nullptr, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (all == MAP_FAILED) fault("no memory for stacks");
            mapped = static_cast<char*>(all);
        }
        char* first = mapped + (STACK_BYTES - reinterpret_cast<uintptr_t>(mapped) % STACK_BYTES) % STACK_BYTES;
        for (; ready <= i; ++ready) {
            if (mprotect(first + ready * STACK_BYTES, 4096, PROT_NONE) != 0) fault("no page below a stack");
        }
        return first + i * STACK_BYTES + 4096;
    }
    ~Stacks() {
        if (mapped != nullptr) munmap(mapped, ALL);
    }
};

// The block that runs on this thread of the host.
struct Block {
    const Launch* launch = nullptr;
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Index at, size, grid;
    unsigned at_barrier = 0, barriers = 0, left = 0;
    // Whose turn it is after whom, how far this round of turns is, and whether anybody got on in it.
    std::vector<unsigned> order;
    size_t turn = 0;
    bool moved = false;
    std::mt19937 random;
    Context host;
    Stacks stacks;
};

namespace {

thread_local Block block_of_host;
unsigned thread_order = 0;

Warp& warp_of(Block& block, const Thread& thread) { return block.warps[thread.number / WARP_LANES]; }

void stuck(const Block& block) {
    for (const Thread& thread : block.threads) {
        if (!thread.done) fault("thread %u waits forever for others: %s", thread.number, thread.waits_for);
    }
}

// Who goes on now: the next in order who need not wait.
Thread& next(Block& b) {
    for (;;) {
        if (b.turn == b.order.size()) {
            if (!b.moved) stuck(b);
            b.turn = 0;
            b.moved = false;
            if (thread_order > 1) std::shuffle(b.order.begin(), b.order.end(), b.random);
        }
        Thread& thread = b.threads[b.order[b.turn++]];
        if (thread.done || (thread.counter != nullptr && *thread.counter == thread.seen)) continue;
        b.moved = true;
        return thread;
    }
}

// Leaves the thread that runs to whoever is next.
void leave(Block& block, Thread& me, bool done) {
    const bool to_host = BY_WAY_OF_HOST || block.left == 0;
    me.context.switch_to(to_host ? block.host : next(block).context, done);
}

void wait(const unsigned& counter, unsigned seen, const char* what) {
    Thread& me = *here().me;
    me.counter = &counter;
    me.seen = seen;
    me.waits_for = what;
    leave(*here().of, me, false);
    me.counter = nullptr;
}

void thread_main() {
    Context::entered();
    Thread& me = *here().me;
    Block& block = *here().of;
    block.kernel(block.arguments);
    if (!me.copies.empty()) fault("thread %u ended before copies that it had started", me.number);
    me.done = true;
    --block.left;
    warp_of(block, me).present &= ~(1u << lane());
    leave(block, me, true);
    std::abort();
}

// Who is who in every block of a launch.
void begin_grid(Block& b, const Launch& launch) {
    b.size = {launch.block[0], launch.block[1], launch.block[2]};
    b.grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
    b.random.seed(thread_order);
    const unsigned count = b.size.x * b.size.y * b.size.z;
    b.threads.resize(count);
    b.warps.resize((count + WARP_LANES - 1) / WARP_LANES);
    b.order.resize(count);
    for (unsigned i = 0; i < count; ++i) {
        const Index at{i % b.size.x, i / b.size.x % b.size.y, i / b.size.x / b.size.y};
        Thread& thread = b.threads[i];
        thread.number = i;
        thread.place = &place_above(reinterpret_cast<uintptr_t>(b.stacks.get(i)));
        *thread.place = {at, i % WARP_LANES, &b.at, &b.size, &b.grid, &thread, &b};
        b.order[i] = thread_order == 1 ? count - 1 - i : i;
    }
}

// From whatever was left of the block before: a driver that catches a fault leaves it in the middle.
void begin_block(Block& b, const Index& at) {
    b.at = at;
    for (Warp& warp : b.warps) warp.present = warp.arrived = warp.rounds = 0;
    b.at_barrier = b.barriers = 0;
    b.left = b.threads.size();
    b.turn = b.order.size();
    b.moved = true;
    for (Thread& thread : b.threads) {
        thread.done = false;
        thread.counter = nullptr;
        thread.copies.clear();
        thread.groups = 0;
        char* stack = b.stacks.get(thread.number);
        thread.context.begin(stack, reinterpret_cast<char*>(thread.place) - stack, thread_main);
        warp_of(b, thread).present |= 1u << thread.place->lane;
    }
    const unsigned shared_bytes = b.launch->shared_bytes;
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, sizeof dynamic_shared);
    std::memset(dynamic_shared, 0xff, shared_bytes);
    std::memset(dynamic_shared + shared_bytes, CANARY, 256);
    ASAN_POISON_MEMORY_REGION(dynamic_shared + shared_bytes, sizeof dynamic_shared - shared_bytes);
}

void run_block(Block& block, const Index& at) {
    begin_block(block, at);
    while (block.left > 0) block.host.switch_to(next(block).context);
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, sizeof dynamic_shared);
    const unsigned char* end = dynamic_shared + block.launch->shared_bytes;
    if (std::any_of(end, end + 256, [](unsigned char byte) { return byte != CANARY; })) {
        fault("more than %u bytes of shared memory were written", block.launch->shared_bytes);
    }
}

void check(const Launch& launch) {
    const unsigned* b = launch.block;
    const unsigned long long threads = 1ull * b[0] * b[1] * b[2];
    if (threads > MOST_THREADS) fault("a block of %llu threads", threads);
    if (threads != launch.threads_expected) {
        fault("launched with blocks of %llu threads, made for %u", threads, launch.threads_expected);
    }
    if (launch.shared_bytes > SHARED_LIMIT) fault("%u bytes of shared memory are more than there are", launch.shared_bytes);
    if (launch.grid[0] > 0x7fffffffu || launch.grid[1] > 65535 || launch.grid[2] > 65535) fault("too large a grid");
}

}  // namespace

void fault(const char* format, ...) {
    std::fflush(stdout);
    std::fprintf(stderr, "fake GPU: %s: ", block_of_host.launch != nullptr ? block_of_host.launch->name : "no kernel");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

void block_barrier() {
    Block& block = *here().of;
    if (block.left != block.threads.size()) fault("a thread comes to a barrier after others have ended");
    if (++block.at_barrier == block.threads.size()) {
        block.at_barrier = 0;
        ++block.barriers;
        return;
    }
    wait(block.barriers, block.barriers, "__syncthreads");
}

const Meeting& meet(const char* what, unsigned mask, const void* value, size_t bytes, void (*complete)(Meeting&)) {
    const Place& place = here();
    Warp& warp = warp_of(*place.of, *place.me);
    if (mask != 0xffffffffu || warp.present != mask) {
        fault("%s by the lanes %08x where %08x are there: only whole warps meet", what, mask, warp.present);
    }
    if (warp.arrived != 0 && warp.what != what && std::strcmp(warp.what, what) != 0) {
        fault("a lane is at %s, another at %s", warp.what, what);
    }
    warp.what = what;
    const unsigned round = warp.rounds;
    Meeting& meeting = warp.meetings[round % 2];
    if (bytes > 0) std::memcpy(meeting.brought[place.lane], value, bytes);
    warp.arrived |= 1u << place.lane;
    if (warp.arrived == mask) {
        if (complete != nullptr) complete(meeting);
        warp.arrived = 0;
        ++warp.rounds;
    } else {
        wait(warp.rounds, round, what);
    }
    return meeting;
}

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
    std::memset(to, 0xff, bytes + zeros);
    Thread& me = *here().me;
    me.copies.push_back({to, from, bytes, zeros, me.groups});
}

void commit_copies() { ++here().me->groups; }

void wait_for_copies(unsigned still_running) {
    Thread& me = *here().me;
    auto finished = [&](const Copy& copy) { return copy.group + still_running < me.groups; };
    for (const Copy& copy : me.copies) {
        if (!finished(copy)) continue;
        if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
    }
    me.copies.erase(std::remove_if(me.copies.begin(), me.copies.end(), finished), me.copies.end());
}

void run(const Launch& launch, void (*kernel)(void**), void** arguments) {
    Block& block = block_of_host;
    block.launch = &launch;
    check(launch);
    block.kernel = kernel;
    block.arguments = arguments;
    begin_grid(block, launch);
    for (unsigned z = 0; z < launch.grid[2]; ++z) {
        for (unsigned y = 0; y < launch.grid[1]; ++y) {
            for (unsigned x = 0; x < launch.grid[0]; ++x) run_block(block, {x, y, z});
        }
    }
    block.launch = nullptr;
}

}  // namespace fake_gpu

extern "C" __attribute__((visibility("default"))) void cutover_thread_order(unsigned order) {
    fake_gpu::thread_order = order;
}
