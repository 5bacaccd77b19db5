/* The language of kernels: CUDA C++ under nvcc, the emulator (emu.h) under a host C++ compiler. Both have
 *   SHARED(T, name, [N][M]); SHARED_DYN(T, name);   arrays in shared memory, the latter of the launch's size
 *   LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   template kernels in parentheses
 *   mma_m16n8k16_bf16, ldmatrix_x1/x2/x4 (_trans), cp_async16/8/4, bar_sync, exp2_approx
 * and whatever emu.h has of CUDA's own names. Fragments of mma and ldmatrix are laid out as the PTX manual has them,
 * "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix". */
#ifndef NB_KERNELS_CUDA_GPU_H
#define NB_KERNELS_CUDA_GPU_H

#ifndef __CUDACC__
#include "kernels/cuda/emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define SHARED(T, name, dims) __shared__ __align__(16) T name dims
/* 128: a warp's row; more would round every kernel's static arrays up to it. */
#define SHARED_DYN(T, name)                                                                                              \
    extern __shared__ __align__(128) unsigned char gpu_shared_bytes[];                                                   \
    T *name = (T *)gpu_shared_bytes
#define LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define GPU_INLINE static __device__ __forceinline__

GPU_INLINE unsigned gpu_shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/* D[16,8] = A[16,16] B[16,8] + C, one fragment a lane. */
GPU_INLINE void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

/* n 8x8 matrices of 16-bit elements from shared memory: lane i brings the address of row i%8 of matrix i/8, 16 bytes
 * aligned to 16; lane i takes elements 2*(i%4) and the next of row i/4 of every matrix (_trans: of its transpose). */
GPU_INLINE void ldmatrix_x1(uint32_t d[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0},[%1];"
                 : "=r"(d[0]) : "r"(gpu_shared_address(row)) : "memory");
}
GPU_INLINE void ldmatrix_x1_trans(uint32_t d[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0},[%1];"
                 : "=r"(d[0]) : "r"(gpu_shared_address(row)) : "memory");
}
GPU_INLINE void ldmatrix_x2(uint32_t d[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                 : "=r"(d[0]), "=r"(d[1]) : "r"(gpu_shared_address(row)) : "memory");
}
GPU_INLINE void ldmatrix_x2_trans(uint32_t d[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                 : "=r"(d[0]), "=r"(d[1]) : "r"(gpu_shared_address(row)) : "memory");
}
GPU_INLINE void ldmatrix_x4(uint32_t d[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(gpu_shared_address(row)) : "memory");
}
GPU_INLINE void ldmatrix_x4_trans(uint32_t d[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(gpu_shared_address(row)) : "memory");
}

/* Copies 16, 8 or 4 bytes, aligned to as many, from global to shared memory without waiting; not valid: zeros, and src is
 * not read. They belong to the group that the next commit ends; wait<N> lets the newest N groups be on their way. Other
 * threads see what has landed after a barrier behind the wait. */
GPU_INLINE void cp_async16(void *dst, const void *src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;"
                 :: "r"(gpu_shared_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
GPU_INLINE void cp_async8(void *dst, const void *src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0],[%1],8,%2;"
                 :: "r"(gpu_shared_address(dst)), "l"(src), "r"(valid ? 8 : 0) : "memory");
}
GPU_INLINE void cp_async4(void *dst, const void *src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0],[%1],4,%2;"
                 :: "r"(gpu_shared_address(dst)), "l"(src), "r"(valid ? 4 : 0) : "memory");
}
GPU_INLINE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> GPU_INLINE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

/* Barrier `id`, 1 to 15 (0 is __syncthreads), of n threads, whole warps. */
GPU_INLINE void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(n) : "memory"); }
/* 2^x to 2 units in the last place; subnormal results are 0. */
GPU_INLINE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

typedef __nv_bfloat16 bf16;
/* Two bf16 in a word, the first in its low half. */
static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
static __device__ __forceinline__ float bf_lo(uint32_t u) { return __uint_as_float(u << 16); }
static __device__ __forceinline__ float bf_hi(uint32_t u) { return __uint_as_float(u & 0xffff0000u); }

#endif
