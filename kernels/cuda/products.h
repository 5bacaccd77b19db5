/* Our own products on the GPU: what gemm.c (the rows gemm, weight_fwd and weight_bwd) chooses from besides cuBLAS. All of
 * them go by the row `gemm` of kernels.def:
 *
 *      c[M,N] = alpha * op(x)[M,K] op(y)[K,N] + beta * c,      beta 0 never reads c,
 *
 * sums in f32 in an order that depends on the shapes alone. With d->compute BF16 operands are BF16, or F32 that is rounded
 * to bf16 on its way in where a function says that it takes F32; c is BF16 or F32. With d->compute F32 everything is F32 and
 * products are exact f32 products (no TF32). Any M, N, K >= 1 (0 sizes never come here), any ld >= the row's length; every
 * matrix is aligned to its element at least, and wide loads are for those that happen to be aligned to 16 bytes.
 *
 * For C (gemm.c) and CUDA C++ alike; compiled for "cuda" and for "emu" like every row. */
#ifndef NB_KERNELS_CUDA_PRODUCTS_H
#define NB_KERNELS_CUDA_PRODUCTS_H

#include "kernels/cuda/host.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- nf4.cu ---- */

/* out[n_rows, w->cols] = rows row0.. of w in any format, as dtype (BF16 or F32; F32 is exact, BF16 rounds to nearest even
 * after the format's own rounding). out is aligned to NB_ALIGN. Takes no scratch: out usually lies in d->ws. */
nb_status NB_GPU(decode)(nb_dev *d, void *out, nb_dtype dtype, const nb_weight *w, int64_t row0, int64_t n_rows);

/* out[rows, cols], compact bf16, = an F32 matrix with ld elements between its rows, rounded. Takes no scratch. */
nb_status NB_GPU(round_matrix)(nb_dev *d, void *out, const float *in, int64_t ld, int64_t rows, int64_t cols);

/* ---- gemv.cu ---- */

/* y[T,N] = x[T,K] W^T + beta * y for few rows (generation), decoding W on the way: y BF16 or F32, ld y.ld. A row of y has
 * the same bits for every T that fits. few_fits: at most 8 rows of any format, 32 where tensor cores do it: x BF16, and NF4
 * with whole blocks of 32 a row or BF16 with whole groups of 8.
 * Scratch from the start of d->ws, few_ws(T, N, K) bytes (0 if it needs none). */
bool NB_GPU(few_fits)(const nb_dev *d, const nb_weight *w, int64_t T);
size_t NB_GPU(few_ws)(const nb_dev *d, int64_t T, int64_t N, int64_t K);
nb_status NB_GPU(few_fwd)(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta);

/* ---- matmul.cu ---- */

/* The general product, any transposes. x and y both BF16 (tensor cores, mma.sync), or both F32 (a plain tile kernel). Takes
 * no scratch: an operand may lie in d->ws. */
nb_status NB_GPU(gemm_mma)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha, float beta);

/* ---- fused.cu ---- */

/* y[T,N] = x[T,K] W^T + beta * y, NF4 decoded inside the product; y BF16 or F32. Takes no scratch. fused_fits: bf16, NF4,
 * and whole blocks of 32 a row. */
bool NB_GPU(fused_fits)(const nb_dev *d, const nb_weight *w);
nb_status NB_GPU(fused_fwd)(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta);

/* ---- thin.cu ---- */

/* Products with one size of at most 64 (an adapter's rank): M, N or K. x and y BF16 or F32 each (an F32 operand is used as
 * it lies), c BF16 or F32. thin_fits: does it take this product? (No is always right: gemm.c then rounds F32 operands into
 * d->ws and calls gemm_mma or cuBLAS.) A long K is summed in parts of fixed size, in d->ws from its start: thin_ws bytes. */
bool NB_GPU(thin_fits)(const nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K);
size_t NB_GPU(thin_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K); /* grows with each size */
nb_status NB_GPU(thin)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha, float beta);

#ifdef __cplusplus
}
#endif

#endif
