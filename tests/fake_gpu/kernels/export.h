// Makes a kernel callable by name: `EXPORT_KERNEL(name, threads of a block)` after its source.
//
// `cpu_<name>(grid, block, shared_bytes, params)` runs it, `params` being addresses of the values as cuLaunchKernel takes
// them; `<name>_params` says how many and how large they are, for the table that the build script writes.
#pragma once

#include <type_traits>
#include <utility>

#include "block.h"

namespace fake_gpu {

struct Params {
    int count;
    const unsigned char* sizes;
    const unsigned char* is_pointer;
};

template <auto KERNEL, class Function>
struct Exported;

template <auto KERNEL, class... P>
struct Exported<KERNEL, void (*)(P...)> {
    static constexpr unsigned char sizes[] = {static_cast<unsigned char>(sizeof(P))...};
    static constexpr unsigned char is_pointer[] = {std::is_pointer_v<P>...};
    static constexpr Params params = {static_cast<int>(sizeof...(P)), sizes, is_pointer};

    static void call(void** arguments) { apply(arguments, std::index_sequence_for<P...>()); }

private:
    template <size_t... I>
    static void apply(void** arguments, std::index_sequence<I...>) {
        KERNEL(*static_cast<P*>(arguments[I])...);
    }
};

}  // namespace fake_gpu

#define EXPORT_KERNEL(NAME, THREADS)                                                                                  \
    extern const fake_gpu::Params NAME##_params;                                                                      \
    const fake_gpu::Params NAME##_params = fake_gpu::Exported<&NAME, decltype(&NAME)>::params;                        \
    extern "C" __attribute__((visibility("default"))) void cpu_##NAME(const unsigned grid[3], const unsigned block[3], \
                                                                      unsigned shared_bytes, void** params) {         \
        fake_gpu::run({#NAME, grid, block, shared_bytes, (THREADS)},                                                  \
                      fake_gpu::Exported<&NAME, decltype(&NAME)>::call, params);                                      \
    }
