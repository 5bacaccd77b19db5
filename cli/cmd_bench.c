#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "measure/bench.h"

/* ---- the table ---- */

static double number(const json_t *j, const char *key) { return json_number_value(json_object_get(j, key)); }
static const char *text(const json_t *j, const char *key) { return json_string_value(json_object_get(j, key)); }

/* "87 %" into buf, or "-" where it is not known. */
static const char *share(const json_t *j, const char *key, char buf[16]) {
    if (!json_is_number(json_object_get(j, key))) return "-";
    snprintf(buf, 16, "%.0f %%", number(j, key));
    return buf;
}

static void print_limits(const json_t *all) {
    const json_t *machine = json_object_get(all, "machine"), *l;
    size_t i;
    char bytes[16];
    printf("%s, %s of memory, %.0f threads\n\nlimits   threads  f32 GFLOP/s  bf16 GFLOP/s  reading GB/s\n",
           text(machine, "cpu"), nb_bytes(number(machine, "memory"), bytes), number(machine, "threads"));
    json_array_foreach(json_object_get(all, "limits"), i, l)
        printf("         %7.0f  %11.0f  %12.0f  %12.1f\n", number(l, "threads"), number(l, "f32_gflops"),
               number(l, "bf16_gflops"), number(l, "read_gb_s"));
}

static void print_parts(const json_t *all) {
    static const struct {
        const char *key, *what, *rate, *unit;
    } parts[] = {{"prompt", "prompt", "gflops", "GFLOP/s"}, {"generation", "generation", "gb_s", "GB/s"},
                 {"step", "training step", "gflops", "GFLOP/s"}};
    const json_t *m = json_object_get(all, "model");
    char buf[16];
    printf("\n%s: %.1f M parameters, %s, head %s, %s of weights; products in %s\n\n%-14s %7s %10s %10s %10s %16s %9s\n",
           text(m, "name"), number(m, "parameters") / 1e6, text(m, "format"), text(m, "head"),
           nb_bytes(number(m, "weight_bytes"), buf), text(m, "compute"), "", "tokens", "ms", "median", "tokens/s",
           "", "of limit");
    for (int i = 0; i < NB_LEN(parts); i++) {
        const json_t *p = json_object_get(all, parts[i].key);
        if (p)
            printf("%-14s %7.0f %10.1f %10.1f %10.1f %8.1f %-7s %9s\n", parts[i].what, number(p, "tokens"),
                   number(p, "ms"), number(p, "median_ms"), number(p, "tokens_per_second"), number(p, parts[i].rate),
                   parts[i].unit, share(p, "percent", buf));
    }
}

static void print_operations(const json_t *step) {
    const json_t *op;
    size_t i;
    char bytes[16], buf[16];
    printf("\nthe step: LoRA of rank %.0f, gradient_checkpointing %s, %s of activations, optimizer %.2f ms\n\n"
           "%-12s %5s %5s  %40s  %40s\n%-12s %5s %5s",
           number(step, "rank"), text(step, "checkpointing"), nb_bytes(number(step, "activation_bytes"), bytes),
           number(step, "optimizer_ms"), "", "", "", "forward", "backward", "operation", "times", "share");
    for (int k = 0; k < 2; k++) printf("  %10s %10s %9s %8s", "ms", "GFLOP/s", "GB/s", "of limit");
    printf("\n");
    json_array_foreach(json_object_get(step, "operations"), i, op) {
        printf("%-12s %5.0f %3.0f %%", text(op, "name"), number(op, "times"), number(op, "share"));
        for (int k = 0; k < 2; k++) {
            const json_t *p = json_object_get(op, k ? "backward" : "forward");
            if (json_is_object(p))
                printf("  %10.2f %10.1f %9.1f %8s", number(p, "ms"), number(p, "gflops"), number(p, "gb_s"),
                       share(p, "percent", buf));
        }
        printf("\n");
    }
    printf("(over 100 %%: its data came from a cache, not from memory)\n");
}

static nb_status print(const json_t *all, const char *json) {
    if (json) {
        FILE *f = strcmp(json, "-") ? fopen(json, "w") : stdout;
        if (!f) return nb_fail(NB_EIO, "%s: cannot be written", json);
        int bad = json_dumpf(all, f, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        bad |= fputc('\n', f) == EOF;
        bad |= f == stdout ? fflush(f) : fclose(f);
        if (bad) return nb_fail(NB_EIO, "%s: cannot be written", json);
        if (!strcmp(json, "-")) return NB_OK;
    }
    print_limits(all);
    print_parts(all);
    if (json_object_get(all, "step")) print_operations(json_object_get(all, "step"));
    return NB_OK;
}

/* ---- the command ---- */

typedef struct args {
    const char *config, *shape, *base, *head, *only, *json;
    int64_t layers, threads;
    nb_opt_list sets;
} args;

static nb_status format_of(const char *name, nb_format *out) {
    static const nb_format known[] = {NB_FMT_NF4, NB_FMT_BF16, NB_FMT_F32};
    for (int i = 0; i < NB_LEN(known); i++)
        if (!strcmp(nb_format_name(known[i]), name)) {
            *out = known[i];
            return NB_OK;
        }
    return nb_fail(NB_EINPUT, "--base %s: nf4, bf16 or f32", name);
}

static nb_status head_of(const char *name, nb_head_quant *out) {
    for (*out = NB_HEAD_STORED; *out <= NB_HEAD_INT8; (*out)++)
        if (!strcmp(name, nb_head_quant_name(*out))) return NB_OK;
    return nb_fail(NB_EINPUT, "--lm-head-quant %s: none, nf4 or int8", name);
}

static nb_status choose_parts(const char *only, nb_bench_options *o) {
    if (!only) return NB_OK;
    const char *names[] = {"limits", "prompt", "generation", "step"};
    int k = 0;
    while (k < NB_LEN(names) && strcmp(only, names[k]) != 0) k++;
    if (k == NB_LEN(names)) return nb_fail(NB_EINPUT, "--only %s: limits, prompt, generation or step", only);
    if (k != 1) o->prompt = 0;
    if (k != 2) o->generate = 0;
    o->step = k == 3;
    return NB_OK;
}

static nb_status run(args *a, nb_bench_options *o) {
    const nb_shape *shape;
    nb_config c;
    json_t *out;
    NB_TRY(format_of(a->base, &o->format));
    NB_TRY(head_of(a->head, &o->head));
    NB_TRY(choose_parts(a->only, o));
    if (o->tokens < 1 || o->rank < 1 || o->prompt < 0 || o->generate < 0 || !(o->seconds >= 0))
        return nb_fail(NB_EINPUT, "--tokens and --rank count from 1, the other numbers from 0");
    if (a->config) {
        NB_TRY(nb_cli_config(&c, a->config, &a->sets, a->threads, o->device));
        o->config = &c;
    } else {
        NB_TRY(nb_shape_find(&shape, a->shape));
        o->shape = *shape;
        if (a->layers > 0 && a->layers < shape->layers) o->shape.layers = a->layers;
        NB_TRY(nb_cli_threads(a->threads < 0 ? 0 : a->threads));
    }
    nb_status st = nb_bench_run(&out, o);
    if (st == NB_OK) {
        st = print(out, a->json);
        json_decref(out);
    }
    if (a->config) nb_config_free(&c);
    return st;
}

int nb_cmd_bench(int argc, char **argv) {
    nb_bench_options o = {.tokens = 512, .rank = 16, .prompt = 512, .generate = 128, .step = true, .seconds = 4};
    args a = {.shape = "smollm2-135m", .base = "nf4", .head = "none", .threads = -1};
    const nb_opt opts[] = {
        {"shape", NB_OPT_STR, &a.shape, "NAME",
         "without CONFIG: random weights in the shape of smollm2-135m (the default), llama-3.2-1b, ..."},
        {"layers", NB_OPT_INT, &a.layers, "N", "only so many of its layers"},
        {"base", NB_OPT_STR, &a.base, "nf4|bf16|f32", "how the shape's linear layers are held (nf4)"},
        {"lm-head-quant", NB_OPT_STR, &a.head, "none|nf4|int8", "how its output head is held (none: bf16)"},
        {"dtype", NB_OPT_STR, &o.dtype, "bf16|f32", "what products compute in (bf16 where the device has it)"},
        {"tokens", NB_OPT_INT, &o.tokens, "N", "tokens of a training step (512)"},
        {"rank", NB_OPT_INT, &o.rank, "R", "rank of its adapter (16)"},
        {"checkpointing", NB_OPT_STR, &o.checkpointing, "false|smart|true", "what it computes again (false)"},
        {"prompt", NB_OPT_INT, &o.prompt, "N", "tokens of the prompt (512); 0: none"},
        {"generate", NB_OPT_INT, &o.generate, "N", "tokens to generate (128); 0: none"},
        {"only", NB_OPT_STR, &a.only, "PART", "limits, prompt, generation or step"},
        {"seconds", NB_OPT_REAL, &o.seconds, "S", "for each part (4)"},
        {"json", NB_OPT_STR, &a.json, "FILE", "write everything as JSON; -: to the terminal, without the table"},
        {"set", NB_OPT_LIST, &a.sets, "KEY=VALUE", "set a key of the configuration (repeatable)"},
        {"threads", NB_OPT_INT, &a.threads, "N", "threads to use; 0: all cores"},
        {"device", NB_OPT_STR, &o.device, NB_DEVICES, NB_DEVICE_HELP},
    };
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(argc, argv, "nibble bench [CONFIG] [--shape NAME] [--json FILE]",
                                "The machine's limits, and how near a model's prompts, generation and training steps "
                                "come to them.\nWith CONFIG: its model, adapter and micro-batch.\n",
                                opts, NB_LEN(opts), &a.config, 1, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK) st = run(&a, &o);
    free(a.sets.v);
    return nb_exit_status("bench", st);
}
