/* Products of the GPU backend: the rows gemm, weight_fwd and weight_bwd decide here who computes them.
 *
 *   thin     (thin.cu)  one size is an adapter's rank: an own kernel that reads the f32 adapter as it lies
 *   few rows (gemv.cu)  generation: an own kernel that decodes the weight on its way
 *   fused    (fused.cu) by name alone: an own kernel that decodes the weight inside a product of any number of rows
 *   all else            the general product: cuBLAS, or our own tensor-core kernel (matmul.cu) where cuBLAS is not there
 *
 * The general product wants both operands in d->compute. A frozen weight in another format is decoded whole into d->ws:
 * on sm_80 and later that costs a few percent of a product with a thousand rows. F32 operands (weights that are trained)
 * are rounded to bf16 panel by panel, so that scratch stays small. */
#include <limits.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/library.h"
#include "kernels/cuda/products.h"

/* A general product; x and y in d->compute, c in that or F32. */
typedef nb_status (*general)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha,
                             float beta);
typedef struct variant {
    const char *name;
    bool (*supported)(const nb_dev *d);
    general run;
    bool alone; /* without the kernels for thin products and few rows (tests, bench) */
    bool fused; /* frozen weights are decoded inside the product where that is possible */
} variant;

static nb_gpu *gpu_of(const nb_dev *d) { return d->impl; }

/* ---- cuBLAS ---- */

enum { WORKSPACE = 32 << 20 }; /* what cuBLAS asks for on sm_90; ours, so that it is planned and stays the same */

static nb_status blas_check(const nb_dev *d, int status, const char *what) {
    const nb_cublas *b = gpu_of(d)->blas;
    return status == 0 ? NB_OK : nb_fail(NB_EIO, "cuBLAS, %s: %s", what, b->cublasGetStatusString(status));
}

static bool has_blas(const nb_dev *d) { return gpu_of(d)->blas_handle != NULL; }

static int blas_type(nb_dtype t) { return t == NB_BF16 ? NB_CUDA_R_16BF : NB_CUDA_R_32F; }

/* cuBLAS has matrices by columns: what is row-major c = x y is c^T = y^T x^T to it. Sums are f32, and float32 operands are
 * not cut to TF32 (PEDANTIC). */
static nb_status blas_run(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha, float beta) {
    nb_gpu *g = gpu_of(d);
    const nb_cublas *b = g->blas;
    NB_ASSERT(M <= INT_MAX && N <= INT_MAX && K <= INT_MAX && x.ld <= INT_MAX && y.ld <= INT_MAX && c.ld <= INT_MAX);
    int status = b->cublasGemmEx(g->blas_handle, y.t ? NB_CUBLAS_T : NB_CUBLAS_N, x.t ? NB_CUBLAS_T : NB_CUBLAS_N, (int)N,
                                 (int)M, (int)K, &alpha, y.p, blas_type(y.dtype), (int)y.ld, x.p, blas_type(x.dtype),
                                 (int)x.ld, &beta, c.p, blas_type(c.dtype), (int)c.ld,
                                 x.dtype == NB_F32 ? NB_CUBLAS_COMPUTE_32F_PEDANTIC : NB_CUBLAS_COMPUTE_32F,
                                 NB_CUBLAS_GEMM_DEFAULT);
    return blas_check(d, status, "gemm");
}

static nb_status blas_start(nb_dev *d) {
    nb_gpu *g = gpu_of(d);
    const nb_cublas *b = g->blas;
    NB_TRY(blas_check(d, b->cublasCreate_v2(&g->blas_handle), "starting"));
    NB_TRY(d->be->alloc(d, &g->blas_ws, WORKSPACE, "cuBLAS"));
    NB_TRY(blas_check(d, b->cublasSetStream_v2(g->blas_handle, g->stream), "taking the stream"));
    NB_TRY(blas_check(d, b->cublasSetWorkspace_v2(g->blas_handle, g->blas_ws, WORKSPACE), "taking its scratch"));
    return blas_check(d, b->cublasSetMathMode(g->blas_handle, NB_CUBLAS_NO_REDUCED_PRECISION), "setting its precision");
}

/* ---- variants ---- */

static bool always(const nb_dev *d) {
    (void)d;
    return true;
}

static const variant variants[] = {
    {"cublas", has_blas, blas_run, false, false},
    {"mma", always, NB_GPU(gemm_mma), false, false},
    {"cublas-alone", has_blas, blas_run, true, false},
    {"mma-alone", always, NB_GPU(gemm_mma), true, false},
    {"fused", always, NB_GPU(gemm_mma), true, true},
};

nb_status NB_GPU(gemm_choose)(nb_dev *d, const char *name) {
    for (int i = 0; i < NB_LEN(variants); i++) {
        if (name && strcmp(name, variants[i].name)) continue;
        if (!variants[i].supported(d)) {
            if (!name) continue;
            return nb_fail(NB_EUNSUPPORTED, "the product variant \"%s\" needs cuBLAS, which is not loaded", name);
        }
        d->gemm = variants[i].name;
        d->gemm_impl = &variants[i];
        return NB_OK;
    }
    return nb_fail(NB_EUNSUPPORTED, "there is no product variant \"%s\"", name ? name : "");
}

nb_status NB_GPU(gemm_open)(nb_dev *d) {
    const nb_cublas *b;
    if (NB_EMULATED) return NB_GPU(gemm_choose)(d, NULL); /* the emulator's memory is nothing to cuBLAS */
    if (nb_cuda_cublas(&b) == NB_OK) {
        gpu_of(d)->blas = b;
        NB_TRY(blas_start(d));
    } else {
        nb_warn("%s. Until then products run in nibble's own kernels, which are slower", nb_message());
    }
    return NB_GPU(gemm_choose)(d, NULL);
}

void NB_GPU(gemm_close)(nb_dev *d) {
    nb_gpu *g = gpu_of(d);
    if (g->blas_handle) ((const nb_cublas *)g->blas)->cublasDestroy_v2(g->blas_handle);
    if (g->blas_ws) d->be->free(d, g->blas_ws, WORKSPACE);
    g->blas_handle = g->blas_ws = NULL;
}

/* ---- operands ---- */

/* Bytes of rounded operand at a time; few in the emulator, so that small tests need several. */
enum { PANEL = NB_EMULATED ? 1 << 20 : 32 << 20 };

static int64_t aligned(int64_t bytes) { return (bytes + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN; }

/* An operand's rows (of x, or columns of y) of length K that are rounded at a time. */
static int64_t panel_rows(int64_t rows, int64_t K) {
    int64_t fit = PANEL / (K * 2);
    if (fit >= 128) fit -= fit % 128;
    return rows < fit ? rows : fit > 0 ? fit : 1;
}

static int64_t panel_bytes(int64_t rows, int64_t K) { return aligned(panel_rows(rows, K) * K * 2); }

static bool must_round(const nb_dev *d, nb_mat m) { return m.dtype != d->compute; }

/* Rows first..first+n-1 of an operand [rows, K] (`across`: it is stored [K, rows]). */
static nb_mat panel_of(nb_mat m, int64_t first, bool across) {
    m.p = (char *)m.p + first * (across ? 1 : m.ld) * nb_dtype_size(m.dtype);
    return m;
}

/* *m, n rows of length K, rounded to bf16 at `to`, if it must be. */
static nb_status rounded(nb_dev *d, nb_mat *m, char *to, int64_t n, int64_t K, bool across) {
    if (!must_round(d, *m)) return NB_OK;
    int64_t rows = across ? K : n, cols = across ? n : K;
    NB_TRY(NB_GPU(round_matrix)(d, to, m->p, m->ld, rows, cols));
    *m = (nb_mat){.p = to, .ld = cols, .dtype = d->compute, .t = m->t};
    return NB_OK;
}

/* The general product with F32 operands rounded on the way, in panels of c's columns and rows. */
static nb_status general_product(nb_dev *d, const variant *v, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K,
                                 float alpha, float beta) {
    int64_t dm = must_round(d, x) ? panel_rows(M, K) : M, dn = must_round(d, y) ? panel_rows(N, K) : N;
    int64_t y_bytes = must_round(d, y) ? panel_bytes(N, K) : 0;
    NB_ASSERT(y_bytes + (must_round(d, x) ? panel_bytes(M, K) : 0) <= (int64_t)d->ws_size);
    for (int64_t n = 0; n < N; n += dn) {
        int64_t cols = N - n < dn ? N - n : dn;
        nb_mat yp = panel_of(y, n, !y.t);
        NB_TRY(rounded(d, &yp, d->ws, cols, K, !y.t));
        for (int64_t m = 0; m < M; m += dm) {
            int64_t rows = M - m < dm ? M - m : dm;
            nb_mat xp = panel_of(x, m, x.t), cp = c;
            NB_TRY(rounded(d, &xp, (char *)d->ws + y_bytes, rows, K, x.t));
            cp.p = (char *)c.p + (m * c.ld + n) * nb_dtype_size(c.dtype);
            NB_TRY(v->run(d, cp, xp, yp, rows, cols, K, alpha, beta));
        }
    }
    return NB_OK;
}

/* ---- the rows ---- */

nb_status NB_GPU(gemm)(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha, float beta) {
    const variant *v = d->gemm_impl;
    NB_ASSERT(!c.t && K > 0);
    if (M == 0 || N == 0) return NB_OK;
    if (!v->alone && NB_GPU(thin_fits)(d, c, x, y, M, N, K)) return NB_GPU(thin)(d, c, x, y, M, N, K, alpha, beta);
    return general_product(d, v, c, x, y, M, N, K, alpha, beta);
}

static bool in_place(const nb_dev *d, const nb_weight *w) {
    return w->format == (d->compute == NB_BF16 ? NB_FMT_BF16 : NB_FMT_F32);
}

/* The stored matrix [rows, cols] of a frozen weight in d->compute, in d->ws unless it has that type. */
static nb_status weight_matrix(nb_dev *d, nb_mat *out, const nb_weight *w) {
    *out = nb_mat_of(w->data, w->cols, d->compute);
    if (in_place(d, w)) return NB_OK;
    NB_ASSERT(w->rows * w->cols * nb_dtype_size(d->compute) <= (int64_t)d->ws_size);
    out->p = d->ws;
    return NB_GPU(decode)(d, d->ws, d->compute, w, 0, w->rows);
}

nb_status NB_GPU(weight_fwd)(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta) {
    const variant *v = d->gemm_impl;
    nb_mat m;
    if (T == 0) return NB_OK;
    if (!v->alone && NB_GPU(few_fits)(d, w, T)) return NB_GPU(few_fwd)(d, y, x, w, T, beta);
    if (v->fused && NB_GPU(fused_fits)(d, w)) return NB_GPU(fused_fwd)(d, y, x, w, T, beta);
    NB_TRY(weight_matrix(d, &m, w));
    m.t = true;
    return v->run(d, y, nb_mat_of(x, w->cols, d->elem), m, T, w->rows, w->cols, 1, beta);
}

nb_status NB_GPU(weight_bwd)(nb_dev *d, nb_elem *dx, const nb_elem *dy, const nb_weight *w, int64_t T, float beta) {
    const variant *v = d->gemm_impl;
    nb_mat m;
    if (T == 0) return NB_OK;
    NB_TRY(weight_matrix(d, &m, w));
    return v->run(d, nb_mat_of(dx, w->cols, d->elem), nb_mat_of(dy, w->rows, d->elem), m, T, w->cols, w->rows, 1, beta);
}

/* One after the other. */
nb_status NB_GPU(gemm_sum)(nb_dev *d, nb_mat c, const nb_term *terms, int n, int64_t M, int64_t N, float beta) {
    for (int i = 0; i < n; i++, beta = 1) {
        const nb_term *t = &terms[i];
        if (!t->w) NB_TRY(NB_GPU(gemm)(d, c, t->x, t->y, M, N, t->K, t->alpha, beta));
        else if (t->y.t) NB_TRY(NB_GPU(weight_fwd)(d, c, t->x.p, t->w, M, beta));
        else NB_TRY(NB_GPU(weight_bwd)(d, c.p, t->x.p, t->w, M, beta));
    }
    return NB_OK;
}

/* ---- scratch ---- */

static size_t larger(size_t x, size_t y) { return x > y ? x : y; }

size_t NB_GPU(gemm_ws)(const nb_dev *d, int64_t M, int64_t N, int64_t K) {
    if (M == 0 || N == 0 || K == 0) return 0;
    size_t rounding = d->compute == NB_BF16 ? (size_t)(panel_bytes(M, K) + panel_bytes(N, K)) : 0;
    return larger(NB_GPU(thin_ws)(d, M, N, K), rounding);
}

/* Also for fewer rows than T: few_ws counts at any T. */
size_t NB_GPU(weight_ws)(const nb_dev *d, const nb_weight *w, int64_t T) {
    enum { FEW = 8 };
    size_t decoded = in_place(d, w) ? 0 : (size_t)(w->rows * w->cols * nb_dtype_size(d->compute));
    return larger(NB_GPU(few_ws)(d, T < FEW ? T : FEW, w->rows, w->cols), decoded);
}

size_t NB_GPU(terms_ws)(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N) {
    size_t most = 0;
    for (int i = 0; i < n; i++)
        most = larger(most, terms[i].w ? NB_GPU(weight_ws)(d, terms[i].w, M) : NB_GPU(gemm_ws)(d, M, N, terms[i].K));
    return most;
}
