// take_rows_T: rows of a table by their numbers: token embeddings, and the rows of a step that go on.
//
// Block 128, grid rows, no dynamic shared memory. A number beyond the table reads whatever lies there: callers check on the
// host first, or have it from likeliest_f32. Values are copied as they are.
#include "common.cuh"

namespace {

constexpr int THREADS = 128;

template <class V>
__device__ inline void copy(const V* from, V* to, int count) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < count; i += THREADS) to[i] = from[i];
}

template <class T>
__device__ void take_rows(const T* table, const unsigned* numbers, int width, T* out) {
    const long long row = blockIdx.x;
    const T* from = table + static_cast<long long>(numbers[row]) * width;
    T* to = out + row * width;
    constexpr int N = 16 / sizeof(T);
    if (width % N == 0 && aligned(table) && aligned(out)) {
        copy(reinterpret_cast<const uint4*>(from), reinterpret_cast<uint4*>(to), width / N);
    } else {
        copy(from, to, width);
    }
}

}  // namespace

#define TAKE_ROWS(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) take_rows_##NAME(const T* table, const unsigned* numbers,   \
                                                                           int width, T* out) {                       \
        take_rows<T>(table, numbers, width, out);                                                                     \
    }
FOR_EACH_DTYPE(TAKE_ROWS)
