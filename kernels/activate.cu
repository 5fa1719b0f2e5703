// activate_T, bias_activate_T: an activation of every value in place, after a row's bias where there is one.
//
// Block 256, any grid (a step of 16 bytes a thread is best), no dynamic shared memory. Kinds are numbered in
// activation.cuh. NaN stays.
#include "activation.cuh"
#include "elementwise.cuh"

namespace {

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
