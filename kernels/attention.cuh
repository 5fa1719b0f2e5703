// What both ways of computing attention share: which queries a block has, and a softmax that sees its row in pieces.
//
// The batch is packed: rows of all sequences one after the other, `offsets` the first of each and the end. A tile is 64
// queries of one sequence and one head; its keys and values are those of the sequence, all of them.
#pragma once

#include "tensor_cores.cuh"

constexpr int QUERIES = 64;  // of a tile
extern __shared__ __align__(16) unsigned char dynamic_shared[];  // as large as the launch says

constexpr float LOG2_E = 1.4426950408889634f;

template <class T>
struct Attention {
    const T* q;
    const T* k;
    const T* v;
    int stride;  // from a row of q, k and v to the next
    const unsigned* offsets;
    const unsigned* tiles;  // [n, 2]: a sequence, and the first query within it
    int heads;
    int width;  // of a head
    float scale;
    T* out;  // [tokens, heads * width]
};

// The block's tile. Pointers are to the head's columns: of the tile's first query, of the sequence's first key and value.
template <class T>
struct Tile {
    const T* q;
    const T* k;
    const T* v;
    T* out;
    int queries, keys;

    __device__ explicit Tile(const Attention<T>& all) {
        const unsigned sequence = all.tiles[2 * blockIdx.x], row = all.tiles[2 * blockIdx.x + 1];
        const unsigned first = all.offsets[sequence], end = all.offsets[sequence + 1];
        const int column = static_cast<int>(blockIdx.y) * all.width;
        const long long stride = all.stride, query = static_cast<long long>(first) + row;
        q = all.q + query * stride + column;
        k = all.k + first * stride + column;
        v = all.v + first * stride + column;
        out = all.out + query * (all.heads * all.width) + column;
        keys = static_cast<int>(end - first);
        queries = keys - static_cast<int>(row);
        if (queries > QUERIES) queries = QUERIES;
    }
};

// A row's softmax so far, in powers of two: scores are multiplied with `scale * LOG2_E` before they come here.
struct Softmax {
    float largest = -INFINITY;
    float sum = 0.f;  // of this thread's share of the row

    // What further scores are to be compared with, given the largest of them, and what was summed until now is worth.
    // A row that has only seen -∞ is compared with 0, since -∞ - -∞ is not a number.
    __device__ float advance(float of_new, float& worth) {
        const float before = largest;
        largest = fmaxf(largest, of_new);
        const float base = largest == -INFINITY ? 0.f : largest;
        worth = power_of_2(before - base);
        sum *= worth;
        return base;
    }
};

// Turns the scores of two rows, as fragments of a product have them, into weights, and takes the result so far down to their measure.
// `largest`: of this thread's scores, by row.
template <int SCORES, int RESULTS>
__device__ inline void soften(float (&scores)[SCORES][4], float (&largest)[2], float scale, Softmax (&softmax)[2],
                              float (&result)[RESULTS][4]) {
    float base[2], worth[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        // a row's scores lie with four lanes
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(ALL_LANES, largest[row], 1));
        largest[row] = fmaxf(largest[row], __shfl_xor_sync(ALL_LANES, largest[row], 2));
        base[row] = softmax[row].advance(largest[row] * scale, worth[row]);
    }
#pragma unroll
    for (int n = 0; n < SCORES; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            scores[n][i] = power_of_2(scores[n][i] * scale - base[i / 2]);
            softmax[i / 2].sum += scores[n][i];
        }
    }
#pragma unroll
    for (auto& fragment : result) {
#pragma unroll
        for (int i = 0; i < 4; ++i) fragment[i] *= worth[i / 2];
    }
}
