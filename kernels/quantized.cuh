// Quantised weights as they lie on a device: panels of sixteen rows, block beside block, in the bytes of their file.
//
// `[ceil(out / 16), in / block, unit]`, a unit being one block of each of sixteen rows:
//
//   Q4_0  scale[16] f16                                  and of every 32 weights  low[4][16][4]
//   Q4_1  scale[16] least[16] f16                                                 low[4][16][4]
//   Q8_0  scale[16] f16                                                           level[8][16][4], plus 128
//   Q4_K  scale[16] offset[16] f16, packed[12][16]                                low[4][16][4]
//   Q6_K  scale[16] f16, a[16][16] i8                                             low[4][16][4] high[2][16][4]
//
// In a file blocks of 18, 20, 34, 144 and 210 bytes lie row by row, on no border that wide loads could use. Here eight bytes of a
// lane are four levels of each of two rows, and the 256 of a warp lie together: whole sectors, whatever `in` is. A byte of `low` has
// weight i of 32 in its low half and i + 16 in its high one, a byte of `high` the upper two bits of i, i + 8, i + 16 and i + 24.
// It is src/ops/quantized/layout.rs but for Q4_K's scales, which stay packed: that takes bytes, and a device has none to spare.
// Rows past the last of the last panel are anything; whoever reads a panel leaves them alone.
#pragma once

#include "tensor_cores.cuh"

enum class Format { Q4_0, Q4_1, Q8_0, Q4_K, Q6_K };

constexpr int PANEL = 16;     // rows
constexpr int PART = 32;      // weights
constexpr int HALVES = 2 * PANEL;  // bytes of an f16 for each row

// Bytes of a block in a file and of what its unit begins with, of 32 weights of sixteen rows, and what levels stand for.
template <Format F>
struct Unit;

template <>
struct Unit<Format::Q4_0> {
    static constexpr int FILE = 18, PARTS = 1, HEAD = HALVES, LEVELS = 16 * PANEL, ZERO = 8;
    static constexpr bool OFFSET = false, TWO_SCALES = false;
};
template <>
struct Unit<Format::Q4_1> {
    static constexpr int FILE = 20, PARTS = 1, HEAD = 2 * HALVES, LEVELS = 16 * PANEL, ZERO = 0;
    static constexpr bool OFFSET = true, TWO_SCALES = false;
};
template <>
struct Unit<Format::Q8_0> {
    static constexpr int FILE = 34, PARTS = 1, HEAD = HALVES, LEVELS = 32 * PANEL, ZERO = 128;
    static constexpr bool OFFSET = false, TWO_SCALES = false;
};
template <>
struct Unit<Format::Q4_K> {
    static constexpr int FILE = 144, PARTS = 8, HEAD = 2 * HALVES + 12 * PANEL, LEVELS = 16 * PANEL, ZERO = 0;
    static constexpr bool OFFSET = true, TWO_SCALES = false;
};
template <>
struct Unit<Format::Q6_K> {
    static constexpr int FILE = 210, PARTS = 8, HEAD = HALVES + 16 * PANEL, LEVELS = 24 * PANEL, ZERO = 32;
    static constexpr bool OFFSET = false, TWO_SCALES = true;
};

template <Format F>
constexpr int UNIT_BYTES = Unit<F>::HEAD + Unit<F>::PARTS * Unit<F>::LEVELS;
// A weight takes what its file has.
static_assert(UNIT_BYTES<Format::Q4_0> == PANEL * 18 && UNIT_BYTES<Format::Q4_1> == PANEL * 20);
static_assert(UNIT_BYTES<Format::Q8_0> == PANEL * 34 && UNIT_BYTES<Format::Q4_K> == PANEL * 144);
static_assert(UNIT_BYTES<Format::Q6_K> == PANEL * 210);

// What a lane reads of 32 weights of two rows, 2 · pair and the next: of each, weights 4 · word to 4 · word + 3 and 16 more.
struct Packed {
    uint2 levels, more;      // of each row; `more` is the second half of Q8_0's, and Q6_K's upper bits
    unsigned scale, offset;  // f16 of each row
    unsigned a, b, c;        // a byte of each row: what scales are multiplied by
};

__device__ inline unsigned two_bytes(const unsigned char* at) { return *reinterpret_cast<const unsigned short*>(at); }
__device__ inline unsigned four_bytes(const unsigned char* at) { return *reinterpret_cast<const unsigned*>(at); }

template <Format F>
__device__ inline Packed read_packed(const unsigned char* unit, int part, int pair, int word) {
    using U = Unit<F>;
    Packed read{};
    const unsigned char* levels = unit + U::HEAD + part * U::LEVELS;
    const auto of_word = [=](int at) {
        return load_once(reinterpret_cast<const uint2*>(levels + (at * PANEL + 2 * pair) * 4));
    };
    read.levels = of_word(word);
    if constexpr (F == Format::Q8_0) read.more = of_word(4 + word);
    if constexpr (F == Format::Q6_K) read.more = of_word(4 + word % 2);
    read.scale = four_bytes(unit + 4 * pair);
    if constexpr (U::OFFSET) read.offset = four_bytes(unit + HALVES + 4 * pair);
    if constexpr (F == Format::Q4_K) {
        const unsigned char* packed = unit + 2 * HALVES + 2 * pair;
        read.a = two_bytes(packed + part % 4 * PANEL);
        read.b = two_bytes(packed + (4 + part % 4) * PANEL);
        if (part >= 4) read.c = two_bytes(packed + (4 + part) * PANEL);
    }
    if constexpr (F == Format::Q6_K) {
        read.a = two_bytes(unit + HALVES + 2 * part * PANEL + 2 * pair);
        read.b = two_bytes(unit + HALVES + (2 * part + 1) * PANEL + 2 * pair);
    }
    return read;
}

// The same opened: levels, a byte each, weights 4 · word on and 16 more; and for each row what both halves of the 32 are multiplied
// by once `ZERO` is off, and what is added.
struct Opened {
    unsigned low[2], high[2];
    float scale[2][2], offset[2];
};

__device__ inline float half_of_bits(unsigned bits) {
    const unsigned short half = static_cast<unsigned short>(bits);
    return __half2float(*reinterpret_cast<const __half*>(&half));
}

template <Format F>
__device__ inline Opened open_packed(const Packed& read, int part, int word) {
    Opened opened;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const unsigned levels = i == 0 ? read.levels.x : read.levels.y, more = i == 0 ? read.more.x : read.more.y;
        opened.low[i] = F == Format::Q8_0 ? levels : levels & 0x0f0f0f0fu;
        opened.high[i] = F == Format::Q8_0 ? more : levels >> 4 & 0x0f0f0f0fu;
        if constexpr (F == Format::Q6_K) {
            // two bits of weights 4 · word on, and four bits up those of 16 more
            const unsigned upper = more >> (word & 2);
            opened.low[i] |= (upper & 0x03030303u) << 4;
            opened.high[i] |= upper & 0x30303030u;
        }
        const float scale = half_of_bits(read.scale >> 16 * i);
        const float offset = Unit<F>::OFFSET ? half_of_bits(read.offset >> 16 * i) : 0.f;
        const unsigned a = read.a >> 8 * i & 255, b = read.b >> 8 * i & 255, c = read.c >> 8 * i & 255;
        if constexpr (F == Format::Q4_K) {
            // six bits each; those of the last four parts have their upper two above the first four's
            const unsigned of_scale = part < 4 ? a & 63 : (c & 15) | a >> 6 << 4;
            const unsigned of_offset = part < 4 ? b & 63 : c >> 4 | b >> 6 << 4;
            opened.scale[i][0] = opened.scale[i][1] = __fmul_rn(scale, static_cast<float>(of_scale));
            opened.offset[i] = -__fmul_rn(offset, static_cast<float>(of_offset));
        } else if constexpr (F == Format::Q6_K) {
            opened.scale[i][0] = __fmul_rn(scale, static_cast<float>(static_cast<signed char>(a)));
            opened.scale[i][1] = __fmul_rn(scale, static_cast<float>(static_cast<signed char>(b)));
            opened.offset[i] = 0.f;
        } else {
            opened.scale[i][0] = opened.scale[i][1] = scale;
            opened.offset[i] = offset;
        }
    }
    return opened;
}

// Four levels as numbers.
template <Format F>
__device__ inline void widen_levels(unsigned levels, float (&to)[4]) {
    constexpr float ZERO = 8388608.f + Unit<F>::ZERO;  // 2^23, above which a float counts in ones
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(__byte_perm(levels, 0x4b000000u, 0x7440u | i)) - ZERO;
}

// The weights that they stand for, each operation rounded: the numbers of `QuantFormat::dequantize`.
template <Format F>
__device__ inline void spell_levels(unsigned levels, float scale, float offset, float (&to)[4]) {
    widen_levels<F>(levels, to);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[i] = __fmul_rn(scale, to[i]);
        if constexpr (Unit<F>::OFFSET) to[i] = __fadd_rn(to[i], offset);
    }
}

// Where the unit of a row's block begins.
template <Format F>
__device__ inline long long unit_at(long long panel, int blocks, int block) {
    return (panel * blocks + block) * UNIT_BYTES<F>;
}

// A kernel for each format: `KERNEL(q4_0, Format::Q4_0)` and so on.
#define FOR_EACH_FORMAT(KERNEL)  \
    KERNEL(q4_0, Format::Q4_0)   \
    KERNEL(q4_1, Format::Q4_1)   \
    KERNEL(q8_0, Format::Q8_0)   \
    KERNEL(q4_k, Format::Q4_K)   \
    KERNEL(q6_k, Format::Q6_K)
