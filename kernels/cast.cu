// cast_A_B: every value as another type, rounded to nearest even; beyond its range infinite, NaN stays NaN.
//
// Block 256, any grid (a step of 16 to 32 bytes a thread is best), no dynamic shared memory.
#include "elementwise.cuh"

template <>
struct Dtype<double> {
    static __device__ float widen(double x) { return static_cast<float>(x); }
    static __device__ float2 widen2(const double2& x) { return make_float2(widen(x.x), widen(x.y)); }
    using Pair = double2;
};

namespace {

template <class A, class B>
__device__ void cast(const A* in, long long count, B* out) {
    // as many as fill 16 bytes of the smaller
    constexpr int N = 16 / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));
    for_each_value<N>(count, aligned(in) && aligned(out), [=](auto step, long long at) {
        float values[decltype(step)::count];
        load(in + at, values);
        store(out + at, values);
    });
}

}  // namespace

#define CAST(NAME, A, B)                                                                                              \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) cast_##NAME(const A* in, long long count, B* out) { \
        cast(in, count, out);                                                                                         \
    }
CAST(f32_f16, float, __half)
CAST(f32_bf16, float, __nv_bfloat16)
CAST(f16_f32, __half, float)
CAST(f16_bf16, __half, __nv_bfloat16)
CAST(bf16_f32, __nv_bfloat16, float)
CAST(bf16_f16, __nv_bfloat16, __half)
CAST(f64_f32, double, float)
