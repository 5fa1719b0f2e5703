// finite_T: sets `bit` of `*flags` when any value is infinite or NaN. land_T: copies values, and says of what each warp has
// copied whether any of it is.
//
// Block 256, any grid (a step of 16 bytes a thread is best), no dynamic shared memory. finite leaves other bits as they are;
// land writes a word for every warp of its grid, 0 or 1, so nobody clears them first. Values are copied as they are, NaN
// perhaps as another NaN.
#include <float.h>

#include "elementwise.cuh"

namespace {

// An f16 or bf16 that is infinite is so as f32, and a number stays one.
template <int N>
__device__ inline bool any_is_bad(const float (&values)[N]) {
    bool bad = false;
#pragma unroll
    for (float value : values) bad |= !(fabsf(value) <= FLT_MAX);
    return bad;
}

template <class T>
__device__ void finite(const T* x, long long count, unsigned* flags, int bit) {
    bool bad = false;
    for_each_value<Dtype<T>::VECTOR>(count, aligned(x), [x, &bad](auto step, long long at) {
        float values[decltype(step)::count];
        load(x + at, values);
        bad |= any_is_bad(values);
    });
    // one write a warp at most, and none where all is well
    const bool any = __any_sync(ALL_LANES, bad);
    if (any && lane_of(threadIdx.x) == 0) atomicOr(flags, static_cast<unsigned>(bit));
}

template <class T>
__device__ void land(const T* x, long long count, T* out, unsigned* bad_of_warps) {
    bool bad = false;
    for_each_value<Dtype<T>::VECTOR>(count, aligned(x) && aligned(out), [x, out, &bad](auto step, long long at) {
        float values[decltype(step)::count];
        load(x + at, values);
        bad |= any_is_bad(values);
        store(out + at, values);
    });
    const bool any = __any_sync(ALL_LANES, bad);
    if (lane_of(threadIdx.x) == 0) bad_of_warps[thread_of_grid() / WARP] = any ? 1u : 0u;
}

}  // namespace

#define FINITE(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) finite_##NAME(const T* x, long long count,          \
                                                                                unsigned* flags, int bit) {           \
        finite(x, count, flags, bit);                                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) land_##NAME(const T* x, long long count, T* out,    \
                                                                              unsigned* bad_of_warps) {               \
        land(x, count, out, bad_of_warps);                                                                            \
    }
FOR_EACH_DTYPE(FINITE)
