/* The optimizer's update and the norm of a flat gradient. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { PART = 8192 }; /* elements of a task */

nb_status nb_cpu_sum_squares(nb_dev *d, nb_update *u, const float *x, int64_t n) {
    (void)d;
    enum { PARTS = 256 }; /* fixed, so that the order of the sum is the same for any number of threads */
    double part[PARTS], total = 0;
    const int64_t size = (n + PARTS - 1) / PARTS;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < PARTS; b++) {
        int64_t left = n - b * size;
        part[b] = left > 0 ? v->sum_squares(x + b * size, left < size ? left : size) : 0;
    }
    for (int b = 0; b < PARTS; b++) total += part[b];
    u->sum_squares = total;
    return NB_OK;
}

nb_status nb_cpu_adamw(nb_dev *d, float *p, float *m, float *v, const float *g, int64_t n, const nb_update *u,
                       float beta1, float beta2, float eps, float wd) {
    (void)d;
    if (!isfinite(u->sum_squares)) return NB_OK;
    double clip = u->max_norm > 0 ? (double)u->max_norm / (sqrt(u->sum_squares) + 1e-6) : 1;
    const nb_adamw_scalars s = {
        .shrink = (float)(1 - (double)u->lr * (double)wd), .rise1 = (float)(1 - (double)beta1), .beta2 = beta2,
        .rise2 = (float)(1 - (double)beta2), .rate = (float)((double)u->lr / u->bias1),
        .root = (float)sqrt(u->bias2), .eps = eps, .g_scale = (float)(clip < 1 ? clip : 1),
    };
    const nb_simd *simd = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += PART) simd->adamw(p + i, m + i, v + i, g + i, n - i < PART ? n - i : PART, &s);
    return NB_OK;
}
