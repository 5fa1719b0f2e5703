// Attention by multiply-adds in f32, for element types and head widths that tensor cores do not take.
//
// 256 threads, each with 4 queries: of the scores every sixteenth key, of the result a sixteenth of the columns. Queries,
// keys, values and probabilities of a step lie in shared memory as f32, rows padded by 16 bytes so that sixteen rows read at
// once come from different banks. `WIDTH` is what registers hold; a head may be narrower.
#pragma once

#include "attention.cuh"

namespace plain {

constexpr int THREADS = 256;
constexpr int SHARERS = 16;  // threads that share four queries
constexpr int ROWS = QUERIES * SHARERS / THREADS;

// Keys of a step: a thread's share of 64 scores is as much as it can hold beside a narrow result.
template <int WIDTH>
constexpr int KEYS_OF = WIDTH <= 64 ? 64 : 32;

// From a row of `width` values in shared memory to the next, and how many of them are zeros or values.
__device__ inline int filled(int width) { return (width + 3) / 4 * 4; }
__device__ inline int padded(int width) { return filled(width) + 4; }

// Rows of a head, as f32 in shared memory; zeros past `count` rows and past `width` columns.
template <class T>
__device__ void stage(const T* from, int stride, int count, int rows, int width, float* to) {
    constexpr int N = Dtype<T>::VECTOR;
    const int step = padded(width);
    if (width % N == 0 && stride % N == 0 && aligned(from)) {
        const int steps = width / N;
        for (int i = threadIdx.x; i < rows * steps; i += THREADS) {
            const int row = i / steps, column = i % steps * N;
            float values[N] = {};
            if (row < count) load(from + static_cast<long long>(row) * stride + column, values);
            store(to + row * step + column, values);
        }
        return;
    }
    const int columns = filled(width);
    for (int i = threadIdx.x; i < rows * columns; i += THREADS) {
        const int row = i / columns, column = i % columns;
        const bool there = row < count && column < width;
        to[row * step + column] = there ? Dtype<T>::widen(from[static_cast<long long>(row) * stride + column]) : 0.f;
    }
}

// The part of a thread: its queries of the tile, its place among those who share them.
struct Share {
    int row, place;
};

// `scores[i][j]`: query `row + i` with key `place + 16 j`.
template <int KEYS>
__device__ void multiply_keys(const float* q, const float* k, int width, Share mine, float (&scores)[ROWS][KEYS / SHARERS]) {
    const int step = padded(width);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < KEYS / SHARERS; ++j) scores[i][j] = 0.f;
    }
#pragma unroll 2
    for (int column = 0; column < filled(width); column += 4) {
        float queries[ROWS][4], keys[KEYS / SHARERS][4];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) load(q + (mine.row + i) * step + column, queries[i]);
#pragma unroll
        for (int j = 0; j < KEYS / SHARERS; ++j) load(k + (mine.place + j * SHARERS) * step + column, keys[j]);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < KEYS / SHARERS; ++j) {
#pragma unroll
                for (int d = 0; d < 4; ++d) scores[i][j] += queries[i][d] * keys[j][d];
            }
        }
    }
}

// Turns scores into probabilities in `p`, 0 for keys that are not there, and takes `result` down to their measure.
template <int KEYS, int COLUMNS>
__device__ void weigh(float (&scores)[ROWS][KEYS / SHARERS], int keys, float scale, Share mine, Softmax (&softmax)[ROWS],
                      float (&result)[ROWS][COLUMNS], float* p) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        float largest = -INFINITY;
#pragma unroll
        for (int j = 0; j < KEYS / SHARERS; ++j) {
            const bool there = mine.place + j * SHARERS < keys;
            scores[i][j] = there ? scores[i][j] * scale : -INFINITY;
            largest = fmaxf(largest, scores[i][j]);
        }
#pragma unroll
        for (int apart = SHARERS / 2; apart > 0; apart /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, apart));
        }
        float worth;
        const float base = softmax[i].advance(largest, worth);
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) result[i][c] *= worth;
#pragma unroll
        for (int j = 0; j < KEYS / SHARERS; ++j) {
            const float probability = power_of_2(scores[i][j] - base);
            softmax[i].sum += probability;
            p[(mine.row + i) * (KEYS + 4) + mine.place + j * SHARERS] = probability;
        }
    }
}

// Columns lie in groups, a group's shared by all who share the queries: `COLUMNS / SPAN` groups, `SPAN` of each together.
template <int COLUMNS>
constexpr int SPAN = COLUMNS < 4 ? COLUMNS : 4;

template <int COLUMNS>
__device__ int column_of(int group, Share mine) {
    return (group * SHARERS + mine.place) * SPAN<COLUMNS>;
}

template <int KEYS, int COLUMNS>
__device__ void add_values(const float* p, const float* v, int width, int keys, Share mine, float (&result)[ROWS][COLUMNS]) {
    constexpr int SIDE = SPAN<COLUMNS>;
    const int step = padded(width);
#pragma unroll 1
    for (int key = 0; key < keys; key += 4) {
        float weights[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) load(p + (mine.row + i) * (KEYS + 4) + key, weights[i]);
#pragma unroll
        for (int d = 0; d < 4; ++d) {
#pragma unroll
            for (int group = 0; group < COLUMNS / SIDE; ++group) {
                const int column = column_of<COLUMNS>(group, mine);
                if (column >= filled(width)) continue;
                float values[SIDE];
                load(v + (key + d) * step + column, values);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
#pragma unroll
                    for (int c = 0; c < SIDE; ++c) result[i][group * SIDE + c] += weights[i][d] * values[c];
                }
            }
        }
    }
}

template <class T, int COLUMNS>
__device__ void write(const Attention<T>& all, const Tile<T>& tile, int width, Share mine, Softmax (&softmax)[ROWS],
                      const float (&result)[ROWS][COLUMNS]) {
    constexpr int SIDE = SPAN<COLUMNS>;
    const int stride = all.heads * width;
    const bool together = width % 4 == 0 && aligned(all.out);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        float sum = softmax[i].sum;
#pragma unroll
        for (int apart = SHARERS / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
        const float inverse = __fdividef(1.f, sum);
        if (mine.row + i >= tile.queries) continue;
        T* row = tile.out + static_cast<long long>(mine.row + i) * stride;
#pragma unroll
        for (int group = 0; group < COLUMNS / SIDE; ++group) {
            const int column = column_of<COLUMNS>(group, mine);
            float values[SIDE];
#pragma unroll
            for (int c = 0; c < SIDE; ++c) values[c] = result[i][group * SIDE + c] * inverse;
            if (together) {
                if (column < width) store(row + column, values);
                continue;
            }
#pragma unroll
            for (int c = 0; c < SIDE; ++c) {
                if (column + c < width) row[column + c] = Dtype<T>::round(values[c]);
            }
        }
    }
}

// `width`: of the heads, at most `WIDTH`.
template <class T, int WIDTH>
__device__ void attend(const Attention<T>& all, int width) {
    constexpr int KEYS = KEYS_OF<WIDTH>;
    constexpr int COLUMNS = WIDTH / SHARERS;
    float* q = reinterpret_cast<float*>(dynamic_shared);
    float* k = q + QUERIES * padded(width);
    float* v = k + KEYS * padded(width);
    float* p = v + KEYS * padded(width);
    const Tile<T> tile(all);
    const Share mine{static_cast<int>(threadIdx.x) / SHARERS * ROWS, static_cast<int>(threadIdx.x) % SHARERS};

    stage(tile.q, all.stride, tile.queries, QUERIES, width, q);
    Softmax softmax[ROWS];
    float result[ROWS][COLUMNS] = {};
    for (int key = 0; key < tile.keys; key += KEYS) {
        const int keys = min(KEYS, tile.keys - key);
        const long long at = static_cast<long long>(key) * all.stride;
        stage(tile.k + at, all.stride, keys, KEYS, width, k);
        stage(tile.v + at, all.stride, keys, KEYS, width, v);
        __syncthreads();
        float scores[ROWS][KEYS / SHARERS];
        multiply_keys<KEYS>(q, k, width, mine, scores);
        weigh<KEYS>(scores, keys, all.scale * LOG2_E, mine, softmax, result, p);
        // a query's probabilities are read only by those who share it, and they are of one warp
        __syncwarp();
        add_values<KEYS>(p, v, width, keys, mine, result);
        __syncthreads();
    }
    write(all, tile, width, mine, softmax, result);
}

}  // namespace plain
