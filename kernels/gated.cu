// gated_T: `activation(gate) * up` of rows in which the gate's values come first and then as many to be gated, as one product
// of both weights leaves them.
//
// Block 256, any grid (a step of 16 bytes a thread is best), no dynamic shared memory. Kinds are numbered in activation.cuh.
// `out` is not `both`.
#include "activation.cuh"
#include "elementwise.cuh"

namespace {

template <class T>
struct Gated {
    const T* both;
    int rows, width;
    T* out;

    // `N` values at a time, none of which crosses a row's end. Row and column are carried along: dividing each time is dear.
    template <int KIND, int N>
    __device__ void steps() const {
        const long long stride = threads_of_grid() * N, first = thread_of_grid() * N;
        const long long row_stride = stride / width;
        const int column_stride = static_cast<int>(stride % width);
        long long row = first / width;
        int column = static_cast<int>(first % width);
        while (row < rows) {
            const T* at = both + row * 2 * width + column;
            float gate[N], up[N];
            load(at, gate);
            load(at + width, up);
#pragma unroll
            for (int k = 0; k < N; ++k) up[k] *= activated<KIND>(gate[k]);
            store(out + row * width + column, up);
            row += row_stride;
            column += column_stride;
            if (column >= width) {
                column -= width;
                ++row;
            }
        }
    }
    template <int KIND>
    __device__ void run() const {
        if (width <= 0) return;
        if (width % Dtype<T>::VECTOR == 0 && aligned(both) && aligned(out)) {
            steps<KIND, Dtype<T>::VECTOR>();
        } else {
            steps<KIND, 1>();
        }
    }
};

}  // namespace

#define GATED(NAME, T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) gated_##NAME(const T* both, int rows, int width,    \
                                                                               int kind, T* out) {                    \
        of_kind(Gated<T>{both, rows, width, out}, kind);                                                              \
    }
FOR_EACH_DTYPE(GATED)
