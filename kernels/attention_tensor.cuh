// Attention on tensor cores, for f16 and bf16 and heads of 32, 64 or 128.
//
// Four warps, each with 16 queries of the tile, which stay in registers; keys and values come 64 at a time into one of two
// buffers in shared memory, the next while the last are computed with. Scores and the result are f32; probabilities are
// rounded to T before they weigh values, and what they are divided by is the sum of them unrounded. `scale` is positive.
#pragma once

#include "attention.cuh"
#include "tensor_cores.cuh"

namespace tensor {

constexpr int THREADS = 128;
constexpr int KEYS = 64;  // of a step
constexpr int ROWS = 16;  // queries of a warp
constexpr int CHUNK = 8;  // values that fill 16 bytes

// Blocks that a multiprocessor is to hold, which bounds their registers: as many as leave none to be spilled, and no more
// than its shared memory holds.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int BLOCKS_OF_128 = 2;
#else
constexpr int BLOCKS_OF_128 = 3;
#endif
template <int WIDTH>
constexpr int BLOCKS = WIDTH == 128 ? BLOCKS_OF_128 : WIDTH == 64 ? 4 : 5;

// 64 rows of a head in shared memory. Chunks of a row change places with the row's number, so that the same chunk of eight
// rows on end lies in different banks.
template <class T, int WIDTH>
struct Rows {
    T* start;

    __device__ T* chunk(int row, int chunk) const {
        const int turn = WIDTH == 32 ? row / 2 % 4 : row % 8;
        return start + row * WIDTH + (chunk ^ turn) * CHUNK;
    }

    // Starts to fill them from `count` rows of a head; zeros past those. Where the device cannot copy 16 bytes at once the
    // thread copies by itself, and is done. Visible to others after `wait_for_groups` and a barrier.
    __device__ void fill(const T* from, int stride, int count, bool together) const {
        constexpr int CHUNKS = WIDTH / CHUNK;
        constexpr int AT_ONCE = THREADS / CHUNKS;  // rows; a multiple of those that chunks change places over
        const int column = threadIdx.x % CHUNKS;
        int row = threadIdx.x / CHUNKS;
        const T* source = from + static_cast<long long>(row) * stride + column * CHUNK;
        T* to = chunk(row, column);
#pragma unroll
        for (int i = 0; i < KEYS / AT_ONCE; ++i) {
            const bool there = row < count;
            if (together) {
                copy_16_async(to, there ? source : from, there);
            } else {
#pragma unroll
                for (int k = 0; k < CHUNK; ++k) to[k] = there ? source[k] : Dtype<T>::round(0.f);
            }
            row += AT_ONCE;
            source += AT_ONCE * stride;
            to += AT_ONCE * WIDTH;
        }
    }
};

// Two buffers of keys and of values; the second keys' holds the queries first.
template <class T, int WIDTH>
struct Buffers {
    __device__ static Rows<T, WIDTH> at(int i) {
        return {reinterpret_cast<T*>(dynamic_shared) + i * KEYS * WIDTH};
    }
    __device__ static Rows<T, WIDTH> keys(int step) { return at(step % 2 * 2); }
    __device__ static Rows<T, WIDTH> values(int step) { return at(step % 2 * 2 + 1); }
};

template <class T>
__device__ inline unsigned pair(float x, float y) {
    const typename Dtype<T>::Pair two = Dtype<T>::round2(x, y);
    return *reinterpret_cast<const unsigned*>(&two);
}

// What a warp has of its queries: fragments of them, of the result, and two rows' softmax for each lane.
template <class T, int WIDTH>
struct Warp {
    unsigned queries[WIDTH / 16][4];
    float result[WIDTH / 8][4];
    Softmax softmax[2];

    __device__ void begin(Rows<T, WIDTH> rows, int first) {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) load_matrices(rows.chunk(first + lane % 16, 2 * k + lane / 16), queries[k]);
#pragma unroll
        for (auto& fragment : result) {
#pragma unroll
            for (float& value : fragment) value = 0.f;
        }
    }

    // `scores[n]`: with keys 8n to 8n + 7. Those of sixteen keys that are not there stay 0.
    template <bool ALL>
    __device__ void multiply_keys(Rows<T, WIDTH> keys, int count, float (&scores)[KEYS / 8][4]) const {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (auto& fragment : scores) {
#pragma unroll
            for (float& score : fragment) score = 0.f;
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
            if (!ALL && n * 16 >= count) break;
#pragma unroll
            for (int k = 0; k < WIDTH / 16; ++k) {
                unsigned b[4];
                load_matrices(keys.chunk(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2), b);
                multiply_add<T>(scores[2 * n], queries[k], b[0], b[1]);
                multiply_add<T>(scores[2 * n + 1], queries[k], b[2], b[3]);
            }
        }
    }

    // Turns scores into probabilities, 0 for keys that are not there, and takes the result so far down to their measure.
    template <bool ALL>
    __device__ void weigh(float (&scores)[KEYS / 8][4], int count, float scale) {
        const int column = lane_of(threadIdx.x) % 4 * 2;
        float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (!ALL && n * 8 + column + i % 2 >= count) scores[n][i] = -INFINITY;
                largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
            }
        }
        soften(scores, largest, scale, softmax, result);
    }

    template <bool ALL>
    __device__ void add_values(Rows<T, WIDTH> values, int count, const float (&weights)[KEYS / 8][4]) {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            if (!ALL && k * 16 >= count) break;
            // the scores of two times eight keys lie as a fragment of sixteen columns does
            const float(&low)[4] = weights[2 * k];
            const float(&high)[4] = weights[2 * k + 1];
            const unsigned a[4] = {pair<T>(low[0], low[1]), pair<T>(low[2], low[3]), pair<T>(high[0], high[1]),
                                   pair<T>(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < WIDTH / 16; ++n) {
                unsigned b[4];
                load_matrices_transposed(values.chunk(k * 16 + lane % 16, 2 * n + lane / 16), b);
                multiply_add<T>(result[2 * n], a, b[0], b[1]);
                multiply_add<T>(result[2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // Computes with the keys and values of a step, of which `count` are there.
    template <bool ALL>
    __device__ void step(Rows<T, WIDTH> keys, Rows<T, WIDTH> values, int count, float scale) {
        float scores[KEYS / 8][4];
        multiply_keys<ALL>(keys, count, scores);
        weigh<ALL>(scores, count, scale);
        add_values<ALL>(values, count, scores);
    }

    // Writes the warp's rows of the tile, by way of `rows`, which nobody else uses any more, so that 16 bytes are written
    // at once.
    __device__ void end(Rows<T, WIDTH> rows, int first, const Tile<T>& tile, int stride) {
        constexpr int CHUNKS = WIDTH / CHUNK;
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float sum = softmax[row].sum;
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            const float inverse = __fdividef(1.f, sum);
#pragma unroll
            for (int n = 0; n < CHUNKS; ++n) {
                const unsigned two = pair<T>(result[n][2 * row] * inverse, result[n][2 * row + 1] * inverse);
                *reinterpret_cast<unsigned*>(rows.chunk(first + row * 8 + lane / 4, n) + lane % 4 * 2) = two;
            }
        }
        __syncwarp();
        const bool together = aligned(tile.out);
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / WARP; ++i) {
            const int at = i * WARP + lane, row = first + at / CHUNKS, chunk = at % CHUNKS;
            if (row >= tile.queries) continue;
            const T* from = rows.chunk(row, chunk);
            T* to = tile.out + static_cast<long long>(row) * stride + chunk * CHUNK;
            if (together) {
                *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            } else {
#pragma unroll
                for (int k = 0; k < CHUNK; ++k) to[k] = from[k];
            }
        }
    }
};

template <class T, int WIDTH>
__device__ void attend(const Attention<T>& all) {
    using Shared = Buffers<T, WIDTH>;
    const Tile<T> tile(all);
    const bool together = all.stride % CHUNK == 0 && aligned(tile.q) && aligned(tile.k) && aligned(tile.v);
    const int first = static_cast<int>(threadIdx.x) / WARP * ROWS;
    const float scale = all.scale * LOG2_E;
    const auto fill = [&](int step) {
        const long long at = static_cast<long long>(step) * KEYS * all.stride;
        Shared::keys(step).fill(tile.k + at, all.stride, tile.keys - step * KEYS, together);
        Shared::values(step).fill(tile.v + at, all.stride, tile.keys - step * KEYS, together);
        end_group();
    };

    Warp<T, WIDTH> warp;
    Shared::keys(1).fill(tile.q, all.stride, tile.queries, together);
    end_group();
    fill(0);
    wait_for_groups<1>();
    __syncthreads();
    warp.begin(Shared::keys(1), first);
    const int steps = (tile.keys + KEYS - 1) / KEYS;
    for (int step = 0; step < steps; ++step) {
        wait_for_groups<0>();
        // all have their part of this step, and are done with the last one's buffers
        __syncthreads();
        if (step + 1 < steps) fill(step + 1);
        if (first >= tile.queries) continue;  // a warp without queries only helps to copy
        const int count = tile.keys - step * KEYS;
        if (count >= KEYS) {
            warp.template step<true>(Shared::keys(step), Shared::values(step), count, scale);
        } else {
            warp.template step<false>(Shared::keys(step), Shared::values(step), count, scale);
        }
    }
    // a tile without keys has begun to copy none of them, and must not end before that
    wait_for_groups<0>();
    // the buffers of a step that there is not have been out of use since the last barrier
    if (first < tile.queries) warp.end(Shared::keys(steps), first, tile, all.heads * WIDTH);
}

}  // namespace tensor
