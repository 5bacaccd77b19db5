/* Rotary position embedding (Su et al. 2021), half-rotated convention: element i of a head is paired
 * with element i + rot/2. */
#include "kernels/cpu/cpu.h"

nb_status nb_cpu_rope(nb_dev *d, nb_elem *y_, const nb_elem *x_, const float *cos, const float *sin, const int32_t *pos,
                      int64_t T, int64_t n_heads, int64_t D, int64_t rot, bool inverse, float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
    int64_t half = rot / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static) if (T * n_heads * D > NB_FEW)
    for (int64_t t = 0; t < T; t++) {
        const float *ct = cos + pos[t] * half, *st = sin + pos[t] * half;
        for (int64_t h = 0; h < n_heads; h++) {
            const float *xh = x + (t * n_heads + h) * D;
            float *yh = y + (t * n_heads + h) * D;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float s = sign * st[i], lo = xh[i] * ct[i] - xh[half + i] * s, hi = xh[half + i] * ct[i] + xh[i] * s;
                yh[i] = beta != 0 ? lo + beta * yh[i] : lo;
                yh[half + i] = beta != 0 ? hi + beta * yh[half + i] : hi;
            }
            for (int64_t i = rot; i < D; i++) yh[i] = beta != 0 ? xh[i] + beta * yh[i] : xh[i];
        }
    }
    return NB_OK;
}
