// Attention to a cache on tensor cores, for f16 and bf16 and heads of 64 or 128: what decode and prefill share.
//
// A warp has 16 rows of queries, which stay in registers; `KEYS` keys and their values are in shared memory, scores and the
// result are f32; weights are rounded to T before they weigh values, and what they are divided by is the sum of them
// unrounded. Which keys a row sees is asked of each key and row where not all see all. q, the cache and what comes out lie on
// borders of 16 bytes.
#pragma once

#include "paged_attention.cuh"

namespace paged_tensor {

constexpr int THREADS = 128;
constexpr int ROWS = 16;  // of a warp
constexpr int CHUNK = 8;  // values that fill 16 bytes

template <class T>
__device__ inline unsigned pair(float x, float y) {
    const typename Dtype<T>::Pair two = Dtype<T>::round2(x, y);
    return *reinterpret_cast<const unsigned*>(&two);
}

// Rows of a head in shared memory. Chunks of a row change places with the row's number, so that the same chunk of eight rows on
// end lies in different banks.
template <class T, int WIDTH>
struct Rows {
    T* start;

    __device__ T* chunk(int row, int chunk) const { return start + row * WIDTH + (chunk ^ row % 8) * CHUNK; }
};

// `KEYS` keys and as many values.
template <class T, int WIDTH, int KEYS>
struct Buffer {
    Rows<T, WIDTH> keys, values;

    static constexpr int VALUES = 2 * KEYS * WIDTH;
    __device__ static Buffer at(int number) {
        T* start = reinterpret_cast<T*>(dynamic_shared) + number * VALUES;
        return {{start}, {start + KEYS * WIDTH}};
    }
    // Starts to fill it with the keys from `first` on, by `COUNT` threads of which this is number `thread`; zeros for those
    // that no row of the block sees, which are not read.
    template <int COUNT>
    __device__ void fill(const Item<T>& item, int first, int thread) const {
        constexpr int CHUNKS = WIDTH / CHUNK;
        const int column = thread % CHUNKS;
#pragma unroll
        for (int i = 0; i < KEYS * CHUNKS / COUNT; ++i) {
            const int row = thread / CHUNKS + i * (COUNT / CHUNKS), key = first + row;
            const bool there = key >= item.low && key < item.end;
            const T* from = there ? item.key(key) + column * CHUNK : item.all.cache;
            copy_16_async(keys.chunk(row, column), from, there);
            copy_16_async(values.chunk(row, column), there ? from + BLOCK_TOKENS * WIDTH : from, there);
        }
    }
};

// What a warp has of its rows.
template <class T, int WIDTH, int KEYS>
struct Warp {
    unsigned queries[WIDTH / 16][4];
    float result[WIDTH / 8][4];
    Softmax softmax[2];
    int low[2], high[2];  // keys that the lane's two rows see; none where there is no row

    // `first`: of the block's rows.
    __device__ void begin(const Item<T>& item, int first) {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first + half * 8 + lane / 4;
            const bool there = row < item.rows;
            const int position = item.position(row);
            low[half] = there ? item.lowest(position) : 0;
            high[half] = there ? position + 1 : 0;
            const T* from = item.all.q + (there ? item.at(row) : 0) + lane % 4 * 2;
#pragma unroll
            for (int k = 0; k < WIDTH / 16; ++k) {
#pragma unroll
                for (int side = 0; side < 2; ++side) {
                    const unsigned* two = reinterpret_cast<const unsigned*>(from + k * 16 + side * 8);
                    queries[k][side * 2 + half] = there ? *two : 0u;
                }
            }
        }
        start();
    }
    __device__ void start() {
        softmax[0] = softmax[1] = Softmax();
#pragma unroll
        for (auto& fragment : result) {
#pragma unroll
            for (float& value : fragment) value = 0.f;
        }
    }

    // The keys from `base` on.
    __device__ void step(const Buffer<T, WIDTH, KEYS>& buffer, int base, float scale) {
        float scores[KEYS / 8][4];
        multiply_keys(buffer.keys, scores);
        // one question for the whole warp, so that no lane waits for another kind of work
        const bool all = base >= max(low[0], low[1]) && base + KEYS <= min(high[0], high[1]);
        if (__all_sync(ALL_LANES, all)) {
            weigh<true>(scores, base, scale);
        } else {
            weigh<false>(scores, base, scale);
        }
        add_values(buffer.values, scores);
    }

    // `scores[n]`: with keys 8n to 8n + 7.
    __device__ void multiply_keys(Rows<T, WIDTH> keys, float (&scores)[KEYS / 8][4]) const {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (auto& fragment : scores) {
#pragma unroll
            for (float& score : fragment) score = 0.f;
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
#pragma unroll
            for (int k = 0; k < WIDTH / 16; ++k) {
                unsigned b[4];
                load_matrices(keys.chunk(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2), b);
                multiply_add<T>(scores[2 * n], queries[k], b[0], b[1]);
                multiply_add<T>(scores[2 * n + 1], queries[k], b[2], b[3]);
            }
        }
    }

    // Turns scores into weights, 0 for keys that a row does not see, and takes the result so far down to their measure.
    template <bool ALL>
    __device__ void weigh(float (&scores)[KEYS / 8][4], int base_key, float scale) {
        const int column = base_key + lane_of(threadIdx.x) % 4 * 2;
        float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = column + n * 8 + i % 2;
                if (!ALL && (key < low[i / 2] || key >= high[i / 2])) scores[n][i] = -INFINITY;
                largest[i / 2] = fmaxf(largest[i / 2], scores[n][i]);
            }
        }
        soften(scores, largest, scale, softmax, result);
    }

    __device__ void add_values(Rows<T, WIDTH> values, const float (&weights)[KEYS / 8][4]) {
        const int lane = lane_of(threadIdx.x);
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            // the scores of two times eight keys lie as a fragment of sixteen columns does
            const float(&left)[4] = weights[2 * k];
            const float(&right)[4] = weights[2 * k + 1];
            const unsigned a[4] = {pair<T>(left[0], left[1]), pair<T>(left[2], left[3]), pair<T>(right[0], right[1]),
                                   pair<T>(right[2], right[3])};
#pragma unroll
            for (int n = 0; n < WIDTH / 16; ++n) {
                unsigned b[4];
                load_matrices_transposed(values.chunk(k * 16 + lane % 16, 2 * n + lane / 16), b);
                multiply_add<T>(result[2 * n], a, b[0], b[1]);
                multiply_add<T>(result[2 * n + 1], a, b[2], b[3]);
            }
        }
    }

    // The sum of a row's weights, which lie with four lanes.
    __device__ float sum(int row) const {
        float sum = softmax[row].sum;
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        return sum + __shfl_xor_sync(ALL_LANES, sum, 2);
    }
};

}  // namespace paged_tensor
