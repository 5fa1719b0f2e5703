// activate_T, bias_activate_T: an activation of every value in place, after a row's bias where there is one.
//
// Block 256, any grid (a step of 16 bytes a thread is best), no dynamic shared memory. Kinds are numbered below. NaN stays.
#include "elementwise.cuh"

namespace {

enum Kind { GELU, GELU_TANH, QUICK_GELU, RELU, SILU, TANH, SIGMOID, NONE };

// `x σ(y)`; where `exp` is infinite it is 0, as it should be.
__device__ inline float gated(float x, float y) { return __fdividef(x, 1.f + expf(-y)); }

template <int KIND>
__device__ inline float activated(float x) {
    switch (KIND) {
        case GELU:
            return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case GELU_TANH:
            // (1 + tanh y) / 2 = σ(2y), which keeps its relative accuracy where tanh y is near -1
            return gated(x, 1.5957691f * (x + 0.044715f * x * x * x));
        case QUICK_GELU:
            return gated(x, 1.702f * x);
        case RELU:
            return x < 0.f ? 0.f : x;
        case SILU:
            return gated(x, x);
        case TANH:
            return tanhf(x);
        case SIGMOID:
            return gated(1.f, x);
        default:
            return x;
    }
}

template <class T>
struct InPlace {
    T* x;
    long long count;

    template <int KIND>
    __device__ void run() const {
        for_each_value<Dtype<T>::VECTOR>(count, aligned(x), [this](auto step, long long at) {
            float values[decltype(step)::count];
            load(x + at, values);
#pragma unroll
            for (float& value : values) value = activated<KIND>(value);
            store(x + at, values);
        });
    }
};

template <class T>
struct WithBias {
    T* x;
    const T* bias;
    int rows, width;

    // `N` values at a time, none of which crosses a row's end. The column is carried along: dividing each time is dear.
    template <int KIND, int N>
    __device__ void steps() const {
        const long long count = static_cast<long long>(rows) * width;
        const int stride = static_cast<int>(threads_of_grid() * N % width);
        int column = static_cast<int>(thread_of_grid() * N % width);
        for (long long at = thread_of_grid() * N; at < count; at += threads_of_grid() * N) {
            float values[N], biases[N];
            load(x + at, values);
            load(bias + column, biases);
#pragma unroll
            for (int k = 0; k < N; ++k) values[k] = activated<KIND>(values[k] + biases[k]);
            store(x + at, values);
            column += stride;
            if (column >= width) column -= width;
        }
    }
    template <int KIND>
    __device__ void run() const {
        if (width <= 0) return;
        if (width % Dtype<T>::VECTOR == 0 && aligned(x) && aligned(bias)) {
            steps<KIND, Dtype<T>::VECTOR>();
        } else {
            steps<KIND, 1>();
        }
    }
};

template <class Work>
__device__ void of_kind(const Work& work, int kind) {
    switch (kind) {
        case GELU: return work.template run<GELU>();
        case GELU_TANH: return work.template run<GELU_TANH>();
        case QUICK_GELU: return work.template run<QUICK_GELU>();
        case RELU: return work.template run<RELU>();
        case SILU: return work.template run<SILU>();
        case TANH: return work.template run<TANH>();
        case SIGMOID: return work.template run<SIGMOID>();
        default: return work.template run<NONE>();
    }
}

}  // namespace

#define ACTIVATE(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) activate_##NAME(T* x, long long count, int kind) {  \
        of_kind(InPlace<T>{x, count}, kind);                                                                          \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) bias_activate_##NAME(T* x, const T* bias, int rows, \
                                                                                       int width, int kind) {         \
        of_kind(WithBias<T>{x, bias, rows, width}, kind);                                                             \
    }
FOR_EACH_DTYPE(ACTIVATE)
