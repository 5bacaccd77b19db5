/* A whole training step (forward, backward, clipping, AdamW) of LoRA on all linear layers, on random weights of real
 * shapes, through the runner that training uses:
 *
 *      bench_step [seconds per model, default 5] [threads, default all] [only models whose name contains this]
 *                 [device, default cpu]
 *
 * Every way of running a model takes its turn, round after round, and keeps its best step, so that what else the
 * machine does meets all of them alike; the first round, which touches fresh memory, does not count. On one thread
 * the time is the processor's own: other programs on the machine hardly count. On another device every operation is
 * waited for, so that a step takes a little longer there than it would. Model FLOPs are those the gradient
 * needs: what checkpointing computes again is not among them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "adapters/adapter.h"
#include "bench/peak.h"
#include "core/mem.h"
#include "core/rng.h"
#include "train/optimizer.h"

enum { TOKENS = 512, RANK = 16, MAX_OPS = 32 };

typedef struct shape {
    const char *name;
    int64_t layers, hidden, mlp, heads, kv_heads, head_dim, vocab;
} shape;

static const shape shapes[] = {
    {"sample base", 6, 256, 640, 8, 4, 32, 4096},
    {"SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152},
    {"Llama-3.2-1B, 2 of its 16 layers", 2, 2048, 8192, 32, 8, 64, 128256},
};

static const struct way {
    nb_format format; /* of the linear layers */
    nb_dtype compute;
    bool checkpoint;
} ways[] = {
    {NB_FMT_F32, NB_F32, false},   {NB_FMT_NF4, NB_F32, false},  {NB_FMT_BF16, NB_BF16, false},
    {NB_FMT_NF4, NB_BF16, false}, {NB_FMT_NF4, NB_BF16, true},
};
enum { F32_IN_F32, NF4_IN_F32, BF16_IN_BF16, NF4_IN_BF16, WAYS = NB_LEN(ways) };

static void must(nb_status st) {
    if (st == NB_OK) return;
    fprintf(stderr, "%s\n", nb_message());
    exit(1);
}

static void *big(size_t bytes) {
    void *p;
    must(nb_big_alloc(&p, bytes, "the benchmark's weights"));
    return p;
}

/* ---- a base without a file ---- */

typedef struct made { /* everything a base of this benchmark owns */
    struct {
        void *p;
        size_t bytes;
    } buf[1024];
    int n;
} made;

static void *keep(made *m, size_t bytes) {
    NB_ASSERT(m->n < NB_LEN(m->buf));
    m->buf[m->n].bytes = bytes;
    return m->buf[m->n++].p = big(bytes);
}

static void free_made(made *m) {
    while (m->n-- > 0) nb_big_free(m->buf[m->n].p, m->buf[m->n].bytes);
    m->n = 0;
}

/* About normal(0, 0.02): the sum of four uniform numbers. */
static void draw(float *x, int64_t n, uint32_t seed) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = ((uint32_t)i + 1) * 0x9E3779B1u ^ seed * 0x85EBCA77u;
        h = (h ^ h >> 15) * 0x2C1B3C6Du;
        h = (h ^ h >> 12) * 0x297A2D39u;
        h ^= h >> 15;
        int sum = (int)(h & 255) + (int)(h >> 8 & 255) + (int)(h >> 16 & 255) + (int)(h >> 24) - 510;
        x[i] = (float)sum * (0.02f / 148);
    }
}

static void to_nf4(made *m, nb_weight *w, const float *x) {
    const int64_t n = w->rows * w->cols, blocks = (n + 63) / 64, part = 64 * 1024;
    uint8_t *packed = keep(m, (size_t)(n + 1) / 2), *u8 = keep(m, (size_t)blocks);
    float *nested = keep(m, (size_t)(blocks + 255) / 256 * sizeof *nested), offset;
    float *absmax = big((size_t)blocks * sizeof *absmax);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i += part)
        nb_nf4_quantize(packed + i / 2, absmax + i / 64, x + i, NB_F32, n - i < part ? n - i : part);
    nb_nf4_quantize_absmax(u8, nested, &offset, absmax, blocks);
    nb_big_free(absmax, (size_t)blocks * sizeof *absmax);
    w->data = packed;
    w->nf4 = (nb_nf4){.code = nb_nf4_code, .absmax_u8 = u8, .nested_absmax = nested, .nested_code = nb_dynamic_code,
                      .nested_offset = offset, .blocksize = 64, .nested_blocksize = 256, .dtype = NB_BF16};
}

static nb_weight matrix(made *m, nb_format format, int64_t rows, int64_t cols, uint32_t seed) {
    const int64_t n = rows * cols;
    nb_weight w = {.format = format, .rows = rows, .cols = cols};
    float *x = format == NB_FMT_F32 ? keep(m, (size_t)n * 4) : big((size_t)n * 4);
    draw(x, n, seed);
    w.data = x;
    if (format == NB_FMT_F32) return w;
    if (format == NB_FMT_BF16) {
        uint16_t *h = keep(m, (size_t)n * 2);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) h[i] = nb_f32_to_bf16(x[i]);
        w.data = h;
    } else {
        to_nf4(m, &w, x);
    }
    nb_big_free(x, (size_t)n * 4);
    return w;
}

static nb_spec spec_of(const shape *s) {
    nb_spec p = {.family = "llama", .architecture = "LlamaForCausalLM", .vocab = s->vocab, .hidden = s->hidden,
                 .mlp_hidden = s->mlp, .layers = s->layers, .heads = s->heads, .kv_heads = s->kv_heads,
                 .head_dim = s->head_dim, .context = TOKENS, .norm_eps = 1e-5f, .embed_scale = 1,
                 .attn_scale = (float)(1 / sqrt((double)s->head_dim)), .act = NB_ACT_SILU, .tied = true,
                 .dtype = NB_BF16, .bos = -1, .eos = -1, .init_std = 0.02f,
                 .pre_norm = true,
                 .rope = {{.kind = NB_ROPE_DEFAULT, .theta = 10000, .attention = 1, .rot = (int)s->head_dim}}};
    must(nb_spec_check(&p, s->name));
    return p;
}

/* The embedding, which is the head too, is bf16 in every one, as it would be in a file; `embed` is shared. */
static nb_base base_of(const shape *s, nb_format format, const nb_weight *embed, made *m) {
    nb_base b = {.spec = spec_of(s), .quantized = format == NB_FMT_NF4, .double_quant = true, .embed = *embed};
    float *ones = keep(m, (size_t)s->hidden * sizeof *ones);
    for (int64_t i = 0; i < s->hidden; i++) ones[i] = 1;
    b.head = (nb_base_linear){.name = (char *)(uintptr_t)nb_spec_head_name(&b.spec), .w = *embed};
    b.final_norm = ones;
    b.layer = nb_calloc((size_t)s->layers, sizeof *b.layer);
    for (int64_t l = 0; l < s->layers; l++) {
        for (nb_norm_slot k = 0; k < NB_NORMS; k++) b.layer[l].norm[k] = nb_spec_norm_size(&b.spec, k) ? ones : NULL;
        for (nb_slot k = 0; k < NB_SLOTS; k++) {
            int64_t rows, cols;
            nb_spec_linear_shape(&b.spec, k, &rows, &cols);
            b.layer[l].lin[k] = (nb_base_linear){nb_spec_linear_name(&b.spec, l, k),
                                                 matrix(m, format, rows, cols, (uint32_t)(l * NB_SLOTS + k + 2)), NULL};
        }
    }
    return b;
}

static void free_base(nb_base *b, made *m) {
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (int k = 0; k < NB_SLOTS; k++) free(b->layer[l].lin[k].name);
    free(b->layer);
    free_made(m);
}

/* ---- one way of running a model ---- */

static const char *device = "cpu";

typedef struct run {
    const struct way *way;
    nb_dev *dev;
    nb_model *model;
    nb_adapter *adapter;
    nb_optimizer optimizer;
    nb_arena arena;
    nb_runner *runner;
    int64_t steps;
    double best, best_optimizer;                   /* seconds */
    nb_prof_row prof[MAX_OPS], best_prof[MAX_OPS]; /* of the step at hand, of the best */
} run;

static const run *timed; /* whose device the clock waits for */

static double clock_now(void) {
    struct timespec t;
    float one;
    bool here = timed->dev->be->host_memory;
    if (!here) must(timed->dev->be->get(timed->dev, &one, timed->adapter->data, sizeof one));
    clock_gettime(here && nb_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void open_run(run *r, const struct way *way, const nb_base *base) {
    *r = (run){.way = way, .best = 1e30};
    must(nb_dev_open(&r->dev, device, way->compute));
    must(nb_model_open(&r->model, base, r->dev, TOKENS, TOKENS));
    nb_lora_options o = {.r = RANK, .alpha = 2 * RANK, .seed = 1};
    must(nb_adapter_new(&r->adapter, r->model, &o));
    must(nb_optimizer_open(&r->optimizer, r->adapter, false, 1, NULL, false));
    r->optimizer.beta1 = 0.9, r->optimizer.beta2 = 0.999, r->optimizer.epsilon = 1e-8, r->optimizer.max_grad_norm = 1;
    must(nb_runner_open_loss(&r->runner, r->model, &r->arena, TOKENS, true,
                             way->checkpoint ? &nb_recompute_smart : &nb_recompute_none));
    NB_ASSERT(nb_op_count <= MAX_OPS);
    r->runner->tape->prof = r->prof;
    r->runner->tape->clock = clock_now;
}

static void close_run(run *r) {
    nb_runner_free(r->runner);
    nb_optimizer_close(&r->optimizer);
    nb_adapter_free(r->adapter);
    nb_model_free(r->model);
    nb_arena_free(&r->arena);
    nb_dev_close(r->dev);
}

static void step(run *r, const nb_batch *b) {
    timed = r;
    double loss, norm, start = clock_now();
    memset(r->prof, 0, sizeof r->prof);
    nb_optimizer_begin(&r->optimizer);
    must(nb_runner_loss(r->runner, b, 1.0f / (float)b->n_trained, &loss, NULL));
    double middle = clock_now();
    must(nb_optimizer_step(&r->optimizer, ++r->steps, 1e-4, &norm));
    double end = clock_now();
    if (!(loss > 0 && loss < 1e6)) {
        fprintf(stderr, "a loss of %g: the step is wrong\n", loss);
        exit(1);
    }
    if (r->steps == 1 || end - start >= r->best) return;
    r->best = end - start;
    r->best_optimizer = end - middle;
    memcpy(r->best_prof, r->prof, sizeof r->prof);
}

/* Products and attention, forward and backward. The first block's input needs no gradient. */
static double model_flops(const shape *s) {
    nb_spec p = spec_of(s);
    double T = TOKENS, all = 4 * T * (double)(s->vocab * s->hidden);
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        int64_t rows, cols;
        nb_spec_linear_shape(&p, k, &rows, &cols);
        double passes = (double)(2 * s->layers - (k == NB_Q || k == NB_K || k == NB_V));
        all += 2 * T * passes * (double)(rows * cols) + 6 * T * RANK * (double)((rows + cols) * s->layers);
    }
    /* 2 products forward and 5 backward over half a square of queries and keys */
    return all + 7 * T * T * (double)(s->layers * s->heads * s->head_dim);
}

/* ---- reports ---- */

static void report_ways(const run *r, const shape *s, const double peak[2]) {
    char bytes[16];
    printf("\n%-5s %-8s %-10s %10s %10s %9s %8s  %s\n", "base", "products", "checkpoint", "ms a step",
           "tokens/s", "GFLOP/s", "of peak", "activations");
    for (int i = 0; i < WAYS; i++) {
        if (!r[i].steps) continue;
        double rate = model_flops(s) / r[i].best, top = peak[ways[i].compute == NB_BF16];
        printf("%-5s %-8s %-10s %10.1f %10.0f %9.1f ", nb_format_name(ways[i].format), nb_dtype_name(ways[i].compute),
               ways[i].checkpoint ? "yes" : "no", r[i].best * 1e3, TOKENS / r[i].best, rate * 1e-9);
        if (top > 0) printf("%6.0f %%", 100 * rate / top);
        else printf("%8s", "-");
        printf("  %s\n", nb_bytes((double)nb_runner_bytes(r[i].runner), bytes));
    }
    printf("4 bits against the base as it is: %.2f of its speed in f32", r[F32_IN_F32].best / r[NF4_IN_F32].best);
    if (r[NF4_IN_BF16].steps) printf(", %.2f in bf16", r[BF16_IN_BF16].best / r[NF4_IN_BF16].best);
    printf("\n");
}

static void report_operations(const run *r) {
    double rest = r->best - r->best_optimizer;
    printf("\n%s base, products in %s; ms of a step:\n    %-14s %6s %9s %9s %7s\n", nb_format_name(r->way->format),
           nb_dtype_name(r->way->compute), "operation", "times", "forward", "backward", "share");
    for (int i = 0; i < nb_op_count; i++) {
        const nb_prof_row *p = &r->best_prof[i];
        if (!p->calls) continue;
        rest -= p->forward_s + p->backward_s;
        printf("    %-14s %6lld %9.2f %9.2f %5.1f %%\n", nb_ops[i]->name, (long long)p->calls, p->forward_s * 1e3,
               p->backward_s * 1e3, 100 * (p->forward_s + p->backward_s) / r->best);
    }
    printf("    %-14s %26.2f %5.1f %%\n", "optimizer", r->best_optimizer * 1e3, 100 * r->best_optimizer / r->best);
    printf("    %-14s %26.2f %5.1f %%\n", "between them", rest * 1e3, 100 * rest / r->best);
}

static void bench_shape(const shape *s, double seconds, const double peak[2]) {
    static made m[NB_FMT_COUNT], shared;
    static int32_t ids[TOKENS], targets[TOKENS], pos[TOKENS];
    static uint32_t sample[TOKENS];
    nb_base base[NB_FMT_COUNT];
    run r[WAYS] = {0};
    nb_rng rng = nb_rng_open(1, NB_RNG_TEST, 0);
    for (int i = 0; i < TOKENS; i++) {
        ids[i] = (int32_t)nb_rng_below(&rng, (uint64_t)s->vocab), pos[i] = i;
        targets[i] = (int32_t)nb_rng_below(&rng, (uint64_t)s->vocab);
    }
    nb_seg seg = {0, TOKENS, 0, TOKENS};
    nb_batch b = {.n = TOKENS, .ids = ids, .targets = targets, .pos = pos, .sample = sample, .segs = &seg, .n_segs = 1,
                  .n_trained = TOKENS};
    nb_weight embed = matrix(&shared, NB_FMT_BF16, s->vocab, s->hidden, 1);
    static const nb_format formats[] = {NB_FMT_F32, NB_FMT_BF16, NB_FMT_NF4};
    for (int i = 0; i < NB_LEN(formats); i++) base[formats[i]] = base_of(s, formats[i], &embed, &m[formats[i]]);
    for (int i = 0; i < WAYS; i++)
        if (ways[i].compute == NB_F32 || nb_dev_has_bf16(device)) open_run(&r[i], &ways[i], &base[ways[i].format]);
    double end = 0;
    for (int round = 0; round < 2 || nb_now() < end; round++) {
        if (round == 1) end = nb_now() + seconds;
        for (int i = 0; i < WAYS; i++)
            if (r[i].runner) step(&r[i], &b);
    }
    printf("\n%s: C=%lld, %lld layers, vocabulary %lld\nLoRA r=%d on all linear layers, %.2f M trained; %d tokens, "
           "best of %lld steps\n", s->name, (long long)s->hidden, (long long)s->layers, (long long)s->vocab, RANK,
           (double)nb_adapter_size(r[0].adapter) / 1e6, TOKENS, (long long)r[0].steps - 1);
    report_ways(r, s, peak);
    report_operations(&r[r[NF4_IN_BF16].steps ? NF4_IN_BF16 : NF4_IN_F32]);
    for (int i = 0; i < WAYS; i++)
        if (r[i].runner) close_run(&r[i]);
    for (int i = 0; i < NB_LEN(formats); i++) free_base(&base[formats[i]], &m[formats[i]]);
    free_made(&shared);
}

int main(int argc, char **argv) {
    nb_threads_settle(argv);
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    nb_threads_set(argc > 2 ? atoi(argv[2]) : 0);
    const char *only = argc > 3 ? argv[3] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 4) device = argv[4];
    const bool here = !strcmp(device, "cpu");
    const double peak[2] = {here ? nb_measured_peak(false) : 0, here ? nb_measured_peak(true) : 0};
    if (!here) printf("device %s\n", device);
    else printf("%s, %d threads; multiply-adds in registers: f32 %.0f, bf16 %.0f GFLOP/s\n", nb_cpu_get()->name,
                nb_threads(), peak[0] * 1e-9, peak[1] * 1e-9);
    for (int i = 0; i < NB_LEN(shapes); i++)
        if (strstr(shapes[i].name, only)) bench_shape(&shapes[i], seconds, peak);
    return 0;
}
