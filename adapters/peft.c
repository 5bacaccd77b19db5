/* PEFT's adapter folders, written: adapter_config.json and adapter_model.safetensors.
 * Format: shared by Hugging Face PEFT; key names as of version 0.10 and later. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "data/tokenizer.h"
#include "model/gguf_base.h"
#include "model/safetensors.h"

/* ---- folders ---- */

static const char *const small_files[] = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
};

/* A tokenizer.model may be a list of ranks, which other programs rather have as tokenizer.json: saving writes both. What
 * cannot be read was not needed. */
static nb_status save_tokenizer(const char *from, const char *to) {
    char *json = nb_path_join(from, "tokenizer.json"), *model = nb_path_join(from, "tokenizer.model");
    bool alone = nb_file_exists(model) && !nb_file_exists(json);
    nb_tokenizer *t = NULL;
    free(json), free(model);
    if (!alone) return NB_OK;
    nb_status st = nb_tokenizer_load(&t, from);
    if (st == NB_OK) st = nb_tokenizer_save(t, to);
    nb_tokenizer_free(t);
    return st == NB_EUNSUPPORTED ? NB_OK : st;
}

nb_status nb_copy_model_files(const char *from, const char *to) {
    nb_status st = NB_OK;
    if (nb_gguf_is(from)) return nb_make_model_files(from, to);
    for (int i = 0; i < NB_LEN(small_files) && st == NB_OK; i++) {
        char *src = nb_path_join(from, small_files[i]), *dst = nb_path_join(to, small_files[i]);
        if (nb_file_exists(src)) st = nb_file_copy(src, dst);
        free(src);
        free(dst);
    }
    return st == NB_OK ? save_tokenizer(from, to) : st;
}

nb_status nb_replace_dir(const char *tmp, const char *dir) {
    char *old = nb_asprintf("%s.old", dir), *parent = nb_strdup(dir), *slash;
    while ((slash = strrchr(parent, '/')) && !slash[1] && slash != parent) *slash = 0;
    slash = strrchr(parent, '/');
    if (slash == parent) slash[1] = 0;
    else if (slash) *slash = 0;
    else strcpy(parent, ".");
    nb_status st;
    NB_GO(st, nb_sync_dir(tmp), done);
    NB_GO(st, nb_remove_tree(old), done);
    if (nb_file_exists(dir) && rename(dir, old) < 0) {
        st = nb_fail(NB_EIO, "%s: cannot be moved aside", dir);
        goto done;
    }
    if (rename(tmp, dir) < 0) {
        st = nb_fail(NB_EIO, "%s: cannot be renamed to %s", tmp, dir);
        rename(old, dir);
        goto done;
    }
    NB_GO(st, nb_sync_dir(parent), done);
    st = nb_remove_tree(old);
done:
    free(old);
    free(parent);
    return st;
}

/* ---- out ---- */

static json_t *token_indices(const nb_adapter *a) {
    json_t *list = json_array();
    for (int64_t i = 0; i < a->rows.n; i++) json_array_append_new(list, json_integer(a->rows.ids[i]));
    if (a->model->spec->tied) return list;
    return json_pack("{s:O, s:o}", "embed_tokens", list, "lm_head", list);
}

static json_t *saved_modules(const nb_adapter *a) {
    if (!a->n_saved) return json_null();
    json_t *list = json_array();
    for (int i = 0; i < a->n_saved; i++) json_array_append_new(list, json_string(a->saved[i]));
    return list;
}

static json_t *adapter_config(const nb_adapter *a) {
    json_t *targets = json_array();
    for (int i = 0; i < a->n_targets; i++) json_array_append_new(targets, json_string(a->targets[i]));
    json_t *c = json_pack("{s:s, s:s, s:s, s:I, s:f, s:f, s:b, s:b, s:o, s:s, s:b, s:b, s:b, s:o, s:o}", "peft_type",
                          "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", a->model->base->dir, "r",
                          (json_int_t)a->r, "lora_alpha", a->alpha, "lora_dropout", a->dropout, "use_rslora",
                          (int)a->rslora, "use_dora", (int)a->dora, "target_modules", targets, "bias", "none",
                          "fan_in_fan_out", (int)a->model->spec->stored_transposed, "inference_mode", 1,
                          "init_lora_weights", 1, "alpha_pattern", nb_pattern_of(a, true), "rank_pattern", nb_pattern_of(a, false));
    if (a->alpha == floor(a->alpha)) json_object_set_new(c, "lora_alpha", json_integer((json_int_t)a->alpha));
    json_object_set_new(c, "modules_to_save", saved_modules(a));
    static const char *const nulls[] = {"auto_mapping", "layers_pattern", "layers_to_transform", "revision"};
    for (int i = 0; i < NB_LEN(nulls); i++) json_object_set_new(c, nulls[i], json_null());
    if (a->rows.n) json_object_set_new(c, "trainable_token_indices", token_indices(a));
    if (a->tie) json_object_set_new(c, "ensure_weight_tying", json_true());
    return c;
}

bool nb_adapter_is_turned(const nb_adapter *a, const nb_tensor *p) { return a->turned[p - a->params]; }

void nb_turn(float *out, const float *in, int64_t m, int64_t n) {
    nb_weight_turn(out, &(nb_weight){.format = NB_FMT_F32, .rows = n, .cols = m, .data = in});
}

nb_status nb_adapter_fetch(const nb_adapter *a, const nb_tensor *p, const void *from, float *host) {
    size_t n = (size_t)nb_tensor_size(p);
    if (!nb_adapter_is_turned(a, p)) return a->dev->be->get(a->dev, host, from, n * sizeof *host);
    float *held = nb_malloc(n * sizeof *held);
    nb_status st = a->dev->be->get(a->dev, held, from, n * sizeof *held);
    if (st == NB_OK) nb_turn(host, held, p->d[0], p->d[1]);
    free(held);
    return st;
}

static nb_status put_param(const nb_adapter *a, nb_st_writer *w, const nb_tensor *p, const char *name) {
    size_t bytes = (size_t)nb_tensor_size(p) * sizeof(float);
    float *host = nb_malloc(bytes);
    nb_status st = nb_adapter_fetch(a, p, p->data, host);
    if (st == NB_OK) st = nb_st_write_data(w, name, host, bytes);
    free(host);
    return st;
}

/* A head that follows the embedding is in the file too, as PEFT has it: versions that do not tie them load it. */
static nb_status put_params(const nb_adapter *a, const char *path) {
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w;
    nb_status st = nb_st_write_begin(&w, path, meta);
    json_decref(meta);
    if (st != NB_OK) return st;
    const nb_tensor *head = a->tie && a->model->spec->tied ? nb_adapter_whole_at(a, &a->model->head.weight) : NULL;
    char *head_name = nb_asprintf(NB_PEFT_PREFIX "%s.weight", nb_spec_head_name(a->model->spec));
    for (int i = 0; i < a->n_params && st == NB_OK; i++) {
        const nb_tensor *p = &a->params[i];
        int64_t turned[2] = {p->d[1], p->d[0]};
        st = nb_st_write_declare(w, p->name, NB_F32, p->n_dims, nb_adapter_is_turned(a, p) ? turned : p->d);
    }
    if (head && st == NB_OK) st = nb_st_write_declare(w, head_name, NB_F32, 2, head->d);
    for (int i = 0; i < a->n_params && st == NB_OK; i++) st = put_param(a, w, &a->params[i], a->params[i].name);
    if (head && st == NB_OK) st = put_param(a, w, head, head_name);
    free(head_name);
    if (st == NB_OK) return nb_st_write_end(w);
    nb_st_write_abort(w);
    return st;
}

static nb_status put_card(const nb_adapter *a, const char *path, const json_t *manifest) {
    nb_text t = {0};
    nb_text_printf(&t, "---\nbase_model: %s\nlibrary_name: peft\ntags:\n- lora\n- nibble\n---\n\n# LoRA adapter\n\n",
                   a->model->base->dir);
    nb_text_printf(
        &t,
        "Trained by nibble %s on `%s`.\n\n| | |\n|---|---|\n| rank | %lld |\n| alpha | %g%s |\n| dropout | %g |\n"
        "| modules | %d |\n| parameters | %lld |\n",
        NB_VERSION, a->model->base->dir, (long long)a->r, a->alpha, a->rslora ? " (rsLoRA)" : "", a->dropout,
        a->n_attached, (long long)nb_adapter_size(a));
    const nb_base *b = a->model->base;
    nb_text_printf(&t, "| base in 4 bits | %s |\n", b->quantized ? "NF4" : b->in_blocks ? nb_base_format(b) : "no");
    if (a->dora) nb_text_puts(&t, "| magnitudes | DoRA |\n");
    for (int i = 0; i < a->n_saved; i++) nb_text_printf(&t, "| trained whole | %s |\n", a->saved[i]);
    if (a->rows.n)
        nb_text_printf(&t, "| added tokens | %lld |\n| vocabulary | %lld |\n", (long long)a->rows.n,
                       (long long)a->model->spec->vocab);
    const json_t *result = json_object_get(manifest, "held_out");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)result, key, value)
        nb_text_printf(&t, "| held-out %s | %.6g |\n", key, json_number_value(value));
    nb_text_printf(
        &t,
        "\nLoad it with PEFT (`PeftModel.from_pretrained(base, \"DIR\")`) or with "
        "`nibble generate --base BASE --adapter DIR`.\n"
        "`nibble_manifest.json` records the base's sha256, the data's, and the configuration.\n");
    nb_status st = nb_file_write(path, t.s, t.n);
    nb_text_free(&t);
    return st;
}

int64_t nb_adapter_size(const nb_adapter *a) {
    int64_t n = 0;
    for (int i = 0; i < a->n_params; i++) n += nb_tensor_size(&a->params[i]);
    return n;
}

/* A Jinja template of the run's own stands in the manifest as text. */
static nb_status put_template(const json_t *manifest, const char *dir) {
    const char *jinja = json_string_value(json_object_get(manifest, "chat_template"));
    if (!jinja || !(strstr(jinja, "{{") || strstr(jinja, "{%"))) return NB_OK;
    char *path = nb_path_join(dir, "chat_template.jinja");
    nb_status st = nb_file_write(path, jinja, strlen(jinja));
    free(path);
    return st;
}

nb_status nb_adapter_save(const nb_adapter *a, const char *dir, const json_t *manifest, const nb_tokenizer *own) {
    char *tmp = nb_asprintf("%s.tmp", dir), *weights = nb_path_join(tmp, "adapter_model.safetensors");
    char *config = nb_path_join(tmp, "adapter_config.json"), *card = nb_path_join(tmp, "README.md");
    char *record = nb_path_join(tmp, "nibble_manifest.json");
    json_t *c = adapter_config(a);
    nb_status st;
    NB_GO(st, nb_remove_tree(tmp), done);
    NB_GO(st, nb_mkdirs(tmp), done);
    NB_GO(st, put_params(a, weights), done);
    NB_GO(st, nb_json_save(config, c), done);
    NB_GO(st, put_card(a, card, manifest), done);
    if (manifest) NB_GO(st, nb_json_save(record, manifest), done);
    if (own) NB_GO(st, nb_tokenizer_save(own, tmp), done);
    NB_GO(st, put_template(manifest, tmp), done);
    st = nb_replace_dir(tmp, dir);
done:
    if (st != NB_OK) nb_remove_tree(tmp);
    json_decref(c);
    free(tmp), free(weights), free(config), free(card), free(record);
    return st;
}
