// rms_norm_T, add_rms_norm_T: `x / sqrt(mean(x²) + eps) * gamma` of each row, of a sum of two rows.
//
// A row is a team's: 32, 64, 128 or 256 threads, as many as have at most four steps of 16 bytes each, so that one row alone
// (a decoder's step) is read by many and a short one by few. Block 256, grid ceil(rows * team / 256), no dynamic shared
// memory. `out` may be `x` (or `residual`), and so may `sum`. Squares do not cancel, so one pass over the values is enough.
#include "row_sources.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int HELD = 4;  // steps that a thread keeps in registers; of longer rows the rest is read again

// Threads that a row of `width` values is for, of which `vector` fill 16 bytes.
__device__ inline int team_of(int width, int vector) {
    int team = WARP;
    while (team < THREADS && team * HELD * vector < width) team *= 2;
    return team;
}

// The sum of the values of a team, for each of it. All threads of the block come here, at once.
__device__ inline float team_sum(float x, int team) {
    __shared__ float of_warps[THREADS / WARP];
    x = warp_sum(x);
    if (team == WARP) return x;
    const int warp = static_cast<int>(threadIdx.x) / WARP, warps = team / WARP;
    if (lane_of(threadIdx.x) == 0) of_warps[warp] = x;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < warps; ++i) sum += of_warps[warp / warps * warps + i];
    return sum;
}

template <int N>
__device__ inline float sum_of_squares(const float (&x)[N]) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += x[k] * x[k];
    return sum;
}

template <class T>
struct Scale {
    const T* gamma;
    float eps;
    T* out;

    template <int N>
    __device__ void write(int column, const float (&x)[N], float inverse) const {
        float scale[N], y[N];
        load(gamma + column, scale);
#pragma unroll
        for (int k = 0; k < N; ++k) y[k] = x[k] * inverse * scale[k];
        store(out + column, y);
    }
};

// The row of this team, if it is `there`, by `N` values. What is kept or written may lie over what is read: a thread is done
// with a column before it writes there, and reads no other's.
template <int N, class T, class Row>
__device__ inline void normalize_by(const Row& row, bool there, int width, int team, const Scale<T>& scale) {
    const int first = static_cast<int>(threadIdx.x) % team * N, step = team * N;
    float held[HELD][N], x[N];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int column = first + i * step;
        if (there && column < width) {
            row.read(column, held[i]);
            sum += sum_of_squares(held[i]);
        }
    }
    for (int column = first + HELD * step; there && column < width; column += step) {
        row.read(column, x);
        sum += sum_of_squares(x);
    }
    const float inverse = rsqrtf(__fdividef(team_sum(sum, team), width) + scale.eps);
    if (!there) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int column = first + i * step;
        if (column < width) {
            row.keep(column, held[i]);
            scale.write(column, held[i], inverse);
        }
    }
    for (int column = first + HELD * step; column < width; column += step) {
        row.read(column, x);
        row.keep(column, x);
        scale.write(column, x, inverse);
    }
}

template <class T, class RowAt>
__device__ inline void normalize_rows(const RowAt& row_at, int rows, int width, const Scale<T>& scale) {
    constexpr int N = Dtype<T>::VECTOR;
    const int team = team_of(width, N);
    const long long row = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) / team;
    const bool there = row < rows;
    const long long at = there ? row * width : 0;
    const Scale<T> own{scale.gamma, scale.eps, scale.out + at};
    const auto of = row_at(at);
    // the same for all of a block but for rows whose length is no whole number of steps, of which none is aligned
    if (width % N == 0 && of.is_aligned() && aligned(own.gamma) && aligned(own.out)) {
        normalize_by<N>(of, there, width, team, own);
    } else {
        normalize_by<1>(of, there, width, team, own);
    }
}

template <class T>
__device__ void rms_norm(const T* x, int rows, int width, const Scale<T>& scale) {
    normalize_rows(
        [x](long long at) {
            return OneRow<T>{x + at};
        },
        rows, width, scale);
}

template <class T>
__device__ void add_rms_norm(const SumOfRows<T>& of, int rows, int width, const Scale<T>& scale) {
    normalize_rows(
        [&of](long long at) {
            return SumOfRows<T>{of.x + at, of.residual + at, of.sum == nullptr ? nullptr : of.sum + at};
        },
        rows, width, scale);
}

}  // namespace

#define RMS_NORM(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) rms_norm_##NAME(const T* x, int rows, int width,         \
                                                                             const T* gamma, float eps, T* out) {     \
        rms_norm<T>(x, rows, width, {gamma, eps, out});                                                               \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) add_rms_norm_##NAME(                                     \
        const T* x, const T* residual, int rows, int width, const T* gamma, float eps, T* sum, T* out) {              \
        add_rms_norm<T>({x, residual, sum}, rows, width, {gamma, eps, out});                                          \
    }
FOR_EACH_DTYPE(RMS_NORM)
