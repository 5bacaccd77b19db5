/* Dropout whose mask is a pure function of (seed, step, site, sample, position, channel). */
#include <math.h>

#include "core/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

nb_status nb_cpu_dropout(nb_dev *d, nb_elem *y_, const nb_elem *x_, const uint32_t *sample, const int32_t *pos, int64_t T,
                         int64_t C, float p, uint64_t seed, uint32_t step, uint32_t site, float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
    const uint32_t key[2] = {(uint32_t)seed ^ (uint32_t)NB_RNG_DROPOUT << 24, (uint32_t)(seed >> 32) ^ step};
    const uint64_t threshold = (uint64_t)ceil((double)p * 4294967296.0);
    const float scale = (float)(1 / (1 - (double)p));
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        const uint32_t row[3] = {(uint32_t)pos[t], sample[t], site};
        v->dropout(y + t * C, x + t * C, C, key, row, threshold, scale, beta);
    }
    return NB_OK;
}
