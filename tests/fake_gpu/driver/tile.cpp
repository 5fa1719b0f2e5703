// See tile.h. LEVEL is the level of x86-64 that this is compiled for; only the lowest has the choice.
#include "tile.h"

#include <cstring>

#ifndef LEVEL
#define LEVEL 1
#endif
#define NAME_OF(level) add_tile_##level
#define NAMED(level) NAME_OF(level)

namespace fake {

typedef float Lanes __attribute__((vector_size(64)));

void NAMED(LEVEL)(const float* a, const float* b, int64_t depth, float* tile) {
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

#if LEVEL == 1
void add_tile_3(const float*, const float*, int64_t, float*);
void add_tile_4(const float*, const float*, int64_t, float*);

AddTile add_tile() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    return add_tile_4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return add_tile_3;
#endif
  return add_tile_1;
}
#endif

}  // namespace fake
