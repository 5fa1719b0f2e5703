// layer_norm_T, add_layer_norm_T: `(x - mean) / sqrt(variance + eps) * gamma + beta` of each row, of a sum of two rows.
//
// Block 128, grid ceil(rows / 4), no dynamic shared memory. `out` may be `x` (or `residual`), and so may `sum`.
#include "row_sources.cuh"
#include "rows.cuh"

namespace {

template <class T>
__device__ void layer_norm(const T* x, int rows, int width, const Norm<T>& norm) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const long long at = row * width;
    normalize(OneRow<T>{x + at}, width, Norm<T>{norm.gamma, norm.beta, norm.eps, norm.out + at});
}

template <class T>
__device__ void add_layer_norm(const SumOfRows<T>& rows_of, int rows, int width, const Norm<T>& norm) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    const long long at = row * width;
    T* sum = rows_of.sum == nullptr ? nullptr : rows_of.sum + at;
    const SumOfRows<T> of{rows_of.x + at, rows_of.residual + at, sum};
    normalize(of, width, Norm<T>{norm.gamma, norm.beta, norm.eps, norm.out + at});
}

}  // namespace

#define LAYER_NORM(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) layer_norm_##NAME(                                      \
        const T* x, int rows, int width, const T* gamma, const T* beta, float eps, T* out) {                          \
        layer_norm<T>(x, rows, width, {gamma, beta, eps, out});                                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) add_layer_norm_##NAME(                                  \
        const T* x, const T* residual, int rows, int width, const T* gamma, const T* beta, float eps, T* sum,         \
        T* out) {                                                                                                     \
        add_layer_norm<T>({x, residual, sum}, rows, width, {gamma, beta, eps, out});                                  \
    }
FOR_EACH_DTYPE(LAYER_NORM)
