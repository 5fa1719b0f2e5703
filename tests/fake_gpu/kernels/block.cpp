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
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif

#include "context.h"

alignas(1024) thread_local unsigned char dynamic_shared[fake_gpu::SHARED_LIMIT + 256];

namespace fake_gpu {
namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr unsigned char CANARY = 0xa5;

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
    Place place;
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
    std::vector<char*> all;

    char* get(size_t i) {
        while (all.size() <= i) {
            void* mapped = mmap(nullptr, STACK_BYTES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (mapped == MAP_FAILED || mprotect(mapped, 4096, PROT_NONE) != 0) fault("no memory for a stack");
            all.push_back(static_cast<char*>(mapped) + 4096);
        }
        return all[i];
    }
    ~Stacks() {
        for (char* stack : all) munmap(stack - 4096, STACK_BYTES + 4096);
    }
};

// The block that runs on this thread of the host.
struct Block {
    const Launch* launch = nullptr;
    void (*kernel)(void**) = nullptr;
    void** arguments = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned at_barrier = 0, barriers = 0, left = 0;
    Thread* running = nullptr;
    Context host;
    Stacks stacks;
};

thread_local Block block;
unsigned thread_order = 0;

Warp& warp_of(const Thread& thread) { return block.warps[thread.number / WARP_LANES]; }

void wait(const unsigned& counter, unsigned seen, const char* what) {
    Thread& me = *block.running;
    me.counter = &counter;
    me.seen = seen;
    me.waits_for = what;
    me.context.switch_to(block.host);
    me.counter = nullptr;
}

void thread_main() {
    Context::entered();
    block.kernel(block.arguments);
    Thread& me = *block.running;
    if (!me.copies.empty()) fault("thread %u ended before copies that it had started", me.number);
    me.done = true;
    --block.left;
    warp_of(me).present &= ~(1u << lane());
    me.context.switch_to(block.host, true);
    std::abort();
}

void stuck() {
    for (const Thread& thread : block.threads) {
        if (!thread.done) fault("thread %u waits forever for others: %s", thread.number, thread.waits_for);
    }
}

// From whatever was left of the block before: a driver that catches a fault leaves it in the middle.
void begin_block(const Index& at) {
    const Launch& launch = *block.launch;
    const Index size{launch.block[0], launch.block[1], launch.block[2]};
    const unsigned count = size.x * size.y * size.z;
    block.threads.resize(count);
    block.warps.resize((count + WARP_LANES - 1) / WARP_LANES);
    for (Warp& warp : block.warps) warp.present = warp.arrived = warp.rounds = 0;
    block.at_barrier = block.barriers = 0;
    block.left = count;
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = block.threads[i];
        thread.place = {{i % size.x, i / size.x % size.y, i / size.x / size.y},
                        at,
                        size,
                        {launch.grid[0], launch.grid[1], launch.grid[2]}};
        thread.number = i;
        thread.done = false;
        thread.counter = nullptr;
        thread.copies.clear();
        thread.groups = 0;
        thread.context.begin(block.stacks.get(i), STACK_BYTES, thread_main);
        warp_of(thread).present |= 1u << i % WARP_LANES;
    }
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, sizeof dynamic_shared);
    std::memset(dynamic_shared, 0xff, launch.shared_bytes);
    std::memset(dynamic_shared + launch.shared_bytes, CANARY, 256);
    ASAN_POISON_MEMORY_REGION(dynamic_shared + launch.shared_bytes, sizeof dynamic_shared - launch.shared_bytes);
}

void run_block(const Index& at, std::mt19937& random) {
    begin_block(at);
    std::vector<unsigned> order(block.threads.size());
    for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
    if (thread_order == 1) std::reverse(order.begin(), order.end());
    while (block.left > 0) {
        if (thread_order > 1) std::shuffle(order.begin(), order.end(), random);
        bool moved = false;
        for (unsigned i : order) {
            Thread& thread = block.threads[i];
            if (thread.done || (thread.counter != nullptr && *thread.counter == thread.seen)) continue;
            moved = true;
            block.running = &thread;
            here = &thread.place;
            block.host.switch_to(thread.context);
        }
        if (!moved) stuck();
    }
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, sizeof dynamic_shared);
    const unsigned char* end = dynamic_shared + block.launch->shared_bytes;
    if (std::any_of(end, end + 256, [](unsigned char byte) { return byte != CANARY; })) {
        fault("more than %u bytes of shared memory were written", block.launch->shared_bytes);
    }
}

void check(const Launch& launch) {
    const unsigned* b = launch.block;
    const unsigned long long threads = 1ull * b[0] * b[1] * b[2];
    if (threads != launch.threads_expected) {
        fault("launched with blocks of %llu threads, made for %u", threads, launch.threads_expected);
    }
    if (launch.shared_bytes > SHARED_LIMIT) fault("%u bytes of shared memory are more than there are", launch.shared_bytes);
    if (launch.grid[0] > 0x7fffffffu || launch.grid[1] > 65535 || launch.grid[2] > 65535) fault("too large a grid");
}

}  // namespace

__thread const Place* here = nullptr;

void fault(const char* format, ...) {
    std::fflush(stdout);
    std::fprintf(stderr, "fake GPU: %s: ", block.launch != nullptr ? block.launch->name : "no kernel");
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

unsigned lane() { return block.running->number % WARP_LANES; }

void block_barrier() {
    if (block.left != block.threads.size()) fault("a thread comes to a barrier after others have ended");
    if (++block.at_barrier == block.threads.size()) {
        block.at_barrier = 0;
        ++block.barriers;
        return;
    }
    wait(block.barriers, block.barriers, "__syncthreads");
}

const Meeting& meet(const char* what, unsigned mask, const void* value, size_t bytes, void (*complete)(Meeting&)) {
    Warp& warp = warp_of(*block.running);
    if (mask != 0xffffffffu || warp.present != mask) {
        fault("%s by the lanes %08x where %08x are there: only whole warps meet", what, mask, warp.present);
    }
    if (warp.arrived != 0 && warp.what != what && std::strcmp(warp.what, what) != 0) {
        fault("a lane is at %s, another at %s", warp.what, what);
    }
    warp.what = what;
    const unsigned round = warp.rounds;
    Meeting& meeting = warp.meetings[round % 2];
    if (bytes > 0) std::memcpy(meeting.brought[lane()], value, bytes);
    warp.arrived |= 1u << lane();
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
    Thread& me = *block.running;
    me.copies.push_back({to, from, bytes, zeros, me.groups});
}

void commit_copies() { ++block.running->groups; }

void wait_for_copies(unsigned still_running) {
    Thread& me = *block.running;
    auto finished = [&](const Copy& copy) { return copy.group + still_running < me.groups; };
    for (const Copy& copy : me.copies) {
        if (!finished(copy)) continue;
        if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
        std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
    }
    me.copies.erase(std::remove_if(me.copies.begin(), me.copies.end(), finished), me.copies.end());
}

void run(const Launch& launch, void (*kernel)(void**), void** arguments) {
    block.launch = &launch;
    check(launch);
    block.kernel = kernel;
    block.arguments = arguments;
    std::mt19937 random(thread_order);
    for (unsigned z = 0; z < launch.grid[2]; ++z) {
        for (unsigned y = 0; y < launch.grid[1]; ++y) {
            for (unsigned x = 0; x < launch.grid[0]; ++x) run_block({x, y, z}, random);
        }
    }
    block.launch = nullptr;
    here = nullptr;
}

}  // namespace fake_gpu

extern "C" __attribute__((visibility("default"))) void cutover_thread_order(unsigned order) {
    fake_gpu::thread_order = order;
}
