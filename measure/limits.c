#include "measure/limits.h"

#include <omp.h>
#include <stdint.h>

#include "core/cpu.h"
#include "core/log.h"
#include "core/mem.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { CHAINS = 12, ROUNDS = 100000 }; /* more chains than latency times units */

/* Each runs the chains so many times and returns its floating-point operations. */
__attribute__((target("avx512f"))) static double run_avx512(volatile float *sink) {
    __m512 s[CHAINS], k = _mm512_set1_ps(0.999f);
    for (int j = 0; j < CHAINS; j++) s[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < ROUNDS; i++)
        for (int j = 0; j < CHAINS; j++) s[j] = _mm512_fmadd_ps(s[j], k, k);
    for (int j = 0; j < CHAINS; j++) *sink += _mm512_cvtss_f32(s[j]);
    return 2.0 * 16 * CHAINS * ROUNDS;
}

__attribute__((target("avx2,fma"))) static double run_avx2(volatile float *sink) {
    __m256 s[CHAINS], k = _mm256_set1_ps(0.999f);
    for (int j = 0; j < CHAINS; j++) s[j] = _mm256_set1_ps((float)j);
    for (int i = 0; i < ROUNDS; i++)
        for (int j = 0; j < CHAINS; j++) s[j] = _mm256_fmadd_ps(s[j], k, k);
    for (int j = 0; j < CHAINS; j++) *sink += _mm256_cvtss_f32(s[j]);
    return 2.0 * 8 * CHAINS * ROUNDS;
}

__attribute__((target("avx512f,avx512bf16"))) static double run_bf16(volatile float *sink) {
    __m512 s[CHAINS];
    __m512bh k = (__m512bh)_mm512_set1_epi32(0x3f003f00); /* 0.5, twice */
    for (int j = 0; j < CHAINS; j++) s[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < ROUNDS; i++)
        for (int j = 0; j < CHAINS; j++) s[j] = _mm512_dpbf16_ps(s[j], k, k);
    for (int j = 0; j < CHAINS; j++) *sink += _mm512_cvtss_f32(s[j]);
    return 4.0 * 16 * CHAINS * ROUNDS;
}
#endif

double nb_measure_peak(bool bf16, int threads, double seconds) {
    double best = 0;
#if defined(__x86_64__)
    const nb_cpu *cpu = nb_cpu_get();
    if (bf16 ? !cpu->avx512_bf16 : !cpu->avx2_fma) return 0;
    const double end = nb_now() + seconds;
    while (best == 0 || nb_now() < end) {
        double rate = 0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
        {
            volatile float sink = 0;
            double start = nb_now(), flops;
            if (bf16) flops = run_bf16(&sink);
            else flops = cpu->avx512 ? run_avx512(&sink) : run_avx2(&sink);
            rate = flops / (nb_now() - start);
        }
        if (rate > best) best = rate;
    }
#else
    (void)bf16, (void)threads, (void)seconds;
#endif
    return best;
}

double nb_measure_read(int threads, double seconds) {
    const size_t bytes = (size_t)256 << 20; /* several times the largest cache of a desktop or a server's share */
    const int64_t n = (int64_t)(bytes / sizeof(uint64_t));
    double best = 0, end = nb_now() + seconds;
    uint64_t *x;
    if (nb_big_alloc((void **)&x, bytes, "the array to read") != NB_OK) return 0;
    /* static shares: each thread reads the pages that it has touched first */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) x[i] = (uint64_t)i;
    for (int pass = 0; pass < 3 || nb_now() < end; pass++) {
        uint64_t sum = 0;
        double start = nb_now();
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
        for (int64_t i = 0; i < n; i += 8) /* a line of the cache: adding is far faster than memory */
            sum += x[i] + x[i + 1] + x[i + 2] + x[i + 3] + x[i + 4] + x[i + 5] + x[i + 6] + x[i + 7];
        double rate = (double)bytes / (nb_now() - start);
        if (rate > best && sum == (uint64_t)n / 2 * (uint64_t)(n - 1)) best = rate;
    }
    nb_big_free(x, bytes);
    return best;
}

nb_limits nb_measure_limits(int threads, double seconds) {
    const double peak = 0.2; /* long enough that a moment in which others had the processor does not count */
    return (nb_limits){threads, nb_measure_peak(false, threads, peak), nb_measure_peak(true, threads, peak),
                       nb_measure_read(threads, seconds)};
}
