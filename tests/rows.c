/* Buffers, comparisons and the running of one check: tests/rows.h. */
#include "tests/rows.h"

#include <fnmatch.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

enum { RED_ZONE = 1024 }; /* bytes on either side: a multiple of NB_ALIGN */

/* On the device: `red` bytes, `bytes` of the buffer at `p`, at least `red` bytes. */
typedef struct rows_buf {
    char *base, *p;      /* base: device; NULL for host memory, which `host` owns */
    size_t bytes, total; /* of the buffer, with both zones */
    nb_dtype dtype;
    void *host;
} rows_buf;

#define ROWS_FAMILY(name) extern const nb_rowfamily rows_##name __attribute__((weak));
ROWS_FAMILIES(ROWS_FAMILY)
#undef ROWS_FAMILY

const nb_rowfamily *const *rows_families(void) {
#define ROWS_FAMILY(name) &rows_##name,
    static const nb_rowfamily *const all[] = {ROWS_FAMILIES(ROWS_FAMILY)};
#undef ROWS_FAMILY
    static const nb_rowfamily *linked[NB_LEN(all) + 1];
    int n = 0;
    for (int i = 0; i < NB_LEN(all); i++)
        if (all[i]) linked[n++] = all[i];
    linked[n] = NULL;
    return linked;
}

bool rows_wanted(const char *only, const nb_rowfamily *f, const nb_rowcheck *c) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", f->name, c->name);
    return !only || !*only || !strcmp(only, f->name) || !fnmatch(only, name, 0);
}

static void fail(nb_rowtest *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void fail(nb_rowtest *t, const char *fmt, ...) {
    if (t->failed) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->why, sizeof t->why, fmt, ap);
    va_end(ap);
    t->failed = true;
}

static void give_up(nb_rowtest *t) { longjmp(*(jmp_buf *)t->escape, 1); }

void rows_expect(nb_rowtest *t, bool ok, const char *fmt, ...) {
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!ok) fail(t, "%s", text);
}

void rows_ok(nb_rowtest *t, nb_status st) {
    if (st == NB_OK) return;
    fail(t, "status %d: %s", (int)st, nb_message());
    give_up(t);
}

/* ---- memory ---- */

static size_t red_zone(void) {
    const char *s = getenv("ROWS_REDZONE");
    return s && !strcmp(s, "0") ? 0 : RED_ZONE;
}

static rows_buf *new_buf(nb_rowtest *t) {
    NB_GROW(t->bufs, t->n_bufs, t->cap_bufs);
    t->bufs[t->n_bufs] = (rows_buf){0};
    return &t->bufs[t->n_bufs++];
}

static void *host_memory(nb_rowtest *t, int64_t n, size_t size) {
    rows_buf *b = new_buf(t);
    return b->host = nb_calloc((size_t)n + 1, size);
}

/* A NaN in every floating-point type, and no sensible number in any other. */
static void poison(void *p, size_t bytes, nb_dtype dtype) {
    static const uint8_t words[3][8] = {{0xa5, 0x7f},
                                        {0xa5, 0xa5, 0xa5, 0x7f},
                                        {0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xf5, 0x7f}};
    const int size = nb_dtype_size(dtype), k = size == 2 ? 0 : size == 8 ? 2 : 1;
    const uint8_t *from = words[k];
    const size_t period = (size_t)2 << k;
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)p)[i] = from[i % period];
}

/* A buffer on the device; contents NULL: poison. */
static void *device_memory(nb_rowtest *t, const void *contents, size_t bytes, nb_dtype dtype) {
    size_t red = red_zone(), total = red + bytes + red;
    char *image = nb_malloc(total + 1);
    void *base = NULL;
    poison(image, total, dtype);
    if (contents) memcpy(image + red, contents, bytes);
    nb_status st = t->d->be->alloc(t->d, &base, total + !total, "a buffer of a check");
    if (st == NB_OK) {
        rows_buf *b = new_buf(t);
        *b = (rows_buf){.base = base, .p = (char *)base + red, .bytes = bytes, .total = total, .dtype = dtype};
        st = t->d->be->put(t->d, base, image, total);
    }
    free(image);
    rows_ok(t, st);
    return (char *)base + red;
}

static void free_buffers(nb_rowtest *t) {
    for (int i = 0; i < t->n_bufs; i++) {
        rows_buf *b = &t->bufs[i];
        if (b->base) t->d->be->free(t->d, b->base, b->total + !b->total);
        free(b->host);
    }
    free(t->bufs);
    t->bufs = NULL;
    t->n_bufs = t->cap_bufs = 0;
}

float *rows_draw(nb_rowtest *t, int64_t n, double scale, nb_dtype dtype) {
    float *x = host_memory(t, n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        float v = (float)(scale * (2 * nb_rng_uniform(&t->rng) - 1));
        x[i] = dtype == NB_BF16 ? nb_round_bf16(v) : v;
    }
    return x;
}

int32_t *rows_draw_ids(nb_rowtest *t, int64_t n, int64_t below) {
    int32_t *x = host_memory(t, n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (int32_t)nb_rng_below(&t->rng, (uint64_t)below);
    return x;
}

double *rows_doubles(nb_rowtest *t, int64_t n) { return host_memory(t, n, sizeof(double)); }

void *rows_put(nb_rowtest *t, const float *host, int64_t n, nb_dtype dtype) {
    if (dtype == NB_F32) return device_memory(t, host, (size_t)n * sizeof *host, dtype);
    NB_ASSERT(dtype == NB_BF16);
    uint16_t *half = host_memory(t, n, sizeof *half);
    for (int64_t i = 0; i < n; i++) half[i] = nb_f32_to_bf16(host[i]);
    return device_memory(t, half, (size_t)n * sizeof *half, dtype);
}

void *rows_put_bytes(nb_rowtest *t, const void *host, size_t bytes) { return device_memory(t, host, bytes, NB_I32); }

void *rows_out(nb_rowtest *t, int64_t n, nb_dtype dtype) {
    return device_memory(t, NULL, (size_t)n * (size_t)nb_dtype_size(dtype), dtype);
}

/* Waits for the device first: what went wrong there shows here. */
static void *fetch(nb_rowtest *t, const void *device, int64_t n, size_t size) {
    void *x = host_memory(t, n, size);
    rows_ok(t, t->d->be->get(t->d, x, device, (size_t)n * size));
    return x;
}

int32_t *rows_get_ints(nb_rowtest *t, const void *device, int64_t n) { return fetch(t, device, n, sizeof(int32_t)); }

float *rows_get(nb_rowtest *t, const void *device, int64_t n, nb_dtype dtype) {
    void *got = fetch(t, device, n, (size_t)nb_dtype_size(dtype));
    if (dtype == NB_F32) return got;
    NB_ASSERT(dtype == NB_BF16);
    float *x = host_memory(t, n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = nb_bf16_to_f32(((const uint16_t *)got)[i]);
    return x;
}

/* ---- comparisons ---- */

double rows_tolerance(const nb_rowtest *t, nb_dtype dtype) {
    return t->d->compute == NB_BF16 || dtype == NB_BF16 ? 6e-3 : 2e-5;
}

void rows_compare(nb_rowtest *t, const char *what, const void *got, const double *want, int64_t n, nb_dtype dtype,
                  double tol) {
    const float *x = rows_get(t, got, n, dtype);
    double diff = 0, norm = 0, top = 0, worst = 0;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)x[i] - want[i]);
        diff += e * e, norm += want[i] * want[i], top = fmax(top, fabs(want[i]));
        if (!(e <= worst) && !isnan(worst)) worst = e, at = i; /* the first NaN is the worst */
    }
    double whole = sqrt(diff) / (norm > 0 ? sqrt(norm) : 1), one = worst / (top > 0 ? top : 1);
    double part = (whole >= one || isnan(whole) ? whole : one) / tol;
    if (!(part <= t->error)) t->error = part;
    if (!(whole <= tol && one <= tol))
        fail(t, "%s: ||error|| is %.3g of ||wanted||, the largest is %.3g of the largest (allowed %.3g): "
             "[%lld] = %.9g, wanted %.9g", what, whole, one, tol, (long long)at, n ? (double)x[at] : 0.0,
             n ? want[at] : 0.0);
}

/* ---- a check ---- */

/* FNV-1a, 64 bits at a time where they fit. */
static uint64_t hash_bytes(uint64_t h, const char *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x100000001b3u;
        h ^= h >> 32;
    }
    for (; n > 0; n--, p++) h = (h ^ (uint8_t)*p) * 0x100000001b3u;
    return h;
}

/* Every buffer's red zones are whole; its contents go into the hash. */
static void verify_buffers(nb_rowtest *t) {
    size_t red = red_zone();
    for (int i = 0, n = t->n_bufs; i < n; i++) {
        const rows_buf b = t->bufs[i]; /* fetch() may move the array */
        if (!b.base) continue;
        char *image = fetch(t, b.base, (int64_t)b.total, 1), want[RED_ZONE + 8];
        size_t phase = (red + b.bytes) % 8;
        poison(want, sizeof want, b.dtype);
        for (size_t j = 0; j < red; j++) {
            if (image[j] != want[j])
                return fail(t, "buffer %d of %zu bytes: written %zu bytes before its start", i, b.bytes, red - j);
            if (image[red + b.bytes + j] != want[phase + j])
                return fail(t, "buffer %d of %zu bytes: written %zu bytes after its end", i, b.bytes, j);
        }
        t->hash = hash_bytes(t->hash, image + red, b.bytes);
    }
}

static uint64_t hash_name(const char *s) { return hash_bytes(0xcbf29ce484222325u, s, strlen(s)); }

static void run_once(nb_rowtest *t, nb_dev *d, const nb_rowcheck *c, uint64_t seed) {
    jmp_buf escape;
    *t = (nb_rowtest){.d = d, .rng = nb_rng_open(seed, NB_RNG_TEST, hash_name(c->name)), .hash = hash_name(c->name)};
    t->escape = &escape;
    if (!setjmp(escape)) {
        c->run(t, c->arg);
        verify_buffers(t);
    }
    free_buffers(t);
    t->escape = NULL;
}

bool rows_run(nb_rowtest *t, nb_dev *d, const nb_rowcheck *c, uint64_t seed) {
    run_once(t, d, c, seed);
    if (t->failed) return false;
    uint64_t first = t->hash;
    run_once(t, d, c, seed);
    if (!t->failed && t->hash != first) fail(t, "two runs with the same seed differ in their bits");
    return !t->failed;
}
