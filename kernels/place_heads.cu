// place_heads_T: from queries, keys and values as one product leaves them to what attention takes: heads of queries and keys
// normalised where there are norms, turned by their positions, and keys and values written to their places in the cache.
// turns_f32: the cosines and sines that they are turned by, once for all layers of a step.
//
// Both: any grid, no dynamic shared memory. place_heads: block 128; a head's halves are some lanes', 16 bytes of each half a
// lane. turns: block 256, a thread a pair. Widths are even, at most 256. A row whose place is NOWHERE is nobody's: its key and
// value are not written.
#include "paged.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int TURN_THREADS = 256;
constexpr unsigned NOWHERE = 0xffffffffu;

// === turns

// Angles are rounded to f32 as the reference rounds them, then brought into an eighth of a turn and summed up as series in
// f64, of which few are wanted: the devices' own functions keep arrays in local memory for large angles.
__device__ inline void sine_and_cosine(float angle, float& sine, float& cosine) {
    constexpr double QUARTER = 1.5707963267948966;
    const double turns = rint(static_cast<double>(angle) * (1.0 / QUARTER));
    // what a quarter is beyond its f64
    const double x = fma(turns, -6.123233995736766e-17, fma(turns, -QUARTER, static_cast<double>(angle)));
    const double y = x * x;
    double s = 1.0, c = 1.0;
    // sums of (-1)^k x^2k / (2k + 1)! and (-1)^k x^2k / (2k)!, innermost first; beyond f32 from 2k = 12 on
#pragma unroll
    for (int k = 6; k > 0; --k) {
        s = fma(-y * (1.0 / ((2 * k) * (2 * k + 1))), s, 1.0);
        c = fma(-y * (1.0 / ((2 * k - 1) * (2 * k))), c, 1.0);
    }
    s *= x;
    const long long quarter = static_cast<long long>(turns);
    const double first = quarter % 2 == 0 ? s : c, second = quarter % 2 == 0 ? c : s;
    sine = static_cast<float>(quarter % 4 < 2 ? first : -first);
    cosine = static_cast<float>(quarter % 4 == 0 || quarter % 4 == 3 ? second : -second);
}

__device__ void turns(const float* frequencies, const unsigned* positions, int rows, int half, float factor, float* out) {
    const int count = rows * half;
    for (int i = static_cast<int>(blockIdx.x * TURN_THREADS + threadIdx.x); i < count; i += gridDim.x * TURN_THREADS) {
        const int row = i / half, pair = i % half;
        float sine, cosine;
        sine_and_cosine(frequencies[pair] * static_cast<float>(positions[row]), sine, cosine);
        float* to = out + static_cast<long long>(row) * 2 * half + pair;
        to[0] = cosine * factor;
        to[half] = sine * factor;
    }
}

// === heads

template <class T>
struct Heads {
    const T* qkv;  // [rows, (heads + 2 * kv_heads) * width and more]
    int stride, rows, heads, kv_heads, width;
    const T* q_gamma;  // null: nothing is normalised
    const T* k_gamma;
    float eps;
    const float* turns;     // [rows, 2, width / 2]
    const unsigned* places;  // of each row's key and value in the cache
    T* cache;               // of the layer
    T* out;                 // [rows, heads * width]
};

// A lane's share of a head: `STEPS` times `N` values of each half.
template <int N, int STEPS>
struct Halves {
    float first[STEPS][N], second[STEPS][N];
};

// Where the values of a head are and where they go; `lanes` lanes have it, of which this is number `lane`.
template <class T, int N, int STEPS>
struct Head {
    const T* from;
    T* to;
    int half, lanes, lane;

    template <class F>
    __device__ void for_each(const F& step) const {
#pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            const int column = (i * lanes + lane) * N;
            if (column < half) step(i, column);
        }
    }
    __device__ void read(Halves<N, STEPS>& x) const {
        for_each([&](int i, int column) {
            load(from + column, x.first[i]);
            load(from + half + column, x.second[i]);
        });
    }
    __device__ void write(const Halves<N, STEPS>& x) const {
        for_each([&](int i, int column) {
            store(to + column, x.first[i]);
            store(to + half + column, x.second[i]);
        });
    }
    // All lanes of the warp come here; what is not `there` is not read.
    __device__ void normalize(Halves<N, STEPS>& x, bool there, const T* gamma, float eps) const {
        float sum = 0.f;
        if (there) {
            for_each([&](int i, int) {
#pragma unroll
                for (int k = 0; k < N; ++k) sum += x.first[i][k] * x.first[i][k] + x.second[i][k] * x.second[i][k];
            });
        }
        for (int apart = lanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
        const float inverse = rsqrtf(__fdividef(sum, 2 * half) + eps);
        if (!there) return;
        for_each([&](int i, int column) {
            float scale[N];
            load(gamma + column, scale);
#pragma unroll
            for (int k = 0; k < N; ++k) x.first[i][k] *= inverse * scale[k];
            load(gamma + half + column, scale);
#pragma unroll
            for (int k = 0; k < N; ++k) x.second[i][k] *= inverse * scale[k];
        });
    }
    __device__ void turn(Halves<N, STEPS>& x, const float* turns) const {
        for_each([&](int i, int column) {
            float cosine[N], sine[N];
            load(turns + column, cosine);
            load(turns + half + column, sine);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const float a = x.first[i][k], b = x.second[i][k];
                x.first[i][k] = a * cosine[k] - b * sine[k];
                x.second[i][k] = b * cosine[k] + a * sine[k];
            }
        });
    }
};

template <int N, int STEPS, class T>
__device__ void place(const Heads<T>& all) {
    const int half = all.width / 2, of_row = all.heads + 2 * all.kv_heads;
    int lanes = 1;
    while (lanes < WARP && lanes * N < half) lanes *= 2;
    const int of_warp = WARP / lanes;
    const long long count = static_cast<long long>(all.rows) * of_row;
    const long long warp = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) / WARP;
    const long long warps = static_cast<long long>(gridDim.x) * (THREADS / WARP);
    for (long long first = warp * of_warp; first < count; first += warps * of_warp) {
        const long long number = first + lane_of(threadIdx.x) / lanes;
        bool there = number < count;
        const int row = there ? static_cast<int>(number / of_row) : 0, head = there ? static_cast<int>(number % of_row) : 0;
        const bool is_query = head < all.heads, is_value = head >= all.heads + all.kv_heads;
        T* to;
        if (is_query) {
            to = all.out + (static_cast<long long>(row) * all.heads + head) * all.width;
        } else {
            const int of_cache = head - all.heads - (is_value ? all.kv_heads : 0);
            const unsigned at = all.places[row];
            there = there && at != NOWHERE;
            to = all.cache + key_of(at, all.kv_heads, of_cache, all.width) + (is_value ? BLOCK_TOKENS * all.width : 0);
        }
        const T* from = all.qkv + static_cast<long long>(row) * all.stride + static_cast<long long>(head) * all.width;
        const Head<T, N, STEPS> of{from, to, half, lanes, lane_of(threadIdx.x) % lanes};
        Halves<N, STEPS> x{};
        if (there) of.read(x);
        // one question for the whole warp, whose lanes meet in it
        if (all.q_gamma != nullptr) of.normalize(x, there && !is_value, is_query ? all.q_gamma : all.k_gamma, all.eps);
        if (!there) continue;
        if (!is_value) of.turn(x, all.turns + static_cast<long long>(row) * all.width);
        of.write(x);
    }
}

template <class T>
__device__ void place_heads(const Heads<T>& all) {
    constexpr int N = Dtype<T>::VECTOR;
    const bool together = all.width % (2 * N) == 0 && all.stride % N == 0 && aligned(all.qkv) && aligned(all.q_gamma) &&
                          aligned(all.k_gamma) && aligned(all.turns) && aligned(all.cache) && aligned(all.out);
    if (together) {
        place<N, 1>(all);
    } else {
        place<1, 4>(all);
    }
}

}  // namespace

#define PLACE_HEADS(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) place_heads_##NAME(                                         \
        const T* qkv, int stride, int rows, int heads, int kv_heads, int width, const T* q_gamma, const T* k_gamma,   \
        float eps, const float* turns, const unsigned* places, T* cache, T* out) {                                    \
        place_heads<T>({qkv, stride, rows, heads, kv_heads, width, q_gamma, k_gamma, eps, turns, places, cache, out}); \
    }
FOR_EACH_DTYPE(PLACE_HEADS)

extern "C" __global__ void __launch_bounds__(TURN_THREADS) turns_f32(const float* frequencies, const unsigned* positions,
                                                                     int rows, int half, float factor, float* out) {
    turns(frequencies, positions, rows, half, factor, out);
}
