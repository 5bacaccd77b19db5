/* The command `bench`: first what the card can do at all (a copy in its memory, one large product by the library), then
 * every kernel at the shapes of real models, as a part of its floor: the larger of bytes / copying and operations /
 * multiplying, both as just measured.
 *
 * A call's inputs are not in the cache from the call before: the sets of buffers together are larger than it. Events
 * stand around as many calls as take about 300 us, so that launching is not what is measured, 20 times or more; the
 * median counts. */
#include "tests/gpu/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/rng.h"

enum { WARM_UPS = 3, SAMPLES = 24, PATTERN = 1 << 20 };
static const size_t cache_bytes = 64u << 20; /* more than the second-level cache of any card here (H200: 60 MB) */

static const gc_shape shapes[] = {
    {"Llama-3.2-1B", 2048, 8192, 32, 8, 64, 128256, 16, 16, 2048, 4, 2048},
    {"Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256, 32, 16, 2048, 4, 2048},
};
static const gc_shape tiny_shapes[] = {{"tiny", 64, 96, 4, 2, 16, 300, 2, 4, 40, 3, 24}};

const gc_shape *gc_shapes(bool tiny, int *n) {
    *n = tiny ? NB_LEN(tiny_shapes) : NB_LEN(shapes);
    return tiny ? tiny_shapes : shapes;
}

typedef struct ceilings {
    double copy, multiply; /* bytes a second, operations a second; 0: not measured */
} ceilings;

/* ---- buffers ---- */

int gc_buf(gc_job *j, int64_t n, nb_dtype dtype, gc_fill fill, double passes) {
    NB_ASSERT(j->n < GC_MAX_BUFS);
    j->buf[j->n] = (struct gc_buf){.bytes = (size_t)n * (size_t)nb_dtype_size(dtype), .dtype = dtype, .fill = fill};
    j->bytes += passes * (double)j->buf[j->n].bytes;
    return j->n++;
}

int gc_buf_ids(gc_job *j, int64_t n, int64_t below) {
    int i = gc_buf(j, n, NB_I32, GC_IDS, 1);
    j->buf[i].below = below;
    return i;
}

int gc_buf_host(gc_job *j, const void *host, size_t bytes) {
    int i = gc_buf(j, (int64_t)bytes, NB_U8, GC_BYTES, 1);
    j->buf[i].host = host;
    return i;
}

/* One element of a buffer's contents. */
static void store(const struct gc_buf *b, void *at, int64_t i, nb_rng *r) {
    float x = nb_round_bf16((float)(2 * nb_rng_uniform(r) - 1) * (b->fill == GC_SMALL ? 0.02f : 1));
    switch (b->dtype) {
    case NB_F32: ((float *)at)[i] = x; break;
    case NB_BF16: ((uint16_t *)at)[i] = nb_f32_to_bf16(x); break;
    case NB_I32:
        ((int32_t *)at)[i] = b->fill == GC_COUNT ? (int32_t)i : (int32_t)nb_rng_below(r, (uint64_t)b->below);
        break;
    default: ((uint8_t *)at)[i] = (uint8_t)(nb_rng_u32(r) >> 24);
    }
}

/* The contents: a pattern of random elements, again and again. */
static nb_status fill(gc_job *j, int i, nb_rng *r) {
    struct gc_buf *b = &j->buf[i];
    const size_t size = (size_t)nb_dtype_size(b->dtype), part = size * PATTERN, one = b->bytes < part ? b->bytes : part;
    char *pattern = nb_malloc(one + 1);
    nb_status st = NB_OK;
    NB_ASSERT(b->fill != GC_COUNT || b->bytes <= part);
    if (b->host) memcpy(pattern, b->host, one);
    else for (int64_t e = 0; e < (int64_t)(one / size); e++) store(b, pattern, e, r);
    for (int k = 0; k < j->sets && st == NB_OK; k++)
        for (size_t at = 0; at < b->bytes && st == NB_OK; at += one)
            st = j->d->be->put(j->d, (char *)gc_at(j, i, k) + at, pattern, b->bytes - at < one ? b->bytes - at : one);
    free(pattern);
    return st;
}

void gc_free_buffers(gc_job *j) {
    for (int i = 0; i < j->n; i++)
        if (j->buf[i].p) j->d->be->free(j->d, j->buf[i].p, gc_stride(j, i) * (size_t)j->sets);
}

/* So many sets that they are larger than the cache together. */
static int sets_needed(const gc_job *j) {
    size_t all = 0;
    for (int i = 0; i < j->n; i++) all += gc_stride(j, i);
    size_t n = all ? cache_bytes / all + 2 : 1;
    return n > GC_MAX_SETS ? GC_MAX_SETS : (int)n;
}

nb_status gc_make_buffers(gc_job *j) {
    nb_rng r = nb_rng_open(1, NB_RNG_TEST, 0);
    for (int i = 0; i < j->n; i++) {
        NB_TRY(j->d->be->alloc(j->d, (void **)&j->buf[i].p, gc_stride(j, i) * (size_t)j->sets, "a benchmark's buffer"));
        if (j->buf[i].fill != GC_ZERO) NB_TRY(fill(j, i, &r));
    }
    return nb_dev_reserve(j->d, j->ws);
}

/* ---- time ---- */

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static nb_status calls(gc_job *j, const gc_kernel *k, int n, int *turn, double *seconds) {
    NB_TRY(gc_start(j->d));
    for (int i = 0; i < n; i++) NB_TRY(k->launch(j, (*turn)++ % j->sets));
    return gc_stop(j->d, seconds);
}

/* Seconds of a call: the median of the samples. */
static nb_status measure(gc_job *j, const gc_kernel *k, bool tiny, double *seconds, int *samples) {
    double t[SAMPLES], once;
    int turn = 0, n = tiny ? 3 : SAMPLES, reps = 1;
    for (int i = 0; i < (tiny ? 1 : WARM_UPS); i++) NB_TRY(calls(j, k, 1, &turn, &once));
    if (!tiny) {
        NB_TRY(calls(j, k, 2, &turn, &once));
        reps = (int)(300e-6 / (once / 2 + 1e-9));
        reps = reps < 1 ? 1 : reps > 100 ? 100 : reps;
    }
    for (int i = 0; i < n; i++) NB_TRY(calls(j, k, reps, &turn, &t[i]));
    qsort(t, (size_t)n, sizeof *t, by_value);
    *seconds = (t[n / 2] + t[(n - 1) / 2]) / 2 / reps;
    *samples = n;
    return NB_OK;
}

static void report(const gc_job *j, const char *kernel, double seconds, int samples, const ceilings *top) {
    double by_bytes = top->copy > 0 ? j->bytes / top->copy : 0;
    double by_flops = top->multiply > 0 ? j->flops / top->multiply : 0;
    double floor = by_bytes > by_flops ? by_bytes : by_flops;
    gc_row("kernel");
    gc_str("model", j->s->name);
    gc_str("kernel", kernel);
    gc_str("shape", j->shape);
    gc_str("compute", nb_dtype_name(j->d->compute));
    gc_str("products", j->d->gemm ? j->d->gemm : "");
    gc_num("us", seconds * 1e6);
    gc_num("gb_s", j->bytes / seconds * 1e-9);
    gc_num("tflop_s", j->flops / seconds * 1e-12);
    gc_num("floor_us", floor * 1e6);
    gc_str("floor_by", by_bytes > by_flops ? "bytes" : "operations");
    gc_num("of_floor", floor / seconds);
    gc_num("sets", j->sets);
    gc_num("samples", samples);
    gc_end();
    fprintf(stderr, "%-14s %-18s %-34s %10.1f us %8.0f GB/s %7.1f TFLOP/s %5.0f %% of its floor\n", j->s->name, kernel,
            j->shape, seconds * 1e6, j->bytes / seconds * 1e-9, j->flops / seconds * 1e-12, 100 * floor / seconds);
}

/* A kernel's failure is its row; the others go on. */
static bool bench_kernel(nb_dev *d, const gc_shape *s, const gc_kernel *k, int64_t variant, bool tiny,
                         const ceilings *top, double *per_second) {
    gc_job j = {.d = d, .s = s, .variant = variant, .logits = d->be->logits_chunk};
    double seconds = 0;
    int samples = 0;
    k->declare(&j);
    j.sets = sets_needed(&j);
    nb_status st = gc_make_buffers(&j);
    if (st == NB_OK) st = measure(&j, k, tiny, &seconds, &samples);
    gc_free_buffers(&j);
    if (st == NB_OK) {
        report(&j, k->name, seconds, samples, top);
        if (per_second) *per_second = (j.flops > 0 ? j.flops : j.bytes) / seconds;
        return true;
    }
    gc_row("kernel");
    gc_str("model", s->name);
    gc_str("kernel", k->name);
    gc_str("shape", j.shape);
    gc_str("why", nb_message());
    gc_end();
    fprintf(stderr, "%s %s: %s\n", k->name, j.shape, nb_message());
    return false;
}

/* ---- ceilings: as kernels of a model of their own ---- */

static void declare_copy(gc_job *j) {
    int64_t n = j->s->C * j->s->C * 16;
    snprintf(j->shape, sizeof j->shape, "%lld MiB", (long long)(n >> 20));
    gc_buf(j, n, NB_U8, GC_BYTES, 1), gc_buf(j, n, NB_U8, GC_ZERO, 1);
}
static nb_status launch_copy(gc_job *j, int k) {
    return j->d->be->copy(j->d, gc_at(j, 1, k), gc_at(j, 0, k), j->buf[0].bytes);
}

static void declare_square(gc_job *j) {
    int64_t n = j->s->C;
    nb_dtype e = j->d->elem;
    snprintf(j->shape, sizeof j->shape, "%lld x %lld x %lld", (long long)n, (long long)n, (long long)n);
    gc_buf(j, n * n, e, GC_ZERO, 1), gc_buf(j, n * n, e, GC_RANDOM, 1), gc_buf(j, n * n, e, GC_RANDOM, 1);
    j->flops = 2.0 * (double)n * (double)n * (double)n;
    j->ws = j->d->be->gemm_ws(j->d, n, n, n);
}
static nb_status launch_square(gc_job *j, int k) {
    int64_t n = j->s->C;
    nb_dtype e = j->d->elem;
    return j->d->k->gemm(j->d, nb_mat_of(gc_at(j, 0, k), n, e), nb_mat_of(gc_at(j, 1, k), n, e),
                         nb_mat_t(gc_at(j, 2, k), n, e), n, n, n, 1, 0);
}

static ceilings measure_ceilings(nb_dev *d, bool tiny) {
    const gc_shape big = {.name = "ceiling", .C = tiny ? 64 : 8192};
    static const gc_kernel copy = {"copy", 1, declare_copy, launch_copy};
    static const gc_kernel square = {"gemm", 1, declare_square, launch_square};
    ceilings none = {0}, top = {0};
    bench_kernel(d, &big, &copy, 0, tiny, &none, &top.copy);
    bench_kernel(d, &big, &square, 0, tiny, &none, &top.multiply);
    return top;
}

bool gc_meant(const char *only, const char *kernel) {
    size_t n;
    for (const char *p = only; *p; p += n + (p[n] == ',')) {
        n = strcspn(p, ",");
        if (n && !strncmp(kernel, p, n)) return true;
    }
    return !*only;
}

static void bench_all(nb_dev *d, const gc_options *o, const ceilings *top, int *ran, int *failed) {
    int n_shapes;
    const gc_shape *s = gc_shapes(o->tiny, &n_shapes);
    for (int i = 0; i < n_shapes; i++)
        for (int k = 0; k < gc_n_kernels; k++)
            for (int64_t v = 0; gc_meant(o->only, gc_kernels[k].name) && v < gc_kernels[k].variants; v++) {
                *failed += !bench_kernel(d, &s[i], &gc_kernels[k], v, o->tiny, top, NULL);
                ++*ran;
            }
}

/* Each way of making products in turn; one that this machine does not have is a row, and no failure. */
static void bench_products(nb_dev *d, const gc_options *o, const ceilings *top, int *ran, int *failed) {
    char names[256];
    snprintf(names, sizeof names, "%s", o->products);
    for (char *save, *name = strtok_r(names, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
        if (nb_dev_set_gemm(d, name) == NB_OK) {
            bench_all(d, o, top, ran, failed);
            continue;
        }
        gc_row("products");
        gc_str("products", name);
        gc_str("status", "skipped");
        gc_str("why", nb_message());
        gc_end();
    }
}

int gc_bench(const gc_options *o) {
    int failed = 0, ran = 0;
    nb_dev *d;
    gc_must(nb_dev_open(&d, o->device, strcmp(o->compute, "f32") ? NB_BF16 : NB_F32), o->device);
    gc_row("device");
    gc_str("device", gc_describe(d));
    gc_str("products", d->gemm ? d->gemm : "");
    gc_end();
    const ceilings top = measure_ceilings(d, o->tiny);
    if (o->products) bench_products(d, o, &top, &ran, &failed);
    else bench_all(d, o, &top, &ran, &failed);
    nb_dev_close(d);
    return failed || !ran;
}
