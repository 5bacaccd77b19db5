/* Libraries of the GPU that are loaded when they are wanted, so that one program starts everywhere: cuBLAS and NCCL. Their
 * few functions are declared here and need no header of theirs; a build that has the headers checks the numbers
 * (library.c). Searched in this order: $NIBBLE_CUDA_LIB (a folder; "none": nowhere at all), the loader's own path, CUDA
 * toolkits, Python wheels.
 * Not for several threads at a time. */
#ifndef NB_KERNELS_CUDA_LIBRARY_H
#define NB_KERNELS_CUDA_LIBRARY_H

#include <stddef.h>
#include <stdint.h>

#include "core/mem.h"
#include "core/status.h"

/* ---- cuBLAS: results are cublasStatus_t (0: success), handles and streams are pointers ---- */

#define NB_CUBLAS_FUNCTIONS(F)                                                                                            \
    F(int, cublasCreate_v2, (void **handle))                                                                              \
    F(int, cublasDestroy_v2, (void *handle))                                                                              \
    F(int, cublasGetVersion_v2, (void *handle, int *version))                                                             \
    F(int, cublasSetStream_v2, (void *handle, void *stream))                                                              \
    F(int, cublasSetWorkspace_v2, (void *handle, void *workspace, size_t bytes))                                          \
    F(int, cublasSetMathMode, (void *handle, int mode))                                                                   \
    F(int, cublasGemmEx, (void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a,        \
                          int a_type, int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, \
                          int ldc, int compute, int algorithm))                                                           \
    F(const char *, cublasGetStatusString, (int status))

enum {
    NB_CUBLAS_N = 0, NB_CUBLAS_T = 1,                                  /* cublasOperation_t */
    NB_CUDA_R_32F = 0, NB_CUDA_R_16BF = 14,                            /* cudaDataType */
    NB_CUBLAS_COMPUTE_32F = 68, NB_CUBLAS_COMPUTE_32F_PEDANTIC = 69,   /* cublasComputeType_t */
    NB_CUBLAS_GEMM_DEFAULT = -1,                                       /* cublasGemmAlgo_t */
    NB_CUBLAS_DEFAULT_MATH = 0, NB_CUBLAS_NO_REDUCED_PRECISION = 16    /* cublasMath_t */
};

/* ---- NCCL: results are ncclResult_t (0: success) ---- */

typedef struct nb_nccl_id { /* ncclUniqueId: travels by value */
    char bytes[128];
} nb_nccl_id;

#define NB_NCCL_FUNCTIONS(F)                                                                                              \
    F(int, ncclGetVersion, (int *version))                                                                                \
    F(int, ncclGetUniqueId, (nb_nccl_id *id))                                                                             \
    F(int, ncclCommInitRank, (void **comm, int size, nb_nccl_id id, int rank))                                            \
    F(int, ncclCommDestroy, (void *comm))                                                                                 \
    F(int, ncclCommAbort, (void *comm))                                                                                   \
    F(int, ncclCommGetAsyncError, (void *comm, int *result))                                                              \
    F(int, ncclAllReduce, (const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream))    \
    F(int, ncclReduceScatter, (const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream)) \
    F(int, ncclAllGather, (const void *send, void *receive, size_t count, int type, void *comm, void *stream))            \
    F(int, ncclBroadcast, (const void *send, void *receive, size_t count, int type, int root, void *comm, void *stream))  \
    F(const char *, ncclGetErrorString, (int result))

enum { NB_NCCL_UINT8 = 1, NB_NCCL_FLOAT32 = 7, NB_NCCL_FLOAT64 = 8, NB_NCCL_BF16 = 9, NB_NCCL_SUM = 0 };

/* ---- loading ---- */

#define NB_LIBRARY_FIELD(result, name, args) result(*name) args;
typedef struct nb_cublas {
    const char *path; /* the file that was loaded */
    NB_CUBLAS_FUNCTIONS(NB_LIBRARY_FIELD)
} nb_cublas;
typedef struct nb_nccl {
    const char *path;
    NB_NCCL_FUNCTIONS(NB_LIBRARY_FIELD)
} nb_nccl;
#undef NB_LIBRARY_FIELD

/* The library, loaded once and kept. NB_EUNSUPPORTED: it is not there; NB_EIO: it lacks a function. The message says where
 * it was looked for and what to install. */
nb_status nb_cuda_cublas(const nb_cublas **out);
nb_status nb_cuda_nccl(const nb_nccl **out);

#endif
