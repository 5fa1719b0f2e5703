// Stackful switching between the threads of a block, all on one thread of the host.
//
// By hand on x86-64, where a switch takes a few nanoseconds; through ucontext elsewhere. The address sanitizer is told of
// every switch. It must not know what the contexts run.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fake_gpu {

class Context {
public:
    // A context that begins in `entry`, which must never return, on its own stack.
    void begin(void* stack, size_t bytes, void (*entry)());
    // Goes on in `next`; comes back when something switches here. `done`: nothing ever will.
    void switch_to(Context& next, bool done = false);

    // What the sanitizer must know when a context runs for the first time.
    static void entered();

private:
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t saved;
#endif
    const void* stack = nullptr;
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;
};

}  // namespace fake_gpu
