/* A whole training step (forward, backward, clipping, AdamW) of LoRA on all linear layers, on random weights of real
 * shapes, through the runner that training uses:
 *
 *      bench_step [seconds per model, default 5] [threads, default all] [only models whose name contains this]
 *                 [device, default cpu]
 *
 * Every way of running a model takes its turn, round after round, and keeps its best step (measure/step.h), so that
 * what else the machine does meets all of them alike. Model FLOPs are those the gradient needs: what checkpointing
 * computes again is not among them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "core/log.h"
#include "core/mem.h"
#include "measure/limits.h"
#include "measure/random_base.h"
#include "measure/step.h"

enum { TOKENS = 512, RANK = 16 };

/* A shape by name, and how many of its layers; 0: all. */
static const struct bench {
    const char *shape;
    int64_t layers;
} benches[] = {{"sample-base", 0}, {"smollm2-135m", 0}, {"llama-3.2-1b", 2}};

static const struct way {
    nb_format format; /* of the linear layers */
    nb_dtype compute;
    const nb_recompute *recompute;
    const char *checkpointing;
} ways[] = {
    {NB_FMT_F32, NB_F32, &nb_recompute_none, "false"},   {NB_FMT_NF4, NB_F32, &nb_recompute_none, "false"},
    {NB_FMT_BF16, NB_BF16, &nb_recompute_none, "false"}, {NB_FMT_NF4, NB_BF16, &nb_recompute_none, "false"},
    {NB_FMT_NF4, NB_BF16, &nb_recompute_smart, "smart"}, {NB_FMT_NF4, NB_BF16, &nb_recompute_full, "true"},
};
enum { F32_IN_F32, NF4_IN_F32, BF16_IN_BF16, NF4_IN_BF16, WAYS = NB_LEN(ways) };

static void must(nb_status st) {
    if (st == NB_OK) return;
    fprintf(stderr, "%s\n", nb_message());
    exit(1);
}

/* ---- one way of running a model ---- */

static const char *device = "cpu";

typedef struct run {
    const struct way *way;
    nb_dev *dev;
    nb_model *model;
    nb_adapter *adapter;
    nb_optimizer optimizer;
    nb_step step;
} run;

static void open_run(run *r, const struct way *way, const nb_base *base) {
    *r = (run){.way = way};
    must(nb_dev_open(&r->dev, device, way->compute));
    must(nb_model_open(&r->model, base, r->dev, TOKENS, TOKENS));
    nb_lora_options o = {.r = RANK, .alpha = 2 * RANK, .seed = 1};
    must(nb_adapter_new(&r->adapter, r->model, &o));
    must(nb_optimizer_open(&r->optimizer, r->adapter, false, 1, NULL, false));
    r->optimizer.beta1 = 0.9, r->optimizer.beta2 = 0.999, r->optimizer.epsilon = 1e-8, r->optimizer.max_grad_norm = 1;
    must(nb_step_open(&r->step, r->model, r->adapter, &r->optimizer, TOKENS, way->recompute));
}

static void close_run(run *r) {
    nb_step_close(&r->step);
    nb_optimizer_close(&r->optimizer);
    nb_adapter_free(r->adapter);
    nb_model_free(r->model);
    nb_dev_close(r->dev);
}

/* ---- reports ---- */

static void report_ways(const run *r, const double peak[2]) {
    char bytes[16];
    printf("\n%-5s %-8s %-10s %10s %10s %9s %8s  %s\n", "base", "products", "checkpoint", "ms a step",
           "tokens/s", "GFLOP/s", "of peak", "activations");
    for (int i = 0; i < WAYS; i++) {
        if (!r[i].dev) continue;
        const nb_step *s = &r[i].step;
        double rate = s->flops / s->best, top = peak[ways[i].compute == NB_BF16];
        printf("%-5s %-8s %-10s %10.1f %10.0f %9.1f ", nb_format_name(ways[i].format), nb_dtype_name(ways[i].compute),
               ways[i].checkpointing, s->best * 1e3, TOKENS / s->best, rate * 1e-9);
        if (top > 0) printf("%6.0f %%", 100 * rate / top);
        else printf("%8s", "-");
        printf("  %s\n", nb_bytes((double)nb_runner_bytes(s->runner), bytes));
    }
    printf("4 bits against the base as it is: %.2f of its speed in f32",
           r[F32_IN_F32].step.best / r[NF4_IN_F32].step.best);
    if (r[NF4_IN_BF16].dev) printf(", %.2f in bf16", r[BF16_IN_BF16].step.best / r[NF4_IN_BF16].step.best);
    printf("\n");
}

static void report_operations(const run *r) {
    const nb_step *s = &r->step;
    double rest = s->best - s->best_optimizer;
    printf("\n%s base, products in %s; ms of a step:\n    %-14s %6s %9s %9s %7s\n", nb_format_name(r->way->format),
           nb_dtype_name(r->way->compute), "operation", "times", "forward", "backward", "share");
    for (int i = 0; i < nb_op_count; i++) {
        const nb_prof_row *p = &s->best_prof[i];
        if (!p->calls) continue;
        rest -= p->forward_s + p->backward_s;
        printf("    %-14s %6lld %9.2f %9.2f %5.1f %%\n", nb_ops[i]->name, (long long)p->calls, p->forward_s * 1e3,
               p->backward_s * 1e3, 100 * (p->forward_s + p->backward_s) / s->best);
    }
    printf("    %-14s %26.2f %5.1f %%\n", "optimizer", s->best_optimizer * 1e3, 100 * s->best_optimizer / s->best);
    printf("    %-14s %26.2f %5.1f %%\n", "between them", rest * 1e3, 100 * rest / s->best);
}

static void bench_shape(const nb_shape *s, double seconds, const double peak[2]) {
    static const nb_format formats[] = {NB_FMT_F32, NB_FMT_BF16, NB_FMT_NF4};
    nb_base *base[NB_FMT_COUNT];
    run r[WAYS] = {0};
    for (int i = 0; i < NB_LEN(formats); i++)
        must(nb_base_random(&base[formats[i]], s, formats[i], TOKENS));
    for (int i = 0; i < WAYS; i++)
        if (ways[i].compute == NB_F32 || nb_dev_has_bf16(device))
            open_run(&r[i], &ways[i], base[ways[i].format]);
    double end = 0;
    for (int round = 0; round < 2 || nb_now() < end; round++) {
        if (round == 1) end = nb_now() + seconds;
        for (int i = 0; i < WAYS; i++)
            if (r[i].dev) must(nb_step_run(&r[i].step));
    }
    printf("\n%s: C=%lld, %lld layers, vocabulary %lld\nLoRA r=%d on all linear layers, %.2f M trained; %d tokens, "
           "best of %lld steps\n", s->title, (long long)s->hidden, (long long)s->layers, (long long)s->vocab, RANK,
           (double)nb_adapter_size(r[0].adapter) / 1e6, TOKENS, (long long)nb_step_counted(&r[0].step));
    report_ways(r, peak);
    report_operations(&r[r[NF4_IN_BF16].dev ? NF4_IN_BF16 : NF4_IN_F32]);
    for (int i = 0; i < WAYS; i++)
        if (r[i].dev) close_run(&r[i]);
    for (int i = 0; i < NB_LEN(formats); i++) nb_base_free(base[formats[i]]);
}

int main(int argc, char **argv) {
    nb_threads_settle(argv);
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    nb_threads_set(argc > 2 ? atoi(argv[2]) : 0);
    const char *only = argc > 3 ? argv[3] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 4) device = argv[4];
    const bool here = !strcmp(device, "cpu");
    const double peak[2] = {here ? nb_measure_peak(false, nb_threads(), 0.2) : 0,
                            here ? nb_measure_peak(true, nb_threads(), 0.2) : 0};
    if (!here) printf("device %s\n", device);
    else printf("%s, %d threads; multiply-adds in registers: f32 %.0f, bf16 %.0f GFLOP/s\n", nb_cpu_get()->name,
                nb_threads(), peak[0] * 1e-9, peak[1] * 1e-9);
    for (int i = 0; i < NB_LEN(benches); i++) {
        const nb_shape *known;
        must(nb_shape_find(&known, benches[i].shape));
        nb_shape s = *known;
        char title[96];
        snprintf(title, sizeof title, "%s, %lld of its %lld layers", known->title, (long long)benches[i].layers,
                 (long long)known->layers);
        if (benches[i].layers) s.layers = benches[i].layers, s.title = title;
        if (strstr(s.title, only)) bench_shape(&s, seconds, peak);
    }
    return 0;
}
