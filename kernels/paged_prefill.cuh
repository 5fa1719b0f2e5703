// Attention of long runs: 64 rows of queries a block, 16 a warp, over all keys that any of them sees.
//
// Keys and values come 64 at a time, four blocks of the cache, into one of two buffers, the next while the last are computed
// with. A row's keys are grouped by their position, so that it does not depend on what other rows the block has.
#pragma once

#include "paged_tensor.cuh"

namespace paged_prefill {

using namespace paged_tensor;

constexpr int QUERIES = 64;
constexpr int KEYS = 64;

// Blocks that a multiprocessor is to hold, which bounds their registers: as many as leave none to be spilled.
template <int WIDTH>
constexpr int BLOCKS = WIDTH == 128 ? 2 : 3;

// The warp's rows, by way of shared memory that nobody else uses any more, so that 16 bytes are written at once.
template <class T, int WIDTH>
__device__ void write(const Warp<T, WIDTH, KEYS>& warp, Rows<T, WIDTH> rows, const Item<T>& item, int first) {
    constexpr int CHUNKS = WIDTH / CHUNK;
    const int lane = lane_of(threadIdx.x);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float inverse = __fdividef(1.f, warp.sum(half));
#pragma unroll
        for (int n = 0; n < CHUNKS; ++n) {
            const unsigned two = pair<T>(warp.result[n][2 * half] * inverse, warp.result[n][2 * half + 1] * inverse);
            *reinterpret_cast<unsigned*>(rows.chunk(first + half * 8 + lane / 4, n) + lane % 4 * 2) = two;
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < ROWS * CHUNKS / WARP; ++i) {
        const int at = i * WARP + lane, row = first + at / CHUNKS, chunk = at % CHUNKS;
        if (row >= item.rows) continue;
        T* to = item.all.out + item.at(row) + chunk * CHUNK;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(rows.chunk(row, chunk));
    }
}

template <class T, int WIDTH>
__device__ void attend(const Paged<T>& all) {
    using Shared = Buffer<T, WIDTH, KEYS>;
    const Item<T> item(all, static_cast<int>(blockIdx.x), QUERIES);
    const int first = static_cast<int>(threadIdx.x) / WARP * ROWS;
    const float scale = all.scale * LOG2_E;
    const int begin = item.low / KEYS, end = (item.end - 1) / KEYS + 1;
    const auto fill = [&](int step) {
        Shared::at(step % 2).template fill<THREADS>(item, step * KEYS, static_cast<int>(threadIdx.x));
        end_group();
    };

    fill(begin);
    Warp<T, WIDTH, KEYS> warp;
    warp.begin(item, first);
    for (int step = begin; step < end; ++step) {
        wait_for_groups<0>();
        // all have their part of this step, and are done with the last one's buffer
        __syncthreads();
        if (step + 1 < end) fill(step + 1);
        if (first < item.rows) warp.step(Shared::at(step % 2), step * KEYS, scale);
    }
    __syncthreads();
    if (first < item.rows) write<T, WIDTH>(warp, Shared::at(0).keys, item, first);
}

}  // namespace paged_prefill
