// The innermost loop of gemm.cpp, compiled once for each level of x86-64 (see build): `add_tile` picks the best that this
// processor has.
#pragma once
#include <cstdint>

namespace fake {

constexpr int MR = 32, NR = 8;  // a tile in registers

// tile[NR][MR] += a panel [depth, MR] by a panel [depth, NR]
using AddTile = void (*)(const float* a, const float* b, int64_t depth, float* tile);
AddTile add_tile();

}  // namespace fake
