/* Products on the CPU. The three rows (gemm, weight_fwd, weight_bwd) are one thing:
 *
 *      c[M,N] = alpha * x[M,K] y[K,N] + beta * c
 *
 * with x in f32, possibly stored transposed, and y in any weight format, stored [N,K] (`ty`: a forward pass,
 * y = x W^T) or [K,N] (a backward pass). An f32 operand of the row `gemm` is an f32 weight whose `cols` is the
 * leading dimension. A variant is one way to compute this; "naive" is the definition. */
#ifndef NB_KERNELS_CPU_GEMM_H
#define NB_KERNELS_CPU_GEMM_H

#include "kernels/backend.h"

typedef struct nb_product {
    float *c;
    int64_t ldc;
    const float *x; /* x[m,k] = x[m*ldx + k], or x[k*ldx + m] if tx */
    int64_t ldx;
    bool tx;
    const nb_weight *y;
    bool ty;
    int64_t M, N, K;
    float alpha, beta;
    bool bf16; /* operands are rounded to bf16 first */
    bool dots; /* nb_dev.dots: a variant that has kernels/cpu/dots.h may take it */
    void *ws;  /* as many bytes as the variant's ws() asks for */
    int threads;
    const struct nb_product *next; /* added to the same c: its c, M, N, bf16, dots, ws, threads are equal, its beta is 1 */
} nb_product;

typedef struct nb_gemm_impl {
    const char *name;
    bool (*supported)(nb_dtype compute);
    size_t (*ws)(int64_t M, int64_t N, int64_t K, int threads); /* grows with each argument */
    bool chains;      /* run follows p->next */
    void (*run)(const nb_product *p);
} nb_gemm_impl;

extern const nb_gemm_impl nb_gemm_naive, nb_gemm_openblas;
#if defined(__x86_64__)
extern const nb_gemm_impl nb_gemm_avx2, nb_gemm_avx512, nb_gemm_avx512bf16;
#endif

/* Sets d->gemm and d->gemm_impl; NULL chooses the fastest this machine runs. */
nb_status nb_cpu_choose_gemm(nb_dev *d, const char *variant);
/* The variants, fastest first, NULL at the end. */
extern const nb_gemm_impl *const nb_gemm_impls[];

#endif
