/* Layer norm (Ba, Kiros & Hinton 2016): each row less its mean, divided by its standard deviation. */
#include <math.h>

#include "kernels/cpu/cpu.h"

enum { LANES = 16, STRIP = 64, ROWS = 128 }; /* columns a task sums; rows summed on their own before joining the total */

/* The sums of x[c] - shift and of its square, each in LANES sums that are added at the end: the compiler's vectors. */
static void row_moments(double *sum, double *squares, const float *x, double shift, int64_t C) {
    double s[LANES] = {0}, q[LANES] = {0};
    for (int64_t c0 = 0; c0 < C; c0 += LANES)
        for (int64_t i = 0; i < LANES && i < C - c0; i++) {
            double v = (double)x[c0 + i] - shift;
            s[i] += v, q[i] += v * v;
        }
    *sum = *squares = 0;
    for (int i = 0; i < LANES; i++) *sum += s[i], *squares += q[i];
}

nb_status nb_cpu_layernorm_fwd(nb_dev *d, nb_elem *y_, float *mean, float *rstd, const nb_elem *x_, const float *w,
                               const float *bias, int64_t T, int64_t C, float eps) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++) {
        double sum, squares;
        row_moments(&sum, &squares, x + t * C, 0, C);
        const double centre = sum / (double)C;
        row_moments(&sum, &squares, x + t * C, centre, C);
        const float m = (float)centre, r = (float)(1 / sqrt(squares / (double)C + (double)eps));
        mean[t] = m, rstd[t] = r;
        for (int64_t c = 0; c < C; c++) y[t * C + c] = (x[t * C + c] - m) * r * w[c] + (bias ? bias[c] : 0);
    }
    return NB_OK;
}

/* dw = sum over rows of dy * (x - mean) * rstd, db = sum over rows of dy; each unless NULL. */
static void column_sums(float *dw, float beta_w, float *db, float beta_b, const float *dy, const float *x,
                        const float *mean, const float *rstd, int64_t T, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t c0 = 0; c0 < C; c0 += STRIP) {
        int64_t n = C - c0 < STRIP ? C - c0 : STRIP;
        float total_w[STRIP] = {0}, total_b[STRIP] = {0};
        for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
            float part_w[STRIP] = {0}, part_b[STRIP] = {0};
            for (int64_t t = t0; t < T && t < t0 + ROWS; t++)
                for (int64_t c = 0; c < n; c++) {
                    float g = dy[t * C + c0 + c];
                    part_w[c] += g * ((x[t * C + c0 + c] - mean[t]) * rstd[t]);
                    part_b[c] += g;
                }
            for (int64_t c = 0; c < n; c++) total_w[c] += part_w[c], total_b[c] += part_b[c];
        }
        for (int64_t c = 0; dw && c < n; c++) dw[c0 + c] = beta_w != 0 ? total_w[c] + beta_w * dw[c0 + c] : total_w[c];
        for (int64_t c = 0; db && c < n; c++) db[c0 + c] = beta_b != 0 ? total_b[c] + beta_b * db[c0 + c] : total_b[c];
    }
}

/* With g = dy*w and n = (x-mean)*rstd:  dx = rstd*(g - mean(g) - n*mean(g*n)). */
nb_status nb_cpu_layernorm_bwd(nb_dev *d, nb_elem *dx_, float beta_x, float *dw, float beta_w, float *dbias,
                               float beta_b, const nb_elem *dy_, const nb_elem *x_, const float *w, const float *mean,
                               const float *rstd, int64_t T, int64_t C) {
    float *dx = dx_;
    const float *dy = dy_, *x = x_;
    (void)d;
    if (dw || dbias) column_sums(dw, beta_w, dbias, beta_b, dy, x, mean, rstd, T, C);
    if (!dx) return NB_OK;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const float m = mean[t], r = rstd[t], *xt = x + t * C, *gt = dy + t * C;
        float *out = dx + t * C;
        double s[LANES] = {0}, q[LANES] = {0}, sum = 0, dot = 0;
        for (int64_t c0 = 0; c0 < C; c0 += LANES)
            for (int64_t i = 0; i < LANES && i < C - c0; i++) {
                float g = gt[c0 + i] * w[c0 + i];
                s[i] += (double)g, q[i] += (double)g * (double)((xt[c0 + i] - m) * r);
            }
        for (int i = 0; i < LANES; i++) sum += s[i], dot += q[i];
        const float mean_g = (float)(sum / (double)C), mean_gn = (float)(dot / (double)C);
        for (int64_t c = 0; c < C; c++) {
            float v = r * (gt[c] * w[c] - mean_g - (xt[c] - m) * r * mean_gn);
            out[c] = beta_x != 0 ? v + beta_x * out[c] : v;
        }
    }
    return NB_OK;
}
