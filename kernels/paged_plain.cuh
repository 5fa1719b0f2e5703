// Attention to a cache by multiply-adds in f32: for every element type and every width up to 256.
//
// 128 threads, 16 rows of queries, four of them a warp's; keys and values come 32 at a time into shared memory as f32. Of the
// scores a lane has one key, of the result every 32nd four columns. One kernel for all numbers of rows: a row's sums are the
// same, to the bit, in a step of one token and within a prompt.
#pragma once

#include "paged_attention.cuh"

namespace paged_plain {

constexpr int THREADS = 128;
constexpr int ROWS = 16;
constexpr int ROWS_OF_WARP = ROWS / (THREADS / WARP);
constexpr int KEYS = 32;  // of a step

__device__ inline int filled(int width) { return (width + 3) / 4 * 4; }
// 16 bytes more, so that eight rows read at once lie in different banks.
__device__ inline int padded(int width) { return filled(width) + 4; }

// Columns are read and written in fours: 32 lanes' side by side, then the next.
template <int WIDTH>
constexpr int FOURS = WIDTH <= 128 ? 1 : WIDTH / 128;
__device__ inline int column_of(int four) { return (four * WARP + lane_of(threadIdx.x)) * 4; }

// Four values of an array of `width`, zeros past it; one by one where they do not lie as 16 bytes do.
template <class V>
__device__ inline void load_four(const V* from, int column, int width, bool together, float (&to)[4]) {
    if (together) {
        load(from + column, to);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = column + k < width ? Dtype<V>::widen(from[column + k]) : 0.f;
}

template <class V>
__device__ inline void store_four(V* to, int column, int width, bool together, const float (&from)[4]) {
    if (together) {
        store(to + column, from);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        if (column + k < width) to[column + k] = Dtype<V>::round(from[k]);
    }
}

struct Shared {
    float *q, *k, *v, *p;

    __device__ explicit Shared(int width) {
        q = reinterpret_cast<float*>(dynamic_shared);
        k = q + ROWS * padded(width);
        v = k + KEYS * padded(width);
        p = v + KEYS * padded(width);
    }
};

template <class T>
__device__ void stage_queries(const Item<T>& item, float* to) {
    const int width = item.all.width, fours = filled(width) / 4;
    const bool together = width % 4 == 0 && aligned(item.all.q);
    for (int i = threadIdx.x; i < ROWS * fours; i += THREADS) {
        const int row = i / fours, column = i % fours * 4;
        float values[4] = {};
        if (row < item.rows) load_four(item.all.q + item.at(row), column, width, together, values);
        store(to + row * padded(width) + column, values);
    }
}

// Keys from `first` on and their values; zeros for those that none of the rows sees, which are not read.
template <class T>
__device__ void stage_keys(const Item<T>& item, int first, const Shared& shared) {
    constexpr int N = Dtype<T>::VECTOR;
    const int width = item.all.width, step = padded(width);
    if (width % N == 0 && aligned(item.all.cache)) {
        const int vectors = width / N;
#pragma unroll 2
        for (int i = threadIdx.x; i < KEYS * vectors; i += THREADS) {
            const int row = i / vectors, column = i % vectors * N, key = first + row;
            float keys[N] = {}, values[N] = {};
            if (key >= item.low && key < item.end) {
                const T* at = item.key(key) + column;
                load(at, keys);
                load(at + BLOCK_TOKENS * width, values);
            }
            store(shared.k + row * step + column, keys);
            store(shared.v + row * step + column, values);
        }
        return;
    }
    for (int i = threadIdx.x; i < KEYS * filled(width); i += THREADS) {
        const int row = i / filled(width), column = i % filled(width), key = first + row;
        const bool there = key >= item.low && key < item.end && column < width;
        const T* at = there ? item.key(key) + column : nullptr;
        shared.k[row * step + column] = there ? Dtype<T>::widen(*at) : 0.f;
        shared.v[row * step + column] = there ? Dtype<T>::widen(at[BLOCK_TOKENS * width]) : 0.f;
    }
}

// What a warp has of its rows.
template <class T, int WIDTH>
struct Warp {
    static constexpr int COLUMNS = FOURS<WIDTH>;
    int first;  // of the block's rows
    int low[ROWS_OF_WARP], high[ROWS_OF_WARP];  // keys that a row sees; none where there is no row
    Softmax softmax[ROWS_OF_WARP];
    float result[ROWS_OF_WARP][COLUMNS][4];

    __device__ explicit Warp(const Item<T>& item) : first(static_cast<int>(threadIdx.x) / WARP * ROWS_OF_WARP) {
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; ++i) {
            const bool there = first + i < item.rows;
            const int position = item.position(first + i);
            low[i] = there ? item.lowest(position) : 0;
            high[i] = there ? position + 1 : 0;
        }
        begin();
    }
    __device__ void begin() {
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; ++i) {
            softmax[i] = Softmax();
#pragma unroll
            for (auto& four : result[i]) {
#pragma unroll
                for (float& value : four) value = 0.f;
            }
        }
    }

    // The keys from `base` on, in shared memory.
    __device__ void step(const Shared& shared, int width, int base, float scale) {
        float scores[ROWS_OF_WARP];
        multiply_keys(shared, width, scores);
        weigh(scores, base + lane_of(threadIdx.x), scale, shared.p + first * KEYS);
        __syncwarp();
        add_values(shared, width);
    }
    __device__ void multiply_keys(const Shared& shared, int width, float (&scores)[ROWS_OF_WARP]) const {
        const int stride = padded(width);
        const float* key = shared.k + lane_of(threadIdx.x) * stride;
        const float* queries = shared.q + first * stride;
#pragma unroll
        for (float& score : scores) score = 0.f;
#pragma unroll 2
        for (int column = 0; column < filled(width); column += 4) {
            float keys[4];
            load(key + column, keys);
#pragma unroll
            for (int i = 0; i < ROWS_OF_WARP; ++i) {
                float values[4];
                load(queries + i * stride + column, values);
#pragma unroll
                for (int d = 0; d < 4; ++d) scores[i] = fmaf(values[d], keys[d], scores[i]);
            }
        }
    }
    __device__ void weigh(float (&scores)[ROWS_OF_WARP], int key, float scale, float* p) {
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; ++i) {
            const float score = key >= low[i] && key < high[i] ? scores[i] * scale : -INFINITY;
            float largest = score;
#pragma unroll
            for (int apart = WARP / 2; apart > 0; apart /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, apart));
            }
            float worth;
            const float base = softmax[i].advance(largest, worth);
            const float weight = power_of_2(score - base);
            softmax[i].sum += weight;
            p[i * KEYS + lane_of(threadIdx.x)] = weight;
#pragma unroll
            for (auto& four : result[i]) {
#pragma unroll
                for (float& value : four) value *= worth;
            }
        }
    }
    __device__ void add_values(const Shared& shared, int width) {
        const int stride = padded(width);
#pragma unroll 1
        for (int key = 0; key < KEYS; key += 4) {
            float weights[ROWS_OF_WARP][4];
#pragma unroll
            for (int i = 0; i < ROWS_OF_WARP; ++i) load(shared.p + (first + i) * KEYS + key, weights[i]);
#pragma unroll
            for (int d = 0; d < 4; ++d) {
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    const int column = column_of(c);
                    if (column >= filled(width)) continue;
                    float values[4];
                    load(shared.v + (key + d) * stride + column, values);
#pragma unroll
                    for (int i = 0; i < ROWS_OF_WARP; ++i) {
#pragma unroll
                        for (int k = 0; k < 4; ++k) result[i][c][k] = fmaf(weights[i][d], values[k], result[i][c][k]);
                    }
                }
            }
        }
    }
};

// Rows as they come together of their parts.
template <class T, int WIDTH>
struct Whole {
    static constexpr int COLUMNS = FOURS<WIDTH>;
    Sum softmax[ROWS_OF_WARP];
    float result[ROWS_OF_WARP][COLUMNS][4] = {};

    __device__ void add(int i, float largest, float sum, const float (&part)[COLUMNS][4]) {
        float worth, worth_of_part;
        softmax[i].add(largest, sum, worth, worth_of_part);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
            for (int k = 0; k < 4; ++k) result[i][c][k] = Sum::added(result[i][c][k], worth, part[c][k], worth_of_part);
        }
    }
    __device__ void add(const Warp<T, WIDTH>& part) {
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; ++i) add(i, part.softmax[i].largest, warp_sum(part.softmax[i].sum), part.result[i]);
    }
    // Parts that were left in memory, in their order.
    __device__ void add_all(const Item<T>& item, int first) {
        const int width = item.all.width;
        for (int part = item.first_part; part < item.first_part + item.parts; ++part) {
#pragma unroll
            for (int i = 0; i < ROWS_OF_WARP; ++i) {
                if (first + i >= item.rows) continue;
                const float* row = item.left(part, first + i);
                float values[COLUMNS][4] = {};
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    if (column_of(c) < width) load(row + column_of(c), values[c]);
                }
                add(i, row[filled(width)], row[filled(width) + 1], values);
            }
        }
    }
    __device__ void write(const Item<T>& item, int first) const {
        const int width = item.all.width;
        const bool together = width % 4 == 0 && aligned(item.all.out);
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; ++i) {
            if (first + i >= item.rows) continue;
            const float inverse = __fdividef(1.f, softmax[i].sum);
            T* row = item.all.out + item.at(first + i);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                float values[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) values[k] = result[i][c][k] * inverse;
                if (column_of(c) < width) store_four(row, column_of(c), width, together, values);
            }
        }
    }
};

template <class T, int WIDTH>
__device__ void leave(const Item<T>& item, const Warp<T, WIDTH>& warp) {
    const int width = item.all.width;
#pragma unroll
    for (int i = 0; i < ROWS_OF_WARP; ++i) {
        const float sum = warp_sum(warp.softmax[i].sum);
        if (warp.first + i >= item.rows) continue;
        float* row = item.left(item.part, warp.first + i);
#pragma unroll
        for (int c = 0; c < FOURS<WIDTH>; ++c) {
            if (column_of(c) < width) store(row + column_of(c), warp.result[i][c]);
        }
        if (lane_of(threadIdx.x) == 0) {
            row[filled(width)] = warp.softmax[i].largest;
            row[filled(width) + 1] = sum;
        }
    }
}

// `WIDTH`: what registers hold; a head may be narrower.
template <class T, int WIDTH>
__device__ void attend_to(const Item<T>& item) {
    const Paged<T>& all = item.all;
    const Shared shared(all.width);
    const float scale = all.scale * LOG2_E;
    stage_queries(item, shared.q);
    Warp<T, WIDTH> warp(item);
    Whole<T, WIDTH> whole;
    const int first = item.is_whole() ? item.first_part : item.part;
    const int last = item.is_whole() ? item.first_part + item.parts - 1 : item.part;
    for (int part = first; part <= last; ++part) {
        warp.begin();
        const int begin = max(part * PART, item.low / KEYS * KEYS), end = min((part + 1) * PART, item.end);
        for (int base = begin; base < end; base += KEYS) {
            __syncthreads();  // all are done with the step before
            stage_keys(item, base, shared);
            __syncthreads();
            warp.step(shared, all.width, base, scale);
        }
        if (first == last && item.parts > 1) break;
        whole.add(warp);
    }
    if (!item.is_whole() && item.parts > 1) {
        leave(item, warp);
        if (!item.is_last()) return;
        whole = Whole<T, WIDTH>();
        whole.add_all(item, warp.first);
    }
    whole.write(item, warp.first);
}

template <class T, int WIDTH>
__device__ void attend(const Paged<T>& all) {
    const int count = items_of(all);
    for (int number = static_cast<int>(blockIdx.x); number < count; number += static_cast<int>(gridDim.x)) {
        attend_to<T, WIDTH>(Item<T>(all, number, ROWS));
        __syncthreads();  // all are done with what the block shares
    }
}

}  // namespace paged_plain
