/* The rows gemm, weight_fwd and weight_bwd: they name the operands and hand over to the variant in use. */
#include "kernels/cpu/gemm.h"

#include <string.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/cpu/cpu.h"

const nb_gemm_impl *const nb_gemm_impls[] = {
#if defined(__x86_64__)
    &nb_gemm_avx512bf16, &nb_gemm_avx512, &nb_gemm_avx2,
#endif
    &nb_gemm_openblas, &nb_gemm_naive, NULL,
};

nb_status nb_cpu_choose_gemm(nb_dev *d, const char *variant) {
    for (const nb_gemm_impl *const *v = nb_gemm_impls; *v; v++) {
        if (variant && strcmp(variant, (*v)->name)) continue;
        if (!(*v)->supported(d->compute)) {
            if (!variant) continue;
            return nb_fail(NB_EUNSUPPORTED,
                           "the product variant \"%s\" does not run on this processor (%s) with %s operands", variant,
                           nb_cpu_get()->name, nb_dtype_name(d->compute));
        }
        d->gemm = (*v)->name;
        d->gemm_impl = *v;
        return NB_OK;
    }
    return nb_fail(NB_EUNSUPPORTED, "there is no product variant \"%s\"", variant);
}

size_t nb_cpu_gemm_ws(const nb_dev *d, int64_t M, int64_t N, int64_t K) {
    return ((const nb_gemm_impl *)d->gemm_impl)->ws(M, N, K, nb_threads());
}

/* Products that do not follow a chain run one by one. */
static void run_each(const nb_gemm_impl *impl, const nb_product *p) {
    for (; p; p = p->next) {
        nb_product one = *p;
        one.next = NULL;
        impl->run(&one);
    }
}

/* p[n], the products of a chain. */
static nb_status run(nb_dev *d, nb_product *p, int n) {
    const nb_gemm_impl *impl = d->gemm_impl;
    int64_t K = 0;
    if (p->M <= 0 || p->N <= 0) return NB_OK;
    for (int i = 0; i < n; i++) {
        p[i].threads = nb_threads();
        p[i].bf16 = d->compute == NB_BF16;
        p[i].dots = d->dots;
        p[i].ws = d->ws;
        p[i].next = i + 1 < n ? &p[i + 1] : NULL;
        K += p[i].K;
    }
    size_t need = impl->ws(p->M, p->N, K + 2 * (n - 1), p->threads);
    if (need > d->ws_size)
        return nb_fail(NB_ENOMEM,
                       "a %lld x %lld x %lld product needs %zu bytes of scratch on %d threads and the device has %zu: "
                       "reserve them before the step",
                       (long long)p->M, (long long)p->N, (long long)K, need, p->threads, d->ws_size);
    if (impl->chains) impl->run(p);
    else run_each(impl, p);
    return NB_OK;
}

nb_status nb_cpu_gemm(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha,
                      float beta) {
    NB_ASSERT(c.dtype == NB_F32 && x.dtype == NB_F32 && y.dtype == NB_F32 && !c.t);
    const nb_weight w = {.format = NB_FMT_F32, .rows = y.t ? N : K, .cols = y.ld, .data = y.p};
    nb_product p = {.c = c.p, .ldc = c.ld, .x = x.p, .ldx = x.ld, .tx = x.t, .y = &w, .ty = y.t, .M = M, .N = N, .K = K,
                    .alpha = alpha, .beta = beta};
    return run(d, &p, 1);
}

nb_status nb_cpu_weight_fwd(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta) {
    NB_ASSERT(y.dtype == NB_F32);
    nb_product p = {.c = y.p, .ldc = y.ld, .x = x, .ldx = w->cols, .y = w, .ty = true, .M = T, .N = w->rows,
                    .K = w->cols, .alpha = 1, .beta = beta};
    return run(d, &p, 1);
}

nb_status nb_cpu_weight_bwd(nb_dev *d, nb_elem *dx, const nb_elem *dy, const nb_weight *w, int64_t T, float beta) {
    nb_product p = {.c = dx, .ldc = w->cols, .x = dy, .ldx = w->rows, .y = w, .ty = false, .M = T, .N = w->cols,
                    .K = w->rows, .alpha = 1, .beta = beta};
    return run(d, &p, 1);
}

static nb_product product_of(nb_mat c, const nb_term *t, int64_t M, int64_t N, float beta, nb_weight *dense) {
    NB_ASSERT(c.dtype == NB_F32 && t->x.dtype == NB_F32 && !c.t);
    if (!t->w) {
        NB_ASSERT(t->y.dtype == NB_F32);
        *dense = (nb_weight){.format = NB_FMT_F32, .rows = t->y.t ? N : t->K, .cols = t->y.ld, .data = t->y.p};
    }
    return (nb_product){.c = c.p, .ldc = c.ld, .x = t->x.p, .ldx = t->x.ld, .tx = t->x.t, .y = t->w ? t->w : dense,
                        .ty = t->y.t, .M = M, .N = N, .K = t->K, .alpha = t->alpha, .beta = beta};
}

nb_status nb_cpu_gemm_sum(nb_dev *d, nb_mat c, const nb_term *terms, int n, int64_t M, int64_t N, float beta) {
    nb_product p[NB_MAX_TERMS];
    nb_weight dense[NB_MAX_TERMS];
    NB_ASSERT(n >= 1 && n <= NB_MAX_TERMS);
    for (int i = 0; i < n; i++) p[i] = product_of(c, &terms[i], M, N, i ? 1 : beta, &dense[i]);
    return run(d, p, n);
}

size_t nb_cpu_terms_ws(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N) {
    int64_t K = 2 * (n - 1); /* steps of two are filled up product by product */
    for (int i = 0; i < n; i++) K += terms[i].K;
    return nb_cpu_gemm_ws(d, M, N, K);
}
