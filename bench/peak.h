/* What the processor can do at most: independent multiply-adds in registers, no memory touched. */
#ifndef NB_BENCH_PEAK_H
#define NB_BENCH_PEAK_H

#include <omp.h>
#include <stdbool.h>

#include "core/cpu.h"
#include "core/log.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { NB_PEAK_CHAINS = 12, NB_PEAK_ROUNDS = 100000 }; /* more chains than latency times units */

/* Each runs the chains so many times and returns its floating-point operations. */
__attribute__((target("avx512f"))) static inline double nb_peak_avx512(volatile float *sink) {
    __m512 s[NB_PEAK_CHAINS], k = _mm512_set1_ps(0.999f);
    for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < NB_PEAK_ROUNDS; i++)
        for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm512_fmadd_ps(s[j], k, k);
    for (int j = 0; j < NB_PEAK_CHAINS; j++) *sink += _mm512_cvtss_f32(s[j]);
    return 2.0 * 16 * NB_PEAK_CHAINS * NB_PEAK_ROUNDS;
}

__attribute__((target("avx2,fma"))) static inline double nb_peak_avx2(volatile float *sink) {
    __m256 s[NB_PEAK_CHAINS], k = _mm256_set1_ps(0.999f);
    for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm256_set1_ps((float)j);
    for (int i = 0; i < NB_PEAK_ROUNDS; i++)
        for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm256_fmadd_ps(s[j], k, k);
    for (int j = 0; j < NB_PEAK_CHAINS; j++) *sink += _mm256_cvtss_f32(s[j]);
    return 2.0 * 8 * NB_PEAK_CHAINS * NB_PEAK_ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static inline double nb_peak_bf16(volatile float *sink) {
    __m512 s[NB_PEAK_CHAINS];
    __m512bh k = (__m512bh)_mm512_set1_epi32(0x3f003f00); /* 0.5, twice */
    for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < NB_PEAK_ROUNDS; i++)
        for (int j = 0; j < NB_PEAK_CHAINS; j++) s[j] = _mm512_dpbf16_ps(s[j], k, k);
    for (int j = 0; j < NB_PEAK_CHAINS; j++) *sink += _mm512_cvtss_f32(s[j]);
    return 4.0 * 16 * NB_PEAK_CHAINS * NB_PEAK_ROUNDS;
}
#endif

/* Operations a second of all threads together, best of several; 0: not known for this processor. */
static inline double nb_measured_peak(bool bf16) {
    double best = 0;
#if defined(__x86_64__)
    const nb_cpu *cpu = nb_cpu_get();
    if (bf16 ? !cpu->avx512_bf16 : !cpu->avx2_fma) return 0;
    for (int i = 0; i < 20; i++) {
        double rate = 0;
#pragma omp parallel num_threads(nb_threads()) reduction(+ : rate)
        {
            volatile float sink = 0;
            double start = nb_now(), flops;
            if (bf16) flops = nb_peak_bf16(&sink);
            else flops = cpu->avx512 ? nb_peak_avx512(&sink) : nb_peak_avx2(&sink);
            rate = flops / (nb_now() - start);
        }
        if (rate > best) best = rate;
    }
#else
    (void)bf16;
#endif
    return best;
}

#endif
