// The instructions that CUDA C++ has no functions for, as functions: copies that go on while a block computes, fragments of
// matrices read from shared memory, products on tensor cores.
//
// Fragments are those of m16n8k16, as the PTX manual draws them. With group g = lane / 4 and t = lane % 4: `a` holds rows g
// and g + 8, columns 2t, 2t + 1 and those + 8; `b` column g, rows 2t, 2t + 1 and those + 8; `c` rows g and g + 8, columns
// 2t, 2t + 1. Everything but copies is done by whole warps. tests/fake_gpu has all of this for a CPU.
#pragma once

#include "common.cuh"

#ifndef __CUDACC__
#include "warp_functions.h"
#else

// 2^x; below 2^-126 it is 0.
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline unsigned shared_address(const void* at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

// Starts to copy 16 bytes into shared memory, or zeros where there is nothing to copy; both addresses are multiples of 16.
__device__ inline void copy_16_async(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// 16 or 8 bytes of what no kernel writes meanwhile and nobody on this multiprocessor reads again.
__device__ inline uint4 load_once(const uint4* from) {
    uint4 read;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(read.x), "=r"(read.y), "=r"(read.z), "=r"(read.w)
                 : "l"(from));
    return read;
}

__device__ inline uint2 load_once(const uint2* from) {
    uint2 read;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(read.x), "=r"(read.y) : "l"(from));
    return read;
}

// The copies that this thread started since the last call are a group.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of this thread's groups but the last `STILL_RUNNING`.
template <int STILL_RUNNING>
__device__ inline void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(STILL_RUNNING) : "memory");
}

// Four 8 x 8 matrices of 16-bit values in shared memory. Lanes 8i to 8i + 7 say where the rows of matrix i are; each lane
// gets values 2t and 2t + 1 of row g of each.
__device__ inline void load_matrices(const void* row, unsigned (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the matrices transposed.
__device__ inline void load_matrices_transposed(const void* row, unsigned (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// `c += a b`, sums in f32.
template <class T>
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ inline void multiply_add<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void multiply_add<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
