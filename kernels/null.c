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

static nb_status need_gemm(nb_dev *d, float *c, int64_t ldc, const float *x, int64_t ldx, bool tx, const float *y,
                           int64_t ldy, bool ty, int64_t M, int64_t N, int64_t K, float alpha, float beta) {
    return need(d, d->target->be->gemm_ws(d->target, M, N, K));
}

static nb_status need_weight_fwd(nb_dev *d, float *y, const float *x, const nb_weight *w, int64_t T, float beta) {
    return need(d, d->target->be->gemm_ws(d->target, T, w->rows, w->cols));
}

static nb_status need_weight_bwd(nb_dev *d, float *dx, const float *dy, const nb_weight *w, int64_t T, float beta) {
    return need(d, d->target->be->gemm_ws(d->target, T, w->cols, w->rows));
}

/* Attention's scratch must do for all segments at once: Tq and Tk are the ends of the last query and key. Segments
 * are host-made metadata of the plan's batch and may be read. */
static size_t attention_need(const nb_dev *d, const nb_seg *segs, int64_t n_segs, int64_t H, int64_t KV, int64_t D) {
    int64_t Tq = 0, Tk = 0;
    for (int64_t i = 0; i < n_segs; i++) {
        if (segs[i].q0 + segs[i].qn > Tq) Tq = segs[i].q0 + segs[i].qn;
        if (segs[i].k0 + segs[i].kn > Tk) Tk = segs[i].k0 + segs[i].kn;
    }
    return d->target->be->attention_ws(d->target, Tq, Tk, H, KV, D);
}

static nb_status need_attention_fwd(nb_dev *d, float *o, float *lse, const float *q, const float *k, const float *v,
                                    const nb_seg *segs, int64_t n_segs, int64_t H, int64_t KV, int64_t D, float scale,
                                    float cap, int64_t window) {
    return need(d, attention_need(d, segs, n_segs, H, KV, D));
}

static nb_status need_attention_bwd(nb_dev *d, float *dq, float beta_q, float *dk, float beta_k, float *dv,
                                    float beta_v, const float *d_o, const float *q, const float *k, const float *v,
                                    const float *o, const float *lse, const nb_seg *segs, int64_t n_segs, int64_t H,
                                    int64_t KV, int64_t D, float scale, float cap, int64_t window) {
    return need(d, attention_need(d, segs, n_segs, H, KV, D));
}

/* Its result goes to the host, where it is read. */
static nb_status zero_sum_squares(nb_dev *d, double *sum, const float *x, int64_t n) {
    *sum = 0;
    return need(d, 0);
}

/* The rows that do more than count take the place of their empty namesakes in the table below. */
#define null_gemm need_gemm
#define null_weight_fwd need_weight_fwd
#define null_weight_bwd need_weight_bwd
#define null_attention_fwd need_attention_fwd
#define null_attention_bwd need_attention_bwd
#define null_sum_squares zero_sum_squares

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

static size_t target_attention_ws(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D) {
    return d->target->be->attention_ws(d->target, Tq, Tk, H, KV, D);
}

static const nb_backend backend_null = {
    .name = "null",
    .k = &null_kernels,
    .alloc = null_alloc,
    .free = null_free,
    .put = null_copy,
    .get = null_copy,
    .gemm_ws = target_gemm_ws,
    .attention_ws = target_attention_ws,
};

nb_status nb_dev_open_null(nb_dev **out, const nb_dev *target) {
    nb_dev *d = NB_NEW(nb_dev);
    *d = (nb_dev){
        .be = &backend_null, .k = &null_kernels, .compute = target->compute, .gemm = target->gemm, .target = target};
    *out = d;
    return NB_OK;
}
