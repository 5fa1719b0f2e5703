// likeliest_f32: of each row of logits the likeliest token, its logit, the logarithm of the sum of all exponentials, and whether
// a logit is NaN or infinite: what a step needs to know of rows from which nothing is drawn.
//
// Block 256, grid (blocks, rows), no dynamic shared memory. A row's blocks have as many values each, and the last of them to be
// done puts together what all found, in their order: the same blocks give the same bits. Of tokens that are equally likely
// it is the first. Logits of -∞ are tokens that may not be; where all are, the logarithm is -∞ and the token 0. The token is one of
// the vocabulary whatever the logits are, numbers or not: the next step may read it before anybody looks at it.
//
// logit_of_f32: of each row of logits that of one token. Block 256, grid ceil(rows / 256), no dynamic shared memory.
#include "tensor_cores.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// What was seen of a row.
struct Seen {
    float best = -INFINITY;
    unsigned token = 0xffffffffu;  // none yet
    float sum = 0.f;  // of exponentials, the best's being 1
    unsigned bad = 0;

    Seen() = default;
    // As it was kept.
    __device__ explicit Seen(const float4& kept)
        : best(kept.x), token(__float_as_uint(kept.y)), sum(kept.z), bad(__float_as_uint(kept.w)) {}
    __device__ float4 keep() const { return make_float4(best, __uint_as_float(token), sum, __uint_as_float(bad)); }

    // Values at `first` and on.
    template <int N>
    __device__ void add(const float (&values)[N], unsigned first) {
        float largest = -INFINITY;
        unsigned of_largest = 0;
#pragma unroll
        for (int k = 0; k < N; ++k) {
            bad |= !(values[k] < INFINITY);
            if (values[k] > largest) {
                largest = values[k];
                of_largest = first + k;
            }
        }
        if (largest == -INFINITY) return;
        if (largest > best) {
            sum *= power_of_2((best - largest) * LOG2_E);
            best = largest;
            token = of_largest;
        }
#pragma unroll
        for (int k = 0; k < N; ++k) sum += power_of_2((values[k] - best) * LOG2_E);
    }
    // And by another.
    __device__ void add(const Seen& other) {
        bad |= other.bad;
        if (other.token == 0xffffffffu) return;
        const bool is_better = other.best > best || (other.best == best && other.token < token);
        const float top = fmaxf(best, other.best);
        const float own = token == 0xffffffffu ? 0.f : sum * power_of_2((best - top) * LOG2_E);
        sum = own + other.sum * power_of_2((other.best - top) * LOG2_E);
        best = top;
        if (is_better) token = other.token;
    }
    __device__ void add_of_warp() {
#pragma unroll
        for (int apart = WARP / 2; apart > 0; apart /= 2) {
            Seen other;
            other.best = __shfl_xor_sync(ALL_LANES, best, apart);
            other.token = __shfl_xor_sync(ALL_LANES, token, apart);
            other.sum = __shfl_xor_sync(ALL_LANES, sum, apart);
            other.bad = __shfl_xor_sync(ALL_LANES, bad, apart);
            // both lanes in the same order, so that they agree
            if (lane_of(threadIdx.x) & apart) {
                other.add(*this);
                *this = other;
            } else {
                add(other);
            }
        }
    }
};

// The values of a row from `from` up to `end`, by this block's threads.
__device__ inline Seen look_at(const float* row, int from, int end) {
    Seen seen;
    constexpr int N = Dtype<float>::VECTOR;
    int at = from + static_cast<int>(threadIdx.x) * N;
    if (aligned(row)) {
#pragma unroll 4
        for (; at + N <= end; at += THREADS * N) {
            float values[N];
            load(row + at, values);
            seen.add(values, static_cast<unsigned>(at));
        }
    }
    // what is left, and all of it where 16 bytes cannot be read at once
    for (; at < end; at += THREADS * N) {
        for (int k = at; k < min(at + N, end); ++k) {
            const float value[1] = {row[k]};
            seen.add(value, static_cast<unsigned>(k));
        }
    }
    return seen;
}

}  // namespace

// `parts` is `[rows, blocks, 4]` on a border of 16 bytes, `finished` `[rows]`, 0 before and after; `out` is `[rows, 4]`: token, logit, logarithm, whether
// all are numbers (1) or not (0); floats as their bits. `counts`, `[rows]`, becomes 0 for whoever counts there next; it may be null.
extern "C" __global__ void __launch_bounds__(THREADS) likeliest_f32(const float* logits, int vocabulary, float* parts,
                                                                    unsigned* finished, unsigned* out, unsigned* counts) {
    __shared__ float4 of_warps[WARPS];
    __shared__ bool last;
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const long long row = blockIdx.y;
    // whole 16 bytes a block, so that all begin on a border where the row does
    const int each = ((vocabulary + blocks - 1) / blocks + 3) / 4 * 4;
    const int from = min(block * each, vocabulary), end = min(from + each, vocabulary);
    Seen seen = look_at(logits + row * vocabulary, from, end);
    seen.add_of_warp();
    if (lane_of(threadIdx.x) == 0) of_warps[threadIdx.x / WARP] = seen.keep();
    __syncthreads();
    float4* of_row = reinterpret_cast<float4*>(parts) + row * blocks;
    if (threadIdx.x == 0) {
        for (int i = 1; i < WARPS; ++i) seen.add(Seen(of_warps[i]));
        of_row[block] = seen.keep();
        __threadfence();
        last = atomicAdd(finished + row, 1u) + 1 == gridDim.x;
        __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    finished[row] = 0;
    if (counts != nullptr) counts[row] = 0;
    Seen whole;
    for (int i = 0; i < blocks; ++i) whole.add(Seen(of_row[i]));
    unsigned* to = out + row * 4;
    to[0] = whole.token == 0xffffffffu ? 0u : whole.token;
    to[1] = __float_as_uint(whole.best);
    to[2] = __float_as_uint(whole.token == 0xffffffffu ? -INFINITY : whole.best + log2f(whole.sum) * LN_2);
    to[3] = whole.bad == 0 ? 1u : 0u;
}

// `asked` is `[rows, 2]`: something that is nothing to this kernel, and the token. `out` is `[rows]`, NaN where there is no such token.
extern "C" __global__ void __launch_bounds__(THREADS) logit_of_f32(const float* logits, int rows, int vocabulary,
                                                                   const unsigned* asked, float* out) {
    const int row = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (row >= rows) return;
    const unsigned token = asked[2 * row + 1];
    const bool is_there = token < static_cast<unsigned>(vocabulary);
    out[row] = is_there ? logits[static_cast<long long>(row) * vocabulary + token] : __uint_as_float(0x7fc00000u);
}
