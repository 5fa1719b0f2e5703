// rows_8_T, rows_16_T, rows_32_T, rows_8_to_f32_T and so on: `x weightᵀ`, with a bias and a residual where there are some, of at
// most so many rows: a decoder's steps, which wait for weights and nothing else. Those to f32 leave their sums as they are.
//
// Block 256, grid ceil(columns / 16), no dynamic shared memory. A block has 16 outputs for all rows; each of its eight warps takes
// every eighth 32 values of them, 16 bytes of two weights' rows and of x a lane at once and four of those on their way, and all
// eight sums are added up in the warps' order. On tensor cores, for f16 and bf16: outputs are the products' rows and rows of x
// their columns, so that a row's sums are the same, to the bit, whatever rows are beside it. Which of a step's values a fragment
// calls first does not matter as long as both sides agree: a lane's are eight on end. That holds between the three, too.
//
// `inner` is a multiple of 8, and x and weight lie on borders of 16 bytes. `residual` may be `out`.
#include "tensor_cores.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int OUTPUTS = 16;  // of a block
constexpr int TILE = 8;    // rows of x that are one fragment
constexpr int STEP = 32;   // values of a row that a warp multiplies at once
// Steps whose weights are loaded before any is computed with: as many as registers hold.
template <int MOST>
constexpr int AHEAD_OF = MOST == 32 ? 2 : 4;

template <class T, class R>
struct Product {
    const T* x;  // [rows, inner]
    int rows, inner;
    const T* weight;  // [columns, inner]
    int columns;
    const T* bias;      // [columns], or null
    const T* residual;  // [rows, columns], or null
    R* out;             // [rows, columns]
};

// What a lane has of a step: eight values of two outputs' weights.
struct Weights {
    uint4 low, high;
};

// A lane's place: where the rows of weights and of x are that it loads from, null where there are no weights.
template <class T>
struct Lane {
    const T* low;
    const T* high;
    const T* x;
    int inner, row, rows;

    template <class R>
    __device__ Lane(const Product<T, R>& all, int first, int lane)
        : x(all.x + lane % 4 * 8), inner(all.inner), row(lane / 4), rows(all.rows) {
        const auto at = [&](int output) {
            return output < all.columns ? all.weight + static_cast<long long>(output) * all.inner + lane % 4 * 8 : nullptr;
        };
        low = at(first + row);
        high = at(first + 8 + row);
    }
    __device__ bool has(int step, int lane) const { return step * STEP + lane % 4 * 8 < inner; }
    // Zeros where there is nothing. Weights are read once: they are not to push x out of the cache.
    __device__ Weights weights(int step, int lane) const {
        Weights read{};
        if (has(step, lane) && low != nullptr) read.low = load_once(reinterpret_cast<const uint4*>(low + step * STEP));
        if (has(step, lane) && high != nullptr) read.high = load_once(reinterpret_cast<const uint4*>(high + step * STEP));
        return read;
    }
    __device__ uint4 values(int step, int lane, int tile) const {
        const int of_tile = tile * TILE + row;
        if (!has(step, lane) || of_tile >= rows) return uint4{};
        return *reinterpret_cast<const uint4*>(x + static_cast<long long>(of_tile) * inner + step * STEP);
    }
};

// `MOST`: rows, a multiple of those of a tile.
template <int MOST, class T, class R>
__device__ void few_rows(const Product<T, R>& all) {
    constexpr int TILES = MOST / TILE, AHEAD = AHEAD_OF<MOST>;
    __shared__ float sums[WARPS][MOST][OUTPUTS];
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = lane_of(threadIdx.x);
    const int block = static_cast<int>(blockIdx.x) * OUTPUTS;
    const Lane<T> mine(all, block, lane);
    // two products in a row that do not wait for each other
    float first[TILES][4] = {}, second[TILES][4] = {};
    const int steps = (all.inner + STEP - 1) / STEP;
    for (int step = warp; step < steps; step += AHEAD * WARPS) {
        Weights read[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) read[i] = mine.weights(step + i * WARPS, lane);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const unsigned one[4] = {read[i].low.x, read[i].high.x, read[i].low.y, read[i].high.y};
            const unsigned two[4] = {read[i].low.z, read[i].high.z, read[i].low.w, read[i].high.w};
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const uint4 x = mine.values(step + i * WARPS, lane, tile);
                multiply_add<T>(first[tile], one, x.x, x.y);
                multiply_add<T>(second[tile], two, x.z, x.w);
            }
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = tile * TILE + lane % 4 * 2 + i % 2, output = i / 2 * 8 + lane / 4;
            sums[warp][row][output] = first[tile][i] + second[tile][i];
        }
    }
    __syncthreads();
    const int output = static_cast<int>(threadIdx.x) % OUTPUTS, column = block + output;
    if (column >= all.columns) return;
    const float bias = all.bias == nullptr ? 0.f : Dtype<T>::widen(all.bias[column]);
    for (int row = static_cast<int>(threadIdx.x) / OUTPUTS; row < all.rows; row += THREADS / OUTPUTS) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) sum += sums[i][row][output];
        const long long at = static_cast<long long>(row) * all.columns + column;
        sum += bias;
        if (all.residual != nullptr) sum += Dtype<T>::widen(all.residual[at]);
        all.out[at] = Dtype<R>::round(sum);
    }
}

}  // namespace

#define FEW_ROWS(NAME, MOST, BLOCKS, T, R)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(                                               \
        const T* x, int rows, int inner, const T* weight, int columns, const T* bias, const T* residual, R* out) {    \
        few_rows<MOST, T, R>({x, rows, inner, weight, columns, bias, residual, out});                                 \
    }
#define OF_SIZE(MOST, BLOCKS)                                                    \
    FEW_ROWS(rows_##MOST##_f16, MOST, BLOCKS, __half, __half)                    \
    FEW_ROWS(rows_##MOST##_bf16, MOST, BLOCKS, __nv_bfloat16, __nv_bfloat16)     \
    FEW_ROWS(rows_##MOST##_to_f32_f16, MOST, BLOCKS, __half, float)              \
    FEW_ROWS(rows_##MOST##_to_f32_bf16, MOST, BLOCKS, __nv_bfloat16, float)
OF_SIZE(8, 3)
OF_SIZE(16, 3)
OF_SIZE(32, 2)
