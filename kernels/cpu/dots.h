/* Products of few rows, as a step takes them that generates text (nb_dev.dots): reading the weights is what it waits
 * for. Every element of c is a dot product along one row of the weight, whose bytes are read once, in order, and never
 * rearranged; x is, so as to fit them. An element's bits depend on its row of x and its row of the weight alone, neither
 * on the other rows nor on the number of threads. They are not those of nb_packed_run, which sums in another order. */
#ifndef NB_KERNELS_CPU_DOTS_H
#define NB_KERNELS_CPU_DOTS_H

#include "kernels/cpu/gemm.h"

enum {
    NB_DOTS_ROWS = 4,    /* of x at a time; more rows take the weights as often again */
    NB_DOTS_STRIP = 64,  /* columns of c at a time */
    NB_DOTS_PIECE = 128, /* a row of x is filled up with zeros to a multiple of this */
};

/* sum[i][j] = the dot product of row i of the packed x and row n0 + j of p->y, for j < n <= NB_DOTS_STRIP. */
typedef void nb_dot(float sum[NB_DOTS_ROWS][NB_DOTS_STRIP], const nb_product *p, int64_t n0, int n, const void *x);

/* How one format is multiplied. */
typedef struct nb_dots {
    /* rows 0..rows-1 of x[rows, K] as the dot[rows - 1] wants them: 4 bytes a value at most */
    void (*pack)(void *out, const float *x, int64_t ldx, int rows, int64_t K);
    nb_dot *dot[NB_DOTS_ROWS];
} nb_dots;
typedef const nb_dots *nb_dots_choose(const nb_weight *w);

/* Bytes of scratch a thread takes for a chain of K in all; grows with each argument. */
size_t nb_dots_ws(int64_t M, int64_t K);
/* A chain of products. Returns false, and does nothing, where an operand lies across k. */
bool nb_dots_run(nb_dots_choose *choose, const nb_product *p);

#if defined(__x86_64__)
nb_dots_choose nb_dots_avx2, nb_dots_avx512; /* of f32 operands */
nb_dots_choose nb_dots_avx512bf16, nb_dots_nf4_avx512bf16; /* of bf16 ones; NULL: not NF4 in whole blocks */
#endif

#endif
