/* AdamW with 8-bit state: the definition. Blocks are independent, so any number of threads gives the same bits. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/state8.h"

enum { BLOCK = NB_STATE8_BLOCK };

typedef struct tables {
    float m[256], v[256], m_middle[255], v_middle[255];
} tables;

typedef struct scalars { /* as in optim.c: p*shrink - rate*m / (sqrt(v)/root + eps) */
    float shrink, rise1, beta2, rise2, rate, root, eps, clip;
} scalars;

static void fill(tables *t) {
    for (int k = 0; k < 256; k++) t->m[k] = nb_state8_level(k, true), t->v[k] = nb_state8_level(k, false);
    for (int k = 0; k < 255; k++)
        t->m_middle[k] = nb_state8_middle(k, true), t->v_middle[k] = nb_state8_middle(k, false);
}

/* One block: decode, update, and encode with the new largest values as scales. */
static void update_block(float *p, uint8_t *m8, uint8_t *v8, float *m_absmax, float *v_absmax, const float *g, int n,
                         const tables *t, const scalars *s) {
    float m[BLOCK], v[BLOCK], m_top = 0, v_top = 0;
    for (int i = 0; i < n; i++) m[i] = t->m[m8[i]] * *m_absmax, v[i] = t->v[v8[i]] * *v_absmax;
    for (int i = 0; i < n; i++) {
        float gi = g[i] * s->clip;
        m[i] += (gi - m[i]) * s->rise1;
        v[i] = v[i] * s->beta2 + gi * gi * s->rise2;
        p[i] = p[i] * s->shrink - s->rate * m[i] / (sqrtf(v[i]) / s->root + s->eps);
    }
    for (int i = 0; i < n; i++) {
        m_top = fabsf(m[i]) > m_top ? fabsf(m[i]) : m_top;
        v_top = v[i] > v_top ? v[i] : v_top;
    }
    for (int i = 0; i < n; i++) m8[i] = (uint8_t)nb_state8_put_m(t->m_middle, m[i], m_top);
    for (int i = 0; i < n; i++) v8[i] = (uint8_t)nb_state8_put_v(t->v_middle, v[i], v_top);
    *m_absmax = m_top, *v_absmax = v_top;
}

nb_status nb_cpu_adamw8(nb_dev *d, float *p, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax, const float *g,
                        int64_t n, const nb_update *u, float beta1, float beta2, float eps, float wd) {
    (void)d;
    if (!isfinite(u->sum_squares)) return NB_OK;
    const double lr = u->lr, clip = u->max_norm > 0 ? u->max_norm / (sqrt(u->sum_squares) + 1e-6) : 1;
    const scalars s = {
        .shrink = (float)(1 - lr * (double)wd), .rise1 = (float)(1 - (double)beta1), .beta2 = beta2,
        .rise2 = (float)(1 - (double)beta2), .rate = (float)(lr / u->bias1), .root = (float)sqrt(u->bias2),
        .eps = eps, .clip = clip < 1 ? (float)clip : 1,
    };
    tables t;
    fill(&t);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < (n + BLOCK - 1) / BLOCK; b++) {
        int64_t i = b * BLOCK, left = n - i;
        update_block(p + i, m + i, v + i, m_absmax + b, v_absmax + b, g + i, left < BLOCK ? (int)left : BLOCK, &t, &s);
    }
    return NB_OK;
}
