// Layer normalisation of one row by one warp, wherever the row comes from.
//
// Two passes over the values (mean, then squared distances from it), since E[x²]-E[x]² cancels where the mean is large. It
// must not know what the rows mean.
#pragma once

#include "common.cuh"

constexpr int ROW_WARPS = 4;  // warps, and so rows, of a block
constexpr int ROW_THREADS = ROW_WARPS * WARP;
constexpr int HELD = 32;  // values of a row that a lane keeps in registers: rows of up to 1,024 are read once

// The row that this warp has to do.
__device__ inline long long row_of_warp() {
    return static_cast<long long>(blockIdx.x) * ROW_WARPS + threadIdx.x / WARP;
}

// What rows are scaled and shifted with, and where the row goes.
template <class T>
struct Norm {
    const T* gamma;
    const T* beta;
    float eps;
    T* out;

    template <int N>
    __device__ void write(int column, const float (&x)[N], float mean, float inverse) const {
        float scale[N], shift[N], y[N];
        load(gamma + column, scale);
        load(beta + column, shift);
#pragma unroll
        for (int k = 0; k < N; ++k) y[k] = (x[k] - mean) * inverse * scale[k] + shift[k];
        store(out + column, y);
    }
};

template <int N>
__device__ inline float sum_of(const float (&x)[N]) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += x[k];
    return sum;
}

template <int N>
__device__ inline float spread_of(const float (&x)[N], float mean) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += (x[k] - mean) * (x[k] - mean);
    return sum;
}

// A row that fits into the warp's registers.
template <class T, class Row>
__device__ inline void normalize_held(const Row& row, int width, const Norm<T>& norm) {
    constexpr int N = Dtype<T>::VECTOR;
    constexpr int VECTORS = HELD / N;
    const int first = lane_of(threadIdx.x) * N;
    float held[VECTORS][N];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int column = first + i * WARP * N;
        if (column < width) {
            row.read(column, held[i]);
            sum += sum_of(held[i]);
        }
    }
    const float mean = __fdividef(warp_sum(sum), width);
    float spread = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (first + i * WARP * N < width) spread += spread_of(held[i], mean);
    }
    const float inverse = rsqrtf(__fdividef(warp_sum(spread), width) + norm.eps);
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int column = first + i * WARP * N;
        if (column < width) {
            row.keep(column, held[i]);
            norm.write(column, held[i], mean, inverse);
        }
    }
}

// A row of any length, `N` values at a time, read three times. What is kept or written may lie over what is read: each
// lane is done with a column before it writes there, and reads no other lane's.
template <int N, class T, class Row>
__device__ inline void normalize_streamed(const Row& row, int width, const Norm<T>& norm) {
    const int first = lane_of(threadIdx.x) * N;
    float x[N];
    float sum = 0.f, spread = 0.f;
    for (int column = first; column < width; column += WARP * N) {
        row.read(column, x);
        sum += sum_of(x);
    }
    const float mean = __fdividef(warp_sum(sum), width);
    for (int column = first; column < width; column += WARP * N) {
        row.read(column, x);
        spread += spread_of(x, mean);
    }
    const float inverse = rsqrtf(__fdividef(warp_sum(spread), width) + norm.eps);
    for (int column = first; column < width; column += WARP * N) {
        row.read(column, x);
        row.keep(column, x);
        norm.write(column, x, mean, inverse);
    }
}

// Normalises `row`, which has `read(column, x)`, `keep(column, x)` for the same values, and `is_aligned()`.
template <class T, class Row>
__device__ inline void normalize(const Row& row, int width, const Norm<T>& norm) {
    constexpr int N = Dtype<T>::VECTOR;
    const bool vectors = width % N == 0 && row.is_aligned() && aligned(norm.gamma) && aligned(norm.beta) && aligned(norm.out);
    if (vectors && width <= WARP * HELD) {
        normalize_held(row, width, norm);
    } else if (vectors) {
        normalize_streamed<N>(row, width, norm);
    } else {
        normalize_streamed<1>(row, width, norm);
    }
}
