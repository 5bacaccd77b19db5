/* RMS norm (Zhang & Sennrich 2019). */
#include <math.h>

#include "kernels/cpu/cpu.h"

nb_status nb_cpu_rmsnorm_fwd(nb_dev *d, float *y, float *rstd, const float *x, const float *w, int64_t T, int64_t C,
                             float eps, float offset) {
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const float *xt = x + t * C;
        float *yt = y + t * C, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += xt[c] * xt[c];
        float r = 1 / sqrtf(sum / (float)C + eps);
        rstd[t] = r;
        for (int64_t c = 0; c < C; c++) yt[c] = xt[c] * r * (w[c] + offset);
    }
    return NB_OK;
}

/* With g = dy*(w+offset) and n = x*rstd:  dx = rstd*(g - n*mean(g*n)),  dw = sum over rows of dy*n. */
static void rmsnorm_dx(float *dx, float beta, const float *dy, const float *x, const float *w, float rstd, int64_t C,
                       float offset) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t c = 0; c < C; c++) dot += dy[c] * (w[c] + offset) * x[c];
    float k = dot * rstd * rstd / (float)C;
    for (int64_t c = 0; c < C; c++) {
        float v = rstd * (dy[c] * (w[c] + offset) - x[c] * k);
        dx[c] = beta != 0 ? v + beta * dx[c] : v;
    }
}

enum { STRIP = 64, ROWS = 128 }; /* columns a task sums; rows summed on their own before joining the total */

nb_status nb_cpu_rmsnorm_bwd(nb_dev *d, float *dx, float beta_x, float *dw, float beta_w, const float *dy, const float *x,
                             const float *w, const float *rstd, int64_t T, int64_t C, float offset) {
    (void)d;
    if (dw) {
#pragma omp parallel for schedule(static)
        for (int64_t c0 = 0; c0 < C; c0 += STRIP) {
            int64_t n = C - c0 < STRIP ? C - c0 : STRIP;
            float total[STRIP] = {0};
            for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
                float part[STRIP] = {0};
                for (int64_t t = t0; t < T && t < t0 + ROWS; t++)
                    for (int64_t c = 0; c < n; c++) part[c] += dy[t * C + c0 + c] * (x[t * C + c0 + c] * rstd[t]);
                for (int64_t c = 0; c < n; c++) total[c] += part[c];
            }
            for (int64_t c = 0; c < n; c++) dw[c0 + c] = beta_w != 0 ? total[c] + beta_w * dw[c0 + c] : total[c];
        }
    }
    if (dx) {
#pragma omp parallel for schedule(static)
        for (int64_t t = 0; t < T; t++)
            rmsnorm_dx(dx + t * C, beta_x, dy + t * C, x + t * C, w, rstd[t], C, offset);
    }
    return NB_OK;
}
