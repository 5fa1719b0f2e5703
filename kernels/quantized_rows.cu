// rows_8_F_T, rows_32_F_T: few_rows.cu with a weight that stays quantised (quantized.cuh): products of a decoder's steps, which wait
// for weights and so for as many bits as these have.
//
// Block 256, grid ceil(columns / 16), of f32 `(ceil(columns / 16), ceil(rows / 8))`; no dynamic shared memory. A block has a panel
// and all rows, of f32 eight of them; each of its eight warps takes every eighth 32 weights of it, several on their way. For f16
// and bf16 levels, which are whole numbers that both have exactly, are multiplied on tensor cores, and sums of 32 are scaled and
// added up in f32, so that no weight is ever rounded: outputs are the products' rows (two of a pair are g and g + 8), rows of x
// their columns. What weights have beside their levels is added as often as x says, which is a product with ones. For f32 a lane
// adds up its own eight weights of two outputs. Either way a row's sums are the same, to the bit, whatever rows are beside it.
//
// `inner` is a multiple of a block's weights, x lies on a border of 16 bytes. `out` has `stride` values from a row to the next, of
// T or, where `in_f32` is not 0, of f32; it may be `residual` where `stride` is `columns` and `in_f32` 0.
#include "quantized.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int TILE = 8;  // rows of x that are one fragment

template <class T>
struct Product {
    const T* x;  // [rows, inner]
    int rows, inner;
    const unsigned char* weight;
    int columns;
    const T* bias;      // [columns], or null
    const T* residual;  // [rows, columns], or null
    void* out;          // [rows, columns] of wider rows
    int stride;
    bool in_f32;
};

// Two ones.
template <class T>
constexpr unsigned ONES = 0x3c003c00u;
template <>
constexpr unsigned ONES<__nv_bfloat16> = 0x3f803f80u;

// Four levels less what stands for nothing as two pairs of T, exactly: an f16 of 1024 counts in ones, as a bf16 of 128 does.
template <Format F, class T>
struct Pairs;

template <Format F>
struct Pairs<F, __half> {
    static __device__ void of(unsigned levels, unsigned (&to)[2]) {
        const __half2 zero = __floats2half2_rn(1024.f + Unit<F>::ZERO, 1024.f + Unit<F>::ZERO);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const unsigned above = __byte_perm(levels, 0x64646464u, i == 0 ? 0x4140u : 0x4342u);
            const __half2 pair = __hsub2(*reinterpret_cast<const __half2*>(&above), zero);
            to[i] = *reinterpret_cast<const unsigned*>(&pair);
        }
    }
};

template <Format F>
struct Pairs<F, __nv_bfloat16> {
    static __device__ void of(unsigned levels, unsigned (&to)[2]) {
        if constexpr (F == Format::Q8_0) {
            // eight bits do not lie in seven
            float wide[4];
            widen_levels<F>(levels, wide);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const __nv_bfloat162 pair = __floats2bfloat162_rn(wide[2 * i], wide[2 * i + 1]);
                to[i] = *reinterpret_cast<const unsigned*>(&pair);
            }
        } else {
            const __nv_bfloat162 zero = __floats2bfloat162_rn(128.f + Unit<F>::ZERO, 128.f + Unit<F>::ZERO);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const unsigned above = __byte_perm(levels, 0x43434343u, i == 0 ? 0x4140u : 0x4342u);
                const __nv_bfloat162 pair = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&above), zero);
                to[i] = *reinterpret_cast<const unsigned*>(&pair);
            }
        }
    }
};

// A lane's place in a panel.
template <Format F, class T>
struct Lane {
    const unsigned char* panel;
    const T* x;
    int inner, steps, rows, pair, word;

    __device__ Lane(const Product<T>& all, int first_row)
        : x(all.x + static_cast<long long>(first_row) * all.inner),
          inner(all.inner),
          steps(all.inner / PART),
          rows(all.rows - first_row),
          pair(lane_of(threadIdx.x) / 4),
          word(lane_of(threadIdx.x) % 4) {
        panel = all.weight + unit_at<F>(blockIdx.x, steps / Unit<F>::PARTS, 0);
    }
    // Nothing, and so weights of nothing, past the last.
    __device__ Packed weights(int step) const {
        if (step >= steps) return Packed{};
        return read_packed<F>(panel + step / Unit<F>::PARTS * UNIT_BYTES<F>, step % Unit<F>::PARTS, pair, word);
    }
    // Four values of a row: weights 4 · word on of a step, or 16 more.
    template <class V>
    __device__ V values(int step, int row, int half) const {
        if (step >= steps || row >= rows) return V{};
        return *reinterpret_cast<const V*>(x + static_cast<long long>(row) * inner + step * PART + half * 16 + 4 * word);
    }
};

// On tensor cores. Sums of each warp, by row and output, go to `sums`.
template <int MOST, Format F, class T>
struct Multiply {
    static constexpr int TILES = MOST / TILE;

    static __device__ void step(const Lane<F, T>& mine, int step, const Packed& read, float (&sums)[TILES][4]) {
        const Opened opened = open_packed<F>(read, step % Unit<F>::PARTS, mine.word);
        unsigned low[2][2], high[2][2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            Pairs<F, T>::of(opened.low[row], low[row]);
            Pairs<F, T>::of(opened.high[row], high[row]);
        }
        const unsigned first[4] = {low[0][0], low[1][0], low[0][1], low[1][1]};
        const unsigned second[4] = {high[0][0], high[1][0], high[0][1], high[1][1]};
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const int row = tile * TILE + mine.pair;
            const uint2 x = mine.template values<uint2>(step, row, 0), y = mine.template values<uint2>(step, row, 1);
            float sum[4] = {}, other[4] = {};
            multiply_add<T>(sum, first, x.x, x.y);
            multiply_add<T>(Unit<F>::TWO_SCALES ? other : sum, second, y.x, y.y);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[tile][i] += opened.scale[i / 2][0] * sum[i];
                if constexpr (Unit<F>::TWO_SCALES) sums[tile][i] += opened.scale[i / 2][1] * other[i];
            }
            if constexpr (Unit<F>::OFFSET) {
                const unsigned ones[4] = {ONES<T>, ONES<T>, ONES<T>, ONES<T>};
                float of_x[4] = {};
                multiply_add<T>(of_x, ones, x.x, x.y);
                multiply_add<T>(of_x, ones, y.x, y.y);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[tile][i] += opened.offset[i / 2] * of_x[i];
            }
        }
    }

    static __device__ void keep(const Lane<F, T>& mine, const float (&mine_of)[TILES][4], float (&sums)[MOST][PANEL]) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[tile * TILE + 2 * mine.word + i % 2][2 * mine.pair + i / 2] = mine_of[tile][i];
        }
    }
};

// Lane by lane: `sums[tile]` has both outputs of rows 2 · tile and the next.
template <int MOST, Format F>
struct Multiply<MOST, F, float> {
    static constexpr int TILES = MOST / 2;

    static __device__ void step(const Lane<F, float>& mine, int step, const Packed& read, float (&sums)[TILES][4]) {
        const Opened opened = open_packed<F>(read, step % Unit<F>::PARTS, mine.word);
        float low[2][4], high[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            widen_levels<F>(opened.low[i], low[i]);
            widen_levels<F>(opened.high[i], high[i]);
        }
#pragma unroll
        for (int row = 0; row < MOST; ++row) {
            const float4 x = mine.template values<float4>(step, row, 0), y = mine.template values<float4>(step, row, 1);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& sum = sums[row / 2][row % 2 * 2 + i];
                sum += opened.scale[i][0] * (low[i][0] * x.x + low[i][1] * x.y + low[i][2] * x.z + low[i][3] * x.w);
                sum += opened.scale[i][1] * (high[i][0] * y.x + high[i][1] * y.y + high[i][2] * y.z + high[i][3] * y.w);
                if constexpr (Unit<F>::OFFSET) sum += opened.offset[i] * ((x.x + x.y + x.z + x.w) + (y.x + y.y + y.z + y.w));
            }
        }
    }

    // The four lanes of a pair have what belongs together.
    static __device__ void keep(const Lane<F, float>& mine, const float (&mine_of)[TILES][4], float (&sums)[MOST][PANEL]) {
#pragma unroll
        for (int i = 0; i < 2 * MOST; ++i) {
            float sum = mine_of[i / 4][i % 4];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            if (mine.word == 0) sums[i / 2][2 * mine.pair + i % 2] = sum;
        }
    }
};

// `MOST`: rows of a block. `AHEAD`: steps whose weights are loaded before any is computed with.
template <int MOST, int AHEAD, Format F, class T>
__device__ void quantized_rows(const Product<T>& all) {
    using Multiply = ::Multiply<MOST, F, T>;
    __shared__ float sums[WARPS][MOST][PANEL];
    const int warp = static_cast<int>(threadIdx.x) / WARP, first_row = static_cast<int>(blockIdx.y) * MOST;
    const Lane<F, T> mine(all, first_row);
    float of_lane[Multiply::TILES][4] = {};
    for (int step = warp; step < mine.steps; step += AHEAD * WARPS) {
        Packed read[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) read[i] = mine.weights(step + i * WARPS);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) Multiply::step(mine, step + i * WARPS, read[i], of_lane);
    }
    Multiply::keep(mine, of_lane, sums[warp]);
    __syncthreads();
    const int output = static_cast<int>(threadIdx.x) % PANEL, column = static_cast<int>(blockIdx.x) * PANEL + output;
    if (column >= all.columns) return;
    const float bias = all.bias == nullptr ? 0.f : Dtype<T>::widen(all.bias[column]);
    for (int row = static_cast<int>(threadIdx.x) / PANEL; row < min(mine.rows, MOST); row += THREADS / PANEL) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) sum += sums[i][row][output];
        sum += bias;
        const long long of_all = first_row + row;
        if (all.residual != nullptr) sum += Dtype<T>::widen(all.residual[of_all * all.columns + column]);
        const long long at = of_all * all.stride + column;
        if (all.in_f32) {
            static_cast<float*>(all.out)[at] = sum;
        } else {
            static_cast<T*>(all.out)[at] = Dtype<T>::round(sum);
        }
    }
}

}  // namespace

#define ROWS(NAME, F, MOST, AHEAD, BLOCKS, TYPE, T)                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rows_##MOST##_##NAME##_##TYPE(                      \
        const T* x, int rows, int inner, const unsigned char* weight, int columns, const T* bias, const T* residual,  \
        void* out, int stride, int in_f32) {                                                                          \
        quantized_rows<MOST, AHEAD, F, T>({x, rows, inner, weight, columns, bias, residual, out, stride, in_f32 != 0}); \
    }
// Few rows with as many blocks on a multiprocessor as registers allow; 32 wait for x, which each block reads whole.
#define OF_FORMAT(NAME, F, BLOCKS)                    \
    ROWS(NAME, F, 8, 4, BLOCKS, f16, __half)          \
    ROWS(NAME, F, 8, 4, BLOCKS, bf16, __nv_bfloat16)  \
    ROWS(NAME, F, 32, 2, 2, f16, __half)              \
    ROWS(NAME, F, 32, 2, 2, bf16, __nv_bfloat16)      \
    ROWS(NAME, F, 8, 2, 1, f32, float)
OF_FORMAT(q4_0, Format::Q4_0, 3)
OF_FORMAT(q4_1, Format::Q4_1, 3)
OF_FORMAT(q8_0, Format::Q8_0, 2)
OF_FORMAT(q4_k, Format::Q4_K, 2)
OF_FORMAT(q6_k, Format::Q6_K, 2)
