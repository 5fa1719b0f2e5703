// arrange_F: blocks of a quantised weight as a file has them, to where they lie on a device (quantized.cuh).
//
// Block 256, any grid (a step of 32 weights a thread is best), no dynamic shared memory. `count` whole blocks, of which the first is
// block `first` of its weight, row by row, `each` of them a row; they begin on a border of 4 bytes. `out` is the weight's. Where a
// scale is no number `bit` is set in `*flags`, and nobody clears it: then some weight is none, and else all are.
#include "elementwise.cuh"
#include "quantized.cuh"

namespace {

// Blocks begin at even bytes.
__device__ inline unsigned word_of(const unsigned char* at) { return two_bytes(at) | two_bytes(at + 2) << 16; }

// Where a row's words of a part lie, and how its bytes of the head.
struct Row {
    unsigned char* unit;
    int row;

    __device__ void put_word(unsigned char* levels, int number, unsigned word) const {
        *reinterpret_cast<unsigned*>(levels + (number * PANEL + row) * 4) = word;
    }
    __device__ void put_half(int at, unsigned half) const {
        *reinterpret_cast<unsigned short*>(unit + at + 2 * row) = static_cast<unsigned short>(half);
    }
    __device__ void put_bytes(int at, const unsigned char* bytes, int count) const {
        for (int i = 0; i < count; ++i) unit[at + i * PANEL + row] = bytes[i];
    }
};

__device__ inline bool is_number(unsigned half) { return (half & 0x7c00u) != 0x7c00u; }

// What the head of a unit has of a block; false where a scale is no number.
template <Format F>
__device__ bool put_head(const unsigned char* block, const Row& to) {
    const unsigned scale = two_bytes(block + (F == Format::Q6_K ? 208 : 0));
    to.put_half(0, scale);
    bool good = is_number(scale);
    if constexpr (Unit<F>::OFFSET) {
        const unsigned offset = two_bytes(block + 2);
        to.put_half(HALVES, offset);
        good = good && is_number(offset);
    }
    if constexpr (F == Format::Q4_K) to.put_bytes(2 * HALVES, block + 4, 12);
    if constexpr (F == Format::Q6_K) to.put_bytes(HALVES, block + 192, 16);
    return good;
}

template <Format F>
__device__ void put_levels(const unsigned char* block, int part, const Row& to) {
    unsigned char* levels = to.unit + Unit<F>::HEAD + part * Unit<F>::LEVELS;
    if constexpr (F == Format::Q8_0) {
#pragma unroll
        for (int i = 0; i < 8; ++i) to.put_word(levels, i, word_of(block + 2 + 4 * i) ^ 0x80808080u);
    } else if constexpr (F == Format::Q4_0 || F == Format::Q4_1) {
        const unsigned char* from = block + (F == Format::Q4_0 ? 2 : 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) to.put_word(levels, i, word_of(from + 4 * i));
    } else {
        // two parts share 32 bytes of Q4_K, one in the low halves and one in the high ones; of Q6_K the first of 128 weights and the third
        const bool is_q4 = F == Format::Q4_K;
        const unsigned char* from = is_q4 ? block + 16 + part / 2 * 32 : block + part / 4 * 64 + part % 2 * 32;
        const int shift = 4 * (is_q4 ? part % 2 : part % 4 / 2);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned first = word_of(from + 4 * i) >> shift & 0x0f0f0f0fu;
            const unsigned second = word_of(from + 16 + 4 * i) >> shift & 0x0f0f0f0fu;
            to.put_word(levels, i, first | second << 4);
        }
    }
    if constexpr (F == Format::Q6_K) {
        const unsigned char* from = block + 128 + part / 4 * 32;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            unsigned upper = 0;
#pragma unroll
            for (int field = 0; field < 4; ++field) {
                upper |= (word_of(from + 8 * field + 4 * i) >> 2 * (part % 4) & 0x03030303u) << 2 * field;
            }
            to.put_word(levels, 4 + i, upper);
        }
    }
}

template <Format F>
__device__ void arrange(const unsigned char* blocks, int count, long long first, int each, unsigned char* out, unsigned* flags,
                        int bit) {
    const long long all = static_cast<long long>(count) * Unit<F>::PARTS;
    bool good = true;
    for (long long i = thread_of_grid(); i < all; i += threads_of_grid()) {
        const int number = static_cast<int>(i / Unit<F>::PARTS), part = static_cast<int>(i % Unit<F>::PARTS);
        const unsigned char* block = blocks + static_cast<long long>(number) * Unit<F>::FILE;
        const long long row = (first + number) / each;
        const int column = static_cast<int>((first + number) % each);
        const Row to{out + unit_at<F>(row / PANEL, each, column), static_cast<int>(row % PANEL)};
        put_levels<F>(block, part, to);
        if (part == 0) good = put_head<F>(block, to) && good;
    }
    const bool any = __any_sync(ALL_LANES, !good);
    if (any && lane_of(threadIdx.x) == 0) atomicOr(flags, static_cast<unsigned>(bit));
}

}  // namespace

#define ARRANGE(NAME, F)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ELEMENT_THREADS) arrange_##NAME(                                         \
        const unsigned char* blocks, int count, long long first, int each, unsigned char* out, unsigned* flags, int bit) { \
        arrange<F>(blocks, count, first, each, out, flags, bit);                                                          \
    }
FOR_EACH_FORMAT(ARRANGE)
