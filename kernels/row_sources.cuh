// Where the values of a row come from that is normalised: one row, or the sum of two.
#pragma once

#include "common.cuh"

template <class T>
struct OneRow {
    const T* x;

    template <int N>
    __device__ void read(int column, float (&to)[N]) const { load(x + column, to); }
    template <int N>
    __device__ void keep(int, const float (&)[N]) const {}
    __device__ bool is_aligned() const { return aligned(x); }
};

// Statistics are of the sum as it is in f32; only what is kept of it is rounded.
template <class T>
struct SumOfRows {
    const T* x;
    const T* residual;
    T* sum;

    template <int N>
    __device__ void read(int column, float (&to)[N]) const {
        float other[N];
        load(x + column, to);
        load(residual + column, other);
#pragma unroll
        for (int k = 0; k < N; ++k) to[k] += other[k];
    }
    template <int N>
    __device__ void keep(int column, const float (&value)[N]) const {
        if (sum != nullptr) store(sum + column, value);
    }
    __device__ bool is_aligned() const { return aligned(x) && aligned(residual) && aligned(sum); }
};
