/* Inputs and outputs of checks (tests/rows.h), with double-precision copies for the references. */
#ifndef NB_TESTS_ROWS_DATA_H
#define NB_TESTS_ROWS_DATA_H

#include "tests/rows.h"

/* A tensor on the device and what its elements are. */
typedef struct rows_tensor {
    void *p;
    double *v; /* [n] */
} rows_tensor;

/* `n` elements drawn from (-scale, scale), `skip` elements behind an aligned address. */
static inline rows_tensor rows_input_at(nb_rowtest *t, int64_t skip, int64_t n, double scale, nb_dtype dtype) {
    float *x = rows_draw(t, skip + n, scale, dtype);
    rows_tensor r = {(char *)rows_put(t, x, skip + n, dtype) + skip * nb_dtype_size(dtype), rows_doubles(t, n)};
    for (int64_t i = 0; i < n; i++) r.v[i] = x[skip + i];
    return r;
}
static inline rows_tensor rows_input(nb_rowtest *t, int64_t n, double scale, nb_dtype dtype) {
    return rows_input_at(t, 0, n, scale, dtype);
}

/* An output that is to become want + beta * what it holds before (NaN when beta is 0), which goes into want. */
static inline void *rows_target_at(nb_rowtest *t, int64_t skip, double *want, int64_t n, nb_dtype dtype, float beta) {
    if (beta == 0) return (char *)rows_out(t, skip + n, dtype) + skip * nb_dtype_size(dtype);
    rows_tensor before = rows_input_at(t, skip, n, 1, dtype);
    for (int64_t i = 0; i < n; i++) want[i] += (double)beta * before.v[i];
    return before.p;
}
static inline void *rows_target(nb_rowtest *t, double *want, int64_t n, nb_dtype dtype, float beta) {
    return rows_target_at(t, 0, want, n, dtype, beta);
}

static inline int32_t *rows_put_ints(nb_rowtest *t, const int32_t *x, int64_t n) {
    return rows_put_bytes(t, x, (size_t)n * sizeof *x);
}

/* What rounding costs a well-conditioned result that is rounded to its type once (bf16: half of 2^-7). */
static inline double rows_rounding(nb_dtype dtype) { return dtype == NB_BF16 ? 3.95e-3 : 2e-6; }

/* A tolerance that only equal numbers meet. */
#define ROWS_EXACT 1e-30

/* Room in d->ws for rows that sum over T rows of C. */
static inline void rows_reserve(nb_rowtest *t, int64_t T, int64_t C) {
    if (t->d->be->rows_ws) rows_ok(t, nb_dev_reserve(t->d, t->d->be->rows_ws(t->d, T, C)));
}

#endif
