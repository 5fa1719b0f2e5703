// pool_T, pool_normalize_T, l2_normalize_T: from the rows of a sequence to one row, and a row's Euclidean length to 1.
//
// pool: block 512, grid (sequences, any number of blocks that share a sequence's columns). pool_normalize: block 512, grid
// (sequences). l2_normalize: block 128, grid ceil(rows / 4). None takes dynamic shared memory. Rows of `x` begin `stride`
// values apart. A sequence without rows gives NaN.
#include "rows.cuh"

namespace {

constexpr int POOL_WARPS = 16;
constexpr int POOL_THREADS = POOL_WARPS * WARP;
// Rows that a lane has on their way at once, by the registers that there are (blocks of a multiprocessor, below): with three
// blocks 48 KiB are on their way, with two 64.
constexpr int POOL_WAITING = 2, NORMALIZE_WAITING = 4;
constexpr float SHORTEST = 1e-12f;  // lengths below it are taken for it

enum Reduce { MEAN, FIRST, MAX };

// NaN wins, as in the reference frameworks: it must not be pooled away.
__device__ inline float larger(float a, float b) { return b > a || b != b ? b : a; }

template <int KIND>
__device__ inline float joined(float a, float b) {
    return KIND == MAX ? larger(a, b) : a + b;
}

// What a vector is multiplied with, given the sum of its squares. NaN is neither shorter nor longer: it stays.
__device__ inline float inverse_length(float squares) {
    return squares < SHORTEST * SHORTEST ? 1.f / SHORTEST : rsqrtf(squares);
}

// The rows of one sequence.
template <class T>
struct Sequence {
    const T* x;
    int stride, rows, width;

    __device__ const T* row(int i) const { return x + static_cast<long long>(i) * stride; }
    __device__ bool vectors() const {
        return stride % Dtype<T>::VECTOR == 0 && width % Dtype<T>::VECTOR == 0 && aligned(x);
    }
};

// Lanes that read a row, 16 bytes each: a warp reads two rows at once, so that widths of 128 times any number leave none idle.
constexpr int ROW_LANES = WARP / 2;
constexpr int ROWS_AT_ONCE = POOL_WARPS * (WARP / ROW_LANES);

// Columns that a block reduces at once.
template <class T>
constexpr int COLUMNS = ROW_LANES * Dtype<T>::VECTOR;

// A lane's part of the columns from `first` on, of any row, as it is stored, so that a load holds up nothing: side by side
// where that may be read at once, else as many lanes apart.
template <bool VECTORS, class T>
struct Part {
    static constexpr int N = Dtype<T>::VECTOR;
    int column, width;

    // A lane beyond the row's end reads what the first one reads anyway, and nobody looks at what it makes of that.
    __device__ Part(int first, int width) : column(first + lane_of(threadIdx.x) % ROW_LANES * (VECTORS ? N : 1)), width(width) {
        if (VECTORS && column >= width) column = first;
    }

    __device__ void read(const T* row, Values<T, N>& to) const {
        if constexpr (VECTORS) {
            to = *reinterpret_cast<const Values<T, N>*>(row + column);
        } else {
#pragma unroll
            for (int k = 0; k < N; ++k) {
                if (column + k * ROW_LANES < width) to.at[k] = row[column + k * ROW_LANES];
            }
        }
    }
};

template <int KIND, class T, int N>
__device__ inline void join(float (&sum)[N], const Values<T, N>& read) {
    float x[N];
    widen(read, x);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] = joined<KIND>(sum[k], x[k]);
}

// What each warp makes of the columns, in shared memory.
template <class T>
using Parts = float[POOL_WARPS][COLUMNS<T>];

// Reduces the columns from `first` on: one result for each thread below `COLUMNS`. All threads of the block come here. A lane has
// `WAITING` rows on their way at once, whose values are added in their order.
template <int KIND, bool VECTORS, int WAITING, class T>
__device__ float reduce_columns(const Sequence<T>& of, int first, Parts<T>& parts) {
    constexpr int N = Dtype<T>::VECTOR;
    const int warp = threadIdx.x / WARP, lane = lane_of(threadIdx.x) % ROW_LANES;
    const float nothing = KIND == MAX ? -INFINITY : 0.f;
    float sum[N];
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] = nothing;
    const Part<VECTORS, T> part(first, of.width);
    constexpr int AT_ONCE = VECTORS ? WAITING : 1;
    Values<T, N> read[AT_ONCE] = {};
    int row = threadIdx.x / ROW_LANES;
#pragma unroll 1
    for (; row + (AT_ONCE - 1) * ROWS_AT_ONCE < of.rows; row += AT_ONCE * ROWS_AT_ONCE) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) part.read(of.row(row + i * ROWS_AT_ONCE), read[i]);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) join<KIND>(sum, read[i]);
    }
    if constexpr (AT_ONCE > 1) {
#pragma unroll 1
        for (; row < of.rows; row += ROWS_AT_ONCE) {
            part.read(of.row(row), read[0]);
            join<KIND>(sum, read[0]);
        }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
        sum[k] = joined<KIND>(sum[k], __shfl_xor_sync(ALL_LANES, sum[k], ROW_LANES));
        if (lane_of(threadIdx.x) < ROW_LANES) parts[warp][VECTORS ? lane * N + k : lane + k * ROW_LANES] = sum[k];
    }
    __syncthreads();
    float result = nothing;
    if (threadIdx.x < COLUMNS<T>) {
        for (int i = 0; i < POOL_WARPS; ++i) result = joined<KIND>(result, parts[i][threadIdx.x]);
    }
    // before the next columns' parts
    __syncthreads();
    return KIND == MEAN ? __fdividef(result, of.rows) : result;
}

// What the thread's column from `first` on is reduced to.
template <int WAITING, class T>
__device__ float reduce_by(int kind, const Sequence<T>& of, int first, Parts<T>& parts) {
    if (of.rows == 0) return NAN;
    if (kind == FIRST) {
        const int column = first + threadIdx.x;
        return threadIdx.x < COLUMNS<T> && column < of.width ? Dtype<T>::widen(of.x[column]) : 0.f;
    }
    if (of.vectors()) {
        return kind == MAX ? reduce_columns<MAX, true, WAITING>(of, first, parts)
                           : reduce_columns<MEAN, true, WAITING>(of, first, parts);
    }
    return kind == MAX ? reduce_columns<MAX, false, WAITING>(of, first, parts)
                       : reduce_columns<MEAN, false, WAITING>(of, first, parts);
}

template <class T>
__device__ Sequence<T> sequence_of_block(const T* x, int stride, const unsigned* offsets, int width) {
    const unsigned first = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    return {x + static_cast<long long>(first) * stride, stride, static_cast<int>(end - first), width};
}

template <class T>
__device__ void pool(const Sequence<T>& of, int kind, T* out) {
    __shared__ Parts<T> parts;
    for (int first = blockIdx.y * COLUMNS<T>; first < of.width; first += gridDim.y * COLUMNS<T>) {
        const float value = reduce_by<POOL_WAITING>(kind, of, first, parts);
        const int column = first + threadIdx.x;
        if (threadIdx.x < COLUMNS<T> && column < of.width) out[column] = Dtype<T>::round(value);
    }
}

// The sum of what every thread brings.
__device__ float block_sum(float x) {
    __shared__ float parts[POOL_WARPS];
    x = warp_sum(x);
    if (lane_of(threadIdx.x) == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < POOL_WARPS; ++i) sum += parts[i];
    return sum;
}

// The row is written as it is pooled, and again when its length is known; each thread reads only what it wrote.
template <class T>
__device__ void pool_normalize(const Sequence<T>& of, int kind, bool normalize, float* out) {
    __shared__ Parts<T> parts;
    const bool mine = threadIdx.x < COLUMNS<T>;
    float squares = 0.f;
    for (int first = 0; first < of.width; first += COLUMNS<T>) {
        const float value = reduce_by<NORMALIZE_WAITING>(kind, of, first, parts);
        const int column = first + threadIdx.x;
        if (mine && column < of.width) {
            out[column] = value;
            squares += value * value;
        }
    }
    if (!normalize) return;
    const float inverse = inverse_length(block_sum(squares));
    for (int column = threadIdx.x; mine && column < of.width; column += COLUMNS<T>) out[column] *= inverse;
}

// A row that fits into the warp's registers: it is read once.
template <class T>
__device__ void normalize_length_held(const T* x, int width, float* out) {
    constexpr int N = Dtype<T>::VECTOR;
    constexpr int VECTORS = HELD / N;
    const int first = lane_of(threadIdx.x) * N;
    Values<T, N> held[VECTORS];
    float values[N], squares = 0.f;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int column = first + i * WARP * N;
        if (column < width) held[i] = *reinterpret_cast<const Values<T, N>*>(x + column);
    }
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        if (first + i * WARP * N >= width) continue;
        widen(held[i], values);
#pragma unroll
        for (int k = 0; k < N; ++k) squares += values[k] * values[k];
    }
    const float inverse = inverse_length(warp_sum(squares));
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const int column = first + i * WARP * N;
        if (column >= width) continue;
        widen(held[i], values);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] *= inverse;
        store(out + column, values);
    }
}

template <int N, class T>
__device__ void normalize_length(const T* x, int width, float* out) {
    const int first = lane_of(threadIdx.x) * N;
    float values[N], squares = 0.f;
    for (int column = first; column < width; column += WARP * N) {
        load(x + column, values);
#pragma unroll
        for (int k = 0; k < N; ++k) squares += values[k] * values[k];
    }
    const float inverse = inverse_length(warp_sum(squares));
    for (int column = first; column < width; column += WARP * N) {
        load(x + column, values);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] *= inverse;
        store(out + column, values);
    }
}

template <class T>
__device__ void l2_normalize(const T* x, int rows, int width, float* out) {
    const long long row = row_of_warp();
    if (row >= rows) return;
    x += row * width;
    out += row * width;
    const bool vectors = width % Dtype<T>::VECTOR == 0 && aligned(x) && aligned(out);
    if (vectors && width <= WARP * HELD) {
        normalize_length_held(x, width, out);
    } else if (vectors) {
        normalize_length<Dtype<T>::VECTOR>(x, width, out);
    } else {
        normalize_length<1>(x, width, out);
    }
}

}  // namespace

#define POOL(NAME, T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS, 3) pool_##NAME(                                        \
        const T* x, int stride, const unsigned* offsets, int sequences, int width, int kind, T* out) {                \
        if (static_cast<int>(blockIdx.x) >= sequences) return;                                                        \
        pool(sequence_of_block(x, stride, offsets, width), kind, out + static_cast<long long>(blockIdx.x) * width);   \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS, 2) pool_normalize_##NAME(                              \
        const T* x, int stride, const unsigned* offsets, int sequences, int width, int kind, int normalize,           \
        float* out) {                                                                                                 \
        if (static_cast<int>(blockIdx.x) >= sequences) return;                                                        \
        pool_normalize(sequence_of_block(x, stride, offsets, width), kind, normalize != 0,                            \
                       out + static_cast<long long>(blockIdx.x) * width);                                             \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) l2_normalize_##NAME(const T* x, int rows, int width,    \
                                                                                  float* out) {                       \
        l2_normalize(x, rows, width, out);                                                                            \
    }
FOR_EACH_DTYPE(POOL)
