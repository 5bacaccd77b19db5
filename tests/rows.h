/* Checks of single kernel rows (kernels.def) on any device, against double precision: the same code runs on cpu and emu
 * in `make test` and on a GPU by tests/gpu. A family's checks are one table in tests/rows_<family>.c.
 *
 * A check draws inputs, puts them on the device, calls rows through t->d->k, and compares. Every buffer stands between
 * red zones that read as NaN, and outputs begin as NaN; the zones are verified when the check ends, and each check runs
 * twice with the same seed: all buffers must end with the same bits. A row that fails ends its check at once. */
#ifndef NB_TESTS_ROWS_H
#define NB_TESTS_ROWS_H

#include "core/rng.h"
#include "kernels/backend.h"

typedef struct nb_rowtest {
    nb_dev *d;
    nb_rng rng;            /* draws depend on seed and check alone */
    bool failed;           /* set by rows_compare and friends */
    char why[512];         /* the first failure */
    double error;          /* the largest error compared, as a part of what was allowed */
    struct rows_buf *bufs; /* owned */
    int n_bufs, cap_bufs;
    uint64_t hash;         /* over all buffers on the device when the check ended */
    void *escape;          /* where a check goes that cannot go on */
} nb_rowtest;

typedef struct nb_rowcheck {
    const char *name; /* "rmsnorm_bwd/odd": row and case */
    void (*run)(nb_rowtest *t, const void *arg);
    const void *arg;  /* shapes, of the check's own type */
} nb_rowcheck;
typedef struct nb_rowfamily {
    const char *name;
    const nb_rowcheck *checks;
    int n;
} nb_rowfamily;
#define ROWS_FAMILIES(X) \
    X(elementwise) X(norm) X(embedding) X(loss) X(optimizer) X(attention) X(products) X(variants) X(nf4) X(sampling) X(route)
#define ROWS_FAMILY(name) extern const nb_rowfamily rows_##name;
ROWS_FAMILIES(ROWS_FAMILY)
#undef ROWS_FAMILY
/* The families linked into this program, in that order; NULL after the last. */
const nb_rowfamily *const *rows_families(void);

/* n values in (-scale, scale), rounded to dtype (F32, BF16): host memory, freed with the test. */
float *rows_draw(nb_rowtest *t, int64_t n, double scale, nb_dtype dtype);
int32_t *rows_draw_ids(nb_rowtest *t, int64_t n, int64_t below);
/* A device buffer holding n elements of `host` (f32 values) as dtype, or any bytes; freed with the test. */
void *rows_put(nb_rowtest *t, const float *host, int64_t n, nb_dtype dtype);
void *rows_put_bytes(nb_rowtest *t, const void *host, size_t bytes);
/* An output: n elements of dtype, all NaN (integers: 0x7fa5a5a5). */
void *rows_out(nb_rowtest *t, int64_t n, nb_dtype dtype);
/* The n elements as f32 (ints: rows_get_ints); host memory freed with the test. */
float *rows_get(nb_rowtest *t, const void *device, int64_t n, nb_dtype dtype);
int32_t *rows_get_ints(nb_rowtest *t, const void *device, int64_t n);
double *rows_doubles(nb_rowtest *t, int64_t n); /* zeroed host memory for references */
/* ||got - want|| <= tol * ||want||, and no element is off by more than tol * the largest of want (NaN fails); got on
 * the device. Where want is all zero, tol is absolute. */
void rows_compare(nb_rowtest *t, const char *what, const void *got, const double *want, int64_t n, nb_dtype dtype,
                  double tol);
/* Tolerance for an output of this type computed from d->compute operands: 2e-5 in f32, 6e-3 with bf16. */
double rows_tolerance(const nb_rowtest *t, nb_dtype dtype);
void rows_expect(nb_rowtest *t, bool ok, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* A row's status: anything but NB_OK fails the check with its message, and ends it. */
void rows_ok(nb_rowtest *t, nb_status st);

/* Runs one check twice; false and t->why when it failed. What else t says is of the second run. Environment:
 * ROWS_REDZONE=0 leaves the red zones out, for tools that know the bounds of each allocation themselves. */
bool rows_run(nb_rowtest *t, nb_dev *d, const nb_rowcheck *c, uint64_t seed);
/* Is the check meant? only: NULL or "" (all), "family", "family/check", or "family/begins*". */
bool rows_wanted(const char *only, const nb_rowfamily *f, const nb_rowcheck *c);

#endif
