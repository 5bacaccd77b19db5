/* Speed of every product variant beside OpenBLAS's sgemm of the same size, best of several runs:
 *
 *      bench_gemm [seconds per line, default 0.2] [threads, default all] [only products whose name contains this]
 *
 * On one thread the time is the processor's, so that other programs on the machine do not count. sgemm uses OpenBLAS's
 * own threads and operands already in f32: no variant of ours has it so easy. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/cpu.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/cpu/gemm.h"

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
    {"nf4 fwd wide", FWD, NB_FMT_NF4, 0, 0, 512, 8192, 2048},
    {"nf4 bwd wide", BWD, NB_FMT_NF4, 0, 0, 512, 2048, 8192},
    {"nf4 fwd 128", FWD, NB_FMT_NF4, 0, 0, 128, 2048, 2048},
    {"nf4 fwd 32", FWD, NB_FMT_NF4, 0, 0, 32, 2048, 2048},
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

typedef struct operands {
    nb_weight w;
    float *x, *y, *c;
    void *data;
    uint8_t *u8;
    float *nested;
    float offset;
} operands;

static float *random_floats(int64_t n, uint64_t seed) {
    nb_rng r = nb_rng_open(seed, NB_RNG_TEST, 0);
    float *x = nb_calloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)nb_rng_u32(&r) * 0x1p-31f - 1;
    return x;
}

/* y holds the weight in f32, for sgemm and DENSE. */
static operands make(const struct bench_case *b) {
    int64_t n = b->N * b->K, blocks = (n + 63) / 64;
    operands o = {.x = random_floats(b->M * b->K, 1), .y = random_floats(n, 2), .c = random_floats(b->M * b->N, 3)};
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

static void unmake(operands *o) { free(o->x), free(o->y), free(o->c), free(o->data), free(o->u8), free(o->nested); }

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
    if (st != NB_OK) {
        fprintf(stderr, "%s\n", nb_message());
        exit(1);
    }
}

static double clock_now(void) {
    struct timespec t;
    clock_gettime(nb_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best time of one call, in seconds. d NULL: OpenBLAS's sgemm. */
static double measure(nb_dev *d, const struct bench_case *b, operands *o, double seconds) {
    double best = 1e30, end = nb_now() + seconds;
    once(d, b, o);
    do {
        double start = clock_now();
        once(d, b, o);
        double t = clock_now() - start;
        if (t < best) best = t;
    } while (nb_now() < end);
    return best;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0.2, base[NB_LEN(cases)];
    const char *only = argc > 3 ? argv[3] : "";
    nb_threads_set(argc > 2 ? atoi(argv[2]) : 0);
    printf("%s, %d threads, best of %.1f s a line\n\n", nb_cpu_get()->name, nb_threads(), seconds);
    printf("%-15s %-17s %-11s %9s %9s %8s\n", "product", "M x N x K", "variant", "GFLOP/s", "of sgemm", "ms");
    openblas_set_num_threads(nb_threads());
    for (int i = 0; i < NB_LEN(cases); i++) {
        if (!strstr(cases[i].label, only)) continue;
        operands o = make(&cases[i]);
        base[i] = measure(NULL, &cases[i], &o, seconds);
        unmake(&o);
    }
    openblas_set_num_threads(1);
    for (int i = 0; i < NB_LEN(cases); i++) {
        const struct bench_case *b = &cases[i];
        if (!strstr(b->label, only)) continue;
        operands o = make(b);
        double gflop = 2e-9 * (double)b->M * (double)b->N * (double)b->K;
        char size[32];
        snprintf(size, sizeof size, "%lldx%lldx%lld", (long long)b->M, (long long)b->N, (long long)b->K);
        printf("%-15s %-17s %-11s %9.1f %9.2f %8.3f\n", b->label, size, "sgemm", gflop / base[i], 1.0, base[i] * 1e3);
        for (const nb_gemm_impl *const *v = nb_gemm_impls; *v; v++) {
            nb_dev *d;
            bool bf16 = !strcmp((*v)->name, "avx512bf16");
            if (!strcmp((*v)->name, "naive")) continue; /* the definition; minutes for these sizes */
            if (nb_dev_open(&d, "cpu", bf16 ? NB_BF16 : NB_F32) != NB_OK) return 1;
            if (nb_dev_set_gemm(d, (*v)->name) == NB_OK &&
                nb_dev_reserve(d, d->be->gemm_ws(d, b->M, b->N, b->K)) == NB_OK) {
                double t = measure(d, b, &o, seconds);
                printf("%-15s %-17s %-11s %9.1f %9.2f %8.3f\n", b->label, size, (*v)->name, gflop / t, base[i] / t,
                       t * 1e3);
            }
            nb_dev_close(d);
        }
        unmake(&o);
    }
    return 0;
}
