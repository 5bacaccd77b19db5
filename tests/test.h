/* What every test program includes: cmocka, the vectors' folders, and comparisons that NaN fails. */
#ifndef NB_TESTS_TEST_H
#define NB_TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>

#include <cmocka.h>

#include "core/status.h"

#define assert_ok(expr)                                                           \
    do {                                                                          \
        if ((expr) != NB_OK) fail_msg("%s: %s", #expr, nb_message());             \
    } while (0)
/* The call must fail with this code and its message must contain `text`. */
#define assert_fails(expr, code, text)                                            \
    do {                                                                          \
        nb_status st_ = (expr);                                                   \
        if (st_ != (code)) fail_msg("%s: status %d, wanted %d", #expr, st_, code); \
        if (!strstr(nb_message(), text))                                          \
            fail_msg("%s: message \"%s\" lacks \"%s\"", #expr, nb_message(), text); \
    } while (0)
#define assert_close(x, y, tol)                                                   \
    do {                                                                          \
        double x_ = (x), y_ = (y), t_ = (tol);                                    \
        if (!(fabs(x_ - y_) <= t_)) fail_msg("%s = %.9g, want %.9g +- %g", #x, x_, y_, t_); \
    } while (0)

/* NIBBLE_VECTORS/rel or NIBBLE_CORPORA/rel in a static buffer (four in turn). Without the variable
 * the test is skipped and counted as such. */
static inline const char *nb_test_path(const char *var, const char *rel) {
    static char buf[4][4096];
    static int turn;
    const char *dir = getenv(var);
    if (!dir || !*dir) {
        print_message("skipped: %s is not set (wanted %s)\n", var, rel);
        skip();
    }
    char *out = buf[turn++ & 3];
    snprintf(out, sizeof buf[0], "%s/%s", dir, rel);
    return out;
}
#define VECTORS(rel) nb_test_path("NIBBLE_VECTORS", rel)
#define CORPORA(rel) nb_test_path("NIBBLE_CORPORA", rel)

/* A fresh folder under $TMPDIR for this test program; run.sh removes it afterwards. */
static inline const char *nb_test_tmp(void) {
    static char dir[256];
    if (!dir[0]) {
        const char *base = getenv("TMPDIR");
        snprintf(dir, sizeof dir, "%s/nibble-test-XXXXXX", base && *base ? base : "/tmp");
        if (!mkdtemp(dir)) abort();
    }
    return dir;
}

/* ||x - y|| / ||y|| in double; NaN if any element is. */
static inline double nb_rel_error(const float *x, const float *y, int64_t n) {
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]), s += (double)y[i] * y[i];
    return sqrt(d) / (s > 0 ? sqrt(s) : 1);
}

#endif
