/* What the .cu files include; what they share with the C files of the GPU backend is in host.h. All of it is compiled
 * twice: by nvcc for the backend "cuda" (NB_GPU(x) is nb_cuda_x), and by a host C++ compiler against the emulator for
 * "emu" (nb_emu_x, NB_EMU defined).
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
#include "kernels/cuda/host.h"

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
