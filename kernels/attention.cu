// attention_W_T, attention_any_T: `softmax(q kᵀ scale) v` of each head of each sequence; no row sees another sequence.
//
// W is the heads' width, 32, 64 or 128 (then `width` is not read); `any` takes widths up to 256. Grid (tiles, heads); blocks
// and dynamic shared memory are in README.md. q, k and v may be columns of one matrix. Keys past a sequence's end are not
// read. Sums are f32. f16 and bf16 of the fixed widths are computed on tensor cores.
#include "attention_plain.cuh"
#include "attention_tensor.cuh"

namespace {

template <class T>
__device__ void attend_any(const Attention<T>& all) {
    if (all.width <= 64) {
        plain::attend<T, 64>(all, all.width);
    } else if (all.width <= 128) {
        plain::attend<T, 128>(all, all.width);
    } else {
        plain::attend<T, 256>(all, all.width);
    }
}

}  // namespace

#define ATTENTION_PARAMETERS(T)                                                                                       \
    const T *q, const T *k, const T *v, int stride, const unsigned *offsets, const unsigned *tiles, int heads,        \
        int width, float scale, T *out

#define ATTENTION_OF_WIDTH(WIDTH, NAME, T, BOUNDS, ATTEND)                                                            \
    extern "C" __global__ void __launch_bounds__ BOUNDS attention_##WIDTH##_##NAME(ATTENTION_PARAMETERS(T)) {         \
        (void)width;                                                                                                  \
        const Attention<T> all{q, k, v, stride, offsets, tiles, heads, WIDTH, scale, out};                            \
        ATTEND;                                                                                                       \
    }
#define ATTENTION_PLAIN(WIDTH, NAME, T) \
    ATTENTION_OF_WIDTH(WIDTH, NAME, T, (plain::THREADS), (plain::attend<T, WIDTH>(all, WIDTH)))
#define ATTENTION_TENSOR(WIDTH, NAME, T) \
    ATTENTION_OF_WIDTH(WIDTH, NAME, T, (tensor::THREADS, tensor::BLOCKS<WIDTH>), (tensor::attend<T, WIDTH>(all)))

ATTENTION_PLAIN(32, f32, float)
ATTENTION_PLAIN(64, f32, float)
ATTENTION_PLAIN(128, f32, float)
ATTENTION_TENSOR(32, f16, __half)
ATTENTION_TENSOR(64, f16, __half)
ATTENTION_TENSOR(128, f16, __half)
ATTENTION_TENSOR(32, bf16, __nv_bfloat16)
ATTENTION_TENSOR(64, bf16, __nv_bfloat16)
ATTENTION_TENSOR(128, bf16, __nv_bfloat16)

#define ATTENTION_ANY(NAME, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(plain::THREADS, 1) attention_any_##NAME(ATTENTION_PARAMETERS(T)) {   \
        attend_any<T>({q, k, v, stride, offsets, tiles, heads, width, scale, out});                                   \
    }
FOR_EACH_DTYPE(ATTENTION_ANY)
