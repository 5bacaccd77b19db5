/* What the .cu files and the host side of the GPU backend share. All of it is compiled twice: by nvcc for the backend
 * "cuda" (NB_GPU(x) is nb_cuda_x), and by a host C++ compiler against the emulator for "emu" (nb_emu_x, NB_EMU defined).
 * A .cu file holds: purpose, kernels, launchers. A launcher is the row of kernels.def itself:
 *
 *     extern "C" nb_status NB_GPU(add)(nb_dev *d, nb_elem *y, ...) {
 *         ...
 *         LAUNCH(add_kernel<bf16>, grid, block, shared_bytes, gpu_stream(d), (bf16 *)y, ...);
 *         return gpu_launched(d, "add");
 *     }
 */
#ifndef NB_KERNELS_CUDA_CUDA_H
#define NB_KERNELS_CUDA_CUDA_H

#include "kernels/cuda/gpu.h"

#ifdef NB_EMU
#define NB_GPU(name) nb_emu_##name
#else
#define NB_GPU(name) nb_cuda_##name
#endif

extern "C" {
#include "kernels/backend.h"

typedef struct nb_gpu { /* = nb_dev.impl */
    cudaStream_t stream;
    int device, sms, arch;       /* number of the card, its multiprocessors, 80, 90, ... */
    int64_t smem_max;            /* bytes of shared memory a block may have */
    const void *blas;            /* cuBLAS as loaded, or NULL */
    void *blas_handle;
} nb_gpu;

#define KERNEL(name, args) nb_status NB_GPU(name) args;
#include "kernels/kernels.def"
#undef KERNEL

/* NB_OK, or what went wrong with the launch just made. */
nb_status NB_GPU(launched)(nb_dev *d, const char *kernel);
/* Bytes of scratch, for nb_backend. */
size_t NB_GPU(gemm_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K);
size_t NB_GPU(attention_ws)(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D);
size_t NB_GPU(rows_ws)(const nb_dev *d, int64_t T, int64_t C);
}

static inline cudaStream_t gpu_stream(const nb_dev *d) { return ((const nb_gpu *)d->impl)->stream; }
static inline nb_status gpu_launched(nb_dev *d, const char *kernel) { return NB_GPU(launched)(d, kernel); }
/* d->ws when it has so many bytes; our own mistake otherwise: the plan reserves what *_ws says. */
static inline char *gpu_ws(nb_dev *d, size_t bytes) {
    NB_ASSERT(bytes <= d->ws_size);
    return (char *)d->ws;
}

/* Elements of activations in kernels: templates over T = float or bf16. */
static __device__ __forceinline__ float to_f32(float x) { return x; }
static __device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ void from_f32(float &y, float x) { y = x; }
static __device__ __forceinline__ void from_f32(bf16 &y, float x) { y = __float2bfloat16(x); }

#endif
