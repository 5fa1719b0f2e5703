// likely_f32: of each row of logits the tokens that are not much less likely than its likeliest, and the sum of all exponentials at
// the row's temperature: all that a draw needs to know of it, nearly always.
//
// Block 256, grid (blocks, rows), no dynamic shared memory. Tokens come in any order; sums are each block's own, in the same order
// of the same values every time. Rows of which nothing is asked, that hold something else than numbers, or of which no token may
// be, have no tokens and sums of 0.
#include "tensor_cores.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr float LOG2_E = 1.4426950408889634f;

// Where tokens of a row go: pairs of the token and its logit, as many as there is room for.
struct Found {
    unsigned* count;
    unsigned* pairs;
    unsigned most;

    __device__ void add(unsigned token, float logit) const {
        const unsigned at = atomicAdd(count, 1u);
        if (at >= most) return;
        pairs[2 * at] = token;
        pairs[2 * at + 1] = __float_as_uint(logit);
    }
};

}  // namespace

// `likeliest` is `[rows, 4]` as `likeliest_f32` writes it. `asked` is `[rows, 2]`: the inverse of the temperature, 0 where nothing is
// asked, and how far below the likeliest logit a token's may lie. `sums` is `[rows, blocks]`; `counts` is `[rows]`, 0 before, then how
// many tokens there are, which may be more than `most`; `out` is `[rows, most, 2]`.
extern "C" __global__ void __launch_bounds__(THREADS) likely_f32(const float* logits, int vocabulary, const unsigned* likeliest,
                                                                 const float* asked, int most, float* sums, unsigned* counts,
                                                                 unsigned* out) {
    __shared__ float of_warps[WARPS];
    constexpr int N = Dtype<float>::VECTOR;
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const long long row = blockIdx.y;
    const float scale = asked[2 * row] * LOG2_E, best = __uint_as_float(likeliest[4 * row + 1]);
    float sum = 0.f;
    if (scale != 0.f && likeliest[4 * row + 3] != 0u && best != -INFINITY) {
        const float floor = best - asked[2 * row + 1];
        const Found found{counts + row, out + 2 * row * most, static_cast<unsigned>(most)};
        const float* values = logits + row * vocabulary;
        // whole 16 bytes a block, so that all begin on a border where the row does
        const int each = ((vocabulary + blocks - 1) / blocks + N - 1) / N * N;
        const int from = min(block * each, vocabulary), end = min(from + each, vocabulary);
        int at = from + static_cast<int>(threadIdx.x) * N;
        if (aligned(values)) {
#pragma unroll 4
            for (; at + N <= end; at += THREADS * N) {
                float four[N];
                load(values + at, four);
#pragma unroll
                for (int k = 0; k < N; ++k) {
                    sum += power_of_2((four[k] - best) * scale);
                    if (four[k] >= floor) found.add(static_cast<unsigned>(at + k), four[k]);
                }
            }
        }
        // what is left, and all of it where 16 bytes cannot be read at once
        for (; at < end; at += THREADS * N) {
            for (int k = at; k < min(at + N, end); ++k) {
                sum += power_of_2((values[k] - best) * scale);
                if (values[k] >= floor) found.add(static_cast<unsigned>(k), values[k]);
            }
        }
    }
    sum = warp_sum(sum);
    if (lane_of(threadIdx.x) == 0) of_warps[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < WARPS; ++i) sum += of_warps[i];
    sums[row * blocks + block] = sum;
}
