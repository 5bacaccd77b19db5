/* The optimizer's update and the norm of a flat gradient. */
#include <math.h>

#include "kernels/cpu/cpu.h"

nb_status nb_cpu_adamw(nb_dev *d, float *p, float *m, float *v, const float *g, int64_t n, float lr, float beta1, float beta2,
                       float eps, float wd, int64_t step, float g_scale) {
    (void)d;
    /* The scalars in double, as Python's floats are. */
    float shrink = (float)(1 - (double)lr * wd), rise1 = (float)(1 - (double)beta1), rise2 = (float)(1 - (double)beta2);
    float rate = (float)(lr / (1 - pow(beta1, (double)step))), root = (float)sqrt(1 - pow(beta2, (double)step));
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float gi = g[i] * g_scale;
        float mi = m[i] + (gi - m[i]) * rise1, vi = v[i] * beta2 + gi * gi * rise2;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * shrink - rate * mi / (sqrtf(vi) / root + eps);
    }
    return NB_OK;
}

nb_status nb_cpu_sum_squares(nb_dev *d, double *sum, const float *x, int64_t n) {
    (void)d;
    enum { PARTS = 256 }; /* fixed, so that the order of the sum is the same for any number of threads */
    double part[PARTS], total = 0;
    int64_t size = (n + PARTS - 1) / PARTS;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < PARTS; b++) {
        int64_t end = (b + 1) * size < n ? (b + 1) * size : n;
        double s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t i = b * size; i < end; i++) s += (double)x[i] * x[i];
        part[b] = s;
    }
    for (int b = 0; b < PARTS; b++) total += part[b];
    *sum = total;
    return NB_OK;
}
