/* Speed of every product variant beside OpenBLAS's sgemm of the same size:
 *
 *      bench_gemm [-s SECONDS] [-t THREADS] [-p PRODUCT] [-v VARIANT] [-j FILE]
 *
 * -s  for each line, default 0.2           -t  default all
 * -p  only products in whose "label size" this text occurs: "nf4 fwd", "512x2048x2048"
 * -v  only this variant; best: what training takes here       -j  the lines as JSON, too
 *
 * A machine's speed changes within a second, above all a virtual one's. So the time of a line is cut into slices of the
 * product, the median call of each, between measurements of the peak of multiply-adds in the type that the variant
 * multiplies in; lines show the medians of the slices. On one thread the time is the processor's, so that other programs
 * on the machine do not count. sgemm uses OpenBLAS's own threads and operands already in f32: no variant of ours has it
 * so easy. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/cpu.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/gemm.h"
#include "measure/limits.h"
#include "measure/median.h"

typedef enum what { FWD, BWD, DENSE } what;

static const struct bench_case {
    const char *label;
    what what;
    nb_format format; /* of the weight */
    bool tx, ty;      /* of DENSE */
    int64_t M, N, K;
} cases[] = {
    {"bf16 fwd", FWD, NB_FMT_BF16, 0, 0, 512, 2048, 2048},
    {"bf16 bwd", BWD, NB_FMT_BF16, 0, 0, 512, 2048, 2048},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 512, 2048, 2048},
    {"nf4 bwd", BWD, NB_FMT_NF4, 0, 0, 512, 2048, 2048},
    {"f32 fwd", FWD, NB_FMT_F32, 0, 0, 512, 2048, 2048},
    {"f32 bwd", BWD, NB_FMT_F32, 0, 0, 512, 2048, 2048},
    {"bf16 fwd", FWD, NB_FMT_BF16, 0, 0, 512, 8192, 2048},
    {"bf16 bwd", BWD, NB_FMT_BF16, 0, 0, 512, 2048, 8192},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 512, 8192, 2048},
    {"nf4 bwd", BWD, NB_FMT_NF4, 0, 0, 512, 2048, 8192},
    {"bf16 fwd", FWD, NB_FMT_BF16, 0, 0, 512, 576, 576},
    {"bf16 bwd", BWD, NB_FMT_BF16, 0, 0, 512, 576, 576},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 512, 576, 576},
    {"nf4 bwd", BWD, NB_FMT_NF4, 0, 0, 512, 576, 576},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 128, 2048, 2048},
    {"bf16 fwd", FWD, NB_FMT_BF16, 0, 0, 64, 2048, 2048},
    {"bf16 bwd", BWD, NB_FMT_BF16, 0, 0, 64, 2048, 2048},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 64, 2048, 2048},
    {"nf4 bwd", BWD, NB_FMT_NF4, 0, 0, 64, 2048, 2048},
    {"nf4 fwd", FWD, NB_FMT_NF4, 0, 0, 32, 2048, 2048},
    {"small fwd", FWD, NB_FMT_NF4, 0, 0, 2048, 256, 256},
    {"small mlp fwd", FWD, NB_FMT_NF4, 0, 0, 2048, 704, 256},
    {"small mlp bwd", BWD, NB_FMT_NF4, 0, 0, 2048, 256, 704},
    {"small mlp f32", FWD, NB_FMT_F32, 0, 0, 2048, 704, 256},
    {"small long fwd", FWD, NB_FMT_NF4, 0, 0, 16384, 704, 256},
    {"small head fwd", FWD, NB_FMT_BF16, 0, 0, 1024, 4096, 256},
    {"small head bwd", BWD, NB_FMT_BF16, 0, 0, 1024, 256, 4096},
    {"small dW", DENSE, NB_FMT_F32, 1, 0, 704, 256, 2048},
    {"lora x A^T", DENSE, NB_FMT_F32, 0, 1, 512, 16, 2048},
    {"lora h B^T", DENSE, NB_FMT_F32, 0, 1, 512, 2048, 16},
    {"lora dy B", DENSE, NB_FMT_F32, 0, 0, 512, 16, 2048},
    {"lora dA", DENSE, NB_FMT_F32, 1, 0, 16, 2048, 512},
    {"lora dB", DENSE, NB_FMT_F32, 1, 0, 2048, 16, 512},
    {"one row nf4", FWD, NB_FMT_NF4, 0, 0, 1, 8192, 4096},
    {"4 rows nf4", FWD, NB_FMT_NF4, 0, 0, 4, 8192, 4096},
    {"16 rows nf4", FWD, NB_FMT_NF4, 0, 0, 16, 8192, 4096},
    {"q8_0 fwd", FWD, NB_FMT_Q8_0, 0, 0, 512, 2048, 2048},
    {"q4_k fwd", FWD, NB_FMT_Q4_K, 0, 0, 512, 2048, 2048},
    {"q4_k bwd", BWD, NB_FMT_Q4_K, 0, 0, 512, 2048, 2048},
    {"q6_k bwd", BWD, NB_FMT_Q6_K, 0, 0, 512, 2048, 2048},
    {"one row q8_0", FWD, NB_FMT_Q8_0, 0, 0, 1, 8192, 4096},
    {"one row q4_k", FWD, NB_FMT_Q4_K, 0, 0, 1, 8192, 4096},
    {"one row q6_k", FWD, NB_FMT_Q6_K, 0, 0, 1, 8192, 4096},
    {"4 rows q4_k", FWD, NB_FMT_Q4_K, 0, 0, 4, 8192, 4096},
    {"one row bf16", FWD, NB_FMT_BF16, 0, 0, 1, 8192, 4096},
    {"one row f32", FWD, NB_FMT_F32, 0, 0, 1, 8192, 4096},
};

typedef struct options {
    double seconds;
    const char *product, *variant; /* "": all */
    json_t *lines;                 /* NULL: not wanted */
} options;

typedef struct operands {
    nb_weight w;
    float *x, *y, *c; /* in `floats`, of `bytes` */
    void *floats;
    size_t bytes;
    void *data;
    uint8_t *u8;
    float *nested;
    float offset;
} operands;

static void give_up(void) {
    fprintf(stderr, "%s\n", nb_message());
    exit(1);
}

static void fill(float *x, int64_t n, uint64_t seed) {
    nb_rng r = nb_rng_open(seed, NB_RNG_TEST, 0);
    for (int64_t i = 0; i < n; i++) x[i] = (float)nb_rng_u32(&r) * 0x1p-31f - 1;
}

/* One block, as the buffers of a training step: in huge pages where the machine has them. */
static void make_floats(const struct bench_case *b, operands *o) {
    enum { LINE = NB_ALIGN / sizeof(float), HUGE_PAGE = 2 << 20 };
    const int64_t n[3] = {b->M * b->K, b->N * b->K, b->M * b->N};
    float **at[3] = {&o->x, &o->y, &o->c};
    int64_t all = 0;
    for (int i = 0; i < 3; i++) all += (n[i] + LINE - 1) / LINE * LINE;
    o->bytes = ((size_t)all * sizeof(float) + 2 * HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (nb_big_alloc(&o->floats, o->bytes, "operands") != NB_OK) give_up();
    float *p = o->floats;
    for (int i = 0; i < 3; i++) {
        *at[i] = p;
        fill(p, n[i], (uint64_t)i + 1);
        p += (n[i] + LINE - 1) / LINE * LINE;
    }
}

static const char *size_text(const struct bench_case *b) {
    static char text[32];
    snprintf(text, sizeof text, "%lldx%lldx%lld", (long long)b->M, (long long)b->N, (long long)b->K);
    return text;
}

/* y holds the weight in f32, for sgemm and DENSE. */
static operands make(const struct bench_case *b) {
    int64_t n = b->N * b->K, blocks = (n + 63) / 64;
    operands o = {0};
    make_floats(b, &o);
    o.w = (nb_weight){.format = b->format, .rows = b->what == BWD ? b->K : b->N, .cols = b->what == BWD ? b->N : b->K};
    if (b->format == NB_FMT_F32) o.w.data = o.y;
    if (b->format == NB_FMT_BF16) {
        uint16_t *h = o.data = nb_malloc((size_t)n * 2);
        for (int64_t i = 0; i < n; i++) h[i] = nb_f32_to_bf16(o.y[i]);
        o.w.data = h;
    }
    if (b->format > NB_FMT_NF4) { /* any bytes that are no infinite scale */
        const int64_t bytes = nb_weight_bytes(&o.w);
        o.w.data = o.data = nb_malloc((size_t)bytes);
        for (int64_t i = 0; i < bytes; i++) ((uint8_t *)o.data)[i] = (uint8_t)(i * 37 & 0xbb);
    }
    if (b->format == NB_FMT_NF4) {
        float *absmax = nb_calloc((size_t)blocks, sizeof *absmax);
        o.w.data = o.data = nb_malloc((size_t)(n + 1) / 2);
        o.u8 = nb_malloc((size_t)blocks);
        o.nested = nb_calloc((size_t)(blocks + 255) / 256, sizeof(float));
        nb_nf4_quantize(o.data, absmax, o.y, NB_F32, n);
        nb_nf4_quantize_absmax(o.u8, o.nested, &o.offset, absmax, blocks);
        free(absmax);
        o.w.nf4 = (nb_nf4){.code = nb_nf4_code,
                           .absmax_u8 = o.u8,
                           .nested_absmax = o.nested,
                           .nested_code = nb_dynamic_code,
                           .nested_offset = o.offset,
                           .blocksize = 64,
                           .nested_blocksize = 256,
                           .dtype = NB_BF16};
    }
    return o;
}

static void unmake(operands *o) {
    nb_big_free(o->floats, o->bytes);
    free(o->data), free(o->u8), free(o->nested);
}

static void once(nb_dev *d, const struct bench_case *b, operands *o) {
    const bool tx = b->what == DENSE && b->tx, ty = b->what == FWD || (b->what == DENSE && b->ty);
    const int64_t ldx = tx ? b->M : b->K, ldy = ty ? b->K : b->N;
    nb_status st = NB_OK;
    if (d) d->dots = b->M == 1; /* as in a step that generates */
    if (!d)
        cblas_sgemm(CblasRowMajor, tx ? CblasTrans : CblasNoTrans, ty ? CblasTrans : CblasNoTrans, (int)b->M, (int)b->N,
                    (int)b->K, 1, o->x, (int)ldx, o->y, (int)ldy, 0, o->c, (int)b->N);
    else if (b->what == FWD) st = d->k->weight_fwd(d, nb_mat_of(o->c, b->N, NB_F32), o->x, &o->w, b->M, 0);
    else if (b->what == BWD) st = d->k->weight_bwd(d, o->c, o->x, &o->w, b->M, 0);
    else
        st = d->k->gemm(d, nb_mat_of(o->c, b->N, NB_F32), (nb_mat){o->x, ldx, NB_F32, tx},
                        (nb_mat){o->y, ldy, NB_F32, ty}, b->M, b->N, b->K, 1, 0);
    if (st != NB_OK) give_up();
}

static double clock_now(void) {
    struct timespec t;
    clock_gettime(nb_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { SLICES = 256, CALLS = 4096 };
static const double slice_seconds = 0.02, peak_seconds = 0.004;

typedef struct speed { /* medians of the slices */
    double gflops, peak, share; /* peak in GFLOP/s; share of it; both 0: not known */
} speed;

/* Median time of a call. The first does not count: threads of the peak are still awake. */
static double slice(nb_dev *d, const struct bench_case *b, operands *o, double seconds) {
    static double times[CALLS];
    int n = 0;
    once(d, b, o);
    const double end = nb_now() + seconds;
    do {
        double start = clock_now();
        once(d, b, o);
        times[n++] = clock_now() - start;
    } while (n < CALLS && nb_now() < end);
    return nb_median(times, n);
}

/* d NULL: OpenBLAS's sgemm, in one slice: its threads and ours would take the processor from each other. */
static speed measure(nb_dev *d, const struct bench_case *b, operands *o, double seconds) {
    const double gflop = 2e-9 * (double)b->M * (double)b->N * (double)b->K, end = nb_now() + seconds;
    const bool bf16 = d && d->compute == NB_BF16;
    double rates[SLICES], peaks[SLICES], shares[SLICES];
    int n = 0;
    once(d, b, o);
    double before, after = nb_measure_peak(bf16, nb_threads(), peak_seconds);
    do {
        rates[n] = gflop / slice(d, b, o, d ? slice_seconds : seconds);
        before = after, after = nb_measure_peak(bf16, nb_threads(), peak_seconds);
        peaks[n] = 1e-9 * (before + after) / 2;
        shares[n] = peaks[n] > 0 ? rates[n] / peaks[n] : 0;
    } while (++n < SLICES && nb_now() < end);
    return (speed){nb_median(rates, n), nb_median(peaks, n), nb_median(shares, n)};
}

static void show(const options *opt, const struct bench_case *b, const char *variant, speed s, speed sgemm) {
    const double ms = 2e-6 * (double)b->M * (double)b->N * (double)b->K / s.gflops;
    char share[16] = "";
    if (s.peak > 0) snprintf(share, sizeof share, "%.1f %%", 100 * s.share);
    printf("%-15s %-17s %-11s %9.1f %9.2f %8s %9.3f\n", b->label, size_text(b), variant, s.gflops,
           s.gflops / sgemm.gflops, share, ms);
    fflush(stdout);
    if (!opt->lines) return;
    json_t *line = json_pack("{s:s, s:s, s:s, s:f, s:f, s:f}", "product", b->label, "size", size_text(b), "variant",
                             variant, "gflops", s.gflops, "of_sgemm", s.gflops / sgemm.gflops, "ms", ms);
    if (s.peak > 0)
        json_object_update_new(line, json_pack("{s:f, s:f}", "peak_gflops", s.peak, "percent_of_peak", 100 * s.share));
    json_array_append_new(opt->lines, line);
}

static bool is_wanted(const options *opt, const struct bench_case *b) {
    char text[64];
    snprintf(text, sizeof text, "%s %s", b->label, size_text(b));
    return strstr(text, opt->product) != NULL;
}

static void measure_variants(const options *opt, const struct bench_case *b, speed sgemm) {
    operands o = make(b);
    show(opt, b, "sgemm", sgemm, sgemm);
    for (const nb_gemm_impl *const *v = nb_gemm_impls; *v; v++) {
        nb_dev *d;
        bool bf16 = !strcmp((*v)->name, "avx512bf16");
        if (!strcmp((*v)->name, "naive")) continue; /* the definition; minutes for these sizes */
        if (*opt->variant && strcmp((*v)->name, opt->variant) != 0) continue;
        if (nb_dev_open(&d, "cpu", bf16 ? NB_BF16 : NB_F32) != NB_OK) give_up();
        if (nb_dev_set_gemm(d, (*v)->name) == NB_OK &&
            nb_dev_reserve(d, d->be->gemm_ws(d, b->M, b->N, b->K)) == NB_OK)
            show(opt, b, (*v)->name, measure(d, b, &o, opt->seconds), sgemm);
        nb_dev_close(d);
    }
    unmake(&o);
}

static const char *best_variant(void) {
    nb_dev *d;
    if (nb_dev_open(&d, "cpu", nb_dev_has_bf16("cpu") ? NB_BF16 : NB_F32) != NB_OK) give_up();
    const char *name = d->gemm;
    nb_dev_close(d);
    return name;
}

int main(int argc, char **argv) {
    options opt = {.seconds = 0.2, .product = "", .variant = ""};
    const char *file = NULL;
    speed sgemm[NB_LEN(cases)];
    int threads = 0;
    for (int c; (c = getopt(argc, argv, "s:t:p:v:j:")) != -1;) {
        if (c == 's') opt.seconds = atof(optarg);
        else if (c == 't') threads = atoi(optarg);
        else if (c == 'p') opt.product = optarg;
        else if (c == 'v') opt.variant = optarg;
        else if (c == 'j') file = optarg;
        else return 2;
    }
    nb_threads_set(threads);
    if (!strcmp(opt.variant, "best")) opt.variant = best_variant();
    if (file) opt.lines = json_array();
    printf("%s, %d threads, %.1f s a line\n\n", nb_cpu_get()->name, nb_threads(), opt.seconds);
    printf("%-15s %-17s %-11s %9s %9s %8s %9s\n", "product", "M x N x K", "variant", "GFLOP/s", "of sgemm", "of peak",
           "ms");
    openblas_set_num_threads(nb_threads());
    for (int i = 0; i < NB_LEN(cases); i++) {
        if (!is_wanted(&opt, &cases[i])) continue;
        operands o = make(&cases[i]);
        sgemm[i] = measure(NULL, &cases[i], &o, opt.seconds);
        unmake(&o);
    }
    openblas_set_num_threads(1);
    for (int i = 0; i < NB_LEN(cases); i++)
        if (is_wanted(&opt, &cases[i])) measure_variants(&opt, &cases[i], sgemm[i]);
    if (file && json_dump_file(opt.lines, file, JSON_INDENT(1)) != 0) {
        fprintf(stderr, "%s cannot be written\n", file);
        return 1;
    }
    json_decref(opt.lines);
    return 0;
}
