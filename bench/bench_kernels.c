/* Times every cpu kernel but the products at the sizes of real models: best of several runs. One thread is
 * timed by its own processor time, so that a busy machine does not count; several by the clock on the wall.
 * Usage: bench_kernels [THREADS [INSTRUCTION SET [ROW]]], by default all cores and the widest set. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/cpu.h"
#include "core/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct model {
    const char *name;
    int64_t T, C, H, KV, D, F, V, xent_rows, document;
} model;

static const model models[] = {
    {"SmolLM2-135M S=512", 512, 576, 9, 3, 64, 1536, 49152, 256, 512},
    {"Llama-3.2-1B S=512", 512, 2048, 32, 8, 64, 8192, 128256, 128, 512},
    {"5M C=256, documents of 64", 16384, 256, 8, 4, 32, 704, 4096, 2048, 64},
    {"5M C=256, documents of 1024", 16384, 256, 8, 4, 32, 704, 4096, 2048, 1024},
};

typedef struct data {
    const model *m;
    nb_dev dev;
    float *x[8], *w; /* x: T*F floats each (or what the logits or the heads take) */
    int32_t *pos, *target;
    uint32_t *sample;
    nb_seg *segs;
    int64_t n_segs;
} data;

static double now(void) {
    struct timespec t;
    clock_gettime(nb_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rmsnorm_fwd(data *d) {
    nb_cpu_rmsnorm_fwd(&d->dev, d->x[0], d->x[1], d->x[2], d->w, d->m->T, d->m->C, 1e-5f, 0);
}
static void rmsnorm_bwd(data *d) {
    nb_cpu_rmsnorm_bwd(&d->dev, d->x[0], 1, NULL, 0, d->x[2], d->x[3], d->w, d->x[1], d->m->T, d->m->C, 0);
}
static void rmsnorm_dw(data *d) {
    nb_cpu_rmsnorm_bwd(&d->dev, NULL, 0, d->x[4], 0, d->x[2], d->x[3], d->w, d->x[1], d->m->T, d->m->C, 0);
}
static void rope(data *d) {
    nb_cpu_rope(&d->dev, d->x[0], d->x[0], d->x[1], d->x[2], d->pos, d->m->T, d->m->H, d->m->D, d->m->D, false, 0);
}
static void attention_fwd(data *d) {
    nb_cpu_attention_fwd(&d->dev, d->x[4], d->x[5], d->x[0], d->x[1], d->x[2], d->segs, d->n_segs, d->m->T, d->m->T, d->m->H, d->m->KV,
                         d->m->D, 0.125f, 0, 0);
}
static void attention_bwd(data *d) {
    nb_cpu_attention_bwd(&d->dev, d->x[3], 0, d->x[6], 0, d->x[7], 0, d->x[0], d->x[0], d->x[1], d->x[2], d->x[4],
                         d->x[5], d->segs, d->n_segs, d->m->T, d->m->T, d->m->H, d->m->KV, d->m->D, 0.125f, 0, 0);
}
/* With operands rounded to bf16, where the processor multiplies those. */
static void rounded(data *d, void (*run)(data *d)) {
    d->dev.compute = NB_BF16;
    run(d);
    d->dev.compute = NB_F32;
}
static void attention_fwd_bf16(data *d) { rounded(d, attention_fwd); }
static void attention_bwd_bf16(data *d) { rounded(d, attention_bwd); }
static void decode(data *d) {
    nb_seg s = {0, 1, 0, (int32_t)d->m->T};
    nb_cpu_attention_fwd(&d->dev, d->x[4], NULL, d->x[0], d->x[1], d->x[2], &s, 1, 1, d->m->T, d->m->H, d->m->KV, d->m->D, 0.125f,
                         0, 0);
}
static void glu_fwd(data *d) { nb_cpu_glu_fwd(&d->dev, d->x[0], d->x[1], d->x[2], d->m->T * d->m->F, NB_ACT_SILU); }
static void glu_bwd(data *d) {
    nb_cpu_glu_bwd(&d->dev, d->x[3], 0, d->x[4], 0, d->x[0], d->x[1], d->x[2], d->m->T * d->m->F, NB_ACT_SILU);
}
static void gelu_fwd(data *d) {
    nb_cpu_glu_fwd(&d->dev, d->x[0], d->x[1], d->x[2], d->m->T * d->m->F, NB_ACT_GELU_TANH);
}
static void add(data *d) { nb_cpu_add(&d->dev, d->x[0], d->x[1], d->x[2], d->m->T * d->m->C, 0); }
static void bias_fwd(data *d) { nb_cpu_bias_fwd(&d->dev, d->x[0], NB_F32, d->w, d->m->T, d->m->C); }
static void bias_bwd(data *d) { nb_cpu_bias_bwd(&d->dev, d->x[0], d->x[1], d->m->T, d->m->C, 0); }
static void gather(data *d) { nb_cpu_gather_rows(&d->dev, d->x[0], d->x[1], d->pos, d->m->T, d->m->C); }
static void scale_rows(data *d) { nb_cpu_scale_rows(&d->dev, d->x[0], d->x[0], d->x[1], d->m->T, d->m->C, 0); }
static void embedding_bwd(data *d) {
    nb_cpu_embedding_bwd(&d->dev, d->x[0], d->x[1], d->target, d->m->T, 4096, d->m->C, 1, 1);
}
static void xent(data *d) {
    nb_cpu_xent(&d->dev, d->x[0], NULL, NULL, d->x[1], d->x[1], d->target, d->m->xent_rows, d->m->V, 0);
}
static void dropout(data *d) {
    nb_cpu_dropout(&d->dev, d->x[0], d->x[1], d->sample, d->pos, d->m->T, d->m->C, 0.1f, 42, 1, 2, 0);
}
static void adamw(data *d) {
    const nb_update u = {.bias1 = 0.6, .bias2 = 0.01, .lr = 1e-9f};
    nb_cpu_adamw(&d->dev, d->x[0], d->x[1], d->x[2], d->x[3], d->m->T * d->m->C, &u, 0.9f, 0.999f, 1e-8f, 0);
}
static void sum_squares(data *d) {
    nb_update u;
    nb_cpu_sum_squares(&d->dev, &u, d->x[0], d->m->T * d->m->C);
}

/* Bytes per element of T*C (or T*F, or the logits), and matrix products over the causal half of the scores. */
typedef struct row {
    const char *name;
    void (*run)(data *d);
    int bytes;
    char per; /* 'C', 'F', 'H' heads, 'V' logits, 'A' attention: FLOPs; 'D' decoding: bytes of keys and values */
    int products;
} row;

static const row rows[] = {
    {"rmsnorm_fwd", rmsnorm_fwd, 8, 'C', 0},
    {"rmsnorm_bwd dx", rmsnorm_bwd, 16, 'C', 0},
    {"rmsnorm_bwd dw", rmsnorm_dw, 8, 'C', 0},
    {"rope", rope, 8, 'H', 0},
    {"attention_fwd", attention_fwd, 0, 'A', 2},
    {"attention_bwd", attention_bwd, 0, 'A', 5},
    {"attention_fwd bf16", attention_fwd_bf16, 0, 'A', 2},
    {"attention_bwd bf16", attention_bwd_bf16, 0, 'A', 5},
    {"attention_fwd qn=1", decode, 0, 'D', 0},
    {"glu_fwd silu", glu_fwd, 12, 'F', 0},
    {"glu_fwd gelu", gelu_fwd, 12, 'F', 0},
    {"glu_bwd silu", glu_bwd, 20, 'F', 0},
    {"add", add, 12, 'C', 0},
    {"bias_fwd", bias_fwd, 8, 'C', 0},
    {"bias_bwd", bias_bwd, 4, 'C', 0},
    {"gather_rows", gather, 8, 'C', 0},
    {"scale_rows", scale_rows, 8, 'C', 0},
    {"embedding_bwd", embedding_bwd, 12, 'C', 0},
    {"xent with gradient", xent, 12, 'V', 0},
    {"dropout", dropout, 8, 'C', 0},
    {"adamw", adamw, 28, 'C', 0},
    {"sum_squares", sum_squares, 4, 'C', 0},
};

static void report(const row *r, data *d) {
    const model *m = d->m;
    double best = 1e9, end = now() + 0.06, work;
    for (int n = 0; n < 3 || now() < end; n++) {
        double t = now();
        r->run(d);
        t = now() - t;
        if (t < best) best = t;
    }
    printf("%-20s %9.3f ms", r->name, best * 1e3);
    if (r->per == 'A') {
        work = 0;
        for (int64_t b = 0; b < d->n_segs; b++)
            work += 2.0 * r->products * (double)(m->H * m->D) * 0.5 * d->segs[b].qn * (d->segs[b].kn + 1.0);
        printf(" %8.1f GFLOP/s\n", work / best / 1e9);
        return;
    }
    double n = (double)m->T * (double)(r->per == 'F' ? m->F : r->per == 'H' ? m->H * m->D : m->C);
    work = n * r->bytes;
    if (r->per == 'V') work = (double)m->xent_rows * (double)m->V * r->bytes;
    if (r->per == 'D') work = (double)m->T * (double)(m->KV * m->D) * 8;
    printf(" %8.1f GB/s\n", work / best / 1e9);
}

static void bench_model(const model *m, const char *only) {
    data d = {.m = m};
    size_t most = (size_t)(m->T * (m->F > m->H * m->D ? m->F : m->H * m->D)), logits = (size_t)(m->xent_rows * m->V);
    if (logits > most) most = logits;
    for (int i = 0; i < 8; i++) {
        d.x[i] = nb_calloc(most, sizeof(float));
        for (size_t j = 0; j < most; j++) d.x[i][j] = (float)((j * 2654435761u >> 8 & 0xffff) / 32768.0 - 1 + (i == 2));
    }
    d.w = d.x[7];
    d.pos = nb_calloc((size_t)m->T, sizeof *d.pos), d.target = nb_calloc((size_t)m->T, sizeof *d.target);
    d.sample = nb_calloc((size_t)m->T, sizeof *d.sample);
    d.n_segs = m->T / m->document;
    d.segs = nb_calloc((size_t)d.n_segs, sizeof *d.segs);
    for (int64_t t = 0; t < m->T; t++) d.pos[t] = (int32_t)(t % m->document), d.target[t] = (int32_t)(t * 31 % 4000);
    for (int64_t b = 0; b < d.n_segs; b++) {
        int32_t at = (int32_t)(b * m->document), n = (int32_t)m->document;
        d.segs[b] = (nb_seg){at, n, at, n};
    }
    for (int i = 0; i < 2; i++) {
        d.dev.compute = i ? NB_F32 : NB_BF16;
        size_t bytes = nb_cpu_attention_ws(&d.dev, m->T, m->T, m->H, m->KV, m->D);
        if (bytes > d.dev.ws_size) d.dev.ws_size = bytes;
    }
    if (nb_big_alloc(&d.dev.ws, d.dev.ws_size, "scratch") != NB_OK) exit(1);
    printf("\n%s: T=%lld C=%lld H=%lld/%lld D=%lld F=%lld V=%lld\n", m->name, (long long)m->T, (long long)m->C,
           (long long)m->H, (long long)m->KV, (long long)m->D, (long long)m->F, (long long)m->V);
    for (int i = 0; i < NB_LEN(rows); i++)
        if (!only || strstr(rows[i].name, only)) report(rows + i, &d);
    nb_big_free(d.dev.ws, d.dev.ws_size);
    for (int i = 0; i < 8; i++) free(d.x[i]);
    free(d.pos), free(d.target), free(d.sample), free(d.segs);
}

int main(int argc, char **argv) {
    nb_threads_set(argc > 1 ? atoi(argv[1]) : 0);
    if (argc > 2 && !nb_simd_set(argv[2])) {
        fprintf(stderr, "no instruction set \"%s\" here\n", argv[2]);
        return 1;
    }
    printf("%s, %d threads, %s\n", nb_cpu_get()->name, nb_threads(), nb_simd_get()->name);
    for (int i = 0; i < NB_LEN(models); i++) bench_model(models + i, argc > 3 ? argv[3] : NULL);
    return 0;
}
