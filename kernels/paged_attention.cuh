// What all ways of attending to a cache share: what a block has to do, which keys a row sees, and how parts of one softmax
// become one.
//
// A step's rows belong to runs, one for each sequence; `group` query heads read one head of the cache, so a run of `tokens`
// rows has `tokens * group` rows of queries for it, token by token: those are what is counted here as rows. A block has some
// of them that follow each other, and one head of the cache (blockIdx.y).
//
// Keys are divided by their position, 256 to a part, never by load: a row is the sum of the same parts in the same order
// whatever else is in the step, and however many blocks share its parts. Where several do, each leaves its part in memory,
// and the last to be done adds them all up.
//
// How many items there are is read from memory, and where they are, so that a launch that was recorded once does those of any
// step: blocks of short runs take one after the other, in turns, and those for which none is left do nothing.
#pragma once

#include "attention.cuh"
#include "paged.cuh"

constexpr int PART = 256;  // keys
constexpr unsigned ALL_PARTS = 0xffffffffu;

template <class T>
struct Paged {
    const T* q;             // [rows of the step, kv heads * group * width]
    const T* cache;         // of the layer: paged.cuh
    const unsigned* runs;   // [n, 4]: first row of the step, its position, tokens, where in `table` its blocks begin
    const unsigned* table;  // of all runs: the blocks of their sequences, each from position 0 on
    const unsigned* items;  // [1 + …, 4]: a head (below), and items
    int group;
    int width;   // of a head
    int window;  // keys that a row sees at most, its own among them
    float scale;
    int kept;            // rows that a part left in memory has room for
    float* parts;        // [n, kv heads, kept, padded width]: sums, then the largest score and the sum of weights
    unsigned* finished;  // counts of how many parts of rows are there: 0, as they are afterwards
    T* out;              // as q
};

// What `items` begins with.
struct ItemsHead {
    unsigned count;
    unsigned first;     // where items are, in fours of words from here on: 1 where they follow
    unsigned finished;  // where their counts are in `finished`: [n, kv heads]
    unsigned unused;
};
// [n, 4]: a run, the first of its rows, the part or ALL_PARTS, where the row's parts begin.

template <class T>
__device__ inline int items_of(const Paged<T>& all) {
    return static_cast<int>(reinterpret_cast<const ItemsHead*>(all.items)->count);
}

// From a row of a part left in memory to the next.
__device__ inline int part_width(int width) { return (width + 3) / 4 * 4 + 4; }

// What a block has to do.
template <class T>
struct Item {
    const Paged<T>& all;
    int first, rows;  // of the run's rows
    int from;         // position of the run's first token
    long long step_row;
    const unsigned* table;
    int low, end;  // keys that any of the rows sees
    int part, parts, first_part;
    long long place;  // of the first part in memory
    unsigned* finished;

    __device__ Item(const Paged<T>& paged, int number, int most) : all(paged) {
        const ItemsHead* head = reinterpret_cast<const ItemsHead*>(all.items);
        const unsigned* item = all.items + 4ll * (head->first + static_cast<unsigned>(number));
        const unsigned* run = all.runs + 4ll * item[0];
        step_row = run[0];
        from = static_cast<int>(run[1]);
        table = all.table + run[3];
        first = static_cast<int>(item[1]);
        rows = min(most, static_cast<int>(run[2]) * all.group - first);
        low = lowest(position(0));
        end = position(rows - 1) + 1;
        first_part = low / PART;
        parts = (end - 1) / PART + 1 - first_part;
        part = static_cast<int>(item[2]);
        place = static_cast<long long>(item[3]) * gridDim.y + blockIdx.y;
        finished = all.finished + head->finished + place;
    }

    __device__ int position(int row) const { return from + (first + row) / all.group; }
    // The first key that one at this position sees.
    __device__ int lowest(int at) const { return at < all.window ? 0 : at + 1 - all.window; }
    __device__ bool is_whole() const { return item_part() == ALL_PARTS; }
    __device__ unsigned item_part() const { return static_cast<unsigned>(part); }

    // Where a row of the block lies in q and in what comes out.
    __device__ long long at(int row) const {
        const int of_run = first + row, token = of_run / all.group, head = of_run % all.group;
        const long long of_step = (step_row + token) * gridDim.y + blockIdx.y;
        return (of_step * all.group + head) * all.width;
    }
    __device__ const T* key(int key) const {
        const unsigned token = table[key / BLOCK_TOKENS] * BLOCK_TOKENS + static_cast<unsigned>(key) % BLOCK_TOKENS;
        return all.cache + key_of(token, static_cast<int>(gridDim.y), static_cast<int>(blockIdx.y), all.width);
    }
    // A row of a part in memory, by the part's number.
    __device__ float* left(int number, int row) const {
        const long long of = place + static_cast<long long>(number - first_part) * gridDim.y;
        return all.parts + (of * all.kept + row) * part_width(all.width);
    }

    // After this block has left its part: whether all others have, too. All threads come here.
    __device__ bool is_last() const {
        __shared__ bool last;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            last = atomicAdd(finished, 1u) + 1 == static_cast<unsigned>(parts);
            if (last) *finished = 0;
        }
        __syncthreads();
        __threadfence();
        return last;
    }
};

// The softmax of a row of which parts have been seen, each by itself. The first part comes in as it is, to the bit, and one of
// which the row sees nothing changes nothing.
struct Sum {
    float largest = -INFINITY;
    float sum = 0.f;

    // What was summed so far and what is added now are worth.
    __device__ void add(float of_part, float sum_of_part, float& worth, float& worth_of_part) {
        const float before = largest;
        largest = fmaxf(largest, of_part);
        const float base = largest == -INFINITY ? 0.f : largest;
        worth = power_of_2(before - base);
        worth_of_part = power_of_2(of_part - base);
        sum = fmaf(sum_of_part, worth_of_part, sum * worth);
    }
    __device__ static float added(float so_far, float worth, float of_part, float worth_of_part) {
        return fmaf(of_part, worth_of_part, so_far * worth);
    }
};
