/* PEFT's adapter folders: adapter_config.json and adapter_model.safetensors, out and in.
 * Format: shared by Hugging Face PEFT; key names as of version 0.10 and later. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/safetensors.h"

static const char prefix[] = "base_model.model.";

/* ---- folders ---- */

static const char *const small_files[] = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
};

nb_status nb_copy_model_files(const char *from, const char *to) {
    nb_status st = NB_OK;
    for (int i = 0; i < NB_LEN(small_files) && st == NB_OK; i++) {
        char *src = nb_path_join(from, small_files[i]), *dst = nb_path_join(to, small_files[i]);
        if (nb_file_exists(src)) st = nb_file_copy(src, dst);
        free(src);
        free(dst);
    }
    return st;
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
    static const char *const nulls[] = {"auto_mapping", "layers_pattern", "layers_to_transform", "modules_to_save",
                                        "revision"};
    for (int i = 0; i < NB_LEN(nulls); i++) json_object_set_new(c, nulls[i], json_null());
    if (a->rows.n) json_object_set_new(c, "trainable_token_indices", token_indices(a));
    return c;
}

static nb_status put_params(const nb_adapter *a, const char *path) {
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w;
    nb_status st = nb_st_write_begin(&w, path, meta);
    json_decref(meta);
    if (st != NB_OK) return st;
    for (int i = 0; i < a->n_params && st == NB_OK; i++)
        st = nb_st_write_declare(w, a->params[i].name, NB_F32, a->params[i].n_dims, a->params[i].d);
    for (int i = 0; i < a->n_params && st == NB_OK; i++) {
        size_t bytes = (size_t)nb_tensor_size(&a->params[i]) * sizeof(float);
        float *host = nb_malloc(bytes);
        st = a->dev->be->get(a->dev, host, a->params[i].data, bytes);
        if (st == NB_OK) st = nb_st_write_data(w, a->params[i].name, host, bytes);
        free(host);
    }
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
    nb_text_printf(&t, "| base in 4 bits | %s |\n", a->model->base->quantized ? "NF4" : "no");
    if (a->dora) nb_text_puts(&t, "| magnitudes | DoRA |\n");
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

/* ---- in ---- */

/* Keys that change what an adapter computes and that nibble does not implement: refused unless off. */
static const char *const unsupported[] = {
    "use_qalora", "alora_invocation_tokens", "layer_replication", "target_parameters", "arrow_config",
    "use_bdlora", "kasa_config", "velora_config", "monteclora_config", "lora_bias", "modules_to_save",
    "megatron_config", "exclude_modules",
};

static bool is_off(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) || (json_is_object(v) && !json_object_size(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_string(v) && !*json_string_value(v));
}

static nb_status read_config(nb_adapter *a, const json_t *c, const char *path) {
    const char *type = "", *bias = "none";
    NB_TRY(nb_json_str(c, "peft_type", &type, path));
    if (strcmp(type, "LORA") != 0)
        return nb_fail(NB_EUNSUPPORTED, "%s: peft_type \"%s\": only LORA adapters are read", path, type);
    NB_TRY(nb_json_str(c, "bias", &bias, path));
    if (strcmp(bias, "none") != 0)
        return nb_fail(NB_EUNSUPPORTED, "%s: bias \"%s\": trained biases are not supported", path, bias);
    for (int i = 0; i < NB_LEN(unsupported); i++)
        if (!is_off(json_object_get(c, unsupported[i])))
            return nb_fail(NB_EUNSUPPORTED, "%s: \"%s\" is set, which changes the adapter and is not supported", path,
                           unsupported[i]);
    a->r = 8;
    a->alpha = 8;
    NB_TRY(nb_json_int(c, "r", &a->r, path));
    NB_TRY(nb_json_real(c, "lora_alpha", &a->alpha, path));
    NB_TRY(nb_json_real(c, "lora_dropout", &a->dropout, path));
    NB_TRY(nb_json_bool(c, "use_rslora", &a->rslora, path));
    NB_TRY(nb_json_bool(c, "use_dora", &a->dora, path));
    if (a->r < 1 || a->r > 65536) return nb_fail(NB_EINPUT, "%s: r = %lld is not a rank", path, (long long)a->r);
    return NB_OK;
}

/* "base_model.model.X.lora_A[.default].weight" for module X -> true. */
static const nb_st_tensor *lora_tensor(const nb_st *s, const char *module, const char *which) {
    char *name = nb_asprintf("%s%s.%s.weight", prefix, module, which);
    const nb_st_tensor *t = nb_st_find(s, name);
    free(name);
    if (t) return t;
    name = nb_asprintf("%s%s.%s.default.weight", prefix, module, which);
    t = nb_st_find(s, name);
    free(name);
    return t;
}

/* Written without .weight, as it was in memory. */
static const nb_st_tensor *magnitude_tensor(const nb_st *s, const char *module) {
    char *name = nb_asprintf("%s%s.lora_magnitude_vector", prefix, module);
    const nb_st_tensor *t = nb_st_find(s, name);
    free(name);
    return t ? t : lora_tensor(s, module, "lora_magnitude_vector");
}

static const nb_st_tensor *rows_tensor(const nb_st *s, const char *module) {
    char *name = nb_asprintf("%s%s.token_adapter.trainable_tokens_delta", prefix, module);
    const nb_st_tensor *t = nb_st_find(s, name);
    free(name);
    return t;
}

typedef struct loader {
    nb_adapter *a;
    const nb_st *s;
    const char *path;
    const nb_st_tensor **from; /* per parameter */
    int n_used;
    nb_pairs ranks, alphas;
    nb_status st;
} loader;

static void take(loader *l, const nb_st_tensor *t) {
    l->from[l->n_used++] = t;
}

static void load_linear(nb_linear *lin, int64_t layer, void *arg) {
    loader *l = arg;
    if (l->st != NB_OK) return;
    const char *module = lin->base->name;
    const nb_st_tensor *A = lora_tensor(l->s, module, "lora_A"), *B = lora_tensor(l->s, module, "lora_B");
    if (!A && !B) return;
    if (layer < 0) {
        l->st = nb_fail(NB_EUNSUPPORTED, "%s: has an adapter on the output head, %s, which is not supported", l->path,
                        module);
        return;
    }
    const nb_weight *w = &lin->base->w;
    if (!A || !B) {
        l->st = nb_fail(NB_EINPUT, "%s: %s has lora_%c but not its other half", l->path, module, A ? 'A' : 'B');
        return;
    }
    double rank = (double)l->a->r, alpha = l->a->alpha;
    l->st = nb_pattern_find(&l->ranks, "rank_pattern", module, &rank, NULL);
    if (l->st == NB_OK) l->st = nb_pattern_find(&l->alphas, "alpha_pattern", module, &alpha, NULL);
    if (l->st != NB_OK) return;
    int64_t r = A->n_dims == 2 ? A->d[0] : 0;
    if (A->n_dims != 2 || B->n_dims != 2 || (double)r != rank || A->d[1] != w->cols || B->d[0] != w->rows ||
        B->d[1] != r) {
        l->st =
            nb_fail(NB_EINPUT,
                    "%s: %s: A [%lld,%lld] and B [%lld,%lld] do not fit the base's [%lld,%lld] with r = %g: this is "
                    "an adapter for another base model",
                    l->path, module, (long long)A->d[0], (long long)A->d[1], (long long)B->d[0], (long long)B->d[1],
                    (long long)w->rows, (long long)w->cols, rank);
        return;
    }
    const nb_st_tensor *magnitude = l->a->dora ? magnitude_tensor(l->s, module) : NULL;
    if (l->a->dora && (!magnitude || magnitude->n_dims != 1 || magnitude->d[0] != w->rows)) {
        l->st = nb_fail(NB_EINPUT, "%s: %s has no lora_magnitude_vector of %lld", l->path, module, (long long)w->rows);
        return;
    }
    nb_adapter_attach_lora(l->a, lin, r, alpha);
    take(l, A);
    take(l, B);
    if (magnitude) take(l, magnitude);
}

static const json_t *row_ids(const json_t *config) {
    const json_t *ids = json_object_get(config, "trainable_token_indices");
    return json_is_object(ids) ? json_object_get(ids, "embed_tokens") : ids;
}

nb_status nb_adapter_rows_beyond(const char *dir, int64_t vocab, int64_t *n) {
    enum { MOST = 65536 };
    char *path = nb_path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    *n = 0;
    nb_status st = nb_file_exists(path) ? nb_json_load(path, &config) : NB_OK;
    const json_t *ids = row_ids(config);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int64_t id = json_integer_value(json_array_get(ids, i));
        if (id >= vocab + *n) *n = id + 1 - vocab;
    }
    if (st == NB_OK && *n > MOST)
        st = nb_fail(NB_EINPUT, "%s: trainable_token_indices go %lld beyond the base's %lld tokens: this is an adapter "
                     "for another base model", path, (long long)*n, (long long)vocab);
    json_decref(config);
    free(path);
    return st;
}

bool nb_adapter_has_tokenizer(const char *dir) {
    char *path = nb_path_join(dir, "tokenizer_config.json");
    bool yes = nb_file_exists(path);
    free(path);
    return yes;
}

static nb_status load_rows(loader *l, const json_t *config) {
    const nb_spec *spec = l->a->model->spec;
    const nb_st_tensor *embed = rows_tensor(l->s, nb_spec_embed_name(spec)),
                       *head = rows_tensor(l->s, nb_spec_head_name(spec));
    const json_t *ids = row_ids(config);
    if (is_off(ids)) return NB_OK;
    size_t n = json_array_size(ids);
    bool shapes = embed && embed->n_dims == 2 && embed->d[0] == (int64_t)n && embed->d[1] == spec->hidden;
    if (!spec->tied) shapes &= head && head->n_dims == 2 && head->d[0] == (int64_t)n && head->d[1] == spec->hidden;
    if (!n || !shapes)
        return nb_fail(NB_EINPUT, "%s: the rows of trainable_token_indices are missing or do not fit this base",
                       l->path);
    int32_t *id = nb_calloc(n, sizeof *id);
    nb_status st = NB_OK;
    for (size_t i = 0; i < n && st == NB_OK; i++) {
        json_int_t v = json_integer_value(json_array_get(ids, i));
        id[i] = (int32_t)v;
        if (!json_is_integer(json_array_get(ids, i)) || v < 0 || v >= spec->vocab || (i && v <= id[i - 1]))
            st = nb_fail(NB_EINPUT, "%s: trainable_token_indices must be ascending and below %lld", l->path,
                         (long long)spec->vocab);
    }
    if (st == NB_OK) {
        nb_adapter_attach_rows(l->a, id, (int64_t)n);
        take(l, embed);
        if (!spec->tied) take(l, head);
    }
    free(id);
    return st;
}

static nb_status fill(loader *l, bool trainable) {
    nb_adapter *a = l->a;
    if (!a->n_params) return nb_fail(NB_EINPUT, "%s: no tensor belongs to this base model", l->path);
    NB_TRY(nb_adapter_place(a, trainable));
    for (int i = 0; i < a->n_params; i++) {
        int64_t n = nb_tensor_size(&a->params[i]);
        float *host = nb_malloc((size_t)n * sizeof *host);
        nb_st_read_f32(l->from[i], host, 0, n);
        nb_status st = NB_OK;
        for (int64_t j = 0; j < n && st == NB_OK; j++)
            if (!isfinite(host[j]))
                st = nb_fail(NB_ENUMERIC, "%s: %s holds NaN or infinity", l->path, l->from[i]->name);
        if (st == NB_OK) st = a->dev->be->put(a->dev, a->params[i].data, host, (size_t)n * sizeof *host);
        free(host);
        NB_TRY(st);
    }
    return NB_OK;
}

static nb_status nothing_left(const loader *l) {
    for (int i = 0; i < l->s->n_tensors; i++) {
        bool used = false;
        for (int j = 0; j < l->n_used; j++) used |= l->from[j] == &l->s->tensors[i];
        if (!used)
            return nb_fail(
                NB_EINPUT,
                "%s: tensor %s has no place in this base model: the adapter is for another base, or of a kind "
                "nibble does not read",
                l->path, l->s->tensors[i].name);
    }
    return NB_OK;
}

static nb_status same_base(const nb_adapter *a, const char *dir) {
    const char *trained = NULL;
    bool pre = false;
    if (!a->manifest) return NB_OK;
    NB_TRY(nb_json_str(a->manifest, "base_sha256", &trained, dir));
    NB_TRY(nb_json_bool(a->manifest, "base_prequantized", &pre, dir));
    const nb_base *b = a->model->base;
    if (!trained || !strcmp(trained, b->sha256)) return NB_OK;
    if (pre != b->prequantized) {
        nb_warn("%s was trained on a base with sha256 %.12s..., this one (%.12s...) is stored differently", dir,
                trained, b->sha256);
        return NB_OK;
    }
    return nb_fail(NB_EINPUT,
                   "%s: trained on a base with sha256 %.12s..., but %s has %.12s...: give the base it was trained on",
                   dir, trained, b->dir, b->sha256);
}

nb_status nb_adapter_manifest(const char *dir, json_t **manifest) {
    *manifest = NULL;
    char *path = nb_path_join(dir, "nibble_manifest.json");
    nb_status st = nb_file_exists(path) ? nb_json_load(path, manifest) : NB_OK;
    free(path);
    return st;
}

static nb_status refuse_pickle(const char *dir) {
    char *bin = nb_path_join(dir, "adapter_model.bin"), *st_path = nb_path_join(dir, "adapter_model.safetensors");
    bool only_bin = nb_file_exists(bin) && !nb_file_exists(st_path);
    free(bin), free(st_path);
    return only_bin ? nb_fail(NB_EUNSUPPORTED,
                              "%s: holds adapter_model.bin, a pickle that could run code: save it again as safetensors "
                              "(model.save_pretrained(DIR, safe_serialization=True))",
                              dir)
                    : NB_OK;
}

nb_status nb_adapter_load(nb_adapter **out, nb_model *m, const char *dir, bool trainable) {
    char *config_path = nb_path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    nb_st s = {0};
    int max_params = 3 * NB_SLOTS * (int)m->spec->layers + 4;
    nb_adapter *a = nb_adapter_alloc(m, max_params);
    loader l = {.a = a, .s = &s, .path = dir, .from = nb_calloc((size_t)max_params, sizeof *l.from)};
    nb_status st;
    if (!nb_is_dir(dir)) {
        st = nb_fail(NB_EINPUT,
                     "%s: no such adapter folder (it should hold adapter_config.json and adapter_model.safetensors)",
                     dir);
        goto done;
    }
    NB_GO(st, nb_json_load(config_path, &config), done);
    NB_GO(st, read_config(a, config, config_path), done);
    NB_GO(st, refuse_pickle(dir), done);
    NB_GO(st, nb_st_open_dir(&s, dir, "adapter_model"), done);
    NB_GO(st, nb_pattern_read(&l.ranks, config, "rank_pattern", config_path), done);
    NB_GO(st, nb_pattern_read(&l.alphas, config, "alpha_pattern", config_path), done);
    nb_model_each_linear(m, true, load_linear, &l);
    NB_GO(st, l.st, done);
    NB_GO(st, load_rows(&l, config), done);
    NB_GO(st, nothing_left(&l), done);
    NB_GO(st, fill(&l, trainable), done);
    if (a->dora) NB_GO(st, nb_dora_open(a, false), done);
    NB_GO(st, nb_adapter_manifest(dir, &a->manifest), done);
    NB_GO(st, same_base(a, dir), done);
    nb_adapter_finish_load(a);
    *out = a;
    a = NULL;
done:
    nb_adapter_free(a);
    json_decref(config);
    nb_st_close(&s);
    free(l.from);
    nb_pairs_free(&l.ranks), nb_pairs_free(&l.alphas);
    free(config_path);
    return st;
}
