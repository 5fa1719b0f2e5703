// embed_tokens_T: `layer_norm(words[id] + positions[position] + types[type])` of each token.
//
// Block 128, grid ceil(tokens / 4), or ceil(tokens / 8) where two rows share a warp (`shares_warp`); no dynamic shared memory.
// `index` is `[3, tokens]`: ids, positions, types. An index beyond its table reads whatever lies there: callers check on the host
// first. Without types, `types` is null and they are not read.
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

// As it is stored: a load that nothing waits for.
template <class T>
__device__ inline uint4 vector_at(const T* from) {
    return *reinterpret_cast<const uint4*>(from);
}

template <class T, int N>
__device__ inline void widen_vector(const uint4& stored, float (&to)[N]) {
    widen(*reinterpret_cast<const Values<T, N>*>(&stored), to);
}

template <class T, int N>
__device__ inline void add_vector(const uint4& stored, float (&to)[N]) {
    float x[N];
    widen_vector<T>(stored, x);
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] += x[k];
}

// The sum of what so many lanes side by side bring.
template <int LANES>
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

// What a lane reads of the three tables, from its vector `FIRST` on: four of each are on their way at once, as they are stored, before
// any of them is used. So nothing here is read under a condition: where the last one lies beyond the row's end, the row's first
// values are read again and not added up. Adds to `sum`.
template <int FIRST, int LANES, int COUNT, class T, int N>
__device__ inline void read_sums(const SumOfTables<T>& of, int width, float (&held)[COUNT][N], float& sum) {
    constexpr int MOST = 4, STEP = LANES * N, AT_ONCE = COUNT - FIRST < MOST ? COUNT - FIRST : MOST;
    const int lane = lane_of(threadIdx.x) % LANES * N;
    // without types the words again, out of the cache
    const T* third = of.type != nullptr ? of.type : of.word;
    uint4 words[AT_ONCE], positions[AT_ONCE], types[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
        const int column = lane + (FIRST + i) * STEP, inside = FIRST + i == COUNT - 1 && column >= width ? 0 : column;
        words[i] = vector_at(of.word + inside);
        positions[i] = vector_at(of.position + inside);
        types[i] = vector_at(third + inside);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
        float(&x)[N] = held[FIRST + i];
        widen_vector<T>(words[i], x);
        add_vector<T>(positions[i], x);
        if (of.type != nullptr) add_vector<T>(types[i], x);
        if (FIRST + i < COUNT - 1 || lane + (FIRST + i) * STEP < width) sum += sum_of(x);
    }
    if constexpr (FIRST + AT_ONCE < COUNT) read_sums<FIRST + AT_ONCE, LANES>(of, width, held, sum);
}

// A row of `COUNT` vectors a lane, the last of which may lie beyond its end. `writes`: else the lanes are there for the others
// of their warp.
template <int LANES, int COUNT, class T>
__device__ void embed_held(const SumOfTables<T>& of, int width, const Norm<T>& norm, bool writes) {
    constexpr int N = Dtype<T>::VECTOR, STEP = LANES * N;
    const int first = lane_of(threadIdx.x) % LANES * N, last = first + (COUNT - 1) * STEP;
    float held[COUNT][N] = {};
    float sum = 0.f;
    read_sums<0, LANES>(of, width, held, sum);
    const float mean = __fdividef(sum_of_lanes<LANES>(sum), width);
    float spread = 0.f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if (i < COUNT - 1 || last < width) spread += spread_of(held[i], mean);
    }
    const float inverse = rsqrtf(__fdividef(sum_of_lanes<LANES>(spread), width) + norm.eps);
    if (!writes) return;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if (i < COUNT - 1 || last < width) norm.write(first + i * STEP, held[i], mean, inverse);
    }
}

// The same for as many vectors as the row comes to: at most `COUNT`, and as many less as `EVERY` goes into.
template <int LANES, int COUNT, int EVERY, class T>
__device__ void embed_counted(const SumOfTables<T>& of, int width, const Norm<T>& norm, bool writes) {
    if constexpr (COUNT > EVERY) {
        if (width <= (COUNT - EVERY) * LANES * Dtype<T>::VECTOR) {
            return embed_counted<LANES, COUNT - EVERY, EVERY>(of, width, norm, writes);
        }
    }
    embed_held<LANES, COUNT>(of, width, norm, writes);
}

// Whether half a warp does a row: where it fills half of the lanes the last time, as 384 values of 16 bits do. The server
// knows too (`Shape::embedding`).
template <class T>
__device__ inline bool shares_warp(int width) {
    constexpr int HALF = WARP / 2;
    return width % (HALF * Dtype<T>::VECTOR) == 0 && width / (HALF * Dtype<T>::VECTOR) % 2 == 1 && width <= HALF * HELD;
}

// The tables' rows of a token.
template <class T>
__device__ inline SumOfTables<T> rows_of(const unsigned* index, int tokens, int width, const Tables<T>& tables, long long token) {
    const long long id = index[token], position = index[tokens + token];
    const T* type = tables.types;
    if (type != nullptr) type += static_cast<long long>(index[2ll * tokens + token]) * width;
    return {tables.words + id * width, tables.positions + position * width, type};
}

template <class T>
__device__ void embed_tokens(const unsigned* index, int tokens, int width, const Tables<T>& tables, const Norm<T>& norm) {
    constexpr int VECTORS = HELD / Dtype<T>::VECTOR;
    const bool share = shares_warp<T>(width);
    const bool vectors = width % Dtype<T>::VECTOR == 0 && aligned(tables.words) && aligned(tables.positions) &&
                         aligned(tables.types) && aligned(norm.gamma) && aligned(norm.beta) && aligned(norm.out);
    const long long first = row_of_warp() * (share ? 2 : 1);
    if (first >= tokens) return;
    if (share && vectors) {
        const long long mine = first + lane_of(threadIdx.x) / (WARP / 2);
        // the second half of the last warp may have none
        const long long token = mine < tokens ? mine : first;
        const SumOfTables<T> of = rows_of(index, tokens, width, tables, token);
        const Norm<T> to{norm.gamma, norm.beta, norm.eps, norm.out + token * width};
        embed_counted<WARP / 2, VECTORS - 1, 2>(of, width, to, mine < tokens);
    } else if (vectors && width <= WARP * HELD) {
        const SumOfTables<T> of = rows_of(index, tokens, width, tables, first);
        const Norm<T> to{norm.gamma, norm.beta, norm.eps, norm.out + first * width};
        embed_counted<WARP, VECTORS, 1>(of, width, to, true);
    } else {
        // two, one after the other, where they would share it
#pragma unroll 1
        for (long long token = first; token < tokens && token <= first + share; ++token) {
            const SumOfTables<T> of = rows_of(index, tokens, width, tables, token);
            const Norm<T> to{norm.gamma, norm.beta, norm.eps, norm.out + token * width};
            if (vectors) normalize_streamed<Dtype<T>::VECTOR>(of, width, to);
            else normalize_streamed<1>(of, width, to);
        }
    }
}

}  // namespace

#define EMBED_TOKENS(NAME, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS, 5) embed_tokens_##NAME(                                    \
        const unsigned* index, int tokens, int width, const T* words, const T* positions, const T* types,             \
        const T* gamma, const T* beta, float eps, T* out) {                                                           \
        embed_tokens<T>(index, tokens, width, {words, positions, types}, {gamma, beta, eps, out});                    \
    }
FOR_EACH_DTYPE(EMBED_TOKENS)
