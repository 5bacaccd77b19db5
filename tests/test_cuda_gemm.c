/* Products through cuBLAS, without cuBLAS: the emulated device is given a cublasGemmEx written from its documentation
 * (matrices by columns), and the checks of rows_variants.c run on it. What a real cuBLAS computes is tests/gpu's matter. */
#define NB_EMU
#include "tests/test.h"

#include "kernels/cuda/host.h"
#include "kernels/cuda/library.h"
#include "tests/rows.h"

static int calls;

typedef struct call {
    int op_a, op_b, m, n, k, a_type, lda, b_type, ldb, c_type, ldc;
    float alpha, beta;
    const void *a, *b;
    void *c;
} call;

static float element(const void *p, int type, int64_t i) {
    return type == NB_CUDA_R_16BF ? nb_bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

/* c[m,n] = alpha * op(a)[m,k] op(b)[k,n] + beta * c; element (i, j) of a matrix lies at i + j * ld. */
static void multiply(void *args) {
    const call *g = args;
    for (int64_t j = 0; j < g->n; j++)
        for (int64_t i = 0; i < g->m; i++) {
            double sum = 0;
            for (int64_t k = 0; k < g->k; k++)
                sum += (double)element(g->a, g->a_type, g->op_a ? k + i * g->lda : i + k * g->lda) *
                       (double)element(g->b, g->b_type, g->op_b ? j + k * g->ldb : k + j * g->ldb);
            int64_t at = i + j * g->ldc;
            float old = g->beta != 0 ? g->beta * element(g->c, g->c_type, at) : 0, new = g->alpha * (float)sum + old;
            if (g->c_type == NB_CUDA_R_16BF) ((uint16_t *)g->c)[at] = nb_f32_to_bf16(new);
            else ((float *)g->c)[at] = new;
        }
}

/* The combinations of types that cublasGemmEx documents, and its conditions on leading dimensions. */
static int stand_in_gemm(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                         int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                         int compute, int algorithm) {
    const call g = {op_a, op_b, m, n, k, a_type, lda, b_type, ldb, c_type, ldc, *(const float *)alpha, *(const float *)beta,
                    a, b, c};
    bool f32 = a_type == NB_CUDA_R_32F;
    if (a_type != b_type || (f32 && c_type != NB_CUDA_R_32F) || algorithm != NB_CUBLAS_GEMM_DEFAULT ||
        compute != (f32 ? NB_CUBLAS_COMPUTE_32F_PEDANTIC : NB_CUBLAS_COMPUTE_32F) || lda < (op_a ? k : m) ||
        ldb < (op_b ? n : k) || ldc < m)
        return 7;
    calls++;
    return emu_submit(handle, multiply, &g, sizeof g) == cudaSuccess ? 0 : 13;
}

static int stand_in_destroy(void *handle) { return handle ? 0 : 1; }
static const char *stand_in_status(int status) { return status == 7 ? "invalid value" : "execution failed"; }

static const nb_cublas stand_in = {.path = "", .cublasDestroy_v2 = stand_in_destroy, .cublasGemmEx = stand_in_gemm,
                                   .cublasGetStatusString = stand_in_status};

static nb_dev *open_with_blas(nb_dtype compute) {
    nb_dev *d;
    assert_ok(nb_dev_open(&d, "emu", compute));
    assert_fails(nb_dev_set_gemm(d, "cublas"), NB_EUNSUPPORTED, "needs cuBLAS");
    nb_gpu *g = d->impl;
    g->blas = &stand_in;
    g->blas_handle = g->stream;
    return d;
}

static void products_agree(nb_dtype compute) {
    nb_dev *d = open_with_blas(compute);
    assert_ok(nb_dev_set_gemm(d, NULL));
    assert_string_equal(d->gemm, "cublas");
    for (int i = 0; i < rows_variants.n; i++) {
        const nb_rowcheck *c = &rows_variants.checks[i];
        nb_rowtest t;
        if (!strstr(c->name, "cublas")) continue;
        calls = 0;
        if (!rows_run(&t, d, c, 3)) fail_msg("%s: %s", c->name, t.why);
        if (!calls) fail_msg("%s did not call cuBLAS", c->name);
    }
    nb_dev_close(d);
}

static void bf16_products_agree(void **state) { (void)state, products_agree(NB_BF16); }
static void f32_products_agree(void **state) { (void)state, products_agree(NB_F32); }

static void errors_are_told(void **state) {
    (void)state;
    nb_dev *d = open_with_blas(NB_BF16);
    void *p;
    assert_fails(nb_dev_set_gemm(d, "fast"), NB_EUNSUPPORTED, "no product variant \"fast\"");
    assert_ok(nb_dev_set_gemm(d, "cublas-alone"));
    assert_ok(d->be->alloc(d, &p, 4096, "a matrix"));
    nb_mat m = nb_mat_of(p, 4, NB_BF16), narrow = nb_mat_of(p, 3, NB_BF16);
    assert_fails(d->k->gemm(d, m, narrow, m, 4, 4, 4, 1, 0), NB_EIO, "cuBLAS, gemm: invalid value");
    d->be->free(d, p, 4096);
    nb_dev_close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(bf16_products_agree), cmocka_unit_test(f32_products_agree),
                                       cmocka_unit_test(errors_are_told)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
