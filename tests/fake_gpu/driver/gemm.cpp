// See gemm.h. Panels are widened to f32 as they are packed, sums are kept in f32; one thread, some tens of GFLOP/s with AVX-512.
#include "gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#define FOR_EVERY_CPU __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define FOR_EVERY_CPU
#endif

namespace fake {

constexpr int MR = 32, NR = 8;  // a tile in registers
constexpr int64_t MC = 256, NC = 256, KC = 256;

typedef float Lanes __attribute__((vector_size(64)));

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

struct Load {
  const float* halves = widened_halves();
  Type type;
  Round round = Round::none;
  explicit Load(Type of, Round to = Round::none) : type(of), round(to) {}
  float operator()(uint64_t base, int64_t index) const {
    float value;
    if (type == Type::f32) {
      value = reinterpret_cast<const float*>(base)[index];
      if (round == Round::none) return value;
      if (round == Round::tf32) return keep_bits(value, 13);
      return round == Round::bf16 ? keep_bits(value, 16) : halves[narrow_f16(value)];
    }
    uint16_t bits = reinterpret_cast<const uint16_t*>(base)[index];
    return type == Type::f16 ? halves[bits] : from_bits(uint32_t(bits) << 16);
  }
};

static void store(uint64_t base, Type type, int64_t index, float value) {
  if (type == Type::f32)
    reinterpret_cast<float*>(base)[index] = value;
  else
    reinterpret_cast<uint16_t*>(base)[index] = type == Type::f16 ? narrow_f16(value) : narrow_bf16(value);
}

// === The product ===

// Panels of `width`, one after the other, [panel, depth, width], filled with zeros past `across`.
static void pack(float* to, const Load& load, uint64_t base, int64_t by_across, int64_t by_depth, int64_t across, int64_t depth,
                 int width) {
  for (int64_t panel = 0; panel < across; panel += width) {
    int64_t filled = std::min<int64_t>(width, across - panel);
    for (int64_t p = 0; p < depth; ++p, to += width) {
      for (int64_t i = 0; i < filled; ++i) to[i] = load(base, (panel + i) * by_across + p * by_depth);
      std::fill(to + filled, to + width, 0.0f);
    }
  }
}

// tile[NR][MR] += a panel by a panel.
FOR_EVERY_CPU static void add_tile(const float* a, const float* b, int64_t depth, float* tile) {
  Lanes sums[NR][2];
  memcpy(sums, tile, sizeof sums);
  for (int64_t p = 0; p < depth; ++p, a += MR, b += NR) {
    Lanes low, high;
    memcpy(&low, a, sizeof low);
    memcpy(&high, a + MR / 2, sizeof high);
    for (int j = 0; j < NR; ++j) {
      sums[j][0] += low * b[j];
      sums[j][1] += high * b[j];
    }
  }
  memcpy(tile, sums, sizeof sums);
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

static void finish(const Product& p, const Part& part, const float* sums) {
  Load c(p.c.type), bias(p.bias_type);
  int64_t tiles_across = (part.rows + MR - 1) / MR;
  for (int64_t j = 0; j < part.columns; ++j) {
    for (int64_t i = 0; i < part.rows; ++i) {
      const float* tile = sums + ((j / NR) * tiles_across + i / MR) * MR * NR;
      float value = p.alpha * tile[(j % NR) * MR + i % MR];
      int64_t row = part.row + i, column = part.column + j;
      // With beta 0 what lies in c is not read: it may be anything.
      if (p.beta != 0) value += p.beta * c(p.c.at, row * p.c.by_row + column * p.c.by_column + part.batch * p.c.by_batch);
      if (p.has_bias) value += bias(p.bias, row + part.batch * p.bias_by_batch);
      store(p.d.at, p.d.type, row * p.d.by_row + column * p.d.by_column + part.batch * p.d.by_batch, activate(value, p.act));
    }
  }
}

static void multiply_part(const Product& p, const Part& part, std::vector<float>& a, std::vector<float>& b, std::vector<float>& sums) {
  Load load_a(p.a.type, p.round), load_b(p.b.type, p.round);
  uint64_t from_a = p.a.at + uint64_t(part.batch * p.a.by_batch + part.row * p.a.by_row) * bytes_of(p.a.type);
  uint64_t from_b = p.b.at + uint64_t(part.batch * p.b.by_batch + part.column * p.b.by_column) * bytes_of(p.b.type);
  std::fill(sums.begin(), sums.end(), 0.0f);
  for (int64_t k = 0; k < p.k; k += KC) {
    int64_t depth = std::min(KC, p.k - k);
    pack(a.data(), load_a, from_a + uint64_t(k * p.a.by_column) * bytes_of(p.a.type), p.a.by_row, p.a.by_column, part.rows, depth, MR);
    pack(b.data(), load_b, from_b + uint64_t(k * p.b.by_row) * bytes_of(p.b.type), p.b.by_column, p.b.by_row, part.columns, depth, NR);
    float* tile = sums.data();
    for (int64_t j = 0; j < part.columns; j += NR)
      for (int64_t i = 0; i < part.rows; i += MR, tile += MR * NR)
        add_tile(a.data() + i * depth, b.data() + j * depth, depth, tile);
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
