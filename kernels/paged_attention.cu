// paged_W_T, paged_decode_W_T, paged_prefill_W_T: `softmax(q kᵀ scale) v` of each head of each row of a step, over the keys and
// values of its sequence up to its own position, which lie in blocks.
//
// paged_128 takes every width up to that and paged_256 wider ones, in blocks of 16 rows (paged_plain.cuh). For f16 and bf16 and
// heads of 64 or 128 there are two for tensor cores: decode for runs of at most 16 rows, whose parts are blocks'
// (paged_decode.cuh), and prefill for longer ones, 64 rows a block (paged_prefill.cuh). Grid (items, kv heads), or any number
// of blocks instead of items but for prefill; blocks and dynamic shared memory are in README.md, tables in paged_attention.cuh. Sums are f32.
#include "paged_decode.cuh"
#include "paged_plain.cuh"
#include "paged_prefill.cuh"

#define PAGED(NAME, T, BOUNDS, ATTEND)                                                                                \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME(                                                         \
        const T* q, const T* cache, const unsigned* runs, const unsigned* table, const unsigned* items, int group,    \
        int width, int window, float scale, int kept, float* parts, unsigned* finished, T* out) {                     \
        ATTEND({q, cache, runs, table, items, group, width, window, scale, kept, parts, finished, out});              \
    }

#define PAGED_PLAIN(NAME, T)                                                                                          \
    PAGED(paged_128_##NAME, T, (paged_plain::THREADS, 3), (paged_plain::attend<T, 128>))                              \
    PAGED(paged_256_##NAME, T, (paged_plain::THREADS, 2), (paged_plain::attend<T, 256>))
FOR_EACH_DTYPE(PAGED_PLAIN)

#define PAGED_TENSOR(NAME, T)                                                                                         \
    PAGED(paged_decode_64_##NAME, T, (paged_tensor::THREADS, paged_decode::BLOCKS<64>), (paged_decode::attend<T, 64>)) \
    PAGED(paged_decode_128_##NAME, T, (paged_tensor::THREADS, paged_decode::BLOCKS<128>),                             \
          (paged_decode::attend<T, 128>))                                                                             \
    PAGED(paged_prefill_64_##NAME, T, (paged_tensor::THREADS, paged_prefill::BLOCKS<64>), (paged_prefill::attend<T, 64>)) \
    PAGED(paged_prefill_128_##NAME, T, (paged_tensor::THREADS, paged_prefill::BLOCKS<128>),                           \
          (paged_prefill::attend<T, 128>))
PAGED_TENSOR(f16, __half)
PAGED_TENSOR(bf16, __nv_bfloat16)
