/* The bodies of simd.def, compiled by simd_base.c, simd_avx2.c and simd_avx512.c, which set NB_VW (vmath.h),
 * NB_SIMD and NB_SIMD_NAME (the table) and NB_TILE_VECTORS (simd_attention.h). */
#ifndef NB_SIMD
#define NB_SIMD nb_simd_unused
#define NB_SIMD_NAME "unused"
#endif
#include "kernels/cpu/vmath.h"

#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_attention.h"

#include "core/rng.h"

static void rows_exp(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += NB_VW) v_store_n(y + i, v_exp(v_load_n(x + i, n - i)), n - i);
}

static void rows_tanh(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += NB_VW) v_store_n(y + i, v_tanh(v_load_n(x + i, n - i)), n - i);
}

enum { BLOCK = 1024 }; /* elements summed in float before they join a sum in double */

static float rows_rmsnorm_fwd(float *y, const float *x, const float *w, int64_t C, float eps, float offset) {
    double sum = 0;
    for (int64_t c0 = 0; c0 < C; c0 += BLOCK) {
        vf even = v_set(0), odd = v_set(0);
        int64_t end = C - c0 < BLOCK ? C : c0 + BLOCK;
        for (int64_t c = c0; c < end; c += 2 * NB_VW) {
            vf x0 = v_load_n(x + c, end - c),
               x1 = end - c > NB_VW ? v_load_n(x + c + NB_VW, end - c - NB_VW) : v_set(0);
            even = v_fma(x0, x0, even), odd = v_fma(x1, x1, odd);
        }
        sum += (double)v_sum(even + odd);
    }
    float rstd = (float)(1 / sqrt(sum / (double)C + (double)eps));
    for (int64_t c = 0; c < C; c += NB_VW) {
        vf n = v_load_n(x + c, C - c) * v_set(rstd);
        v_store_n(y + c, n * (v_load_n(w + c, C - c) + v_set(offset)), C - c);
    }
    return rstd;
}

/* With g = dy*(w+offset) and n = x*rstd:  dx = rstd*(g - n*mean(g*n)). */
static void rows_rmsnorm_bwd(float *dx, float beta, const float *dy, const float *x, const float *w, float rstd,
                             int64_t C, float offset) {
    double dot = 0;
    for (int64_t c0 = 0; c0 < C; c0 += BLOCK) {
        vf sum = v_set(0);
        int64_t end = C - c0 < BLOCK ? C : c0 + BLOCK;
        for (int64_t c = c0; c < end; c += NB_VW) {
            vf g = v_load_n(dy + c, end - c) * (v_load_n(w + c, end - c) + v_set(offset));
            sum = v_fma(g, v_load_n(x + c, end - c), sum);
        }
        dot += (double)v_sum(sum);
    }
    vf r = v_set(rstd), k = v_set((float)(dot * (double)rstd * (double)rstd / (double)C));
    for (int64_t c = 0; c < C; c += NB_VW) {
        vf g = v_load_n(dy + c, C - c) * (v_load_n(w + c, C - c) + v_set(offset));
        put(dx + c, r * (g - v_load_n(x + c, C - c) * k), beta, C - c);
    }
}

/* act(x) and its derivative. */
NB_INLINE vf act_value(nb_act act, vf x, vf *slope) {
    const vf one = v_set(1);
    if (act == NB_ACT_SILU) {
        vf s = v_sigmoid(x);
        *slope = s * (one + x * (one - s));
        return x * s;
    }
    if (act == NB_ACT_GELU_TANH) { /* (1 + tanh(u)) / 2 = sigmoid(2u) does not cancel where it is small */
        const vf k = v_set(2 * 0.7978845608f), cube = v_set(0.044715f);
        vf z = x * x, s = v_sigmoid(k * x * (one + cube * z));
        *slope = s + x * s * (one - s) * k * (one + v_set(3) * cube * z);
        return x * s;
    }
    if (act == NB_ACT_GELU_ERF) {
        vf cdf;
        for (int i = 0; i < NB_VW; i++) cdf[i] = 0.5f * erfcf(x[i] * -0.7071067812f);
        *slope = cdf + x * v_set(0.3989422804f) * v_exp(v_set(-0.5f) * x * x);
        return x * cdf;
    }
    *slope = v_select(x > v_set(0), one, v_set(0));
    return v_select(x > v_set(0), x, x * v_set(0)); /* NaN stays */
}

NB_INLINE void glu_forward(float *y, const float *gate, const float *up, int64_t n, nb_act act) {
    for (int64_t i = 0; i < n; i += NB_VW) {
        vf slope;
        vf v = act_value(act, v_load_n(gate + i, n - i), &slope);
        v_store_n(y + i, up ? v * v_load_n(up + i, n - i) : v, n - i);
    }
}

NB_INLINE void glu_backward(float *dgate, float beta_gate, float *dup, float beta_up, const float *dy,
                            const float *gate, const float *up, int64_t n, nb_act act) {
    for (int64_t i = 0; i < n; i += NB_VW) {
        vf slope, v = act_value(act, v_load_n(gate + i, n - i), &slope), g = v_load_n(dy + i, n - i);
        vf dg = up ? g * v_load_n(up + i, n - i) * slope : g * slope; /* read before dup may overwrite it */
        if (dup) put(dup + i, g * v, beta_up, n - i);
        if (dgate) put(dgate + i, dg, beta_gate, n - i);
    }
}

static void rows_glu_fwd(float *y, const float *gate, const float *up, int64_t n, nb_act act) {
    switch (act) {
    case NB_ACT_SILU: glu_forward(y, gate, up, n, NB_ACT_SILU); break;
    case NB_ACT_GELU_TANH: glu_forward(y, gate, up, n, NB_ACT_GELU_TANH); break;
    case NB_ACT_GELU_ERF: glu_forward(y, gate, up, n, NB_ACT_GELU_ERF); break;
    case NB_ACT_RELU: glu_forward(y, gate, up, n, NB_ACT_RELU); break;
    }
}

static void rows_glu_bwd(float *dgate, float beta_gate, float *dup, float beta_up, const float *dy, const float *gate,
                         const float *up, int64_t n, nb_act act) {
    switch (act) {
    case NB_ACT_SILU: glu_backward(dgate, beta_gate, dup, beta_up, dy, gate, up, n, NB_ACT_SILU); break;
    case NB_ACT_GELU_TANH: glu_backward(dgate, beta_gate, dup, beta_up, dy, gate, up, n, NB_ACT_GELU_TANH); break;
    case NB_ACT_GELU_ERF: glu_backward(dgate, beta_gate, dup, beta_up, dy, gate, up, n, NB_ACT_GELU_ERF); break;
    case NB_ACT_RELU: glu_backward(dgate, beta_gate, dup, beta_up, dy, gate, up, n, NB_ACT_RELU); break;
    }
}

/* Capped logits z of n elements, or x itself without a cap. */
NB_INLINE const float *capped(float *z, const float *x, int64_t n, float cap) {
    if (!(cap > 0)) return x;
    for (int64_t i = 0; i < n; i += NB_VW)
        v_store_n(z + i, v_set(cap) * v_tanh(v_load_n(x + i, n - i) * v_set(1 / cap)), n - i);
    return z;
}

/* One pass for maximum, its place and the sum, block by block, the sum rescaled when the maximum rises. */
static void rows_xent(float *loss, float *lse, int32_t *argmax, float *x, int32_t target, int64_t V, bool grad,
                      float cap) {
    float z_block[BLOCK], best = -3e38f, z_target = 0;
    double sum = 0;
    int64_t arg = 0;
    for (int64_t v0 = 0; v0 < V; v0 += BLOCK) {
        int64_t n = V - v0 < BLOCK ? V - v0 : BLOCK, i = 0;
        const float *z = capped(z_block, x + v0, n, cap);
        if (target >= v0 && target < v0 + n) z_target = z[target - v0];
        vf top4[4] = {v_set(best), v_set(best), v_set(best), v_set(best)}, part[2] = {v_set(0), v_set(0)};
        for (; i + 4 * NB_VW <= n; i += 4 * NB_VW)
            for (int j = 0; j < 4; j++) top4[j] = v_max(v_load(z + i + j * NB_VW), top4[j]);
        float top = v_top(v_max(v_max(top4[0], top4[1]), v_max(top4[2], top4[3])));
        for (; i < n; i++) top = z[i] > top ? z[i] : top;
        if (top > best) {
            sum *= exp((double)best - (double)top);
            best = top;
            for (arg = 0; z[arg] != top;) arg++;
            arg += v0;
        }
        for (i = 0; i + 2 * NB_VW <= n; i += 2 * NB_VW)
            for (int j = 0; j < 2; j++) part[j] += v_exp(v_load(z + i + j * NB_VW) - v_set(best));
        for (; i < n; i += NB_VW) {
            vf e = v_exp(v_load_n(z + i, n - i) - v_set(best)), kept = v_set(0);
            v_store_n((float *)&kept, e, n - i);
            part[0] += kept;
        }
        sum += (double)v_sum(part[0] + part[1]);
    }
    *loss = (float)(log(sum) - ((double)z_target - (double)best));
    if (lse) *lse = (float)((double)best + log(sum));
    if (argmax) *argmax = (int32_t)arg;
    if (!grad) return;
    vf inv = v_set((float)(1 / sum)), one = v_set(1);
    for (int64_t v = 0; v < V; v += NB_VW) {
        vf t = v_load_n(x + v, V - v), slope = one;
        if (cap > 0) t = v_tanh(t * v_set(1 / cap)), slope = one - t * t, t = v_set(cap) * t;
        v_store_n(x + v, v_exp(t - v_set(best)) * inv * slope, V - v);
    }
    float slope = cap > 0 ? 1 - z_target / cap * (z_target / cap) : 1;
    x[target] -= slope;
}

/* Philox4x32-10 (core/rng.h) for counters {group, position, sample, site} of 16 consecutive groups at once. */
static void rows_dropout(float *y, const float *x, int64_t C, const uint32_t key[2], const uint32_t row[3],
                         uint64_t threshold, float scale, float beta) {
    enum { GROUPS = 16 };
    for (int64_t c0 = 0; c0 < C; c0 += 4 * GROUPS) {
        uint32_t w0[GROUPS], w1[GROUPS], w2[GROUPS], w3[GROUPS], k0 = key[0], k1 = key[1];
        float factor[4 * GROUPS];
        for (int i = 0; i < GROUPS; i++)
            w0[i] = (uint32_t)(c0 / 4) + (uint32_t)i, w1[i] = row[0], w2[i] = row[1], w3[i] = row[2];
        for (int r = 0; r < 10; r++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
            for (int i = 0; i < GROUPS; i++) {
                uint64_t p0 = (uint64_t)0xD2511F53u * w0[i], p1 = (uint64_t)0xCD9E8D57u * w2[i];
                w0[i] = (uint32_t)(p1 >> 32) ^ w1[i] ^ k0;
                w1[i] = (uint32_t)p1;
                w2[i] = (uint32_t)(p0 >> 32) ^ w3[i] ^ k1;
                w3[i] = (uint32_t)p0;
            }
        for (int i = 0; i < GROUPS; i++) {
            factor[4 * i] = w0[i] >= threshold ? scale : 0;
            factor[4 * i + 1] = w1[i] >= threshold ? scale : 0;
            factor[4 * i + 2] = w2[i] >= threshold ? scale : 0;
            factor[4 * i + 3] = w3[i] >= threshold ? scale : 0;
        }
        int64_t n = C - c0 < 4 * GROUPS ? C - c0 : 4 * GROUPS;
        for (int64_t i = 0; i < n; i += NB_VW)
            put(y + c0 + i, v_load_n(x + c0 + i, n - i) * v_load(factor + i), beta, n - i);
    }
}

static void rows_adamw(float *p, float *m, float *v, const float *g, int64_t n, const nb_adamw_scalars *s) {
    const nb_adamw_scalars k = *s;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * k.g_scale, mi = m[i] + (gi - m[i]) * k.rise1, vi_ = v[i] * k.beta2 + gi * gi * k.rise2;
        m[i] = mi;
        v[i] = vi_;
        p[i] = p[i] * k.shrink - k.rate * mi / (sqrtf(vi_) / k.root + k.eps);
    }
}

static double rows_sum_squares(const float *x, int64_t n) {
    double lane[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
    for (int j = 0; j < 16; j++) sum += lane[j];
    for (; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

extern const nb_simd NB_SIMD;
const nb_simd NB_SIMD = {
    .name = NB_SIMD_NAME,
#define SIMD(result, name, args) .name = rows_##name,
#include "kernels/cpu/simd.def"
#undef SIMD
};
