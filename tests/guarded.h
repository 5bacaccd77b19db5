/* Buffers between red zones, and a recorder that runs a case under several settings: every output is
 * compared with a reference, and its bits with those of the same output under the first setting. */
#ifndef NB_TESTS_GUARDED_H
#define NB_TESTS_GUARDED_H

#include "tests/test.h"

#include "core/cpu.h"
#include "core/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { GUARD = 64, MAX_BUFFERS = 256 }; /* floats on either side; buffers a case may hold */
static const uint32_t guard_word = 0x7fc0dead; /* a NaN: reading it spoils the result too */

static struct {
    float *base[MAX_BUFFERS];
    int64_t n[MAX_BUFFERS];
    double *doubles[MAX_BUFFERS];
    int n_buffers, n_doubles;
    nb_rng rng;
    float *saved[MAX_BUFFERS]; /* outputs under the first setting */
    int n_saved, turn;
    bool first;
} guarded;

static inline float test_random(double lo, double hi) { return (float)(lo + (hi - lo) * nb_rng_uniform(&guarded.rng)); }

/* n floats, uniform in [lo, hi]. */
static inline float *input(int64_t n, double lo, double hi) {
    if (guarded.n_buffers == MAX_BUFFERS) abort();
    float *base = malloc(sizeof(float) * (size_t)(n + 2 * GUARD));
    for (int64_t i = 0; i < GUARD; i++) memcpy(base + i, &guard_word, 4), memcpy(base + GUARD + n + i, &guard_word, 4);
    for (int64_t i = 0; i < n; i++) base[GUARD + i] = test_random(lo, hi);
    guarded.base[guarded.n_buffers] = base;
    guarded.n[guarded.n_buffers++] = n;
    return base + GUARD;
}

/* An output: NaN when beta is 0, so that reading it shows; else random. */
static inline float *output(int64_t n, double beta) {
    float *x = input(n, -1, 1);
    for (int64_t i = 0; beta == 0 && i < n; i++) x[i] = NAN;
    return x;
}

/* A copy in double that lives as long as the case; room for n when x is NULL. */
static inline double *doubles(const float *x, int64_t n) {
    if (guarded.n_doubles == MAX_BUFFERS) abort();
    double *out = calloc((size_t)n + 1, sizeof *out);
    for (int64_t i = 0; x && i < n; i++) out[i] = x[i];
    return guarded.doubles[guarded.n_doubles++] = out;
}

static inline void check_guards(void) {
    for (int b = 0; b < guarded.n_buffers; b++)
        for (int64_t i = 0; i < GUARD; i++)
            if (memcmp(guarded.base[b] + i, &guard_word, 4) ||
                memcmp(guarded.base[b] + GUARD + guarded.n[b] + i, &guard_word, 4))
                fail_msg("buffer %d of %lld floats: red zone overwritten at %lld", b, (long long)guarded.n[b],
                         (long long)i);
}

static inline void guarded_free(void) {
    for (int b = 0; b < guarded.n_buffers; b++) free(guarded.base[b]);
    for (int b = 0; b < guarded.n_doubles; b++) free(guarded.doubles[b]);
    guarded.n_buffers = guarded.n_doubles = 0;
}

/* x[n] against want + beta * before (NULL: 0): relative to the norm as a whole, and to the largest element
 * for each one. */
static inline void check_output(const char *name, const float *x, const double *want, double beta, const double *before,
                                int64_t n, double tol) {
    double top = 0, diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(want[i] + (before ? beta * before[i] : 0)));
    double floor = top < 1e-15 && tol > 0 ? 1e-6 : 0; /* nothing but rounding is left where all cancels */
    for (int64_t i = 0; i < n; i++) {
        double w = want[i] + (before ? beta * before[i] : 0), e = fabs(x[i] - w);
        if (!(e <= 10 * tol * top + floor))
            fail_msg("%s (%s)[%lld] = %.9g, want %.9g", name, nb_simd_get()->name, (long long)i, (double)x[i], w);
        diff += e * e, norm += w * w;
    }
    if (!(sqrt(diff) <= tol * sqrt(norm) + floor * (double)n))
        fail_msg("%s (%s): relative error %g > %g", name, nb_simd_get()->name, sqrt(diff / norm), tol);
    if (guarded.first) {
        if (guarded.n_saved == MAX_BUFFERS) abort();
        float *copy = malloc(sizeof(float) * (size_t)(n + 1));
        memcpy(copy, x, sizeof(float) * (size_t)n);
        guarded.saved[guarded.n_saved++] = copy;
    } else if (memcmp(guarded.saved[guarded.turn], x, sizeof(float) * (size_t)n)) {
        fail_msg("%s (%s) differs between %d threads and 1", name, nb_simd_get()->name, nb_threads());
    }
    guarded.turn++;
}

/* Runs the case on every instruction set this machine has, each with 1, 2 and 3 threads. */
static inline void run_case(void (*run)(const void *shape), const void *shape) {
    for (int isa = 0; nb_simd_name(isa); isa++) {
        assert_true(nb_simd_set(nb_simd_name(isa)));
        guarded_free();
        guarded.n_saved = 0; /* of a case that failed */
        guarded.first = true;
        for (int threads = 1; threads <= 3; threads++) {
            nb_threads_set(threads);
            guarded.rng = nb_rng_open(7, NB_RNG_TEST, 0);
            guarded.turn = 0;
            run(shape);
            check_guards();
            guarded_free();
            guarded.first = false;
        }
        for (int i = 0; i < guarded.n_saved; i++) free(guarded.saved[i]);
        guarded.n_saved = 0;
    }
}

#define RUN_CASES(function, table)                                                    \
    do {                                                                              \
        for (int c_ = 0; c_ < NB_LEN(table); c_++) run_case(function, &(table)[c_]); \
    } while (0)

#endif
