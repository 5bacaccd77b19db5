/* RMS norm (Zhang & Sennrich 2019). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

nb_status nb_cpu_rmsnorm_fwd(nb_dev *d, nb_elem *y_, float *rstd, const nb_elem *x_, const float *w, int64_t T, int64_t C,
                             float eps, float offset) {
    float *y = y_;
    const float *x = x_;
    (void)d;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++) rstd[t] = v->rmsnorm_fwd(y + t * C, x + t * C, w, C, eps, offset);
    return NB_OK;
}

enum { STRIP = 64, ROWS = 128 }; /* columns a task sums; rows summed on their own before joining the total */

/* dw = sum over rows of dy * x * rstd. */
static void rmsnorm_dw(float *dw, float beta, const float *dy, const float *x, const float *rstd, int64_t T,
                       int64_t C) {
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
        for (int64_t c = 0; c < n; c++) dw[c0 + c] = beta != 0 ? total[c] + beta * dw[c0 + c] : total[c];
    }
}

nb_status nb_cpu_rmsnorm_bwd(nb_dev *d, nb_elem *dx_, float beta_x, float *dw, float beta_w, const nb_elem *dy_,
                             const nb_elem *x_, const float *w, const float *rstd, int64_t T, int64_t C, float offset) {
    float *dx = dx_;
    const float *dy = dy_, *x = x_;
    (void)d;
    const nb_simd *v = nb_simd_get();
    if (dw) rmsnorm_dw(dw, beta_w, dy, x, rstd, T, C);
    if (!dx) return NB_OK;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        v->rmsnorm_bwd(dx + t * C, beta_x, dy + t * C, x + t * C, w, rstd[t], C, offset);
    return NB_OK;
}
