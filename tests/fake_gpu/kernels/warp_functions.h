// kernels/tensor_cores.cuh for a C++ compiler: the same functions, done by a warp of fibers.
//
// The last lane to come does the work of all, since the others' memory may change once they go on.
#pragma once

#include "common.cuh"

inline float power_of_2(float x) { return std::exp2(x); }

inline void copy_16_async(void* to, const void* from, bool there) {
    if (!aligned(to) || !aligned(from)) fake_gpu::fault("16 bytes are copied from %p to %p: not aligned", from, to);
    fake_gpu::copy_later(to, from, there ? 16 : 0, there ? 0 : 16);
}

inline uint4 load_once(const uint4* from) {
    if (!aligned(from)) fake_gpu::fault("16 bytes are read from %p: not aligned", from);
    return *from;
}

inline uint2 load_once(const uint2* from) {
    if (reinterpret_cast<uintptr_t>(from) % sizeof *from != 0) fake_gpu::fault("8 bytes are read from %p: not aligned", from);
    return *from;
}

inline void end_group() { fake_gpu::commit_copies(); }

template <int STILL_RUNNING>
void wait_for_groups() {
    fake_gpu::wait_for_copies(STILL_RUNNING);
}

namespace fake_gpu {

// A 16-bit value `column` of the row that a lane named.
inline uint16_t value_of(const Meeting& meeting, unsigned lane, unsigned column) {
    const uint16_t* row;
    std::memcpy(&row, meeting.brought[lane], sizeof row);
    return row[column];
}

template <bool TRANSPOSED>
void read_matrices(Meeting& meeting) {
    for (unsigned lane = 0; lane < WARP_LANES; ++lane) {
        const unsigned g = lane / 4, t = lane % 4;
        unsigned taken[4];
        for (unsigned i = 0; i < 4; ++i) {
            const uint16_t low = TRANSPOSED ? value_of(meeting, 8 * i + 2 * t, g) : value_of(meeting, 8 * i + g, 2 * t);
            const uint16_t high =
                TRANSPOSED ? value_of(meeting, 8 * i + 2 * t + 1, g) : value_of(meeting, 8 * i + g, 2 * t + 1);
            taken[i] = low | static_cast<unsigned>(high) << 16;
        }
        std::memcpy(meeting.taken[lane], taken, sizeof taken);
    }
}

inline void load_four(const char* what, const void* row, void (*complete)(Meeting&), unsigned (&to)[4]) {
    if (!aligned(row)) fault("%s of %p: not aligned", what, row);
    const Meeting& meeting = meet(what, 0xffffffffu, &row, sizeof row, complete);
    std::memcpy(to, meeting.taken[lane()], sizeof to);
}

// What a lane brings to a product.
struct Fragments {
    float c[4];
    unsigned a[4], b[2];
};

template <class T>
float half_of(unsigned pair, bool high) {
    return Dtype<T>::widen(T{static_cast<uint16_t>(high ? pair >> 16 : pair)});
}

template <class T>
void multiply_fragments(Meeting& meeting) {
    float a[16][16], b[16][8], c[16][8];
    for (unsigned lane = 0; lane < WARP_LANES; ++lane) {
        Fragments brought;
        std::memcpy(&brought, meeting.brought[lane], sizeof brought);
        const unsigned g = lane / 4, t = lane % 4;
        for (unsigned i = 0; i < 8; ++i) {
            // registers in order: rows g and g + 8, then the same of columns + 8
            a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = half_of<T>(brought.a[i / 2], i % 2);
        }
        for (unsigned i = 0; i < 4; ++i) {
            b[2 * t + i % 2 + i / 2 * 8][g] = half_of<T>(brought.b[i / 2], i % 2);
            c[g + i / 2 * 8][2 * t + i % 2] = brought.c[i];
        }
    }
    for (auto& row : c) {
        const auto& of_row = a[&row - c];
        for (unsigned k = 0; k < 16; ++k) {
            for (unsigned n = 0; n < 8; ++n) row[n] += of_row[k] * b[k][n];
        }
    }
    for (unsigned lane = 0; lane < WARP_LANES; ++lane) {
        const unsigned g = lane / 4, t = lane % 4;
        const float taken[4] = {c[g][2 * t], c[g][2 * t + 1], c[g + 8][2 * t], c[g + 8][2 * t + 1]};
        std::memcpy(meeting.taken[lane], taken, sizeof taken);
    }
}

}  // namespace fake_gpu

inline void load_matrices(const void* row, unsigned (&to)[4]) {
    fake_gpu::load_four("ldmatrix", row, fake_gpu::read_matrices<false>, to);
}
inline void load_matrices_transposed(const void* row, unsigned (&to)[4]) {
    fake_gpu::load_four("ldmatrix.trans", row, fake_gpu::read_matrices<true>, to);
}

template <class T>
void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    fake_gpu::Fragments brought{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    const fake_gpu::Meeting& meeting =
        fake_gpu::meet("mma", 0xffffffffu, &brought, sizeof brought, fake_gpu::multiply_fragments<T>);
    std::memcpy(c, meeting.taken[fake_gpu::lane()], sizeof c);
}
