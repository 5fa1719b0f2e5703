// embed_tokens_T: `layer_norm(words[id] + positions[position] + types[type])` of each token.
//
// Block 128, grid ceil(tokens / 4), no dynamic shared memory. `index` is `[3, tokens]`: ids, positions, types. An index
// beyond its table reads whatever lies there: callers check on the host first. Without types, `types` is null and they are
// not read.
#include "rows.cuh"

namespace {

template <class T>
struct Tables {
    const T* words;
    const T* positions;
    const T* types;
};

// The rows of the tables that one token is the sum of; in f32 until it is normalised.
template <class T>
struct SumOfTables {
    const T* word;
    const T* position;
    const T* type;

    template <int N>
    __device__ void read(int column, float (&to)[N]) const {
        float other[N];
        load(word + column, to);
        load(position + column, other);
#pragma unroll
        for (int k = 0; k < N; ++k) to[k] += other[k];
        if (type == nullptr) return;
        load(type + column, other);
#pragma unroll
        for (int k = 0; k < N; ++k) to[k] += other[k];
    }
    template <int N>
    __device__ void keep(int, const float (&)[N]) const {}
    __device__ bool is_aligned() const { return aligned(word) && aligned(position) && aligned(type); }
};

template <class T>
__device__ void embed_tokens(const unsigned* index, int tokens, int width, const Tables<T>& tables, const Norm<T>& norm) {
    const long long token = row_of_warp();
    if (token >= tokens) return;
    const long long id = index[token], position = index[tokens + token];
    const T* type = tables.types;
    if (type != nullptr) type += static_cast<long long>(index[2ll * tokens + token]) * width;
    const SumOfTables<T> sum{tables.words + id * width, tables.positions + position * width, type};
    normalize(sum, width, Norm<T>{norm.gamma, norm.beta, norm.eps, norm.out + token * width});
}

}  // namespace

#define EMBED_TOKENS(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) embed_tokens_##NAME(                                    \
        const unsigned* index, int tokens, int width, const T* words, const T* positions, const T* types,             \
        const T* gamma, const T* beta, float eps, T* out) {                                                           \
        embed_tokens<T>(index, tokens, width, {words, positions, types}, {gamma, beta, eps, out});                    \
    }
FOR_EACH_DTYPE(EMBED_TOKENS)
