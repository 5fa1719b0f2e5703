// CUDA's device language as far as the kernels use it, for a C++ compiler. Included before each kernel's source.
//
// Functions are named as CUDA names them and mean the same. A kernel that uses more than this does not compile: add it here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
// The build script looks for these two words.
#ifndef LEAVE_KERNELS_MARKED
#define __global__ __attribute__((visibility("hidden")))
#define __launch_bounds__(...)
#endif
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (fake_gpu::here().thread)
#define blockIdx (*fake_gpu::here().block)
#define blockDim (*fake_gpu::here().block_size)
#define gridDim (*fake_gpu::here().grid)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
// Bytes by their numbers: 0 to 3 are `x`'s, 4 to 7 `y`'s; a digit of `which` for each.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
    const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
    unsigned bytes = 0;
    for (unsigned i = 0; i < 4; ++i) bytes |= static_cast<unsigned>(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
    return bytes;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline void __syncthreads() { fake_gpu::block_barrier(); }
// Blocks run one after the other: what one has written the next one sees.
inline void __threadfence() {}
inline void __syncwarp(unsigned mask = 0xffffffffu) { fake_gpu::meet("__syncwarp", mask, nullptr, 0, nullptr); }

namespace fake_gpu {

// `value` as the lane `from` brought it.
template <class V>
V shuffled(const char* what, unsigned mask, V value, unsigned from) {
    static_assert(sizeof(V) <= 64);
    const Meeting& meeting = meet(what, mask, &value, sizeof value, nullptr);
    std::memcpy(&value, meeting.brought[from], sizeof value);
    return value;
}

}  // namespace fake_gpu

template <class V>
V __shfl_sync(unsigned mask, V value, int from) {
    return fake_gpu::shuffled("__shfl_sync", mask, value, from % fake_gpu::WARP_LANES);
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int apart) {
    return fake_gpu::shuffled("__shfl_xor_sync", mask, value, fake_gpu::lane() ^ apart);
}
template <class V>
V __shfl_down_sync(unsigned mask, V value, unsigned apart) {
    const unsigned from = fake_gpu::lane() + apart;
    return fake_gpu::shuffled("__shfl_down_sync", mask, value, from < fake_gpu::WARP_LANES ? from : fake_gpu::lane());
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const fake_gpu::Meeting& meeting = fake_gpu::meet("__ballot_sync", mask, &predicate, sizeof predicate, nullptr);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < fake_gpu::WARP_LANES; ++lane) {
        int said;
        std::memcpy(&said, meeting.brought[lane], sizeof said);
        ballot |= (said != 0 ? 1u : 0u) << lane;
    }
    return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline unsigned atomicOr(unsigned* at, unsigned bits) { return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* at, unsigned add) { return __atomic_fetch_add(at, add, __ATOMIC_RELAXED); }
