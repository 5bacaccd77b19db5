/* The null backend: stands for another device, follows no data pointer, counts launches and remembers the largest
 * workspace a row would have taken. The memory plan is a real step run on it. */
#include "core/mem.h"
#include "kernels/backend.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"

#define KERNEL(name, args)                                                          \
    static __attribute__((unused)) nb_status null_##name args {                     \
        d->launches++;                                                              \
        return NB_OK;                                                               \
    }
#include "kernels/kernels.def"
#undef KERNEL

static nb_status need(nb_dev *d, size_t bytes) {
    d->launches++;
    if (bytes > d->ws_need) d->ws_need = bytes;
    return NB_OK;
}

static nb_status need_gemm(nb_dev *d, nb_mat c, nb_mat x, nb_mat y, int64_t M, int64_t N, int64_t K, float alpha,
                           float beta) {
    return need(d, d->target->be->gemm_ws(d->target, M, N, K));
}

static nb_status need_gemm_sum(nb_dev *d, nb_mat c, const nb_term *terms, int n, int64_t M, int64_t N, float beta) {
    return need(d, d->target->be->terms_ws(d->target, terms, n, M, N));
}

static nb_status need_weight_fwd(nb_dev *d, nb_mat y, const nb_elem *x, const nb_weight *w, int64_t T, float beta) {
    return need(d, d->target->be->weight_ws(d->target, w, T));
}

static nb_status need_weight_bwd(nb_dev *d, nb_elem *dx, const nb_elem *dy, const nb_weight *w, int64_t T, float beta) {
    return need(d, d->target->be->weight_ws(d->target, w, T));
}

static nb_status need_attention_fwd(nb_dev *d, nb_elem *o, float *lse, const nb_elem *q, const nb_elem *k,
                                    const nb_elem *v, const nb_seg *segs, int64_t n_segs, int64_t Tq, int64_t Tk,
                                    int64_t H, int64_t KV, int64_t D, float scale, float cap, int64_t window) {
    return need(d, d->target->be->attention_ws(d->target, Tq, Tk, H, KV, D));
}

static nb_status need_attention_bwd(nb_dev *d, nb_elem *dq, float beta_q, nb_elem *dk, float beta_k, nb_elem *dv,
                                    float beta_v, const nb_elem *d_o, const nb_elem *q, const nb_elem *k,
                                    const nb_elem *v, const nb_elem *o, const float *lse, const nb_seg *segs,
                                    int64_t n_segs, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D,
                                    float scale, float cap, int64_t window) {
    return need(d, d->target->be->attention_ws(d->target, Tq, Tk, H, KV, D));
}

static nb_status need_rows(nb_dev *d, int64_t T, int64_t C) { return need(d, d->target->be->rows_ws(d->target, T, C)); }

static nb_status need_rmsnorm_bwd(nb_dev *d, nb_elem *dx, float beta_x, float *dw, float beta_w, const nb_elem *dy,
                                  const nb_elem *x, const float *w, const float *rstd, int64_t T, int64_t C,
                                  float offset) {
    return need_rows(d, T, C);
}

static nb_status need_layernorm_bwd(nb_dev *d, nb_elem *dx, float beta_x, float *dw, float beta_w, float *dbias,
                                    float beta_b, const nb_elem *dy, const nb_elem *x, const float *w,
                                    const float *mean, const float *rstd, int64_t T, int64_t C) {
    return need_rows(d, T, C);
}

static nb_status need_bias_bwd(nb_dev *d, float *dbias, const nb_elem *dy, int64_t T, int64_t C, float beta) {
    return need_rows(d, T, C);
}

static nb_status need_embedding_bwd(nb_dev *d, float *dw, const nb_elem *dy, const int32_t *ids, int64_t T, int64_t V,
                                    int64_t C, float scale, float beta) {
    return need_rows(d, T, C);
}

static nb_status need_replace_rows_bwd(nb_dev *d, float *drows, const nb_elem *dy, const int32_t *ids, int64_t T,
                                       const int32_t *row_ids, int64_t n_rows, int64_t C, float scale, float beta) {
    return need_rows(d, T, C);
}

static nb_status need_route(nb_dev *d, float *weights, int32_t *tokens, int32_t *places, int32_t *choices,
                            int32_t *offsets, const nb_elem *logits, int64_t T, int64_t E, int64_t k, bool renorm) {
    return need_rows(d, T * k, 1);
}

static nb_status need_sum_squares(nb_dev *d, nb_update *u, const float *x, int64_t n) { return need_rows(d, 1, n); }

/* The rows that do more than count take the place of their empty namesakes in the table below. */
#define null_gemm need_gemm
#define null_gemm_sum need_gemm_sum
#define null_weight_fwd need_weight_fwd
#define null_weight_bwd need_weight_bwd
#define null_attention_fwd need_attention_fwd
#define null_attention_bwd need_attention_bwd
#define null_rmsnorm_bwd need_rmsnorm_bwd
#define null_layernorm_bwd need_layernorm_bwd
#define null_bias_bwd need_bias_bwd
#define null_embedding_bwd need_embedding_bwd
#define null_replace_rows_bwd need_replace_rows_bwd
#define null_sum_squares need_sum_squares
#define null_route need_route

static const nb_kernels null_kernels = {
#define KERNEL(name, args) .name = null_##name,
#include "kernels/kernels.def"
#undef KERNEL
};

/* Any aligned address that is not NULL and faults when touched. */
static nb_status null_alloc(nb_dev *d, void **out, size_t bytes, const char *what) {
    *out = (void *)(uintptr_t)NB_ALIGN;
    return NB_OK;
}

static void null_free(nb_dev *d, void *p, size_t bytes) {}

static nb_status null_copy(nb_dev *d, void *to, const void *from, size_t bytes) { return NB_OK; }

static size_t target_gemm_ws(const nb_dev *d, int64_t M, int64_t N, int64_t K) {
    return d->target->be->gemm_ws(d->target, M, N, K);
}

static size_t target_weight_ws(const nb_dev *d, const nb_weight *w, int64_t T) {
    return d->target->be->weight_ws(d->target, w, T);
}

static size_t target_terms_ws(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N) {
    return d->target->be->terms_ws(d->target, terms, n, M, N);
}

static size_t target_attention_ws(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D) {
    return d->target->be->attention_ws(d->target, Tq, Tk, H, KV, D);
}

static size_t target_rows_ws(const nb_dev *d, int64_t T, int64_t C) { return d->target->be->rows_ws(d->target, T, C); }

static nb_status target_memory(nb_dev *d, size_t *total, size_t *available) {
    nb_dev same = *d->target;
    return same.be->memory(&same, total, available);
}

nb_status nb_dev_open_null(nb_dev **out, const nb_dev *target) {
    static const nb_backend null = {
        .name = "null",
        .k = &null_kernels,
        .alloc = null_alloc,
        .free = null_free,
        .put = null_copy,
        .get = null_copy,
        .copy = null_copy,
        .memory = target_memory,
        .gemm_ws = target_gemm_ws,
        .weight_ws = target_weight_ws,
        .terms_ws = target_terms_ws,
        .attention_ws = target_attention_ws,
        .rows_ws = target_rows_ws,
    };
    /* host_memory and logits_chunk are the target's: they decide which buffers a run takes */
    struct null_dev {
        nb_dev dev;
        nb_backend be;
    } *d = nb_calloc(1, sizeof *d);
    d->be = null;
    d->be.host_memory = target->be->host_memory;
    d->be.logits_chunk = target->be->logits_chunk;
    d->dev = (nb_dev){.be = &d->be, .k = &null_kernels, .compute = target->compute, .elem = target->elem,
                      .gemm = target->gemm, .target = target};
    *out = &d->dev;
    return NB_OK;
}
