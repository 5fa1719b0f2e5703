// What every kernel shares: element types, 16-byte accesses, sums over a warp.
//
// Values are widened to f32, computed with, and rounded once on the way out. The same sources are compiled as C++ by
// tests/fake_gpu, so nothing here is inline PTX (that is in tensor_cores.cuh). It must not know any one kernel.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// How values of a type are widened and rounded, and how many fill 16 bytes.
template <class T>
struct Dtype;

template <>
struct Dtype<float> {
    static constexpr int VECTOR = 4;
    static __device__ float widen(float x) { return x; }
    static __device__ float round(float x) { return x; }
    static __device__ float2 widen2(const float2& x) { return x; }
    static __device__ float2 round2(float x, float y) { return make_float2(x, y); }
    using Pair = float2;
};

template <>
struct Dtype<__half> {
    static constexpr int VECTOR = 8;
    static __device__ float widen(__half x) { return __half2float(x); }
    static __device__ __half round(float x) { return __float2half_rn(x); }
    static __device__ float2 widen2(const __half2& x) { return __half22float2(x); }
    static __device__ __half2 round2(float x, float y) { return __floats2half2_rn(x, y); }
    using Pair = __half2;
};

template <>
struct Dtype<__nv_bfloat16> {
    static constexpr int VECTOR = 8;
    static __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __device__ __nv_bfloat16 round(float x) { return __float2bfloat16_rn(x); }
    static __device__ float2 widen2(const __nv_bfloat162& x) { return __bfloat1622float2(x); }
    static __device__ __nv_bfloat162 round2(float x, float y) { return __floats2bfloat162_rn(x, y); }
    using Pair = __nv_bfloat162;
};

// `N` values side by side, moved by as few accesses of at most 16 bytes as they fill.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Values {
    static_assert(N == 1 || N % 2 == 0, "pairs are converted together");
    T at[N];
};

template <class T, int N>
__device__ inline void widen(const Values<T, N>& from, float (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = Dtype<T>::widen(from.at[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const float2 two = Dtype<T>::widen2(*reinterpret_cast<const typename Dtype<T>::Pair*>(&from.at[i]));
            to[i] = two.x;
            to[i + 1] = two.y;
        }
    }
}

template <class T, int N>
__device__ inline void load(const T* from, float (&to)[N]) {
    const Values<T, N> read = *reinterpret_cast<const Values<T, N>*>(from);
    widen(read, to);
}

template <class T, int N>
__device__ inline void store(T* to, const float (&from)[N]) {
    Values<T, N> written;
    if constexpr (N == 1) {
        written.at[0] = Dtype<T>::round(from[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            *reinterpret_cast<typename Dtype<T>::Pair*>(&written.at[i]) = Dtype<T>::round2(from[i], from[i + 1]);
        }
    }
    *reinterpret_cast<Values<T, N>*>(to) = written;
}

// Whether 16-byte accesses at this address are allowed. Null is.
__device__ inline bool aligned(const void* address) { return reinterpret_cast<unsigned long long>(address) % 16 == 0; }

// The lane's number, for blocks of one dimension.
__device__ inline int lane_of(unsigned thread) { return static_cast<int>(thread % WARP); }

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

// A kernel for each type: `KERNEL(f32, float)` and so on.
#define FOR_EACH_DTYPE(KERNEL) KERNEL(f32, float) KERNEL(f16, __half) KERNEL(bf16, __nv_bfloat16)
