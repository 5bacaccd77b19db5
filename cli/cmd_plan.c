#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/log.h"
#include "train/recompute.h"
#include "train/run.h"
#include "train/schedule.h"

/* Largest number of tokens a micro-batch may have within `limit` bytes of activations, by planning alone. */
static nb_status largest(nb_run *r, const nb_recompute *how, size_t limit, int64_t *tokens) {
    int64_t low = 0, high = 64;
    nb_need need;
    while (high <= (1 << 20)) {
        NB_TRY(nb_runner_measure(r->model, high, how, &need));
        if (need.bytes > limit) break;
        low = high;
        high *= 2;
    }
    while (high - low > 32 && low) {
        int64_t mid = (low + high) / 2;
        NB_TRY(nb_runner_measure(r->model, mid, how, &need));
        if (need.bytes <= limit) low = mid;
        else high = mid;
    }
    *tokens = low;
    return NB_OK;
}

/* Activation bytes of some micro-batches, and what fits the machine. */
static nb_status print_choices(nb_run *r) {
    static const struct {
        const char *name;
        const nb_recompute *how;
    } levels[] = {{"false", &nb_recompute_none}, {"smart", &nb_recompute_smart}, {"true", &nb_recompute_full}};
    nb_memory_plan m = nb_run_memory(r);
    size_t limit, fixed = m.total - r->arena.bytes;
    NB_TRY(nb_run_memory_limit(r, true, &limit));
    char buf[16];
    printf("\nactivations by tokens in a micro-batch (sequence_len x micro_batch_size) and gradient_checkpointing:\n"
           "  %10s", "tokens");
    for (int k = 0; k < NB_LEN(levels); k++) printf(" %14s", levels[k].name);
    printf("\n");
    for (int64_t t = 512; t <= 16384; t *= 2) {
        printf("  %10lld", (long long)t);
        for (int k = 0; k < NB_LEN(levels); k++) {
            nb_need need;
            NB_TRY(nb_runner_measure(r->model, t, levels[k].how, &need));
            printf(" %14s", nb_bytes((double)need.bytes, buf));
        }
        printf("\n");
    }
    printf("largest micro-batch within %s:\n", nb_bytes((double)limit, buf));
    for (int k = 0; k < NB_LEN(levels); k++) {
        int64_t tokens = 0;
        if (limit > fixed) NB_TRY(largest(r, levels[k].how, limit - fixed, &tokens));
        printf("  gradient_checkpointing: %-6s %lld tokens = %lld sequences of %lld\n", levels[k].name, (long long)tokens,
               (long long)(tokens / r->sequence_len), (long long)r->sequence_len);
    }
    return NB_OK;
}

static void print_model(const nb_run *r) {
    const nb_spec *s = &r->base->spec;
    printf("model   %s (%s), %.2f M parameters", r->base->dir, s->family, (double)nb_spec_parameters(s) / 1e6);
    if (s->experts) printf(" (%.2f M a token)", (double)nb_spec_active_parameters(s) / 1e6);
    printf(", %s base%s\n", nb_base_format(r->base),
           r->base->hollow ? ": config.json alone, the weights are not there" : "");
    printf("trained %.3f M parameters in %d tensors\n", (double)nb_adapter_size(r->adapter) / 1e6, r->adapter->n_params);
}

static void print_steps(const nb_run *r) {
    const nb_config *c = r->config;
    if (r->loader) {
        nb_schedule s = nb_schedule_of(c, r->total_steps);
        printf("data    %lld rows, packed sequences %.0f %% full\n", (long long)r->data.n_samples,
               100 * nb_loader_fill(r->loader));
        printf("steps   %lld (%lld an epoch), %lld of them warm-up; ", (long long)r->total_steps,
               (long long)nb_loader_steps_per_epoch(r->loader), (long long)s.warmup);
    } else printf("data    not read: there is no tokenizer. Held-out data would come on top\nsteps   ");
    printf("%lld x %lld sequences of %lld tokens a step\n", (long long)c->gradient_accumulation_steps,
           (long long)c->micro_batch_size, (long long)r->sequence_len);
}

static nb_status plan(nb_config *c) {
    nb_run r;
    nb_text text = {0};
    nb_status st = nb_run_open(&r, c);
    r.planning = true;
    if (st == NB_OK) st = nb_run_open_base(&r);
    if (st == NB_OK && r.tokenizer) st = nb_run_open_data(&r);
    if (st == NB_OK) st = nb_run_open_model(&r);
    if (st == NB_OK) st = nb_run_open_adapter(&r);
    if (st == NB_OK) {
        print_model(&r);
        print_steps(&r);
        st = nb_run_open_runners(&r);
    }
    if (st == NB_OK) {
        nb_memory_plan m = nb_run_memory(&r);
        nb_memory_plan_text(&m, &text);
        printf("memory  known before step 1; the program itself and its libraries come on top:\n%s", text.s);
        text.n = 0;
        nb_recompute_text(r.recompute, r.base->spec.layers, &text);
        printf("backward computes again: %s\n", text.s);
        st = print_choices(&r);
    }
    nb_text_free(&text);
    nb_run_close(&r);
    return st;
}

int nb_cmd_plan(int argc, char **argv) {
    nb_opt_list sets = {0};
    int64_t threads = -1;
    const char *device = NULL;
    const nb_opt opts[] = {
        {"set", NB_OPT_LIST, &sets, "KEY=VALUE", "set a key of the configuration (repeatable)"},
        {"threads", NB_OPT_INT, &threads, "N", "threads to use; 0: all cores"},
        {"device", NB_OPT_STR, &device, NB_DEVICES, NB_DEVICE_HELP},
    };
    const char *path;
    int n;
    bool done = false;
    nb_config c;
    nb_status st = nb_opt_parse(argc, argv, "nibble plan CONFIG [--set key=value]...",
                                "Memory by class, the steps, and what fits, before anything is trained or written.\n",
                                opts, NB_LEN(opts), &path, 1, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK && n < 1) st = nb_fail(NB_EINPUT, "which configuration? usage: nibble plan CONFIG");
    if (st == NB_OK) st = nb_cli_config(&c, path, &sets, threads, device);
    if (st == NB_OK) {
        st = plan(&c);
        nb_config_free(&c);
    }
    free(sets.v);
    return nb_exit_status("plan", st);
}
