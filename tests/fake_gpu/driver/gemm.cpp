// See gemm.h. Panels are widened to f32 as they are packed, sums are kept in f32; one thread, some tens of GFLOP/s with AVX-512.
#include "gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tile.h"

namespace fake {

constexpr int64_t MC = 256, NC = 256, KC = 256;

// === Numbers ===

static float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static float widen_f16(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return std::copysign(std::ldexp(float(fraction), -24), from_bits(sign));
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

// To the nearest, ties to even, as everywhere below.
static uint16_t narrow_f16(float value) {
  uint16_t sign = uint16_t(to_bits(value) >> 16 & 0x8000);
  float size = std::fabs(value);
  if (std::isnan(value)) return uint16_t(sign | 0x7e00);
  if (size >= 65520.0f) return uint16_t(sign | 0x7c00);
  if (size < 6.103515625e-5f) return uint16_t(sign | uint16_t(std::nearbyint(size * 16777216.0f)));
  uint32_t bits = to_bits(size);
  bits += 0xfff + (bits >> 13 & 1);
  return uint16_t(sign | ((bits >> 13) - (112 << 10)));
}

static float keep_bits(float value, int dropped) {
  if (!std::isfinite(value)) return value;
  uint32_t bits = to_bits(value), half = (1u << (dropped - 1)) - 1;
  return from_bits((bits + half + (bits >> dropped & 1)) & ~((1u << dropped) - 1));
}

static uint16_t narrow_bf16(float value) {
  return std::isnan(value) ? 0x7fc0 : uint16_t(to_bits(keep_bits(value, 16)) >> 16);
}

static const float* widened_halves() {
  static const std::vector<float> all = [] {
    std::vector<float> made(65536);
    for (int i = 0; i < 65536; ++i) made[size_t(i)] = widen_f16(uint16_t(i));
    return made;
  }();
  return all.data();
}

// One way of reading for each type and rounding, so that the loops that pack are tight.
struct F32 {
  float operator()(uint64_t base, int64_t index) const { return reinterpret_cast<const float*>(base)[index]; }
};
struct Tf32 {
  float operator()(uint64_t base, int64_t index) const { return keep_bits(F32()(base, index), 13); }
};
struct F32ByBf16 {
  float operator()(uint64_t base, int64_t index) const { return keep_bits(F32()(base, index), 16); }
};
struct Bf16 {
  float operator()(uint64_t base, int64_t index) const {
    return from_bits(uint32_t(reinterpret_cast<const uint16_t*>(base)[index]) << 16);
  }
};
struct F16 {
  const float* halves = widened_halves();
  float operator()(uint64_t base, int64_t index) const { return halves[reinterpret_cast<const uint16_t*>(base)[index]]; }
};
struct F32ByF16 {
  const float* halves = widened_halves();
  float operator()(uint64_t base, int64_t index) const { return halves[narrow_f16(F32()(base, index))]; }
};

template <class With>
static void with_reader(Type type, Round round, With with) {
  if (type == Type::f16) return with(F16());
  if (type == Type::bf16) return with(Bf16());
  if (round == Round::tf32) return with(Tf32());
  if (round == Round::bf16) return with(F32ByBf16());
  if (round == Round::f16) return with(F32ByF16());
  with(F32());
}

static float load(uint64_t base, Type type, int64_t index) {
  float value = 0;
  with_reader(type, Round::none, [&](auto read) { value = read(base, index); });
  return value;
}

static void store(uint64_t base, Type type, int64_t index, float value) {
  if (type == Type::f32)
    reinterpret_cast<float*>(base)[index] = value;
  else
    reinterpret_cast<uint16_t*>(base)[index] = type == Type::f16 ? narrow_f16(value) : narrow_bf16(value);
}

// === The product ===

struct Panels {
  uint64_t from;
  Type type;
  Round round;
  int64_t by_across, by_depth, across, depth;
};

// Panels of WIDTH, one after the other, [panel, depth, WIDTH], filled with zeros past `across`.
template <int WIDTH>
static void pack(float* to, const Panels& p) {
  with_reader(p.type, p.round, [&](auto read) {
    for (int64_t panel = 0; panel < p.across; panel += WIDTH, to += WIDTH * p.depth) {
      int64_t filled = std::min<int64_t>(WIDTH, p.across - panel);
      if (filled < WIDTH) std::fill(to, to + WIDTH * p.depth, 0.0f);
      if (p.by_across == 1)  // along what lies side by side
        for (int64_t k = 0; k < p.depth; ++k)
          for (int64_t i = 0; i < filled; ++i) to[k * WIDTH + i] = read(p.from, panel + i + k * p.by_depth);
      else
        for (int64_t i = 0; i < filled; ++i)
          for (int64_t k = 0; k < p.depth; ++k) to[k * WIDTH + i] = read(p.from, (panel + i) * p.by_across + k * p.by_depth);
    }
  });
}

static float activate(float x, Act act) {
  if (act == Act::relu) return std::isnan(x) ? x : std::max(x, 0.0f);
  if (act == Act::none) return x;
  float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x * (1.0f - 1.0f / (std::exp(2.0f * inner) + 1.0f));  // x (1 + tanh inner) / 2
}

struct Part {  // of d, in one batch
  int64_t batch, row, column, rows, columns;
};

static int64_t index(const Matrix& m, int64_t batch, int64_t row, int64_t column) {
  return row * m.by_row + column * m.by_column + batch * m.by_batch;
}
static uint64_t address(const Matrix& m, int64_t batch, int64_t row, int64_t column) {
  return m.at + uint64_t(index(m, batch, row, column)) * bytes_of(m.type);
}

static void finish(const Product& p, const Part& part, const float* sums) {
  int64_t tiles_across = (part.rows + MR - 1) / MR;
  for (int64_t j = 0; j < part.columns; ++j) {
    for (int64_t i = 0; i < part.rows; ++i) {
      const float* tile = sums + ((j / NR) * tiles_across + i / MR) * MR * NR;
      float value = p.alpha * tile[(j % NR) * MR + i % MR];
      int64_t row = part.row + i, column = part.column + j;
      // With beta 0 what lies in c is not read: it may be anything.
      if (p.beta != 0) value += p.beta * load(p.c.at, p.c.type, index(p.c, part.batch, row, column));
      if (p.has_bias) value += load(p.bias, p.bias_type, row + part.batch * p.bias_by_batch);
      store(p.d.at, p.d.type, index(p.d, part.batch, row, column), activate(value, p.act));
    }
  }
}

static void multiply_part(const Product& p, const Part& part, std::vector<float>& a, std::vector<float>& b,
                          std::vector<float>& sums) {
  static const AddTile add = add_tile();
  std::fill(sums.begin(), sums.end(), 0.0f);
  for (int64_t k = 0; k < p.k; k += KC) {
    int64_t depth = std::min(KC, p.k - k);
    uint64_t from_a = address(p.a, part.batch, part.row, k), from_b = address(p.b, part.batch, k, part.column);
    pack<MR>(a.data(), {from_a, p.a.type, p.round, p.a.by_row, p.a.by_column, part.rows, depth});
    pack<NR>(b.data(), {from_b, p.b.type, p.round, p.b.by_column, p.b.by_row, part.columns, depth});
    float* tile = sums.data();
    for (int64_t j = 0; j < part.columns; j += NR)
      for (int64_t i = 0; i < part.rows; i += MR, tile += MR * NR)
        add(a.data() + i * depth, b.data() + j * depth, depth, tile);
  }
  finish(p, part, sums.data());
}

void multiply(const Product& p) {
  std::vector<float> a(size_t(MC * KC)), b(size_t(NC * KC)), sums(size_t(MC * NC));
  for (int64_t batch = 0; batch < p.batch; ++batch)
    for (int64_t column = 0; column < p.n; column += NC)
      for (int64_t row = 0; row < p.m; row += MC)
        multiply_part(p, {batch, row, column, std::min(MC, p.m - row), std::min(NC, p.n - column)}, a, b, sums);
}

}  // namespace fake
