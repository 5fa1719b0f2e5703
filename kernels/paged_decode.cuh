// Attention of short runs, a decoder's steps: at most 16 rows of queries a block, over one part of the keys.
//
// Memory is what they wait for: each of four warps takes every fourth block of the cache by itself, one run of memory, into
// two buffers of its own, the next while it computes with the last, and waits for no other warp until all are done. What each
// makes of its blocks is then added up in the warps' order.
#pragma once

#include "paged_tensor.cuh"

namespace paged_decode {

using namespace paged_tensor;

constexpr int WARPS = THREADS / WARP;
constexpr int KEYS = BLOCK_TOKENS;
constexpr int STRIDE = WARPS * KEYS;  // from a warp's block to its next

template <int WIDTH>
constexpr int BLOCKS = WIDTH == 128 ? 3 : 4;

// A row of the block, and its columns that a thread has: fours, eight threads' side by side.
template <int WIDTH>
struct Share {
    static constexpr int FOURS = WIDTH / 32;
    int row = static_cast<int>(threadIdx.x) / 8;

    __device__ static int column(int four) { return (four * 8 + static_cast<int>(threadIdx.x) % 8) * 4; }
};

// What each warp made of its rows, in shared memory: 16 rows of sums a warp, and of each row its softmax.
template <int WIDTH>
struct Parts {
    static constexpr int STEP = WIDTH + 4;  // so that rows written at once lie in different banks
    float* sums = reinterpret_cast<float*>(dynamic_shared);

    __device__ float* row(int warp, int row) const { return sums + (warp * ROWS + row) * STEP; }
    __device__ static float2& softmax(int warp, int row) {
        __shared__ float2 of_rows[WARPS * ROWS];
        return of_rows[warp * ROWS + row];
    }
    template <class T>
    __device__ void keep(const Warp<T, WIDTH, KEYS>& warp, int number) const {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int of_warp = half * 8 + lane / 4;
            const float sum = warp.sum(half);
            if (lane % 4 == 0) softmax(number, of_warp) = make_float2(warp.softmax[half].largest, sum);
#pragma unroll
            for (int n = 0; n < WIDTH / 8; ++n) {
                const float two[2] = {warp.result[n][2 * half], warp.result[n][2 * half + 1]};
                store(row(number, of_warp) + n * 8 + lane % 4 * 2, two);
            }
        }
    }
};

// A row as it comes together.
template <int WIDTH>
struct Whole {
    static constexpr int FOURS = Share<WIDTH>::FOURS;
    Sum softmax;
    float result[FOURS][4] = {};

    __device__ void add(const float* part, float2 of_part) {
        float worth, worth_of_part;
        softmax.add(of_part.x, of_part.y, worth, worth_of_part);
#pragma unroll
        for (int four = 0; four < FOURS; ++four) {
            float values[4];
            load(part + Share<WIDTH>::column(four), values);
#pragma unroll
            for (int k = 0; k < 4; ++k) result[four][k] = Sum::added(result[four][k], worth, values[k], worth_of_part);
        }
    }
    // Into memory, as `add` finds it there.
    __device__ void leave(float* part) const {
#pragma unroll
        for (int four = 0; four < FOURS; ++four) store(part + Share<WIDTH>::column(four), result[four]);
        if (threadIdx.x % 8 == 0) {
            part[WIDTH] = softmax.largest;
            part[WIDTH + 1] = softmax.sum;
        }
    }
    template <class T>
    __device__ void write(T* row) const {
        const float inverse = __fdividef(1.f, softmax.sum);
#pragma unroll
        for (int four = 0; four < FOURS; ++four) {
            float values[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) values[k] = result[four][k] * inverse;
            store(row + Share<WIDTH>::column(four), values);
        }
    }
};

template <class T, int WIDTH>
__device__ void attend_to(const Item<T>& item) {
    using Shared = Buffer<T, WIDTH, KEYS>;
    const Paged<T>& all = item.all;
    const int number = static_cast<int>(threadIdx.x) / WARP, lane = lane_of(threadIdx.x);
    const float scale = all.scale * LOG2_E;
    // the warp's first block of the part that any row sees some of, and the end of those
    const int end = min((item.part + 1) * PART, item.end);
    int key = item.part * PART + number * KEYS;
    while (key + KEYS <= item.low) key += STRIDE;
    const auto fill = [&](int from) {
        if (from < end) Shared::at(number * 2 + from / STRIDE % 2).template fill<WARP>(item, from, lane);
        end_group();
    };

    fill(key);
    Warp<T, WIDTH, KEYS> warp;
    warp.begin(item, 0);
    for (; key < end; key += STRIDE) {
        fill(key + STRIDE);
        wait_for_groups<1>();
        __syncwarp();
        warp.step(Shared::at(number * 2 + key / STRIDE % 2), key, scale);
        __syncwarp();  // all lanes are done with the buffer that is filled next
    }
    wait_for_groups<0>();
    __syncthreads();  // all warps are done with their buffers
    const Parts<WIDTH> parts;
    parts.keep(warp, number);
    __syncthreads();
    const Share<WIDTH> mine;
    const bool there = mine.row < item.rows;
    Whole<WIDTH> whole;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) whole.add(parts.row(i, mine.row), Parts<WIDTH>::softmax(i, mine.row));
    if (item.parts > 1) {
        if (there) whole.leave(item.left(item.part, mine.row));
        if (!item.is_last()) return;
        whole = Whole<WIDTH>();
        for (int part = item.first_part; there && part < item.first_part + item.parts; ++part) {
            const float* row = item.left(part, mine.row);
            whole.add(row, make_float2(row[WIDTH], row[WIDTH + 1]));
        }
    }
    if (there) whole.write(all.out + item.at(mine.row));
}

template <class T, int WIDTH>
__device__ void attend(const Paged<T>& all) {
    const int count = items_of(all);
    for (int number = static_cast<int>(blockIdx.x); number < count; number += static_cast<int>(gridDim.x)) {
        attend_to<T, WIDTH>(Item<T>(all, number, ROWS));
        __syncthreads();  // all are done with what the block shares
    }
}

}  // namespace paged_decode
