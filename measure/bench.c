#include "measure/bench.h"

#include <string.h>

#include "core/cpu.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/mem.h"
#include "measure/decode.h"
#include "measure/limits.h"
#include "measure/memory.h"
#include "measure/step.h"
#include "train/recompute.h"
#include "train/run.h"

typedef struct bench {
    const nb_bench_options *o;
    nb_run run;             /* of a configuration; else its dev, model, adapter and optimizer alone are used */
    nb_limits top;          /* with all threads; zeros where they are not known */
    const char *checkpointing;
    nb_progress bar;
    int parts;
    json_t *out;
} bench;

/* ---- numbers ---- */

static json_t *known(double x) { return x > 0 ? json_real(x) : json_null(); }

/* Percent of `limit` that `rate` is. */
static json_t *percent(double rate, double limit) { return limit > 0 ? json_real(100 * rate / limit) : json_null(); }

static double peak(const bench *b) { return b->run.dev->compute == NB_BF16 ? b->top.bf16 : b->top.f32; }

/* At the end of what nb_memory_mark began. */
static void put_times(json_t *j, int64_t runs, double best, double median, int64_t tokens) {
    json_object_set_new(j, "tokens", json_integer(tokens));
    json_object_set_new(j, "runs", json_integer(runs));
    json_object_set_new(j, "ms", json_real(best * 1e3));
    json_object_set_new(j, "median_ms", json_real(median * 1e3));
    json_object_set_new(j, "tokens_per_second", json_real((double)tokens / best));
    json_object_set_new(j, "peak_memory", json_integer((json_int_t)nb_memory_peak()));
}

static nb_status next_part(bench *b, const char *name) {
    nb_progress_set(&b->bar, b->parts++, name);
    return nb_interrupted() ? nb_fail(NB_EINTERRUPTED, "stopped") : NB_OK;
}

/* ---- the machine ---- */

static void put_machine(bench *b) {
    const nb_cpu *cpu = nb_cpu_get();
    json_object_set_new(b->out, "machine",
                        json_pack("{s:s, s:i, s:i, s:I, s:s}", "cpu", cpu->name, "threads", nb_threads(), "cores",
                                  cpu->cores, "memory", (json_int_t)cpu->memory, "nibble", NB_VERSION));
}

static nb_status put_limits(bench *b) {
    json_t *list = json_array();
    const int all = nb_threads();
    json_object_set_new(b->out, "limits", list);
    for (int n = 1;; n = 2 * n < all ? 2 * n : all) {
        nb_limits l = nb_measure_limits(n, b->o->seconds / 4);
        json_array_append_new(list, json_pack("{s:i, s:o, s:o, s:o}", "threads", n, "f32_gflops", known(l.f32 * 1e-9),
                                              "bf16_gflops", known(l.bf16 * 1e-9), "read_gb_s", known(l.read * 1e-9)));
        if (n < all) continue;
        if (b->run.dev->be->host_memory) b->top = l;
        return NB_OK;
    }
}

static void put_model(bench *b) {
    const nb_base *base = b->run.base;
    const nb_model *m = b->run.model;
    const nb_weight *w = NULL;
    for (int s = 0; s < NB_SLOTS && !w; s++)
        if (m->block[0].lin[s].w->rows) w = m->block[0].lin[s].w;
    json_object_set_new(b->out, "model",
                        json_pack("{s:s, s:s, s:s, s:s, s:f, s:I}", "name",
                                  b->o->config ? b->o->config->base_model : b->o->shape.name, "format",
                                  nb_format_name(w->format), "head", nb_format_name(m->weights.head.format), "compute",
                                  nb_dtype_name(b->run.dev->compute), "parameters",
                                  (double)nb_spec_parameters(&base->spec), "weight_bytes",
                                  (json_int_t)nb_base_bytes(base, false)));
}

/* ---- generation ---- */

/* A model may not have as many positions. */
static int64_t most(const bench *b, int64_t tokens) {
    return tokens < b->run.model->positions ? tokens : b->run.model->positions;
}

static nb_status put_prompt(bench *b) {
    nb_decode d;
    json_t *j = json_object();
    json_object_set_new(b->out, "prompt", j);
    nb_memory_mark();
    NB_TRY(nb_decode_prompt(b->run.model, most(b, b->o->prompt), b->o->seconds, &d));
    put_times(j, d.runs, d.best, d.median, d.tokens);
    json_object_set_new(j, "gflops", json_real(d.flops / d.best * 1e-9));
    json_object_set_new(j, "percent", percent(d.flops / d.best, peak(b)));
    return NB_OK;
}

/* What else the machine does changes the bandwidth from minute to minute: it is measured before and after. */
static nb_status put_generation(bench *b) {
    nb_decode d;
    json_t *j = json_object();
    bool here = b->run.dev->be->host_memory;
    json_object_set_new(b->out, "generation", j);
    double read = here ? nb_measure_read(nb_threads(), 0.3) : 0, after;
    nb_memory_mark();
    NB_TRY(nb_decode_generate(b->run.model, most(b, b->o->generate), b->o->seconds, &d));
    put_times(j, d.runs, d.best, d.median, d.tokens);
    after = here ? nb_measure_read(nb_threads(), 0.3) : 0;
    if (after > read) read = after;
    json_object_set_new(j, "gb_s", json_real(d.bytes / d.best * 1e-9));
    json_object_set_new(j, "read_gb_s", known(read * 1e-9));
    json_object_set_new(j, "percent", percent(d.bytes / d.best, read));
    return NB_OK;
}

/* ---- training ---- */

static json_t *pass_of(const bench *b, double seconds, nb_cost c) {
    if (seconds <= 0) return json_null();
    const double top = peak(b), read = b->top.read;
    double limit = 0; /* seconds */
    if (top > 0 && read > 0) limit = c.flops / top > c.bytes / read ? c.flops / top : c.bytes / read;
    return json_pack("{s:f, s:f, s:f, s:o}", "ms", seconds * 1e3, "gflops", c.flops / seconds * 1e-9, "gb_s",
                     c.bytes / seconds * 1e-9, "percent", limit > 0 ? json_real(100 * limit / seconds) : json_null());
}

static json_t *operations(const bench *b, const nb_step *s) {
    json_t *list = json_array();
    for (int i = 0; i < nb_op_count; i++) {
        const nb_prof_row *p = &s->best_prof[i];
        if (p->calls)
            json_array_append_new(list, json_pack("{s:s, s:I, s:f, s:o, s:o}", "name", nb_ops[i]->name, "times",
                                                  (json_int_t)p->calls, "share",
                                                  100 * (p->forward_s + p->backward_s) / s->best, "forward",
                                                  pass_of(b, p->forward_s, p->forward), "backward",
                                                  pass_of(b, p->backward_s, p->backward)));
    }
    return list;
}

static nb_status put_step(bench *b, nb_step *s, int64_t tokens, const nb_recompute *recompute) {
    nb_run *r = &b->run;
    json_t *j = json_object();
    json_object_set_new(b->out, "step", j);
    nb_memory_mark();
    NB_TRY(nb_step_open(s, r->model, r->adapter, &r->optimizer, tokens, recompute));
    for (double end = 0; nb_step_counted(s) < 1 || nb_now() < end;) {
        NB_TRY(nb_step_run(s));
        if (s->steps == 1) end = nb_now() + b->o->seconds;
        if (nb_interrupted()) return nb_fail(NB_EINTERRUPTED, "stopped");
    }
    put_times(j, nb_step_counted(s), s->best, nb_step_median(s), tokens);
    json_object_set_new(j, "rank", json_integer(r->adapter->r));
    json_object_set_new(j, "checkpointing", json_string(b->checkpointing));
    json_object_set_new(j, "gflops", json_real(s->flops / s->best * 1e-9));
    json_object_set_new(j, "percent", percent(s->flops / s->best, peak(b)));
    json_object_set_new(j, "activation_bytes", json_integer((json_int_t)nb_runner_bytes(s->runner)));
    json_object_set_new(j, "optimizer_ms", json_real(s->best_optimizer * 1e3));
    json_object_set_new(j, "operations", operations(b, s));
    return NB_OK;
}

/* ---- what is measured ---- */

static nb_status open_random(bench *b) {
    const nb_bench_options *o = b->o;
    nb_run *r = &b->run;
    const char *device = o->device ? o->device : "auto";
    int64_t longest = o->tokens;
    if (o->prompt > longest) longest = o->prompt;
    if (o->generate > longest) longest = o->generate;
    bool bf16 = o->dtype ? !strcmp(o->dtype, "bf16") : nb_dev_has_bf16(device);
    if (o->dtype && !bf16 && strcmp(o->dtype, "f32") != 0)
        return nb_fail(NB_EINPUT, "--dtype %s: f32 or bf16", o->dtype);
    NB_TRY(nb_dev_open(&r->dev, device, bf16 ? NB_BF16 : NB_F32));
    NB_TRY(nb_base_random(&r->base, &o->shape, o->format, longest));
    NB_TRY(nb_base_quantize_head(r->base, o->head, ""));
    return nb_model_open(&r->model, r->base, r->dev, longest, longest);
}

static nb_status open_random_adapter(bench *b) {
    nb_run *r = &b->run;
    nb_lora_options lora = {.r = b->o->rank, .alpha = 2 * (double)b->o->rank, .seed = 1};
    NB_TRY(nb_adapter_new(&r->adapter, r->model, &lora));
    NB_TRY(nb_optimizer_open(&r->optimizer, r->adapter, false, 1, NULL, false));
    r->optimizer.beta1 = 0.9, r->optimizer.beta2 = 0.999, r->optimizer.epsilon = 1e-8, r->optimizer.max_grad_norm = 1;
    return NB_OK;
}

static void close_random(bench *b) {
    nb_run *r = &b->run;
    nb_optimizer_close(&r->optimizer);
    nb_adapter_free(r->adapter);
    nb_model_free(r->model);
    nb_base_free(r->base);
    if (r->dev) nb_dev_close(r->dev);
}

static nb_status recompute_of(bench *b, int64_t tokens, nb_recompute *out) {
    static const struct {
        const char *name;
        const nb_recompute *how;
    } levels[] = {{"false", &nb_recompute_none}, {"smart", &nb_recompute_smart}, {"true", &nb_recompute_full}};
    b->checkpointing = b->o->checkpointing ? b->o->checkpointing : "false";
    if (b->o->config) {
        static const char *const names[] = {"false", "smart", "true", "auto"};
        b->checkpointing = names[b->o->config->gradient_checkpointing];
        return nb_recompute_choose(&b->run, tokens, out);
    }
    for (int i = 0; i < NB_LEN(levels); i++)
        if (!strcmp(levels[i].name, b->checkpointing)) {
            *out = *levels[i].how;
            return NB_OK;
        }
    return nb_fail(NB_EINPUT, "--checkpointing %s: false, smart or true", b->checkpointing);
}

static nb_status measure_step(bench *b) {
    nb_run *r = &b->run;
    nb_step step = {0};
    nb_recompute recompute;
    int64_t tokens = b->o->config ? r->sequence_len * b->o->config->micro_batch_size : b->o->tokens;
    NB_TRY(b->o->config ? nb_run_open_adapter(r) : open_random_adapter(b));
    NB_TRY(recompute_of(b, tokens, &recompute));
    nb_status st = put_step(b, &step, tokens, &recompute);
    nb_step_close(&step);
    return st;
}

static nb_status run_parts(bench *b) {
    const nb_bench_options *o = b->o;
    NB_TRY(next_part(b, "the model"));
    if (o->config) {
        NB_TRY(nb_run_open(&b->run, o->config));
        NB_TRY(nb_run_open_base(&b->run));
        NB_TRY(nb_run_open_model(&b->run));
    } else {
        NB_TRY(open_random(b));
    }
    put_machine(b);
    NB_TRY(next_part(b, "the machine's limits"));
    NB_TRY(put_limits(b));
    put_model(b);
    NB_TRY(next_part(b, "reading a prompt"));
    if (o->prompt) NB_TRY(put_prompt(b));
    NB_TRY(next_part(b, "generating"));
    if (o->generate) NB_TRY(put_generation(b));
    NB_TRY(next_part(b, "training"));
    return o->step ? measure_step(b) : NB_OK;
}

nb_status nb_bench_run(json_t **out, const nb_bench_options *o) {
    bench b = {.o = o, .out = json_object()};
    nb_interrupt_install();
    nb_progress_begin(&b.bar, "bench", 5, "parts");
    nb_status st = run_parts(&b);
    nb_progress_end(&b.bar);
    if (o->config) nb_run_close(&b.run);
    else close_random(&b);
    if (st == NB_OK) *out = b.out;
    else json_decref(b.out);
    return st;
}
