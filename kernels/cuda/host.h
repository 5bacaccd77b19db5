/* What the C files of the GPU backend and its .cu files (through cuda.h) share: names, the device, the runtime's calls.
 * Compiled twice: for "cuda" against NVIDIA's runtime, and for "emu" (NB_EMU) against the emulator's. */
#ifndef NB_KERNELS_CUDA_HOST_H
#define NB_KERNELS_CUDA_HOST_H

#ifdef NB_EMU
#include "kernels/cuda/emu_runtime.h"
#define NB_GPU(name) nb_emu_##name
enum { NB_EMULATED = 1 };
#else
#include <cuda_runtime_api.h>
#define NB_GPU(name) nb_cuda_##name
enum { NB_EMULATED = 0 };
#endif

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/backend.h"

typedef struct nb_gpu { /* = nb_dev.impl */
    cudaStream_t stream;   /* everything goes through it, in order */
    int device, sms, arch; /* number of the card, its multiprocessors, 80, 90, ... */
    int64_t smem_max;      /* bytes of shared memory a block may have */
    const void *blas;      /* cuBLAS as loaded (nb_cublas), or NULL */
    void *blas_handle, *blas_ws;
} nb_gpu;

#define KERNEL(name, args) nb_status NB_GPU(name) args;
#include "kernels/kernels.def"
#undef KERNEL

/* NB_OK for cudaSuccess; else a message that begins with `what` ("copying to the device") and says what can be done. */
nb_status NB_GPU(check)(int error, const char *what);
/* NB_OK, or what went wrong with the launch just made. */
nb_status NB_GPU(launched)(nb_dev *d, const char *kernel);

/* Scratch bytes, for nb_backend. */
size_t NB_GPU(gemm_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K);
size_t NB_GPU(weight_ws)(const nb_dev *d, const nb_weight *w, int64_t T);
size_t NB_GPU(terms_ws)(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N);
size_t NB_GPU(attention_ws)(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D);
size_t NB_GPU(rows_ws)(const nb_dev *d, int64_t T, int64_t C);

/* Products (gemm.c). open finds cuBLAS and chooses a variant: d->gemm. */
nb_status NB_GPU(gemm_open)(nb_dev *d);
void NB_GPU(gemm_close)(nb_dev *d);
nb_status NB_GPU(gemm_choose)(nb_dev *d, const char *variant); /* NULL: the best there is */

#ifdef __cplusplus
}
#endif

#endif
