/* Causal attention over segments. Query i of a segment stands at key kn - qn + i. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { KEYS = 64 }; /* keys whose scores are held at once */

typedef struct shape {
    int64_t H, KV, D, window;
    float scale, cap;
} shape;

static float dot(const float *x, const float *y, int64_t n) {
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

static void axpy(float *y, float k, const float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] += k * x[i];
}

/* The keys [*lo, *hi) that query i sees. */
static void visible(const nb_seg *s, int64_t i, int64_t window, int64_t *lo, int64_t *hi) {
    *hi = s->kn - s->qn + i + 1;
    *lo = window > 0 && *hi > window ? *hi - window : 0;
}

static float score(const shape *a, const float *q, const float *k, float *slope) {
    float s = dot(q, k, a->D) * a->scale, t = a->cap > 0 ? tanhf(s / a->cap) : 0;
    *slope = 1 - t * t;
    return a->cap > 0 ? a->cap * t : s;
}

/* One query of one head: softmax(q k^T) v with a running maximum, o holding the unnormalized sum. */
static float attend(const shape *a, float *o, const float *q, const float *k, const float *v, int64_t lo, int64_t hi) {
    float best = -INFINITY, sum = 0, s[KEYS], slope;
    int64_t row = a->KV * a->D;
    memset(o, 0, sizeof(float) * (size_t)a->D);
    for (int64_t j0 = lo; j0 < hi; j0 += KEYS) {
        int64_t n = hi - j0 < KEYS ? hi - j0 : KEYS;
        float top = best;
        for (int64_t j = 0; j < n; j++) {
            s[j] = score(a, q, k + (j0 + j) * row, &slope);
            if (s[j] > top) top = s[j];
        }
        float keep = expf(best - top);
        best = top;
        sum *= keep;
        for (int64_t c = 0; c < a->D; c++) o[c] *= keep;
        for (int64_t j = 0; j < n; j++) {
            float p = expf(s[j] - best);
            sum += p;
            axpy(o, p, v + (j0 + j) * row, a->D);
        }
    }
    for (int64_t c = 0; c < a->D; c++) o[c] /= sum;
    return best + logf(sum);
}

nb_status nb_cpu_attention_fwd(nb_dev *d, float *o, float *lse, const float *q, const float *k, const float *v,
                               const nb_seg *segs, int64_t n_segs, int64_t H, int64_t KV, int64_t D, float scale, float cap,
                               int64_t window) {
    (void)d;
    const shape a = {H, KV, D, window, scale, cap};
    for (int64_t b = 0; b < n_segs; b++) {
        const nb_seg *s = segs + b;
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
        for (int64_t h = 0; h < H; h++) {
            for (int64_t i = 0; i < s->qn; i++) {
                int64_t lo, hi, kv = (s->k0 * KV + h / (H / KV)) * D, at = (s->q0 + i) * H + h;
                visible(s, i, window, &lo, &hi);
                float l = attend(&a, o + at * D, q + at * D, k + kv, v + kv, lo, hi);
                if (lse) lse[at] = l;
            }
        }
    }
    return NB_OK;
}

static void scale_rows(float *x, int64_t row, int64_t n_rows, int64_t D, float beta) {
    for (int64_t i = 0; x && i < n_rows; i++)
        for (int64_t c = 0; c < D; c++) x[i * row + c] = beta != 0 ? beta * x[i * row + c] : 0;
}

nb_status nb_cpu_attention_bwd(nb_dev *d, float *dq, float beta_q, float *dk, float beta_k, float *dv, float beta_v,
                               const float *d_o, const float *q, const float *k, const float *v, const float *o,
                               const float *lse, const nb_seg *segs, int64_t n_segs, int64_t H, int64_t KV, int64_t D,
                               float scale, float cap, int64_t window) {
    (void)d;
    const shape a = {H, KV, D, window, scale, cap};
    int64_t G = H / KV;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < n_segs; b++) {
        for (int64_t kv = 0; kv < KV; kv++) {
            const nb_seg *s = segs + b;
            int64_t kat = (s->k0 * KV + kv) * D, qat = (s->q0 * H + kv * G) * D;
            scale_rows(dq ? dq + qat : NULL, H * D, s->qn, G * D, beta_q);
            scale_rows(dk ? dk + kat : NULL, KV * D, s->kn, D, beta_k);
            scale_rows(dv ? dv + kat : NULL, KV * D, s->kn, D, beta_v);
            for (int64_t i = 0; i < s->qn * G; i++) {
                int64_t lo, hi, at = (s->q0 + i / G) * H + kv * G + i % G;
                visible(s, i / G, window, &lo, &hi);
                float delta = dot(d_o + at * D, o + at * D, D);
                for (int64_t j = lo; j < hi; j++) {
                    float slope, p = expf(score(&a, q + at * D, k + kat + j * KV * D, &slope) - lse[at]);
                    float ds = p * (dot(d_o + at * D, v + kat + j * KV * D, D) - delta) * slope * scale;
                    if (dq) axpy(dq + at * D, ds, k + kat + j * KV * D, D);
                    if (dk) axpy(dk + kat + j * KV * D, ds, q + at * D, D);
                    if (dv) axpy(dv + kat + j * KV * D, p, d_o + at * D, D);
                }
            }
        }
    }
    return NB_OK;
}

size_t nb_cpu_attention_ws(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D) {
    (void)d, (void)Tq, (void)Tk, (void)H, (void)KV, (void)D;
    return 0;
}
