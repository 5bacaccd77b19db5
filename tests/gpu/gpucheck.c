/* The program: its command line, its rows, and the command `correct`. */
#include "tests/gpu/gpucheck.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/cpu.h"
#include "core/log.h"
#include "tests/rows.h"

static const char usage[] =
    "gpucheck list                 the families of checks, one a line\n"
    "gpucheck correct [--only family/check] [--compute f32|bf16|both] [--quick]\n"
    "                              every kernel row against double precision; --quick: the first check of each row\n"
    "gpucheck large [--only kernel,...] [--compute bf16|f32] [--tiny]\n"
    "                              every kernel at the shapes of real models against the processor's\n"
    "gpucheck bench [--only kernel,...] [--compute bf16|f32] [--products mma,fused,...] [--tiny]\n"
    "                              ceilings of copying and of products, then each kernel against its floor\n"
    "gpucheck step --model DIR --out DIR [--name TEXT] [--format nf4|as-is] [--tokens N] [--docs N] [--steps N]\n"
    "              [--rank N] [--lr X] [--compute bf16|f32] [--checkpoint] [--profile] [--reinit] [--cache DIR]\n"
    "                              whole training steps of a model; leaves batch, adapter and gradients in --out\n"
    "All take --device NAME (default cuda) and --seed N (default: from the clock).\n";

/* ---- rows ---- */

static void quoted(const char *s) {
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\') putchar('\\');
        if ((unsigned char)*s < ' ') printf("\\u%04x", *s);
        else putchar(*s);
    }
    putchar('"');
}

void gc_row(const char *kind) {
    printf("{\"row\": ");
    quoted(kind);
}

void gc_str(const char *key, const char *value) {
    printf(", \"%s\": ", key);
    quoted(value);
}

void gc_num(const char *key, double value) {
    if (isfinite(value)) printf(", \"%s\": %.9g", key, value);
    else printf(", \"%s\": null", key);
}

void gc_end(void) {
    printf("}\n");
    fflush(stdout);
}

void gc_must(nb_status st, const char *what) {
    if (st == NB_OK) return;
    gc_row("error");
    gc_str("what", what);
    gc_str("why", nb_message());
    gc_end();
    fprintf(stderr, "gpucheck: %s: %s\n", what, nb_message());
    exit(1);
}

/* ---- correct ---- */

/* Names are "row/case". */
static bool same_row(const nb_rowcheck *x, const nb_rowcheck *y) {
    size_t n = strcspn(x->name, "/");
    return n == strcspn(y->name, "/") && !strncmp(x->name, y->name, n);
}

/* One device; returns the number of checks that failed, and adds to *ran. After a kernel that went out of its bounds a
 * card refuses everything else in the process: run.sh starts one process a family. */
static int check_device(const gc_options *o, nb_dtype compute, int *ran) {
    nb_dev *d;
    int failed = 0;
    gc_must(nb_dev_open(&d, o->device, compute), o->device);
    for (const nb_rowfamily *const *f = rows_families(); *f; f++)
        for (int i = 0; i < (*f)->n; i++) {
            const nb_rowcheck *c = &(*f)->checks[i];
            nb_rowtest t;
            if (!rows_wanted(o->only, *f, c) || (o->quick && i && same_row(c, c - 1))) continue;
            double start = nb_now();
            bool right = rows_run(&t, d, c, o->seed);
            ++*ran;
            failed += !right;
            gc_row("check");
            gc_str("family", (*f)->name);
            gc_str("name", c->name);
            gc_str("compute", nb_dtype_name(compute));
            gc_str("status", right ? "ok" : "failed");
            gc_num("error", t.error);
            gc_num("ms", (nb_now() - start) * 1e3);
            if (!right) gc_str("why", t.why);
            gc_end();
            if (!right) fprintf(stderr, "%s/%s (%s): %s\n", (*f)->name, c->name, nb_dtype_name(compute), t.why);
        }
    nb_dev_close(d);
    return failed;
}

int gc_correct(const gc_options *o) {
    int ran = 0, failed = 0;
    char seed[24];
    double start = nb_now();
    snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
    for (nb_dtype compute = NB_F32; compute <= NB_BF16; compute++)
        if (!strcmp(o->compute, "both") || !strcmp(o->compute, compute == NB_F32 ? "f32" : "bf16"))
            failed += check_device(o, compute, &ran);
    gc_row("checks");
    gc_str("device", o->device);
    gc_str("only", o->only);
    gc_str("seed", seed);
    gc_num("ran", ran);
    gc_num("failed", failed);
    gc_num("seconds", nb_now() - start);
    gc_end();
    fprintf(stderr, "%d checks, %d failed (seed %s)\n", ran, failed, seed);
    return failed || !ran;
}

static int list_families(void) {
    for (const nb_rowfamily *const *f = rows_families(); *f; f++) puts((*f)->name);
    return 0;
}

/* ---- command line ---- */

static int refuse(const char *why, const char *what) {
    fprintf(stderr, "gpucheck: %s%s\n%s", why, what, usage);
    return 2;
}

static bool read_option(gc_options *o, const char *name, const char *value) {
    const struct {
        const char *name, **text;
        int64_t *number;
    } known[] = {{"--device", &o->device, NULL}, {"--compute", &o->compute, NULL}, {"--only", &o->only, NULL},
                 {"--model", &o->model, NULL},   {"--out", &o->out, NULL},         {"--format", &o->format, NULL},
                 {"--cache", &o->cache, NULL},   {"--name", &o->name, NULL},       {"--tokens", NULL, &o->tokens},
                 {"--docs", NULL, &o->docs},     {"--steps", NULL, &o->steps},     {"--rank", NULL, &o->rank},
                 {"--products", &o->products, NULL}};
    char *end = NULL;
    if (!strcmp(name, "--seed")) o->seed = strtoull(value, &end, 10);
    if (!strcmp(name, "--lr")) o->lr = strtod(value, &end);
    if (end) return *value && !*end;
    for (int i = 0; i < NB_LEN(known); i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        if (known[i].text) *known[i].text = value;
        else *known[i].number = strtoll(value, &end, 10);
        return known[i].text || (*value && !*end && *known[i].number > 0);
    }
    return false;
}

int main(int argc, char **argv) {
    nb_threads_settle(argv);
    gc_options o = {.device = "cuda", .compute = NULL, .seed = (uint64_t)time(NULL), .only = "", .format = "nf4",
                    .tokens = 2048, .docs = 4, .steps = 20, .rank = 16, .lr = 1e-3};
    const char *command = argc > 1 ? argv[1] : "";
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--tiny")) o.tiny = true;
        else if (!strcmp(argv[i], "--checkpoint")) o.checkpoint = true;
        else if (!strcmp(argv[i], "--profile")) o.profile = true;
        else if (!strcmp(argv[i], "--reinit")) o.reinit = true;
        else if (!strcmp(argv[i], "--quick")) o.quick = true;
        else if (i + 1 == argc || !read_option(&o, argv[i], argv[i + 1])) return refuse("what is ", argv[i]);
        else i++;
    }
    if (!o.compute) o.compute = strcmp(command, "correct") ? "bf16" : "both";
    if (!strcmp(command, "list")) return list_families();
    if (!strcmp(command, "correct")) return gc_correct(&o);
    if (!strcmp(command, "large")) return gc_large(&o);
    if (!strcmp(command, "bench")) return gc_bench(&o);
    if (!strcmp(command, "step") && o.model && o.out) return gc_step(&o);
    return refuse(command[0] ? "not a whole command: " : "no command", command);
}
