// Switching: see context.h.
#include "context.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// void fake_gpu_switch(void** save, void* load): callee-saved registers go on the old stack and come off the new one.
asm(R"(
    .text
    .hidden fake_gpu_switch
    .globl fake_gpu_switch
    .type fake_gpu_switch, @function
fake_gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fake_gpu_switch, . - fake_gpu_switch
)");
extern "C" void fake_gpu_switch(void** save, void* load);
#endif

namespace fake_gpu {

#if defined(__SANITIZE_ADDRESS__)
static thread_local Context* host_of_first = nullptr;
#endif

void Context::begin(void* memory, size_t bytes, void (*entry)()) {
    stack = memory;
    stack_bytes = bytes;
    fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    // whoever had this stack before never returned from its first function
    __asan_unpoison_memory_region(memory, bytes);
#endif
#if defined(__x86_64__)
    // As a call would leave it: six registers, the address to go to, and above it a return address that is never used.
    void** top = reinterpret_cast<void**>(static_cast<char*>(memory) + bytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    stack_pointer = top - 8;
#else
    getcontext(&saved);
    saved.uc_stack.ss_sp = memory;
    saved.uc_stack.ss_size = bytes;
    saved.uc_link = nullptr;
    makecontext(&saved, entry, 0);
#endif
}

void Context::switch_to(Context& next, bool done) {
#if defined(__SANITIZE_ADDRESS__)
    if (stack == nullptr) host_of_first = this;
    __sanitizer_start_switch_fiber(done ? nullptr : &fake_stack, next.stack, next.stack_bytes);
#else
    (void)done;
#endif
#if defined(__x86_64__)
    fake_gpu_switch(&stack_pointer, next.stack_pointer);
#else
    swapcontext(&saved, &next.saved);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Context::entered() {
#if defined(__SANITIZE_ADDRESS__)
    // The host's own stack is learnt here, so that switching back to it can be told of.
    __sanitizer_finish_switch_fiber(nullptr, &host_of_first->stack, &host_of_first->stack_bytes);
#endif
}

}  // namespace fake_gpu
