/* Dropout whose mask is a pure function of (seed, step, site, sample, position, channel). */
#include <math.h>

#include "core/rng.h"
#include "kernels/cpu/cpu.h"

nb_status nb_cpu_dropout(nb_dev *d, float *y, const float *x, const uint32_t *sample, const int32_t *pos, int64_t T, int64_t C,
                         float p, uint64_t seed, uint32_t step, uint32_t site, float beta) {
    (void)d;
    const uint32_t key[2] = {(uint32_t)seed ^ (uint32_t)NB_RNG_DROPOUT << 24, (uint32_t)(seed >> 32) ^ step};
    uint64_t threshold = (uint64_t)ceil((double)p * 4294967296.0);
    float scale = (float)(1 / (1 - (double)p));
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        for (int64_t c0 = 0; c0 < C; c0 += 4) {
            uint32_t word[4], counter[4] = {(uint32_t)(c0 / 4), (uint32_t)pos[t], sample[t], site};
            nb_philox(word, counter, key);
            for (int64_t c = c0; c < C && c < c0 + 4; c++) {
                float v = word[c - c0] >= threshold ? x[t * C + c] * scale : 0;
                y[t * C + c] = beta != 0 ? v + beta * y[t * C + c] : v;
            }
        }
    }
    return NB_OK;
}
