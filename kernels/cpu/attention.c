/* Causal attention over segments: how the work is shared out. Query i of a segment stands at key kn - qn + i. The
 * mathematics is in simd_attention.h. Tasks depend on the shapes alone, never on the number of threads, and
 * each output is written by one of them. */
#include "kernels/cpu/attention.h"

#include <omp.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum {
    FEW = 6,          /* (query, head) pairs for which vectors along the queries would be mostly empty */
    ENOUGH_HEADS = 8, /* key/value heads that make enough tasks by themselves; with fewer, query heads do */
    PAD = 16          /* floats in the widest vector */
};

static int64_t padded(int64_t D) { return (D + PAD - 1) / PAD * PAD; }
/* Attention on rounded operands, where that is asked for and saves something; else NULL. */
static const nb_attention_bf16 *rounded(const nb_dev *d) {
#if defined(__x86_64__)
    if (d->compute == NB_BF16 && nb_cpu_get()->avx512_bf16) return &nb_attention_avx512bf16;
#endif
    return (void)d, NULL;
}
/* Bytes of scratch of a thread. */
static size_t scratch_of(const nb_dev *d, int64_t D) {
    size_t bytes = sizeof(float) * (size_t)nb_attention_scratch(D, padded(D));
    if (rounded(d) && rounded(d)->scratch(D) > bytes) bytes = rounded(d)->scratch(D);
    return (bytes + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN;
}
static void *scratch_at(const nb_dev *d, int64_t D, int thread) {
    return (char *)d->ws + scratch_of(d, D) * (size_t)thread;
}
/* Heads that share a task's keys; the backward pass keeps one sum of dk and dv for each such group. */
static int64_t group_of(int64_t H, int64_t KV) {
    int64_t g = KV < ENOUGH_HEADS ? 1 : H / KV;
    return g < NB_LANES ? g : NB_LANES;
}
static int64_t groups_per_kv(int64_t H, int64_t KV) { return (H / KV + group_of(H, KV) - 1) / group_of(H, KV); }

size_t nb_cpu_attention_ws(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D) {
    (void)Tq;
    size_t shared = sizeof(float) * (size_t)(2 * KV * groups_per_kv(H, KV) * Tk * padded(D));
    if (rounded(d)) shared = rounded(d)->shared(Tk, KV, D);
    return shared + (size_t)nb_threads() * scratch_of(d, D);
}

static void forward_segment(const nb_attention *a, const nb_seg *s, float *scratch) {
    const nb_simd *v = nb_simd_get();
    int64_t G = a->H / a->KV, most = G < NB_LANES ? G : NB_LANES;
    if (s->qn * G <= FEW) { /* decoding: split by query head only where key/value heads are too few to share out */
        int64_t g = group_of(a->H, a->KV), tasks = a->H / G * groups_per_kv(a->H, a->KV);
#pragma omp for schedule(dynamic) nowait
        for (int64_t n = 0; n < tasks; n++) {
            int64_t kv = n / groups_per_kv(a->H, a->KV), h0 = kv * G + n % groups_per_kv(a->H, a->KV) * g;
            nb_attention_block b = {.seg = s, .kv = kv, .h0 = h0, .g = g, .i0 = 0, .n = s->qn};
            v->attention_few(a, &b, scratch);
        }
        return;
    }
    int64_t step = NB_LANES / most, blocks = (s->qn + step - 1) / step, parts = (G + most - 1) / most;
#pragma omp for schedule(dynamic) nowait
    for (int64_t n = 0; n < blocks * a->KV * parts; n++) { /* the blocks with most keys first */
        int64_t i0 = (blocks - 1 - n / (a->KV * parts)) * step, kv = n / parts % a->KV, h = n % parts * most;
        nb_attention_block b = {.seg = s, .kv = kv, .h0 = kv * G + h, .g = G - h < most ? G - h : most, .i0 = i0};
        b.n = s->qn - i0 < step ? s->qn - i0 : step;
        v->attention_fwd(a, &b, scratch);
    }
}

nb_status nb_cpu_attention_fwd(nb_dev *d, nb_elem *o_, float *lse, const nb_elem *q_, const nb_elem *k_,
                               const nb_elem *v_, const nb_seg *segs, int64_t n_segs, int64_t Tq, int64_t Tk, int64_t H,
                               int64_t KV, int64_t D, float scale, float cap, int64_t window) {
    float *o = o_;
    const float *q = q_, *k = k_, *v = v_;
    const nb_attention_bf16 *bf16 = rounded(d);
    const nb_attention a = {.H = H, .KV = KV, .D = D, .Dp = padded(D), .window = window, .scale = scale, .cap = cap,
                            .q = q, .k = k, .v = v, .o = o, .lse = lse};
    NB_ASSERT(d->ws_size >= nb_cpu_attention_ws(d, Tq, Tk, H, KV, D));
#pragma omp parallel
    {
        void *scratch = scratch_at(d, D, omp_get_thread_num());
        if (bf16) bf16->fwd(&a, segs, n_segs, Tk, scratch_at(d, D, nb_threads()), scratch);
        for (int64_t b = 0; b < n_segs; b++)
            if (!bf16 || nb_attention_decodes(segs + b)) forward_segment(&a, segs + b, scratch);
    }
    return NB_OK;
}

/* dk or dv [rows, KV, D] of a segment = the groups' sums, in order, + beta * what is there. */
static void add_groups(float *out, float beta, const float *sums, const nb_attention *a, const nb_seg *s,
                       int64_t rows) {
    int64_t groups = groups_per_kv(a->H, a->KV);
#pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < s->kn * a->KV; n++) {
        int64_t row = s->k0 + n / a->KV, kv = n % a->KV;
        float *to = out + (row * a->KV + kv) * a->D;
        for (int64_t i = 0; i < groups; i++) {
            const float *from = sums + ((kv * groups + i) * rows + row) * a->Dp;
            float keep = i ? 1 : beta;
            for (int64_t c = 0; c < a->D; c++) to[c] = keep != 0 ? from[c] + keep * to[c] : from[c];
        }
    }
}

nb_status nb_cpu_attention_bwd(nb_dev *d, nb_elem *dq_, float beta_q, nb_elem *dk_, float beta_k, nb_elem *dv_,
                               float beta_v, const nb_elem *d_o_, const nb_elem *q_, const nb_elem *k_,
                               const nb_elem *v_, const nb_elem *o_, const float *lse, const nb_seg *segs,
                               int64_t n_segs, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D, float scale,
                               float cap, int64_t window) {
    float *dq = dq_, *dk = dk_, *dv = dv_;
    const float *d_o = d_o_, *q = q_, *k = k_, *v = v_, *o = o_;
    const nb_attention_bf16 *bf16 = rounded(d);
    const nb_attention a = {.H = H, .KV = KV, .D = D, .Dp = padded(D), .window = window, .scale = scale, .cap = cap,
                            .q = q, .k = k, .v = v, .d_o = d_o, .o_in = o, .lse_in = lse, .dq = dq, .beta_q = beta_q};
    int64_t rows = Tk, groups = groups_per_kv(H, KV), g = group_of(H, KV), G = H / KV;
    NB_ASSERT(d->ws_size >= nb_cpu_attention_ws(d, Tq, rows, H, KV, D));
    float *sum_k = scratch_at(d, D, nb_threads()), *sum_v = sum_k + KV * groups * rows * a.Dp;
    const nb_simd *simd = nb_simd_get();
    if (bf16) {
#pragma omp parallel
        bf16->bwd(&a, dk, beta_k, dv, beta_v, segs, n_segs, Tk, sum_k, scratch_at(d, D, omp_get_thread_num()));
        return NB_OK;
    }
#pragma omp parallel
    {
        float *scratch = scratch_at(d, D, omp_get_thread_num());
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < n_segs * KV * groups; n++) {
            const nb_seg *s = segs + n / (KV * groups);
            int64_t slot = n % (KV * groups), kv = slot / groups, h = slot % groups * g;
            int64_t at = (slot * rows + s->k0) * a.Dp;
            nb_attention_block b = {.seg = s, .kv = kv, .h0 = kv * G + h, .g = G - h < g ? G - h : g, .i0 = 0,
                                    .n = s->qn, .dk = dk ? sum_k + at : NULL, .dv = dv ? sum_v + at : NULL};
            simd->attention_bwd(&a, &b, scratch);
        }
        for (int64_t b = 0; b < n_segs; b++) {
            if (dk) add_groups(dk, beta_k, sum_k, &a, segs + b, rows);
            if (dv) add_groups(dv, beta_v, sum_v, &a, segs + b, rows);
        }
    }
    return NB_OK;
}
