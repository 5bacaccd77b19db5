/* Checks of the rows sum_squares, adamw and adamw8: tests/rows.h. */
#include <math.h>
#include <string.h>

#include "kernels/state8.h"
#include "tests/reference.h"
#include "tests/rows.h"

static const float BETA1 = 0.9f, BETA2 = 0.999f, EPS = 1e-8f;

static nb_update update_of(int64_t step, float lr, float max_norm) {
    return (nb_update){.bias1 = 1 - pow((double)BETA1, (double)step), .bias2 = 1 - pow((double)BETA2, (double)step),
                       .lr = lr, .max_norm = max_norm};
}

static nb_update *put_update(nb_rowtest *t, nb_update u) { return rows_put_bytes(t, &u, sizeof u); }

static nb_update get_update(nb_rowtest *t, const nb_update *u) {
    nb_update out;
    memcpy(&out, rows_get_ints(t, u, (int64_t)(sizeof out / sizeof(int32_t))), sizeof out);
    return out;
}

static const uint8_t *get_bytes(nb_rowtest *t, const uint8_t *device, int64_t n) {
    uint8_t *out = (uint8_t *)rows_draw_ids(t, n / 4 + 1, 1);
    rows_ok(t, t->d->be->get(t->d, out, device, (size_t)n));
    return out;
}

static float *put_zeros(nb_rowtest *t, int64_t n) { return rows_put(t, rows_draw(t, n, 0, NB_F32), n, NB_F32); }
static uint8_t *put_zero_bytes(nb_rowtest *t, int64_t n) {
    return rows_put_bytes(t, rows_draw(t, n / 4 + 1, 0, NB_F32), (size_t)n);
}

/* ---- sum_squares ---- */

typedef struct sum_case {
    int64_t n, skip; /* skip: the elements begin that many floats further on */
    double scale;
} sum_case;

static void sum_squares(nb_rowtest *t, const void *arg) {
    const sum_case *c = arg;
    float *x = rows_draw(t, c->skip + c->n, c->scale, NB_F32);
    double want = 0;
    for (int64_t i = 0; i < c->n; i++) want += (double)x[c->skip + i] * (double)x[c->skip + i];
    float *device = rows_put(t, x, c->skip + c->n, NB_F32);
    nb_update before = update_of(3, 0.5f, 2), *u = put_update(t, before);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->rows_ws(t->d, 1, c->n)));
    rows_ok(t, t->d->k->sum_squares(t->d, u, device + c->skip, c->n));
    nb_update got = get_update(t, u);
    rows_expect(t, fabs(got.sum_squares - want) <= 1e-12 * want, "sum of squares %.17g, wanted %.17g", got.sum_squares,
                want);
    got.sum_squares = before.sum_squares;
    rows_expect(t, !memcmp(&got, &before, sizeof got), "more than the sum was changed");
}

/* ---- AdamW ---- */

typedef struct adam_case {
    int64_t n, skip, skip_g; /* where p, m, v begin, and where g does */
    float max_norm, wd;
} adam_case;

static void adamw(nb_rowtest *t, const void *arg) {
    const adam_case *c = arg;
    const int64_t n = c->n, skip = c->skip;
    float *p = rows_draw(t, skip + n, 1, NB_F32), *g = rows_draw(t, c->skip_g + n, 1e-2, NB_F32);
    double *want_p = rows_doubles(t, n), *want_m = rows_doubles(t, n), *want_v = rows_doubles(t, n),
           *g64 = rows_doubles(t, n);
    float *dp = rows_put(t, p, skip + n, NB_F32), *dm = put_zeros(t, skip + n), *dv = put_zeros(t, skip + n);
    float *dg = rows_put(t, g, c->skip_g + n, NB_F32);
    double norm = 0;
    for (int64_t i = 0; i < n; i++)
        want_p[i] = p[skip + i], g64[i] = g[c->skip_g + i], norm += g64[i] * g64[i];
    norm = sqrt(norm);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->rows_ws(t->d, 1, n)));
    for (int64_t step = 1; step <= 3; step++) {
        const float lr = 0.01f / (float)step;
        nb_update *u = put_update(t, update_of(step, lr, c->max_norm));
        rows_ok(t, t->d->k->sum_squares(t->d, u, dg + c->skip_g, n));
        rows_ok(t, t->d->k->adamw(t->d, dp + skip, dm + skip, dv + skip, dg + c->skip_g, n, u, BETA1, BETA2, EPS,
                                  c->wd));
        double clip = c->max_norm > 0 ? (double)c->max_norm / (norm + 1e-6) : 1;
        ref_adamw(want_p, want_m, want_v, g64, n, (double)lr, (double)BETA1, (double)BETA2, (double)EPS,
                  (double)c->wd, step, clip < 1 ? clip : 1);
    }
    rows_compare(t, "p", dp + skip, want_p, n, NB_F32, 2e-6);
    rows_compare(t, "m", dm + skip, want_m, n, NB_F32, 2e-6);
    rows_compare(t, "v", dv + skip, want_v, n, NB_F32, 2e-6);
    for (int64_t i = 0; i < skip; i++) /* what lies in front stays */
        rows_expect(t, rows_get(t, dp, skip, NB_F32)[i] == p[i], "an element in front of p changed");
}

/* A gradient that is not finite changes no bit of anything, in neither optimizer. */
static void not_finite(nb_rowtest *t, const void *arg) {
    const float *bad = arg;
    enum { N = 3000, BLOCKS = (N + 255) / 256 };
    float *g = rows_draw(t, N, 1, NB_F32);
    g[1234] = *bad;
    if (isfinite(*bad)) rows_expect(t, false, "not a case");
    float *state[5], *host[5], *dg = rows_put(t, g, N, NB_F32);
    const int64_t sizes[5] = {N, N, N, BLOCKS, BLOCKS};
    for (int i = 0; i < 5; i++) {
        host[i] = rows_draw(t, sizes[i], 1, NB_F32);
        for (int64_t j = 0; i > 1 && j < sizes[i]; j++) host[i][j] = fabsf(host[i][j]);
        state[i] = rows_put(t, host[i], sizes[i], NB_F32);
    }
    const int32_t *bytes = rows_draw_ids(t, N / 2, 1 << 30);
    uint8_t *m = rows_put_bytes(t, bytes, N), *v = rows_put_bytes(t, (const uint8_t *)bytes + N, N);
    nb_update *u = put_update(t, update_of(1, 0.1f, 1));
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->rows_ws(t->d, 1, N)));
    rows_ok(t, t->d->k->sum_squares(t->d, u, dg, N));
    rows_expect(t, !isfinite(get_update(t, u).sum_squares), "the norm is finite");
    rows_ok(t, t->d->k->adamw(t->d, state[0], state[1], state[2], dg, N, u, BETA1, BETA2, EPS, 0.1f));
    rows_ok(t, t->d->k->adamw8(t->d, state[0], m, v, state[3], state[4], dg, N, u, BETA1, BETA2, EPS, 0.1f));
    for (int i = 0; i < 5; i++)
        rows_expect(t, !memcmp(rows_get(t, state[i], sizes[i], NB_F32), host[i], (size_t)sizes[i] * sizeof(float)),
                    "array %d changed", i);
    rows_expect(t, !memcmp(get_bytes(t, m, N), bytes, N), "the bytes of m changed");
    rows_expect(t, !memcmp(get_bytes(t, v, N), (const uint8_t *)bytes + N, N), "the bytes of v changed");
}

/* ---- AdamW with 8-bit state ---- */

/* bitsandbytes' create_dynamic_map(signed, max_exponent_bits=7, total_bits=8), in double: means of neighbouring points
 * of an even division of [0.1, 1], times a power of ten; their negatives, with sign; 0 and 1; ascending. */
static void dynamic_map(double *level, bool with_sign) {
    int n = 0;
    level[n++] = 0;
    for (int i = 0; i < 7; i++) {
        int parts = with_sign ? 1 << i : 2 << i;
        for (int k = 0; k < parts; k++) {
            double low = 0.1 + 0.9 * k / parts, high = 0.1 + 0.9 * (k + 1) / parts;
            double x = pow(10, i - 6) * (low + high) / 2;
            level[n++] = x;
            if (with_sign) level[n++] = -x;
        }
    }
    level[n++] = 1;
    for (int i = 1; i < n; i++) /* ascending */
        for (int k = i; k > 0 && level[k] < level[k - 1]; k--) {
            double x = level[k];
            level[k] = level[k - 1], level[k - 1] = x;
        }
}

static void levels(nb_rowtest *t, const void *arg) {
    (void)arg;
    for (int with_sign = 0; with_sign < 2; with_sign++) {
        double want[256];
        float middle[255];
        dynamic_map(want, with_sign);
        for (int k = 0; k < 256; k++) {
            double got = (double)nb_state8_level(k, with_sign);
            rows_expect(t, fabs(got - want[k]) <= 6e-8 * fabs(want[k]), "level %d is %.9g, wanted %.9g", k, got,
                        want[k]);
            if (k < 255) middle[k] = nb_state8_middle(k, with_sign);
        }
        for (int k = 0; k < 256; k++)
            rows_expect(t, nb_state8_nearest(middle, (float)want[k], with_sign) == k, "level %d is not the nearest of itself", k);
    }
}

/* The error of byte's level, as a multiple of the smallest there is. */
static double excess(const double *level, int byte, double x) {
    double best = INFINITY;
    for (int k = 0; k < 256; k++) best = fmin(best, fabs(level[k] - x));
    return (fabs(level[byte] - x) - best) / (fabs(x) + 1e-7);
}

/* One step from a random state: parameters and scales against double, every byte the nearest level. */
static void one_step(nb_rowtest *t, const void *arg) {
    const adam_case *c = arg;
    const int64_t n = c->n, blocks = (n + 255) / 256, skip = c->skip, all = skip + n;
    double map_m[256], map_v[256], top_m = 0, top_v = 0;
    dynamic_map(map_m, true), dynamic_map(map_v, false);
    float *p = rows_draw(t, all, 1, NB_F32), *g = rows_draw(t, all, 1e-2, NB_F32);
    float *m_scale = rows_draw(t, blocks, 1e-2, NB_F32), *v_scale = rows_draw(t, blocks, 1e-4, NB_F32);
    uint8_t *bytes = (uint8_t *)rows_draw_ids(t, all / 2 + 1, 1 << 30);
    for (int64_t i = n / 256 * 256; i < n; i++) /* small, so that anything read from behind a short block would show */
        bytes[skip + i] = 112 + bytes[skip + i] % 32;
    double *want_p = rows_doubles(t, n), *m = rows_doubles(t, n), *v = rows_doubles(t, n), *g64 = rows_doubles(t, n),
           *want_m = rows_doubles(t, blocks), *want_v = rows_doubles(t, blocks);
    for (int64_t b = 0; b < blocks; b++) m_scale[b] = fabsf(m_scale[b]), v_scale[b] = fabsf(v_scale[b]);
    for (int64_t i = 0; i < n; i++) {
        want_p[i] = p[skip + i], g64[i] = g[skip + i];
        m[i] = map_m[bytes[skip + i]] * (double)m_scale[i / 256];
        v[i] = map_v[bytes[all + skip + i]] * (double)v_scale[i / 256];
    }
    ref_adamw(want_p, m, v, g64, n, 0.01, (double)BETA1, (double)BETA2, (double)EPS, (double)c->wd, 7, 1);
    for (int64_t i = 0; i < n; i++)
        want_m[i / 256] = fmax(want_m[i / 256], fabs(m[i])), want_v[i / 256] = fmax(want_v[i / 256], v[i]);
    nb_update u = update_of(7, 0.01f, 0);
    u.sum_squares = 1;
    float *dp = rows_put(t, p, all, NB_F32), *dg = rows_put(t, g, all, NB_F32);
    float *dms = rows_put(t, m_scale, blocks, NB_F32), *dvs = rows_put(t, v_scale, blocks, NB_F32);
    uint8_t *dm = rows_put_bytes(t, bytes, (size_t)all), *dv = rows_put_bytes(t, bytes + all, (size_t)all);
    rows_ok(t, t->d->k->adamw8(t->d, dp + skip, dm + skip, dv + skip, dms, dvs, dg + skip, n, put_update(t, u), BETA1,
                               BETA2, EPS, c->wd));
    rows_compare(t, "p", dp + skip, want_p, n, NB_F32, 2e-6);
    rows_compare(t, "scales of m", dms, want_m, blocks, NB_F32, 2e-6);
    rows_compare(t, "scales of v", dvs, want_v, blocks, NB_F32, 2e-6);
    const uint8_t *got_m = get_bytes(t, dm + skip, n), *got_v = get_bytes(t, dv + skip, n);
    for (int64_t i = 0; i < n; i++) {
        double xm = m[i] / want_m[i / 256], xv = v[i] / want_v[i / 256];
        top_m = fmax(top_m, excess(map_m, got_m[i], xm));
        if (got_v[i] != 1) top_v = fmax(top_v, excess(map_v, got_v[i], xv));
        rows_expect(t, got_v[i] > 0 || xv == 0, "v of element %lld became 0", (long long)i);
    }
    rows_expect(t, top_m <= 1e-5 && top_v <= 1e-5, "bytes are not the nearest levels': m %g, v %g too far", top_m,
                top_v);
}

/* Twenty steps beside AdamW with f32 state, from zero: the weights go the same way. */
static void twenty_steps(nb_rowtest *t, const void *arg) {
    const adam_case *c = arg;
    const int64_t n = c->n, blocks = (n + 255) / 256;
    const float *p0 = rows_draw(t, n, 1, NB_F32), *slope = rows_draw(t, n, 1e-2, NB_F32);
    float *p32 = rows_put(t, p0, n, NB_F32), *m32 = put_zeros(t, n), *v32 = put_zeros(t, n);
    float *p8 = rows_put(t, p0, n, NB_F32), *ms = put_zeros(t, blocks), *vs = put_zeros(t, blocks);
    uint8_t *m8 = put_zero_bytes(t, n), *v8 = put_zero_bytes(t, n);
    rows_ok(t, nb_dev_reserve(t->d, t->d->be->rows_ws(t->d, 1, n)));
    for (int64_t step = 1; step <= 20; step++) {
        float *g = rows_draw(t, n, 5e-3, NB_F32);
        for (int64_t i = 0; i < n; i++) /* of very unequal size, and some none */
            g[i] = i % 7 == 3 ? 0 : g[i] + slope[i] * (i % 5 ? 1 : 1e-3f);
        float *dg = rows_put(t, g, n, NB_F32);
        nb_update *u = put_update(t, update_of(step, 1e-3f, c->max_norm));
        rows_ok(t, t->d->k->sum_squares(t->d, u, dg, n));
        rows_ok(t, t->d->k->adamw(t->d, p32, m32, v32, dg, n, u, BETA1, BETA2, EPS, c->wd));
        rows_ok(t, t->d->k->adamw8(t->d, p8, m8, v8, ms, vs, dg, n, u, BETA1, BETA2, EPS, c->wd));
    }
    const float *x32 = rows_get(t, p32, n, NB_F32), *x8 = rows_get(t, p8, n, NB_F32);
    double off = 0, way = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = (double)x8[i] - x32[i], s = (double)x32[i] - p0[i];
        off += e * e, way += s * s;
        if (i % 7 == 3 && c->wd == 0)
            rows_expect(t, x8[i] == p0[i], "element %lld moved without a gradient", (long long)i);
    }
    rows_expect(t, sqrt(off / way) <= 0.02, "8-bit state went astray by %.3g of the way", sqrt(off / way));
}

static const sum_case one = {1, 0, 1}, few = {1000, 1, 1}, parts = {70003, 0, 1e-3}, huge_values = {9000, 3, 1e25},
                      many = {5000001, 0, 1};
static const adam_case small = {.n = 5, .wd = 0.1f}, odd = {.n = 1003, .wd = 0.1f},
                       inside = {.n = 2049, .skip = 3, .skip_g = 3},
                       apart = {.n = 777, .skip = 1, .skip_g = 2, .wd = 0.01f},
                       clipped = {.n = 40000, .max_norm = 0.1f}, unclipped = {.n = 300, .max_norm = 100, .wd = 0.5f};
static const adam_case step_three = {.n = 3}, step_short = {.n = 77, .wd = 0.1f}, step_tail = {.n = 5 * 256 + 77},
                       step_inside = {.n = 1030, .skip = 3}, way_short = {.n = 300, .wd = 0.1f},
                       way_long = {.n = 9000, .max_norm = 0.2f};
static const float nan_value = NAN, infinite = INFINITY, minus_infinite = -INFINITY;
static const nb_rowcheck checks[] = {
    {"sum_squares/one", sum_squares, &one},         {"sum_squares/few", sum_squares, &few},
    {"sum_squares/parts", sum_squares, &parts},     {"sum_squares/huge", sum_squares, &huge_values},
    {"sum_squares/many", sum_squares, &many},       {"adamw/small", adamw, &small},
    {"adamw/odd", adamw, &odd},                     {"adamw/inside", adamw, &inside},
    {"adamw/apart", adamw, &apart},                 {"adamw/clipped", adamw, &clipped},
    {"adamw/unclipped", adamw, &unclipped},         {"adamw/nan", not_finite, &nan_value},
    {"adamw/infinite", not_finite, &infinite},      {"adamw/minus_infinite", not_finite, &minus_infinite},
    {"adamw8/levels", levels, NULL},                {"adamw8/three", one_step, &step_three},
    {"adamw8/short", one_step, &step_short},        {"adamw8/tail", one_step, &step_tail},
    {"adamw8/inside", one_step, &step_inside},      {"adamw8/way_short", twenty_steps, &way_short},
    {"adamw8/way_long", twenty_steps, &way_long},
};
const nb_rowfamily rows_optimizer = {"optimizer", checks, NB_LEN(checks)};
