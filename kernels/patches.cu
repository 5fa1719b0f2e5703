// patches_T, embed_patches_T: images cut into patches, and projected patches made into a packed batch of sequences.
//
// patches: block 128, grid (images * patches). embed_patches: block 128, grid ceil(images * (patches + 1) / 4). None takes
// dynamic shared memory.
#include "rows.cuh"

namespace {

constexpr int PATCH_THREADS = 128;

// Pixels `[images, channels, height, width]`; what does not fill a patch is left out.
struct Images {
    const float* pixels;
    int images, channels, height, width;
};

// Of a patch, in pixels.
struct Size {
    int tall, wide;
};

// One row of `out`: the block's patch, `[channels, tall, wide]`, `N` pixels of a line at a time.
template <int N, class T>
__device__ void unfold(const Images& of, Size patch, T* out) {
    const int across = of.width / patch.wide, down = of.height / patch.tall;
    const int column = blockIdx.x % across * patch.wide, line = blockIdx.x / across % down * patch.tall;
    const long long image = blockIdx.x / across / down;
    const float* from = of.pixels + image * of.channels * of.height * of.width;
    const int steps = patch.wide / N, count = of.channels * patch.tall * steps;
    out += static_cast<long long>(blockIdx.x) * count * N;
    for (int i = threadIdx.x; i < count; i += PATCH_THREADS) {
        const int x = i % steps * N, y = i / steps % patch.tall, channel = i / steps / patch.tall;
        float values[N];
        load(from + (static_cast<long long>(channel) * of.height + line + y) * of.width + column + x, values);
        store(out + static_cast<long long>(i) * N, values);
    }
}

template <class T>
__device__ void patches(const Images& of, Size patch, T* out) {
    constexpr int N = Dtype<T>::VECTOR;
    if (blockIdx.x >= static_cast<long long>(of.images) * (of.width / patch.wide) * (of.height / patch.tall)) return;
    if (patch.wide % N == 0 && of.width % Dtype<float>::VECTOR == 0 && aligned(of.pixels) && aligned(out)) {
        unfold<N>(of, patch, out);
    } else {
        unfold<1>(of, patch, out);
    }
}

// What a sequence's rows are made of: a class token, then the image's patches, each plus its position.
template <class T>
struct Parts {
    const T* projected;  // [images * patches, width]
    const T* cls;        // [width]
    const T* positions;  // [patches + 1, width]
};

template <int N, class T>
__device__ void add_row(const T* content, const T* position, int width, T* out) {
    for (int column = lane_of(threadIdx.x) * N; column < width; column += WARP * N) {
        float values[N], other[N];
        load(content + column, values);
        load(position + column, other);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] += other[k];
        store(out + column, values);
    }
}

template <class T>
__device__ void embed_patches(const Parts<T>& parts, int images, int patches, int width, T* out) {
    const long long row = row_of_warp(), length = patches + 1;
    if (row >= images * length) return;
    const long long image = row / length, place = row % length;
    const T* content = place == 0 ? parts.cls : parts.projected + (image * patches + place - 1) * width;
    const T* position = parts.positions + place * width;
    out += row * width;
    if (width % Dtype<T>::VECTOR == 0 && aligned(content) && aligned(position) && aligned(out)) {
        add_row<Dtype<T>::VECTOR>(content, position, width, out);
    } else {
        add_row<1>(content, position, width, out);
    }
}

}  // namespace

#define PATCHES(NAME, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(PATCH_THREADS) patches_##NAME(                                       \
        const float* pixels, int images, int channels, int height, int width, int tall, int wide, T* out) {           \
        patches(Images{pixels, images, channels, height, width}, Size{tall, wide}, out);                              \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) embed_patches_##NAME(                                   \
        const T* projected, const T* cls, const T* positions, int images, int patches, int width, T* out) {           \
        embed_patches(Parts<T>{projected, cls, positions}, images, patches, width, out);                              \
    }
FOR_EACH_DTYPE(PATCHES)
