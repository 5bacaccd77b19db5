/* The kernels' mathematics in double precision, written for reading, not for speed: what every backend
 * and every operation is tested against. Names and shapes are those of kernels/kernels.def. Each _bwd
 * sets its gradients (beta 0). test_kernels.c and test_attention.c check each against central differences. */
#ifndef NB_TESTS_REFERENCE_H
#define NB_TESTS_REFERENCE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "core/batch.h"
#include "core/rng.h"
#include "kernels/backend.h"

static inline void ref_rmsnorm_fwd(double *y, double *rstd, const double *x, const double *w, int64_t T, int64_t C,
                                   double eps, double offset) {
    for (int64_t t = 0; t < T; t++) {
        double sum = 0;
        for (int64_t c = 0; c < C; c++) sum += x[t * C + c] * x[t * C + c];
        rstd[t] = 1 / sqrt(sum / (double)C + eps);
        for (int64_t c = 0; c < C; c++) y[t * C + c] = x[t * C + c] * rstd[t] * (w[c] + offset);
    }
}

static inline void ref_rmsnorm_bwd(double *dx, double *dw, const double *dy, const double *x, const double *w,
                                   int64_t T, int64_t C, double eps, double offset) {
    for (int64_t c = 0; dw && c < C; c++) dw[c] = 0;
    for (int64_t t = 0; t < T; t++) {
        const double *xt = x + t * C, *dyt = dy + t * C;
        double sum = 0, dot = 0;
        for (int64_t c = 0; c < C; c++) sum += xt[c] * xt[c], dot += dyt[c] * (w[c] + offset) * xt[c];
        double r = 1 / sqrt(sum / (double)C + eps);
        for (int64_t c = 0; c < C; c++) {
            if (dx) dx[t * C + c] = r * (dyt[c] * (w[c] + offset) - xt[c] * r * r * dot / (double)C);
            if (dw) dw[c] += dyt[c] * xt[c] * r;
        }
    }
}

/* bias NULL: none. */
static inline void ref_layernorm_fwd(double *y, double *mean, double *rstd, const double *x, const double *w,
                                     const double *bias, int64_t T, int64_t C, double eps) {
    for (int64_t t = 0; t < T; t++) {
        const double *xt = x + t * C;
        double sum = 0, squares = 0;
        for (int64_t c = 0; c < C; c++) sum += xt[c];
        mean[t] = sum / (double)C;
        for (int64_t c = 0; c < C; c++) squares += (xt[c] - mean[t]) * (xt[c] - mean[t]);
        rstd[t] = 1 / sqrt(squares / (double)C + eps);
        for (int64_t c = 0; c < C; c++) y[t * C + c] = (xt[c] - mean[t]) * rstd[t] * w[c] + (bias ? bias[c] : 0);
    }
}

static inline void ref_layernorm_bwd(double *dx, double *dw, double *db, const double *dy, const double *x,
                                     const double *w, int64_t T, int64_t C, double eps) {
    for (int64_t c = 0; c < C; c++) dw[c] = db[c] = 0;
    for (int64_t t = 0; t < T; t++) {
        const double *xt = x + t * C, *dyt = dy + t * C;
        double mean = 0, squares = 0, sum = 0, dot = 0;
        for (int64_t c = 0; c < C; c++) mean += xt[c] / (double)C;
        for (int64_t c = 0; c < C; c++) squares += (xt[c] - mean) * (xt[c] - mean);
        double r = 1 / sqrt(squares / (double)C + eps);
        for (int64_t c = 0; c < C; c++) sum += dyt[c] * w[c], dot += dyt[c] * w[c] * (xt[c] - mean) * r;
        for (int64_t c = 0; c < C; c++) {
            double n = (xt[c] - mean) * r;
            dx[t * C + c] = r * (dyt[c] * w[c] - sum / (double)C - n * dot / (double)C);
            dw[c] += dyt[c] * n;
            db[c] += dyt[c];
        }
    }
}

/* y may not equal x. inverse = the transposed rotation. */
static inline void ref_rope(double *y, const double *x, const double *cosine, const double *sine, const int32_t *pos,
                            int64_t T, int64_t n_heads, int64_t D, int64_t rot, bool inverse) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < n_heads; h++)
            for (int64_t i = 0; i < D; i++) {
                const double *xh = x + (t * n_heads + h) * D;
                int64_t half = rot / 2, at = pos[t] * half + (half ? i % half : 0);
                double s = (inverse ? -1 : 1) * (i < rot ? sine[at] : 0), *yh = y + (t * n_heads + h) * D;
                yh[i] = i >= rot ? xh[i] : i < half ? xh[i] * cosine[at] - xh[i + half] * s
                                                    : xh[i] * cosine[at] + xh[i - half] * s;
            }
}

typedef struct ref_attention {
    const nb_seg *segs;
    int64_t n_segs, H, KV, D, window;
    double scale, cap;
} ref_attention;

/* Probabilities p[kn] of query i of segment s and head h, and the slope of the cap at each score; returns the lse. */
static inline double ref_attention_row(const ref_attention *a, double *p, double *slope, const double *q,
                                       const double *k, const nb_seg *s, int64_t i, int64_t h) {
    int64_t last = s->kn - s->qn + i, kv = h / (a->H / a->KV);
    double best = -INFINITY, sum = 0;
    for (int64_t j = 0; j < s->kn; j++) {
        double z = 0, t;
        for (int64_t c = 0; c < a->D; c++)
            z += q[((s->q0 + i) * a->H + h) * a->D + c] * k[((s->k0 + j) * a->KV + kv) * a->D + c];
        z *= a->scale;
        t = a->cap > 0 ? tanh(z / a->cap) : 0;
        slope[j] = 1 - t * t;
        bool seen = j <= last && (a->window <= 0 || j > last - a->window);
        p[j] = !seen ? -INFINITY : a->cap > 0 ? a->cap * t : z;
        if (p[j] > best) best = p[j];
    }
    for (int64_t j = 0; j < s->kn; j++) sum += exp(p[j] - best);
    for (int64_t j = 0; j < s->kn; j++) p[j] = exp(p[j] - best) / sum;
    return best + log(sum);
}

static inline void ref_attention_fwd(double *o, double *lse, const double *q, const double *k, const double *v,
                                     const ref_attention *a) {
    for (int64_t b = 0; b < a->n_segs; b++) {
        const nb_seg *s = a->segs + b;
        double *p = malloc(sizeof(double) * 2 * (size_t)s->kn), *slope = p + s->kn;
        for (int64_t n = 0; n < s->qn * a->H; n++) {
            int64_t i = n / a->H, h = n % a->H, at = (s->q0 + i) * a->H + h, kv = h / (a->H / a->KV);
            double l = ref_attention_row(a, p, slope, q, k, s, i, h);
            if (lse) lse[at] = l;
            for (int64_t c = 0; c < a->D; c++) {
                double sum = 0;
                for (int64_t j = 0; j < s->kn; j++) sum += p[j] * v[((s->k0 + j) * a->KV + kv) * a->D + c];
                o[at * a->D + c] = sum;
            }
        }
        free(p);
    }
}

/* dk and dv: rows outside every segment are left as they are; rows of segments are set. */
static inline void ref_attention_bwd(double *dq, double *dk, double *dv, const double *d_o, const double *q,
                                     const double *k, const double *v, const ref_attention *a) {
    int64_t D = a->D, row = a->KV * D;
    for (int64_t b = 0; b < a->n_segs; b++) {
        const nb_seg *s = a->segs + b;
        double *p = malloc(sizeof(double) * 3 * (size_t)s->kn), *slope = p + s->kn, *dp = slope + s->kn;
        for (int64_t n = 0; n < s->kn * row; n++) dk[s->k0 * row + n] = dv[s->k0 * row + n] = 0;
        for (int64_t n = 0; n < s->qn * a->H; n++) {
            int64_t i = n / a->H, h = n % a->H, at = ((s->q0 + i) * a->H + h) * D;
            int64_t kat = s->k0 * row + h / (a->H / a->KV) * D;
            double delta = 0;
            ref_attention_row(a, p, slope, q, k, s, i, h);
            for (int64_t j = 0; j < s->kn; j++) {
                dp[j] = 0;
                for (int64_t c = 0; c < D; c++) dp[j] += d_o[at + c] * v[kat + j * row + c];
                delta += p[j] * dp[j];
            }
            for (int64_t c = 0; c < D; c++) dq[at + c] = 0;
            for (int64_t j = 0; j < s->kn; j++) {
                double ds = p[j] * (dp[j] - delta) * slope[j] * a->scale;
                for (int64_t c = 0; c < D; c++) {
                    dq[at + c] += ds * k[kat + j * row + c];
                    dk[kat + j * row + c] += ds * q[at + c];
                    dv[kat + j * row + c] += p[j] * d_o[at + c];
                }
            }
        }
        free(p);
    }
}

static inline double ref_act(double x, nb_act act) {
    switch (act) {
    case NB_ACT_SILU: return x / (1 + exp(-x));
    case NB_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case NB_ACT_GELU_ERF: return 0.5 * x * (1 + erf(x / sqrt(2)));
    case NB_ACT_RELU: return x > 0 ? x : 0;
    }
    return NAN;
}

static inline double ref_act_slope(double x, nb_act act) {
    double s = 1 / (1 + exp(-x)), k = sqrt(2 / M_PI), t = tanh(k * (x + 0.044715 * x * x * x));
    switch (act) {
    case NB_ACT_SILU: return s * (1 + x * (1 - s));
    case NB_ACT_GELU_TANH: return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    case NB_ACT_GELU_ERF: return 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-0.5 * x * x) / sqrt(2 * M_PI);
    case NB_ACT_RELU: return x > 0;
    }
    return NAN;
}

static inline void ref_glu_fwd(double *y, const double *gate, const double *up, int64_t n, nb_act act) {
    for (int64_t i = 0; i < n; i++) y[i] = ref_act(gate[i], act) * up[i];
}

static inline void ref_glu_bwd(double *dgate, double *dup, const double *dy, const double *gate, const double *up,
                               int64_t n, nb_act act) {
    for (int64_t i = 0; i < n; i++) {
        dgate[i] = dy[i] * up[i] * ref_act_slope(gate[i], act);
        dup[i] = dy[i] * ref_act(gate[i], act);
    }
}

/* dx = the gradient of sum(loss) with respect to x, or NULL. argmax or lse may be NULL. */
static inline void ref_xent(double *loss, double *lse, int32_t *argmax, double *dx, const double *x,
                            const int32_t *target, int64_t n, int64_t V, double cap) {
    for (int64_t i = 0; i < n; i++) {
        const double *xi = x + i * V;
        double best = -INFINITY, sum = 0;
        int64_t arg = 0;
        for (int64_t v = 0; v < V; v++) {
            double z = cap > 0 ? cap * tanh(xi[v] / cap) : xi[v];
            if (z > best) best = z, arg = v;
        }
        for (int64_t v = 0; v < V; v++) sum += exp((cap > 0 ? cap * tanh(xi[v] / cap) : xi[v]) - best);
        double l = best + log(sum);
        loss[i] = l - (cap > 0 ? cap * tanh(xi[target[i]] / cap) : xi[target[i]]);
        if (lse) lse[i] = l;
        if (argmax) argmax[i] = (int32_t)arg;
        for (int64_t v = 0; dx && v < V; v++) {
            double t = cap > 0 ? tanh(xi[v] / cap) : 0, z = cap > 0 ? cap * t : xi[v];
            dx[i * V + v] = (exp(z - l) - (v == target[i])) * (1 - t * t);
        }
    }
}

/* Exactly 0 or 1/(1-p): the factor of element c of a row. */
static inline double ref_dropout_factor(uint32_t sample, int32_t pos, int64_t c, float p, uint64_t seed, uint32_t step,
                                        uint32_t site) {
    const uint32_t key[2] = {(uint32_t)seed ^ (uint32_t)NB_RNG_DROPOUT << 24, (uint32_t)(seed >> 32) ^ step};
    const uint32_t counter[4] = {(uint32_t)(c / 4), (uint32_t)pos, sample, site};
    uint32_t word[4];
    nb_philox(word, counter, key);
    return (double)word[c % 4] >= (double)p * 4294967296.0 ? 1 / (1 - (double)p) : 0;
}

static inline void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, double lr, double beta1,
                             double beta2, double eps, double wd, int64_t step, double g_scale) {
    double c1 = 1 - pow(beta1, (double)step), c2 = 1 - pow(beta2, (double)step);
    for (int64_t i = 0; i < n; i++) {
        double gi = g[i] * g_scale;
        m[i] = beta1 * m[i] + (1 - beta1) * gi;
        v[i] = beta2 * v[i] + (1 - beta2) * gi * gi;
        p[i] *= 1 - lr * wd;
        p[i] -= lr * (m[i] / c1) / (sqrt(v[i] / c2) + eps);
    }
}

/* grad[n] = central differences of f at x, which is put back as it was. */
static inline void ref_numeric_gradient(double *grad, double *x, int64_t n, double (*f)(void *ctx), void *ctx) {
    const double h = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double keep = x[i], up;
        x[i] = keep + h, up = f(ctx);
        x[i] = keep - h, grad[i] = (up - f(ctx)) / (2 * h);
        x[i] = keep;
    }
}

#endif
