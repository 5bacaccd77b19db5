/* nibble eval: held-out loss and task metrics, base against adapter, of a configuration's sets or of one file. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "adapters/session.h"
#include "cli/cli.h"
#include "core/file.h"
#include "core/interrupt.h"
#include "core/json.h"
#include "core/log.h"
#include "data/added.h"
#include "eval/head_cost.h"
#include "eval/report.h"
#include "train/run.h"

typedef struct eval_args {
    const char *config, *base, *adapter, *data, *type, *metrics, *regex, *template, *dtype, *device, *json, *html;
    const char *field[6]; /* as in `fields` */
    nb_opt_list sets;
    bool base_only;
    int load_in_4bit;
    const char *lm_head_quant;
    int64_t max_new_tokens, threads;
} eval_args;

static const struct { const char *name; size_t at; } fields[] = { /* options --field-... of the run without a config */
    {"text", offsetof(nb_config_dataset, field_text)},
    {"prompt", offsetof(nb_config_dataset, field_prompt)},
    {"completion", offsetof(nb_config_dataset, field_completion)},
    {"instruction", offsetof(nb_config_dataset, field_instruction)},
    {"output", offsetof(nb_config_dataset, field_output)},
    {"messages", offsetof(nb_config_dataset, field_messages)},
};

/* What is evaluated, however it was opened. */
typedef struct subject {
    nb_config config;
    nb_run run;         /* with a configuration: as in training */
    nb_session session; /* without */
    nb_base *tuned_base; /* the result of adapter: full */
    nb_model *tuned;
    nb_adapter *adapter; /* borrowed from session or run */
    nb_model *model;
    nb_arena *arena;
    nb_tokenizer *tokenizer;
    const nb_chat_template *chat;
    nb_data data;        /* held_out alone, unless the set is split off the training data */
    nb_heldout_set *sets;
    bool has_config;
} subject;

static void subject_close(subject *s) {
    if (s->sets) nb_heldout_sets_free(s->sets, s->data.n_held_out);
    nb_data_free(&s->data);
    nb_model_free(s->tuned);
    nb_base_free(s->tuned_base);
    nb_session_close(&s->session);
    nb_run_close(&s->run);
    if (s->has_config) nb_config_free(&s->config);
}

/* ---- with a configuration ---- */

/* The run's result: what was best, else what was last. Caller frees *dir. */
static nb_status find_result(const nb_config *c, char **dir) {
    static const char *const names[] = {"best", "adapter", "model"};
    for (int i = 0; i < NB_LEN(names); i++) {
        *dir = nb_path_join(c->output_dir, names[i]);
        if (nb_is_dir(*dir)) return NB_OK;
        free(*dir);
    }
    *dir = NULL;
    return nb_fail(NB_EINPUT,
                   "%s holds no adapter yet: run `nibble train %s` first, or give --adapter DIR or --base-only",
                   c->output_dir, c->file);
}

static nb_status open_held_out(subject *s) {
    nb_config *c = &s->config;
    if (!c->n_test_datasets && c->val_set_size > 0) {
        NB_TRY(nb_data_open(&s->data, c, s->tokenizer, s->run.sequence_len));
    } else {
        s->data.held_out = nb_calloc((size_t)c->n_test_datasets + 1, sizeof *s->data.held_out);
        for (int i = 0; i < c->n_test_datasets; i++, s->data.n_held_out++)
            NB_TRY(nb_dataset_open(&s->data.held_out[i], c, &c->test_datasets[i], s->tokenizer, s->run.sequence_len));
    }
    if (!s->data.n_held_out)
        return nb_fail(NB_EINPUT, "%s names no held-out data: add test_datasets or val_set_size", c->file);
    return nb_heldout_sets_open(&s->sets, &s->data, c);
}

/* adapter: full leaves a whole model, not an adapter. */
static nb_status open_full(subject *s, const char *dir) {
    nb_base_options o = {.load_in_4bit = s->config.load_in_4bit, .double_quant = s->config.bnb_4bit_use_double_quant,
                         .quantized_cache = s->config.quantized_cache};
    NB_TRY(nb_base_load(&s->tuned_base, dir, &o));
    return nb_model_open(&s->tuned, s->tuned_base, s->run.dev, s->model->positions, s->run.sequence_len);
}

static void set_string(char **member, const char *value) {
    if (!value) return;
    free(*member);
    *member = nb_strdup(value);
}

static bool holds(const char *dir, const char *name) {
    char *path = nb_path_join(dir, name);
    bool yes = nb_file_exists(path);
    free(path);
    return yes;
}

static nb_status open_config(subject *s, const eval_args *a, char **adapter) {
    NB_TRY(nb_config_load(&s->config, a->config, a->sets.v, a->sets.n));
    s->has_config = true;
    if (a->threads) s->config.threads = a->threads;
    set_string(&s->config.device, a->device);
    if (!a->base_only && a->adapter) *adapter = nb_strdup(a->adapter);
    else if (!a->base_only) NB_TRY(find_result(&s->config, adapter));
    NB_TRY(nb_run_open(&s->run, &s->config));
    NB_TRY(nb_run_open_base(&s->run));
    s->tokenizer = s->run.tokenizer;
    if (nb_config_chat(&s->chat, &s->config, s->tokenizer) != NB_OK) s->chat = NULL;
    NB_TRY(open_held_out(s));
    NB_TRY(nb_run_open_model(&s->run));
    s->model = s->run.model, s->arena = &s->run.arena;
    if (!*adapter) return NB_OK;
    if (!holds(*adapter, "adapter_config.json") && holds(*adapter, "config.json")) return open_full(s, *adapter);
    NB_TRY(nb_adapter_load(&s->run.adapter, s->model, *adapter, false));
    s->adapter = s->run.adapter;
    return NB_OK;
}

/* ---- without ---- */

static nb_status parse_choice(const char *option, const char *text, const char *const *names, int n, int *out) {
    nb_text all = {0};
    for (int i = 0; i < n; i++) {
        if (!strcmp(text, names[i])) return nb_text_free(&all), *out = i, NB_OK;
        nb_text_printf(&all, "%s%s", i ? ", " : "", names[i]);
    }
    nb_status st = nb_fail(NB_EINPUT, "--%s %s: say one of %s", option, text, all.s);
    nb_text_free(&all);
    return st;
}

/* "exact_match,f1" */
static void set_metrics(nb_strs *out, const char *list) {
    for (int i = 0; i < out->n; i++) free(out->v[i]);
    out->n = 0;
    for (const char *p = list; *p; p += strspn(p, ", ")) {
        size_t n = strcspn(p, ", ");
        out->v = nb_realloc(out->v, (size_t)out->n + 1, sizeof *out->v);
        out->v[out->n++] = nb_strndup(p, n);
        p += n;
    }
}

/* The one entry a configuration would have. */
static nb_status make_entry(subject *s, const eval_args *a) {
    static const char *const types[] = {"completion", "alpaca", "prompt_completion", "chat_template", "tokenized"};
    static const char *const templates[] = {"tokenizer_default", "chatml", "llama3", "mistral", "zephyr", "alpaca"};
    nb_config *c = &s->config;
    nb_config_init(c);
    s->has_config = true;
    nb_config_dataset *d = nb_config_add_dataset(c, true);
    NB_TRY(parse_choice("type", a->type, types, NB_LEN(types), &d->type));
    if (a->template && strncmp(a->template, "jinja:", 6))
        NB_TRY(parse_choice("chat-template", a->template, templates, NB_LEN(templates), &c->chat_template));
    if (!a->template && s->chat) /* the one of the adapter's manifest */
        for (int i = 1; i < NB_LEN(templates); i++)
            if (!strcmp(nb_chat_template_name(s->chat), templates[i])) c->chat_template = i;
    const char *jinja = a->template && !strncmp(a->template, "jinja:", 6) ? a->template
                        : !a->template && s->chat && !c->chat_template    ? nb_chat_template_jinja(s->chat)
                                                                          : NULL;
    if (jinja) c->chat_template = NB_CHAT_JINJA, set_string(&c->chat_template_jinja, jinja);
    set_string(&d->path, a->data);
    set_string(&d->regex, a->regex);
    for (int i = 0; i < NB_LEN(fields); i++) set_string((char **)((char *)d + fields[i].at), a->field[i]);
    if (a->metrics) set_metrics(&d->metrics, a->metrics);
    if (a->max_new_tokens) d->max_new_tokens = a->max_new_tokens;
    nb_config_derive(c);
    return NB_OK;
}

static nb_status open_file(subject *s, const eval_args *a, char **adapter) {
    nb_session_options o = {.base = a->base, .adapter = a->base_only ? NULL : a->adapter,
                            .load_in_4bit = a->load_in_4bit,
                            .lm_head_quant = a->lm_head_quant,
                            .device = a->device,
                            .dtype = a->dtype};
    NB_TRY(nb_cli_threads(a->threads));
    NB_TRY(nb_session_open(&s->session, &o));
    if (o.adapter) *adapter = nb_strdup(o.adapter);
    s->model = s->session.model, s->arena = &s->session.arena, s->tokenizer = s->session.tokenizer;
    s->chat = s->session.chat, s->adapter = s->session.adapter;
    NB_TRY(make_entry(s, a));
    s->data.held_out = nb_calloc(1, sizeof *s->data.held_out);
    NB_TRY(nb_dataset_open(&s->data.held_out[0], &s->config, &s->config.test_datasets[0], s->tokenizer,
                           s->model->positions));
    s->data.n_held_out = 1;
    return nb_heldout_sets_open(&s->sets, &s->data, &s->config);
}

/* ---- measuring ---- */

/* All sets with the model as it is now. */
static nb_status measure(subject *s, nb_model *m, nb_report *r, bool tuned) {
    nb_evaluator e;
    int n_stop;
    int32_t *stop = nb_stop_ids(s->tokenizer, s->chat, &n_stop);
    const nb_strs *eot = &s->config.eot_tokens;
    stop = nb_realloc(stop, (size_t)(n_stop + eot->n) + 1, sizeof *stop);
    for (int i = 0; i < eot->n; i++) {
        int32_t id = nb_tokenizer_token_id(s->tokenizer, eot->v[i]);
        if (id >= 0) stop[n_stop++] = id;
    }
    nb_evaluator_options o = {.batch_tokens = 2048, .stop_ids = stop, .n_stop_ids = n_stop};
    nb_status st = nb_evaluator_open(&e, m, s->arena, s->tokenizer, s->sets, s->data.n_held_out, &o);
    free(stop);
    NB_TRY(st);
    for (int i = 0; i < s->data.n_held_out && st == NB_OK; i++) {
        char *label = nb_asprintf("%s, %s", s->sets[i].name, tuned ? "adapter" : "base");
        nb_heldout_args a = {.evaluator = &e, .set = &s->sets[i], .label = label, .keep_texts = true};
        st = nb_heldout_eval(tuned ? &r->sets[i].adapter : &r->sets[i].base, &a);
        free(label);
    }
    nb_evaluator_close(&e);
    return st;
}

/* Prints it; the model is the base alone, and r has its results. */
static nb_status head_cost(subject *s, const nb_report *r) {
    const nb_heldout_result **held = nb_calloc((size_t)r->n_sets, sizeof *held);
    nb_text text = {0};
    for (int i = 0; i < r->n_sets; i++) held[i] = &r->sets[i].base;
    nb_status st = nb_head_cost(&text, s->model, s->arena, s->tokenizer, s->sets, held, r->n_sets);
    if (st == NB_OK) fputs(text.s, stdout);
    nb_text_free(&text);
    free(held);
    return st;
}

static nb_status measure_both(subject *s, nb_report *r) {
    if (s->adapter) nb_adapter_enable(s->adapter, false);
    NB_TRY(measure(s, s->model, r, false));
    if (s->model->base->head_quant) NB_TRY(head_cost(s, r));
    if (!r->adapter) return NB_OK;
    if (s->adapter) nb_adapter_enable(s->adapter, true);
    NB_TRY(measure(s, s->tuned ? s->tuned : s->model, r, true));
    return nb_report_compare(r, (uint64_t)s->config.seed);
}

static nb_status describe(const subject *s, nb_report *r) {
    const nb_base *b = s->model->base;
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    strftime(r->date, sizeof r->date, "%Y-%m-%d %H:%M", &local);
    r->base = nb_strdup(s->config.base_model ? s->config.base_model : b->dir);
    r->base_sha256 = nb_strdup(b->sha256);
    r->weights = nb_asprintf("%s weights, products in %s", b->quantized ? "NF4" : nb_dtype_name(b->spec.dtype),
                             nb_dtype_name(s->model->dev->compute));
    if (s->config.file) r->config = nb_strdup(s->config.file);
    r->n_sets = s->data.n_held_out;
    r->sets = nb_calloc((size_t)r->n_sets, sizeof *r->sets);
    if (!r->adapter || !s->config.output_dir) return NB_OK;
    char *metrics = nb_path_join(s->config.output_dir, s->config.metrics_file);
    nb_status st = nb_file_exists(metrics) ? nb_curves_load(&r->curves, metrics) : NB_OK;
    free(metrics);
    return st;
}

static nb_status write_reports(const nb_report *r, const eval_args *a) {
    nb_text text = {0}, html = {0};
    nb_status st = NB_OK;
    nb_report_text(&text, r, nb_use_color(1));
    fputs(text.s, stdout);
    nb_text_free(&text);
    if (a->json) {
        json_t *o = nb_report_json(r);
        st = nb_json_save(a->json, o);
        json_decref(o);
    }
    if (st == NB_OK && a->html) {
        nb_report_html(&html, r);
        st = nb_file_write(a->html, html.s, html.n);
        nb_text_free(&html);
    }
    if (st == NB_OK && a->html) nb_info("report: %s", a->html);
    return st;
}

static nb_status run(const eval_args *a) {
    subject s = {0};
    nb_report r = {0};
    nb_interrupt_install();
    nb_status st = a->config ? open_config(&s, a, &r.adapter) : open_file(&s, a, &r.adapter);
    if (st == NB_OK) st = describe(&s, &r);
    if (st == NB_OK) st = measure_both(&s, &r);
    if (st == NB_OK) st = write_reports(&r, a);
    nb_report_free(&r);
    subject_close(&s);
    return st;
}

static nb_status check(const eval_args *a) {
    if (a->base_only && a->adapter) return nb_fail(NB_EINPUT, "--base-only and --adapter exclude each other");
    if (a->config && (a->base || a->data || a->type))
        return nb_fail(NB_EINPUT, "a configuration names base and data itself: change them with --set base_model=DIR");
    bool fields_given = false;
    for (int i = 0; i < NB_LEN(fields); i++) fields_given |= a->field[i] != NULL;
    if (a->config && (a->metrics || a->regex || a->template || a->dtype || a->max_new_tokens || a->load_in_4bit >= 0 ||
                      fields_given))
        return nb_fail(NB_EINPUT,
                       "metrics, fields, dtype and the like are the configuration's: change them with --set, as in "
                       "--set test_datasets.0.metrics=[f1]");
    if (a->config) return NB_OK;
    if (!a->data || !a->type || !(a->base || a->adapter))
        return nb_fail(NB_EINPUT, "give a configuration, or --base DIR (or --adapter DIR), --data FILE and --type T "
                       "(`nibble eval --help`)");
    if (a->sets.n) return nb_fail(NB_EINPUT, "--set goes with a configuration");
    return NB_OK;
}

int nb_cmd_eval(int argc, char **argv) {
    eval_args a = {.load_in_4bit = -1};
    const nb_opt opts[] = {
        {"adapter", NB_OPT_STR, &a.adapter, "DIR",
         "adapter to compare with its base (with CONFIG: output_dir's best, else last)"},
        {"base-only", NB_OPT_FLAG, &a.base_only, NULL, "measure the base alone"},
        {"json", NB_OPT_STR, &a.json, "FILE", "write everything, row by row, as JSON"},
        {"html", NB_OPT_STR, &a.html, "FILE", "write a page with charts and examples"},
        {"set", NB_OPT_LIST, &a.sets, "KEY=VALUE", "set a key of the configuration (repeatable)"},
        {"threads", NB_OPT_INT, &a.threads, "N", "threads to use; 0: all cores"},
        {"base", NB_OPT_STR, &a.base, "DIR",
         "without CONFIG: model folder, or org/name in the local Hugging Face cache"},
        {"data", NB_OPT_STR, &a.data, "FILE", "without CONFIG: .jsonl, .json, .csv, .txt, .md, or a folder"},
        {"type", NB_OPT_STR, &a.type, "T", "completion, alpaca, prompt_completion, chat_template or tokenized"},
        {"metrics", NB_OPT_STR, &a.metrics, "A,B", "loss, exact_match, f1, rouge_l, regex, json_valid (default loss)"},
        {"max-new-tokens", NB_OPT_INT, &a.max_new_tokens, "N", "longest answer generated (default 64)"},
        {"regex", NB_OPT_STR, &a.regex, "EXPR", "what an answer must match for the metric regex"},
        {"chat-template", NB_OPT_STR, &a.template, "NAME",
         "tokenizer_default, chatml, llama3, mistral, zephyr or alpaca"},
        {"field-text", NB_OPT_STR, &a.field[0], "NAME", "completion: key or column of the text (default text)"},
        {"field-prompt", NB_OPT_STR, &a.field[1], "NAME", "prompt_completion: of the prompt (default prompt)"},
        {"field-completion", NB_OPT_STR, &a.field[2], "NAME", "prompt_completion: of the answer (default completion)"},
        {"field-instruction", NB_OPT_STR, &a.field[3], "NAME", "alpaca: of the task (default instruction)"},
        {"field-output", NB_OPT_STR, &a.field[4], "NAME", "alpaca: of the answer (default output)"},
        {"field-messages", NB_OPT_STR, &a.field[5], "NAME", "chat_template: of the messages (default messages)"},
        {"lm-head-quant", NB_OPT_STR, &a.lm_head_quant, "none|nf4|int8",
         "how the output head is held (default: as the adapter was trained)"},
        {"load-in-4bit", NB_OPT_TRISTATE, &a.load_in_4bit, NULL,
         "quantize the base, or not (default: as the adapter was trained)"},
        {"dtype", NB_OPT_STR, &a.dtype, "f32|bf16", "what products are computed in"},
        {"device", NB_OPT_STR, &a.device, NB_DEVICES, NB_DEVICE_HELP},
    };
    const char *usage = "nibble eval CONFIG [--adapter DIR | --base-only] [--json FILE] [--html FILE]\n"
                        "       nibble eval --base DIR [--adapter DIR] --data FILE --type T [--metrics A,B]";
    const char *notes =
        "Measures loss, perplexity and bits per byte, and the metrics asked for, on every row of the held-out data.\n"
        "With an adapter, base and adapter are compared: differences with 95 % intervals and a verdict.";
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(argc, argv, usage, notes, opts, NB_LEN(opts), &a.config, 1, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK) st = check(&a);
    if (st == NB_OK) st = run(&a);
    free(a.sets.v);
    return nb_exit_status("eval", st);
}
