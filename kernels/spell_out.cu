// spell_out_F_T: a quantised weight (quantized.cuh) as rows of numbers, for products that cublasLt does. take_rows_F_T: some of its
// rows by their numbers: token embeddings.
//
// spell_out: block 256, any grid (a warp for 32 weights of sixteen rows), no dynamic shared memory. take_rows: block 128, grid rows;
// a number beyond the table reads whatever lies there. `inner` is a multiple of a block's weights, `out` lies on a border of 16
// bytes. Each weight is the one that `QuantFormat::dequantize` gives, rounded once.
#include "elementwise.cuh"
#include "quantized.cuh"

namespace {

constexpr int TAKING = 128;  // threads

// The eight weights that a lane has of a row of its pair.
template <Format F, class T>
__device__ inline void put(const Opened& from, int row, int word, T* to) {
    float weights[4];
    spell_levels<F>(from.low[row], from.scale[row][0], from.offset[row], weights);
    store(to + 4 * word, weights);
    spell_levels<F>(from.high[row], from.scale[row][1], from.offset[row], weights);
    store(to + 16 + 4 * word, weights);
}

template <Format F, class T>
__device__ void spell_out(const unsigned char* weight, int columns, int inner, T* out) {
    const int steps = inner / PART, pair = lane_of(threadIdx.x) / 4, word = lane_of(threadIdx.x) % 4;
    const long long all = static_cast<long long>((columns + PANEL - 1) / PANEL) * steps;
    for (long long i = thread_of_grid() / WARP; i < all; i += threads_of_grid() / WARP) {
        const long long panel = i / steps;
        const int step = static_cast<int>(i % steps), part = step % Unit<F>::PARTS;
        const unsigned char* unit = weight + unit_at<F>(panel, steps / Unit<F>::PARTS, step / Unit<F>::PARTS);
        const Opened opened = open_packed<F>(read_packed<F>(unit, part, pair, word), part, word);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const long long output = panel * PANEL + 2 * pair + row;
            if (output < columns) put<F>(opened, row, word, out + output * inner + step * PART);
        }
    }
}

template <Format F, class T>
__device__ void take_rows(const unsigned char* table, const unsigned* numbers, int inner, T* out) {
    const unsigned number = numbers[blockIdx.x];
    const int steps = inner / PART, row = static_cast<int>(number % PANEL);
    for (int i = static_cast<int>(threadIdx.x); i < steps * 4; i += TAKING) {
        const int step = i / 4, word = i % 4, part = step % Unit<F>::PARTS;
        const unsigned char* unit = table + unit_at<F>(number / PANEL, steps / Unit<F>::PARTS, step / Unit<F>::PARTS);
        const Opened opened = open_packed<F>(read_packed<F>(unit, part, row / 2, word), part, word);
        T* to = out + static_cast<long long>(blockIdx.x) * inner + step * PART;
        if (row % 2 == 0) {
            put<F>(opened, 0, word, to);
        } else {
            put<F>(opened, 1, word, to);
        }
    }
}

}  // namespace

#define SPELL_OUT(NAME, F, TYPE, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) spell_out_##NAME##_##TYPE(                          \
        const unsigned char* weight, int columns, int inner, T* out) {                                                \
        spell_out<F, T>(weight, columns, inner, out);                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(TAKING) take_rows_##NAME##_##TYPE(                                   \
        const unsigned char* table, const unsigned* numbers, int inner, T* out) {                                     \
        take_rows<F, T>(table, numbers, inner, out);                                                                  \
    }
#define OF_FORMAT(NAME, F)                      \
    SPELL_OUT(NAME, F, f32, float)              \
    SPELL_OUT(NAME, F, f16, __half)             \
    SPELL_OUT(NAME, F, bf16, __nv_bfloat16)
FOR_EACH_FORMAT(OF_FORMAT)
