// The cache of keys and values as kernels know it, for those that write it and those that read it.
//
// Of a layer it is `[blocks, kv heads, 2, 16, width]`: for each block and head sixteen keys, one after the other, and then
// their values, so that what a query meets of a block is one run of memory. Which blocks are whose, tables say.
#pragma once

#include "common.cuh"

constexpr int BLOCK_TOKENS = 16;

// Where the key of a token lies, by its place (`16 * block + number in the block`); its value is `BLOCK_TOKENS * width` on.
__device__ inline long long key_of(unsigned place, int kv_heads, int head, int width) {
    const long long block = place / BLOCK_TOKENS;
    return ((block * kv_heads + head) * 2 * BLOCK_TOKENS + place % BLOCK_TOKENS) * width;
}
