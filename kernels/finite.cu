// finite_T: sets `bit` of `*flags` when any value is infinite or NaN.
//
// Block 256, any grid (a step of 16 bytes a thread is best), no dynamic shared memory. Other bits stay as they are.
#include <float.h>

#include "elementwise.cuh"

namespace {

template <class T>
__device__ void finite(const T* x, long long count, unsigned* flags, int bit) {
    bool bad = false;
    for_each_value<Dtype<T>::VECTOR>(count, aligned(x), [x, &bad](auto step, long long at) {
        float values[decltype(step)::count];
        load(x + at, values);
#pragma unroll
        for (float value : values) bad |= !(fabsf(value) <= FLT_MAX);
    });
    // one write a warp at most, and none where all is well
    const bool any = __any_sync(ALL_LANES, bad);
    if (any && lane_of(threadIdx.x) == 0) atomicOr(flags, static_cast<unsigned>(bit));
}

}  // namespace

#define FINITE(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) finite_##NAME(const T* x, long long count,          \
                                                                                unsigned* flags, int bit) {           \
        finite(x, count, flags, bit);                                                                                 \
    }
FOR_EACH_DTYPE(FINITE)
