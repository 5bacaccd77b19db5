/* nibble info: what is in a model folder, an adapter folder or a safetensors file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/tokenizer_open.h"
#include "cli/cli.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/gguf_base.h"
#include "model/safetensors.h"
#include "model/weights.h"

/* Names and values come from files. */
static void say(char *text /* freed */) {
    nb_cli_show(text, strlen(text));
    free(text);
}

#define row(name, ...) (printf("%-13s ", name), say(nb_asprintf(__VA_ARGS__)), (void)putchar('\n'))

/* ---- one file ---- */

static char *shape_text(const nb_st_tensor *t) {
    nb_text s = {0};
    nb_text_puts(&s, "[");
    for (int i = 0; i < t->n_dims; i++) nb_text_printf(&s, "%s%lld", i ? ", " : "", (long long)t->d[i]);
    nb_text_puts(&s, "]");
    return s.s;
}

static nb_status show_file(const char *path) {
    nb_st s;
    char size[16];
    size_t bytes = 0;
    int width = 4;
    NB_TRY(nb_st_open_file(&s, path));
    for (int i = 0; i < s.n_tensors; i++)
        if ((int)strlen(s.tensors[i].name) > width) width = (int)strlen(s.tensors[i].name);
    printf("%-*s  %-5s %-16s %14s\n", width, "tensor", "dtype", "shape", "bytes");
    for (int i = 0; i < s.n_tensors; i++) {
        const nb_st_tensor *t = &s.tensors[i];
        char *shape = shape_text(t);
        say(nb_asprintf("%-*s  %-5s %-16s %14zu\n", width, t->name, nb_st_dtype_name(t->dtype), shape, t->bytes));
        bytes += t->bytes;
        free(shape);
    }
    printf("%d tensors, %s\n", s.n_tensors, nb_bytes((double)bytes, size));
    const char *key;
    json_t *v;
    json_object_foreach(s.metadata, key, v)
        if (json_is_string(v)) say(nb_asprintf("metadata %s: %.300s\n", key, json_string_value(v)));
    nb_st_close(&s);
    return NB_OK;
}

/* ---- an adapter folder ---- */

static void show_text_list(const char *name, const json_t *v) {
    nb_text s = {0};
    if (json_is_string(v)) nb_text_puts(&s, json_string_value(v));
    for (size_t i = 0; i < json_array_size(v); i++) {
        const char *item = json_string_value(json_array_get(v, i));
        if (item) nb_text_printf(&s, "%s%s", i ? ", " : "", item);
    }
    row(name, "%s", s.s ? s.s : "(none named)");
    nb_text_free(&s);
}

static void show_pattern(const char *name, const json_t *map) {
    nb_text s = {0};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, key, v)
        nb_text_printf(&s, "%s%s %g", s.n ? ", " : "", key, json_number_value(v));
    if (s.n) row(name, "%s", s.s);
    nb_text_free(&s);
}

static nb_status show_adapter_config(const json_t *c, const char *where) {
    const char *kind = "LORA", *base = "(not named)";
    int64_t r = 8;
    double alpha = 8, dropout = 0;
    bool rslora = false, dora = false;
    NB_TRY(nb_json_str(c, "peft_type", &kind, where));
    NB_TRY(nb_json_str(c, "base_model_name_or_path", &base, where));
    NB_TRY(nb_json_int(c, "r", &r, where));
    NB_TRY(nb_json_real(c, "lora_alpha", &alpha, where));
    NB_TRY(nb_json_real(c, "lora_dropout", &dropout, where));
    NB_TRY(nb_json_bool(c, "use_rslora", &rslora, where));
    NB_TRY(nb_json_bool(c, "use_dora", &dora, where));
    row("adapter", "%s%s%s", kind, rslora ? " (rank-stabilized)" : "", dora ? " with DoRA" : "");
    row("base", "%s", base);
    row("rank", "%lld, alpha %g, dropout %g", (long long)r, alpha, dropout);
    show_text_list("targets", json_object_get(c, "target_modules"));
    if (json_array_size(json_object_get(c, "modules_to_save")))
        show_text_list("trained whole", json_object_get(c, "modules_to_save"));
    show_pattern("ranks", json_object_get(c, "rank_pattern"));
    show_pattern("alphas", json_object_get(c, "alpha_pattern"));
    return NB_OK;
}

static nb_status show_adapter_tensors(const char *dir) {
    nb_st s;
    char size[16];
    double bytes = 0, n = 0;
    NB_TRY(nb_st_open_dir(&s, dir, "adapter_model"));
    for (int i = 0; i < s.n_tensors; i++) {
        bytes += (double)s.tensors[i].bytes;
        n += (double)s.tensors[i].bytes / nb_dtype_size(s.tensors[i].dtype);
    }
    row("tensors", "%d, %.0f parameters, %s", s.n_tensors, n, nb_bytes(bytes, size));
    nb_st_close(&s);
    return NB_OK;
}

static nb_status show_manifest(const char *dir) {
    char *path = nb_path_join(dir, "nibble_manifest.json");
    json_t *m = NULL;
    nb_status st = nb_file_exists(path) ? nb_json_load(path, &m) : NB_OK;
    if (m) {
        char *text = json_dumps(m, JSON_INDENT(2) | JSON_SORT_KEYS);
        row("manifest", "%s", text ? text : "?");
        free(text);
    }
    json_decref(m);
    free(path);
    return st;
}

static nb_status show_adapter(const char *dir) {
    char *path = nb_path_join(dir, "adapter_config.json");
    json_t *c;
    nb_status st = nb_json_load(path, &c);
    if (st == NB_OK) st = show_adapter_config(c, path);
    if (st == NB_OK) st = show_adapter_tensors(dir);
    if (st == NB_OK) st = show_manifest(dir);
    json_decref(c);
    free(path);
    return st;
}

/* ---- a model folder ---- */

static void show_rope(const char *what, const nb_spec *s, int which) {
    const nb_rope_spec *r = &s->rope[which];
    char part[48] = "";
    if (r->rot != s->head_dim) snprintf(part, sizeof part, ", %d of %lld dims", r->rot, (long long)s->head_dim);
    if (r->kind == NB_ROPE_DEFAULT) row(what, "theta %g%s", r->theta, part);
    else if (r->kind == NB_ROPE_LINEAR) row(what, "theta %g, linear, factor %g%s", r->theta, r->factor, part);
    else
        row(what, "theta %g, %s, factor %g, from a context of %lld%s", r->theta, nb_rope_kind_name(r->kind), r->factor,
            (long long)r->original_context, part);
}

static void show_spec(const nb_spec *s) {
    row("family", "%s (%s)", s->family, s->architecture);
    row("parameters", "%lld (%.1f M)", (long long)nb_spec_parameters(s), (double)nb_spec_parameters(s) / 1e6);
    row("layers", "%lld: hidden %lld, mlp %lld, %lld heads of %lld, %lld key/value heads", (long long)s->layers,
        (long long)s->hidden, (long long)s->mlp_hidden, (long long)s->heads, (long long)s->head_dim,
        (long long)s->kv_heads);
    if (s->experts) {
        int64_t sparse = 0;
        for (int64_t l = 0; l < s->layers; l++) sparse += s->layer[l].sparse;
        row("experts", "%lld layers send a token to %lld of %lld, mlp %lld each", (long long)sparse, (long long)s->top_k,
            (long long)s->experts, (long long)s->expert_hidden);
        if (s->shared_hidden) row("shared", "an expert of mlp %lld for every token", (long long)s->shared_hidden);
        row("active", "%.1f M parameters a token", (double)nb_spec_active_parameters(s) / 1e6);
    }
    row("vocabulary", "%lld, head %s", (long long)s->vocab, s->tied ? "tied to the embedding" : "of its own");
    int64_t windowed = 0, nowhere = 0;
    for (int64_t l = 0; l < s->layers; l++) windowed += s->layer[l].window != 0, nowhere += s->layer[l].rope < 0;
    if (s->window) row("context", "%lld; %lld layers see a window of %lld", (long long)s->context, (long long)windowed,
                       (long long)s->window);
    else row("context", "%lld", (long long)s->context);
    if (s->learned_positions) row("positions", "learned, a vector each");
    else show_rope("rope", s, 0);
    if (s->layer[0].rope == 1) show_rope("local rope", s, 1);
    if (nowhere && !s->learned_positions) row("no positions", "in %lld layers", (long long)nowhere);
    if (s->attn_softcap > 0 || s->logit_softcap > 0)
        row("soft caps", "attention %g, logits %g", (double)s->attn_softcap, (double)s->logit_softcap);
}

static void show_tokenizer(const char *dir) {
    static const char *const files[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                                        "special_tokens_map.json", "chat_template.jinja", "generation_config.json"};
    nb_text s = {0};
    for (int i = 0; i < NB_LEN(files); i++) {
        char *path = nb_path_join(dir, files[i]);
        if (nb_file_exists(path)) nb_text_printf(&s, "%s%s", s.n ? ", " : "", files[i]);
        free(path);
    }
    row("tokenizer", "%s", s.n ? s.s : "no tokenizer files");
    nb_text_free(&s);
}

/* The one that a GGUF file has in its keys; that it cannot be used is said, and no error here. */
static void show_own_tokenizer(const char *path) {
    nb_tokenizer *t;
    if (nb_tokenizer_open(&t, path) != NB_OK) {
        row("tokenizer", "not usable: %s", nb_message());
        return;
    }
    row("tokenizer", "%d tokens%s", nb_tokenizer_vocab_size(t), nb_tokenizer_chat_template(t) ? ", chat template" : "");
    nb_tokenizer_free(t);
}

static void show_weights(const nb_base *b) {
    char now[16], later[16];
    int64_t four = nb_base_bytes(b, true);
    row("weights", "%s%s in memory, %s", b->hollow ? "none in this folder; they would be " : "",
        nb_bytes((double)nb_base_bytes(b, false), now),
        b->quantized ? b->double_quant ? "linear layers in NF4 with double quantization" : "linear layers in NF4"
                     : nb_base_format(b));
    if (!b->quantized && !b->in_blocks) row("in 4 bits", "%s", nb_bytes((double)four, later));
    if (!b->hollow) row("sha256", "%s", b->sha256);
}

static nb_status show_model(const char *dir_or_name) {
    nb_base *b;
    NB_TRY(nb_base_load(&b, dir_or_name, &(nb_base_options){.keep_quantized = true, .hollow_ok = true}));
    row(b->is_gguf ? "file" : "folder", "%s", b->dir);
    show_spec(&b->spec);
    row("dtype", "%s", nb_dtype_name(b->spec.dtype));
    show_weights(b);
    if (b->is_gguf) show_own_tokenizer(b->dir);
    else show_tokenizer(b->dir);
    nb_base_free(b);
    return NB_OK;
}

static nb_status show(const char *what) {
    char *adapter = nb_path_join(what, "adapter_config.json");
    bool is_adapter = nb_file_exists(adapter);
    free(adapter);
    if (is_adapter) return show_adapter(what);
    return nb_file_exists(what) && !nb_is_dir(what) && !nb_gguf_is(what) ? show_file(what) : show_model(what);
}

int nb_cmd_info(int argc, char **argv) {
    const char *what = NULL;
    int n = 0;
    bool done;
    nb_status st = nb_opt_parse(argc, argv, "nibble info DIR|FILE", "DIR: a model folder (or org/name in the local "
                                "Hugging Face cache; config.json is enough) or an adapter folder. FILE: a model in GGUF, or safetensors.",
                                NULL, 0, &what, 1, &n, &done);
    if (st != NB_OK || done) return nb_exit_status("info", st);
    st = n ? show(what) : nb_fail(NB_EINPUT, "name a model folder, an adapter folder or a safetensors file");
    return nb_exit_status("info", st);
}
