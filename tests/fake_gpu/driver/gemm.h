// Matrix products on the host: what a matmul of cublasLt computes, with nothing of its descriptors.
#pragma once
#include <cstdint>

namespace fake {

enum class Type { f32, f16, bf16 };
enum class Round { none, tf32, f16, bf16 };  // of what is multiplied
enum class Act { none, relu, gelu };

inline uint64_t bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

// Element (row, column) lies at `row * by_row + column * by_column`, of batch b at `b * by_batch` further.
struct Matrix {
  uint64_t at;
  Type type;
  int64_t by_row, by_column, by_batch;
};

// d = act(alpha a b + beta c + bias), a: m × k, b: k × n, c and d: m × n; the bias has an element for each row.
struct Product {
  int64_t m, n, k, batch;
  Matrix a, b, c, d;
  float alpha, beta;
  bool has_bias;
  uint64_t bias;
  Type bias_type;
  int64_t bias_by_batch;
  Act act;
  Round round;
};

void multiply(const Product& product);

}  // namespace fake
