// Going over values of an array that have nothing to do with each other, with any grid of blocks of 256 threads.
#pragma once

#include "common.cuh"

constexpr int ELEMENT_THREADS = 256;

// How many values a step has, known when the loop is compiled.
template <int N>
struct Step {
    static constexpr int count = N;
};

__device__ inline long long thread_of_grid() {
    return static_cast<long long>(blockIdx.x) * ELEMENT_THREADS + threadIdx.x;
}
__device__ inline long long threads_of_grid() { return static_cast<long long>(gridDim.x) * ELEMENT_THREADS; }

// Calls `step(Step<…>(), at)` for all of `count` values: by `N` where they are aligned, the rest one at a time.
template <int N, class F>
__device__ inline void for_each_value(long long count, bool are_aligned, const F& step) {
    const long long vectors = are_aligned ? count / N : 0;
    for (long long i = thread_of_grid(); i < vectors; i += threads_of_grid()) step(Step<N>(), i * N);
    for (long long i = vectors * N + thread_of_grid(); i < count; i += threads_of_grid()) step(Step<1>(), i);
}
