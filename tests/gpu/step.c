/* The command `step`: whole training steps of LoRA on all linear layers, by the model, runner and optimizer that
 * `nibble train` uses, on one fixed batch of random tokens. Leaves in --out what side.py needs to do the same with
 * transformers and PEFT: batch.json, adapter/ (as it was before the first step), grads.safetensors (of the first step).
 *
 * Floating-point operations of a step are those the gradient needs, with a multiply-add as two: 4 T per weight of a
 * linear layer (forward, and the input's gradient; frozen weights have none; the first block's q, k and v need no input
 * gradient), 6 T per weight of an adapter, 4 per weight of the head and trained token, and 14 H D per pair of query and
 * key that sees it (2 products forward, 5 backward). What checkpointing computes again is not among them. */
#include "tests/gpu/gpucheck.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/adapter.h"
#include "core/cpu.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/base.h"
#include "train/optimizer.h"

enum { MAX_OPS = 32, WARM_UPS = 3 };

typedef struct run {
    const gc_options *o;
    nb_dev *dev;
    nb_base *base;
    nb_model *model;
    nb_adapter *adapter;
    nb_optimizer optimizer;
    nb_arena arena;
    nb_runner *runner;
    int32_t *ids, *targets, *pos;
    uint32_t *sample;
    nb_seg *segs;
    nb_batch batch;
    double pairs; /* of queries and the keys they see */
    int64_t steps;
    double loading; /* seconds */
} run;

static const char *base_name(const gc_options *o) {
    const char *slash = strrchr(o->model, '/');
    return o->name ? o->name : slash ? slash + 1 : o->model;
}

/* Random tokens in documents of unequal lengths; every next token of a document is trained on. */
static void make_batch(run *r) {
    const int64_t T = r->o->tokens, docs = r->o->docs;
    nb_rng rng = nb_rng_open(r->o->seed, NB_RNG_TEST, 0);
    int32_t at = 0;
    r->ids = nb_calloc((size_t)T, sizeof *r->ids), r->targets = nb_calloc((size_t)T, sizeof *r->targets);
    r->pos = nb_calloc((size_t)T, sizeof *r->pos), r->sample = nb_calloc((size_t)T, sizeof *r->sample);
    r->segs = nb_calloc((size_t)docs, sizeof *r->segs);
    r->batch = (nb_batch){.n = T, .ids = r->ids, .targets = r->targets, .pos = r->pos, .sample = r->sample,
                          .segs = r->segs, .n_segs = docs};
    for (int64_t t = 0; t < T; t++) r->ids[t] = (int32_t)nb_rng_below(&rng, (uint64_t)r->base->spec.vocab);
    for (int64_t i = 0; i < docs; i++) {
        int32_t end = (int32_t)(i == docs - 1 ? T : T * (i + 1) * (docs + i + 2) / (docs * (2 * docs + 1)));
        const int32_t n = end - at;
        r->segs[i] = (nb_seg){at, n, at, n};
        r->pairs += (double)n * (n + 1) / 2;
        r->batch.n_trained += n - 1;
        for (int32_t t = at; t < end; t++) {
            r->pos[t] = t - at, r->sample[t] = (uint32_t)i;
            r->targets[t] = t + 1 < end ? r->ids[t + 1] : NB_IGNORE;
        }
        at = end;
    }
}

static json_t *ints(const int32_t *x, int64_t n) {
    json_t *a = json_array();
    for (int64_t i = 0; i < n; i++) json_array_append_new(a, json_integer(x[i]));
    return a;
}

/* B of a new adapter is zero, and so would be A's gradient: draws it too. */
static nb_status draw_b(const nb_adapter *a) {
    for (int i = 0; i < a->n_params; i++) {
        const nb_tensor *p = &a->params[i];
        const int64_t n = nb_tensor_size(p);
        if (!strstr(p->name, "lora_B")) continue;
        nb_rng r = nb_rng_open(1, NB_RNG_TEST, 1 + (uint64_t)i);
        float *x = nb_calloc((size_t)n, sizeof *x);
        for (int64_t k = 0; k < n; k++) x[k] = (float)(0.02 * nb_rng_normal(&r));
        nb_status st = a->dev->be->put(a->dev, p->data, x, (size_t)n * sizeof *x);
        free(x);
        NB_TRY(st);
    }
    return NB_OK;
}

static nb_status open_run(run *r) {
    const gc_options *o = r->o;
    const bool nf4 = !strcmp(o->format, "nf4");
    nb_base_options b = {.load_in_4bit = nf4 && !o->reinit, .double_quant = true, .quantized_cache = o->cache,
                         .reinit = o->reinit, .seed = 1};
    nb_lora_options lora = {.r = o->rank, .alpha = 2 * (double)o->rank, .seed = 1};
    NB_TRY(nb_dev_open(&r->dev, o->device, strcmp(o->compute, "f32") ? NB_BF16 : NB_F32));
    gc_count_memory(r->dev);
    double start = nb_now();
    NB_TRY(nb_base_load(&r->base, o->model, &b));
    if (nf4 && o->reinit) NB_TRY(nb_base_to_nf4(r->base, &b));
    NB_TRY(nb_model_open(&r->model, r->base, r->dev, o->tokens, o->tokens));
    NB_TRY(nb_adapter_new(&r->adapter, r->model, &lora));
    NB_TRY(draw_b(r->adapter));
    NB_TRY(nb_optimizer_open(&r->optimizer, r->adapter, false, 1, NULL, false));
    r->optimizer.beta1 = 0.9, r->optimizer.beta2 = 0.999, r->optimizer.epsilon = 1e-8, r->optimizer.max_grad_norm = 1;
    NB_TRY(nb_runner_open_loss(&r->runner, r->model, &r->arena, o->tokens, true,
                               o->checkpoint ? &nb_recompute_smart : &nb_recompute_none));
    NB_TRY(gc_wait(r->dev));
    r->loading = nb_now() - start;
    make_batch(r);
    return NB_OK;
}

static void close_run(run *r) {
    nb_runner_free(r->runner);
    nb_optimizer_close(&r->optimizer);
    nb_adapter_free(r->adapter);
    nb_model_free(r->model);
    nb_arena_free(&r->arena);
    nb_base_free(r->base);
    nb_dev_close(r->dev);
    free(r->ids), free(r->targets), free(r->pos), free(r->sample), free(r->segs);
}

/* ---- what is left for the comparison ---- */

static nb_status save_batch(const run *r) {
    const gc_options *o = r->o;
    char *path = nb_asprintf("%s/batch.json", o->out), *adapter = nb_asprintf("%s/adapter", o->out);
    json_t *lengths = json_array();
    for (int64_t i = 0; i < o->docs; i++) json_array_append_new(lengths, json_integer(r->segs[i].qn));
    json_t *all = json_pack("{s:o, s:o, s:I, s:f, s:s, s:s, s:b}", "ids", ints(r->ids, o->tokens), "lengths", lengths,
                            "steps", (json_int_t)o->steps, "lr", o->lr, "format", o->format, "compute", o->compute,
                            "checkpoint", (int)o->checkpoint);
    nb_status st = nb_json_save(path, all);
    if (st == NB_OK) st = nb_adapter_save(r->adapter, adapter, NULL, NULL);
    json_decref(all);
    free(path), free(adapter);
    return st;
}

static nb_status save_grads(const run *r) {
    const nb_adapter *a = r->adapter;
    char *path = nb_asprintf("%s/grads.safetensors", r->o->out);
    nb_st_writer *w;
    nb_status st = nb_st_write_begin(&w, path, NULL);
    free(path);
    NB_TRY(st);
    for (int i = 0; i < a->n_params && st == NB_OK; i++)
        st = nb_st_write_declare(w, a->params[i].name, NB_F32, a->params[i].n_dims, a->params[i].d);
    for (int i = 0; i < a->n_params && st == NB_OK; i++) {
        const size_t bytes = (size_t)nb_tensor_size(&a->params[i]) * sizeof(float);
        float *x = nb_malloc(bytes);
        st = a->dev->be->get(a->dev, x, a->params[i].grad, bytes);
        if (st == NB_OK) st = nb_st_write_data(w, a->params[i].name, x, bytes);
        free(x);
    }
    if (st == NB_OK) return nb_st_write_end(w);
    nb_st_write_abort(w);
    return st;
}

/* ---- steps ---- */

static nb_status step(run *r, double *loss, double *norm, double *seconds) {
    double start = nb_now();
    nb_optimizer_begin(&r->optimizer);
    NB_TRY(nb_runner_loss(r->runner, &r->batch, 1.0f / (float)r->batch.n_trained, loss, NULL));
    if (!r->steps) NB_TRY(save_grads(r));
    NB_TRY(nb_optimizer_step(&r->optimizer, ++r->steps, r->o->lr, norm));
    NB_TRY(gc_wait(r->dev));
    *seconds = nb_now() - start;
    *loss /= (double)r->batch.n_trained;
    return isfinite(*loss) && isfinite(*norm) ? NB_OK : nb_fail(NB_ENUMERIC, "loss %g, norm %g", *loss, *norm);
}

static double model_flops(const run *r) {
    const nb_spec *s = &r->base->spec;
    double T = (double)r->o->tokens, all = 4 * (double)r->batch.n_trained * (double)(s->vocab * s->hidden);
    for (nb_slot k = 0; k < NB_SLOTS; k++) {
        int64_t rows, cols;
        nb_spec_linear_shape(s, 0, k, &rows, &cols);
        double passes = (double)(2 * s->layers - (k == NB_Q || k == NB_K || k == NB_V));
        all += 2 * T * passes * (double)(rows * cols) + 6 * T * (double)(r->o->rank * (rows + cols) * s->layers);
    }
    return all + 14 * r->pairs * (double)(s->layers * s->heads * s->head_dim);
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void report(run *r, double *times, int64_t n, double first, double last) {
    const gc_options *o = r->o;
    size_t total = 0, available = 0;
    qsort(times, (size_t)n, sizeof *times, by_value);
    double median = n ? (times[n / 2] + times[(n - 1) / 2]) / 2 : NAN, flops = model_flops(r);
    gc_must(r->dev->be->memory(r->dev, &total, &available), "memory");
    gc_row("step");
    gc_str("by", "nibble");
    gc_str("model", base_name(o));
    gc_str("device", gc_describe(r->dev));
    gc_str("format", o->format);
    gc_str("compute", o->compute);
    gc_str("checkpoint", o->checkpoint ? "yes" : "no");
    gc_num("tokens", (double)o->tokens);
    gc_num("docs", (double)o->docs);
    gc_num("rank", (double)o->rank);
    gc_num("trained", (double)nb_adapter_size(r->adapter));
    gc_num("steps", (double)r->steps);
    gc_num("ms", median * 1e3);
    gc_num("fastest_ms", n ? times[0] * 1e3 : NAN);
    gc_num("tokens_s", (double)o->tokens / median);
    gc_num("model_flops", flops);
    gc_num("tflop_s", flops / median * 1e-12);
    gc_num("first_loss", first);
    gc_num("last_loss", last);
    gc_num("allocated", (double)gc_memory_peak());
    gc_num("used_on_device", r->dev->be->host_memory ? NAN : (double)(total - available));
    gc_num("loading_s", r->loading);
    gc_end();
}

/* ---- where the time of a step goes ---- */

static nb_dev *profiled;
static double device_clock(void) {
    gc_must(gc_wait(profiled), "profile");
    return nb_now();
}

/* Three more steps with the device waited for around every operation; the last counts. */
static nb_status profile(run *r) {
    static nb_prof_row rows[MAX_OPS];
    double loss, norm, seconds = 0, rest;
    NB_ASSERT(nb_op_count <= MAX_OPS);
    profiled = r->dev;
    r->runner->tape->prof = rows;
    r->runner->tape->clock = device_clock;
    for (int i = 0; i < 3; i++) {
        memset(rows, 0, sizeof rows);
        NB_TRY(step(r, &loss, &norm, &seconds));
    }
    rest = seconds;
    for (int i = 0; i < nb_op_count; i++) {
        if (!rows[i].calls) continue;
        gc_row("operation");
        gc_str("model", base_name(r->o));
        gc_str("name", nb_ops[i]->name);
        gc_num("calls", (double)rows[i].calls);
        gc_num("forward_ms", rows[i].forward_s * 1e3);
        gc_num("backward_ms", rows[i].backward_s * 1e3);
        gc_num("share", (rows[i].forward_s + rows[i].backward_s) / seconds);
        gc_end();
        rest -= rows[i].forward_s + rows[i].backward_s;
    }
    gc_row("operation");
    gc_str("model", base_name(r->o));
    gc_str("name", "optimizer and rest");
    gc_num("forward_ms", rest * 1e3);
    gc_num("share", rest / seconds);
    gc_end();
    return NB_OK;
}

int gc_step(const gc_options *o) {
    run r = {.o = o};
    double loss = 0, norm = 0, first = 0, seconds = 0, *times = nb_calloc((size_t)o->steps, sizeof *times);
    int64_t n = 0;
    if (o->docs * 2 > o->tokens) gc_must(nb_fail(NB_EINPUT, "so many documents need more tokens"), "step");
    gc_must(nb_mkdirs(o->out), "step");
    gc_must(open_run(&r), "step");
    gc_must(save_batch(&r), "step");
    for (int64_t i = 0; i < o->steps; i++) {
        gc_must(step(&r, &loss, &norm, &seconds), "step");
        if (!i) first = loss;
        if (i >= WARM_UPS) times[n++] = seconds;
        gc_row("loss");
        gc_str("by", "nibble");
        gc_str("model", base_name(o));
        gc_num("step", (double)i + 1);
        gc_num("loss", loss);
        gc_num("norm", norm);
        gc_num("ms", seconds * 1e3);
        gc_end();
    }
    report(&r, times, n, first, loss);
    if (o->profile) gc_must(profile(&r), "profile");
    close_run(&r);
    free(times);
    return 0;
}
