/* PEFT's adapter folders, read: what was trained with PEFT, or written by peft.c. Whatever would change the result and
 * is not done here is refused by name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/safetensors.h"

/* Keys that change what an adapter computes and that nibble does not implement: refused unless off. */
static const char *const unsupported[] = {
    "use_qalora", "alora_invocation_tokens", "layer_replication", "target_parameters", "arrow_config",
    "use_bdlora", "kasa_config", "velora_config", "monteclora_config", "lora_bias", "megatron_config",
};

/* What an adapter begins with does not matter once it is trained, unless PEFT takes it out of the base's weights (or
 * brings other ones), in training and again whenever the adapter is loaded. */
static nb_status check_init(const json_t *init, const char *path) {
    static const char *const plain[] = {"gaussian", "eva", "orthogonal"};
    const char *name = json_string_value(init);
    if (!init || json_is_boolean(init) || json_is_null(init)) return NB_OK;
    for (int i = 0; name && i < NB_LEN(plain); i++)
        if (!strcmp(name, plain[i])) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED,
                   "%s: init_lora_weights \"%s\": such an adapter goes with base weights that PEFT changes when it loads it. "
                   "Convert it to a plain one: save_pretrained(DIR, path_initial_model_for_weight_conversion=...)",
                   path, name ? name : "?");
}

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
    NB_TRY(check_init(json_object_get(c, "init_lora_weights"), path));
    a->r = 8;
    a->alpha = 8;
    NB_TRY(nb_json_int(c, "r", &a->r, path));
    NB_TRY(nb_json_real(c, "lora_alpha", &a->alpha, path));
    NB_TRY(nb_json_real(c, "lora_dropout", &a->dropout, path));
    NB_TRY(nb_json_bool(c, "use_rslora", &a->rslora, path));
    NB_TRY(nb_json_bool(c, "use_dora", &a->dora, path));
    NB_TRY(nb_json_bool(c, "ensure_weight_tying", &a->tie, path));
    if (a->r < 1 || a->r > 65536) return nb_fail(NB_EINPUT, "%s: r = %lld is not a rank", path, (long long)a->r);
    return NB_OK;
}

/* "base_model.model.X.WHICH[.default][.weight]" for module X, as the file has it. */
static const nb_st_tensor *tensor_of(const nb_st *s, const char *module, const char *which) {
    static const char *const ends[] = {".weight", "", ".default.weight", ".default"};
    const nb_st_tensor *t = NULL;
    for (int i = 0; i < NB_LEN(ends) && !t; i++) {
        char *name = nb_asprintf("%s%s.%s%s", NB_PEFT_PREFIX, module, which, ends[i]);
        t = nb_st_find(s, name);
        free(name);
    }
    return t;
}

typedef struct loader {
    nb_adapter *a;
    const nb_st *s;
    const char *path;
    const nb_st_tensor **from; /* per parameter */
    int n_used;
    const nb_st_tensor *beside[4]; /* of the file, but of the base: nothing to load */
    int n_beside;
    nb_pairs ranks, alphas;
    nb_status st;
} loader;

static void take(loader *l, const nb_st_tensor *t) {
    l->from[l->n_used++] = t;
}

/* The two halves of module's adapter, for a base of `in` and `out` columns; lin NULL: the embedding. */
static nb_status load_pair(loader *l, nb_linear *lin, const char *module, const nb_st_tensor *A, const nb_st_tensor *B,
                           int64_t in, int64_t out) {
    if (!A || !B)
        return nb_fail(NB_EINPUT, "%s: %s has lora_%c but not its other half", l->path, module, A ? 'A' : 'B');
    double rank = (double)l->a->r, alpha = l->a->alpha;
    NB_TRY(nb_pattern_find(&l->ranks, "rank_pattern", module, &rank, NULL));
    NB_TRY(nb_pattern_find(&l->alphas, "alpha_pattern", module, &alpha, NULL));
    int64_t r = A->n_dims == 2 ? A->d[0] : 0;
    if (A->n_dims != 2 || B->n_dims != 2 || (double)r != rank || A->d[1] != in || B->d[0] != out || B->d[1] != r)
        return nb_fail(NB_EINPUT,
                       "%s: %s: A [%lld,%lld] and B [%lld,%lld] do not fit the base's [%lld,%lld] with r = %g: this is "
                       "an adapter for another base model",
                       l->path, module, (long long)A->d[0], (long long)A->d[1], (long long)B->d[0], (long long)B->d[1],
                       (long long)out, (long long)in, rank);
    const nb_st_tensor *magnitude = l->a->dora && lin ? tensor_of(l->s, module, "lora_magnitude_vector") : NULL;
    if (l->a->dora && lin && (!magnitude || magnitude->n_dims != 1 || magnitude->d[0] != out))
        return nb_fail(NB_EINPUT, "%s: %s has no lora_magnitude_vector of %lld", l->path, module, (long long)out);
    nb_adapter_attach_lora(l->a, lin, r, alpha);
    take(l, A);
    take(l, B);
    if (magnitude) take(l, magnitude);
    return NB_OK;
}

static void load_linear(nb_linear *lin, int64_t layer, void *arg) {
    (void)layer;
    loader *l = arg;
    const char *module = lin->base->name;
    const nb_st_tensor *A = tensor_of(l->s, module, "lora_A"), *B = tensor_of(l->s, module, "lora_B");
    if (l->st == NB_OK && (A || B)) l->st = load_pair(l, lin, module, A, B, lin->base->w.cols, lin->base->w.rows);
}

static nb_status load_embedding(loader *l) {
    const char *module = nb_spec_embed_name(l->a->model->spec);
    const nb_st_tensor *A = tensor_of(l->s, module, "lora_embedding_A");
    const nb_st_tensor *B = tensor_of(l->s, module, "lora_embedding_B");
    const nb_weight *w = &l->a->model->base->embed;
    return A || B ? load_pair(l, NULL, module, A, B, w->rows, w->cols) : NB_OK;
}

/* ---- modules saved whole ---- */

static const nb_st_tensor *tensor_named(const nb_st *s, const char *module, const char *rest) {
    char *name = nb_asprintf("%s%s.%s", NB_PEFT_PREFIX, module, rest);
    const nb_st_tensor *t = nb_st_find(s, name);
    free(name);
    return t;
}

static nb_status check_whole(const loader *l, const nb_module *m, const nb_st_tensor *weight,
                             const nb_st_tensor *bias) {
    bool fits = m->matrix ? weight->n_dims == 2 && weight->d[m->turned] == m->matrix->rows &&
                                weight->d[!m->turned] == m->matrix->cols
                          : weight->n_dims == 1 && weight->d[0] == m->n;
    if (m->bias) fits &= bias && bias->n_dims == 1 && bias->d[0] == m->n;
    if (fits) return NB_OK;
    return nb_fail(NB_EINPUT, "%s: %s does not fit the base's module of this name: this is an adapter for another base model",
                   l->path, weight->name);
}

static void keep_name(nb_adapter *a, const char *name) {
    a->saved = nb_realloc(a->saved, (size_t)a->n_saved + 1, sizeof *a->saved);
    a->saved[a->n_saved++] = nb_strdup(name);
}

/* Whatever the file has whole takes the base's place: PEFT also saves an embedding that was resized. */
static void load_whole(const nb_module *m, void *arg) {
    loader *l = arg;
    if (l->st != NB_OK) return;
    bool named = nb_saves_module(l->a->saved, l->a->n_saved, m->path, NULL);
    const nb_st_tensor *weight = tensor_named(l->s, m->path, "weight"), *bias = tensor_named(l->s, m->path, "bias");
    if (l->a->tie && l->a->model->spec->tied && m->weight_at == &l->a->model->head.weight) {
        nb_adapter_tie_head(l->a);
        if (weight) l->beside[l->n_beside++] = weight;
        return;
    }
    if (!weight && named)
        l->st = nb_fail(NB_EINPUT, "%s: has no " NB_PEFT_PREFIX "%s.weight, which modules_to_save means", l->path,
                        m->path);
    if (!weight) return;
    l->st = check_whole(l, m, weight, bias);
    if (l->st != NB_OK) return;
    if (!named) keep_name(l->a, m->path);
    nb_adapter_attach_whole(l->a, m);
    take(l, weight);
    if (m->bias) take(l, bias);
}

/* PEFT saves an adapted embedding's or head's own weights too. They must be the base's, but for rounding. */
static nb_status check_beside(loader *l, const char *module, const char *which, const nb_weight *w, const float *bias) {
    const nb_st_tensor *t = tensor_named(l->s, module, which);
    if (!t) return NB_OK;
    int64_t rows = bias ? 1 : w->rows, cols = bias ? w->rows : w->cols;
    bool same = bias ? t->n_dims == 1 && t->d[0] == cols : t->n_dims == 2 && t->d[0] == rows && t->d[1] == cols;
    float *here = nb_malloc((size_t)cols * sizeof *here), *there = nb_malloc((size_t)cols * sizeof *there);
    for (int64_t i = 0; i < rows && same; i++) {
        if (!bias) nb_weight_decode(here, cols, w, i, 1, 0, cols);
        nb_st_read_f32(t, there, i * cols, cols);
        for (int64_t c = 0; c < cols && same; c++) {
            float x = bias ? bias[c] : here[c];
            same = fabsf(x - there[c]) <= fabsf(x) / 128;
        }
    }
    free(here), free(there);
    l->beside[l->n_beside++] = t;
    if (same) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: %s is not what this base has: the adapter goes with other weights of %s", l->path,
                   t->name, module);
}

static nb_status load_beside(loader *l) {
    const nb_base *b = l->a->model->base;
    const char *embed = nb_spec_embed_name(&b->spec), *head = nb_spec_head_name(&b->spec);
    NB_TRY(check_beside(l, embed, "base_layer.weight", &b->embed, NULL));
    NB_TRY(check_beside(l, head, "base_layer.weight", nb_base_stored_head(b), NULL));
    return b->head.bias ? check_beside(l, head, "base_layer.bias", &b->head.w, b->head.bias) : NB_OK;
}

static nb_status read_saved(nb_adapter *a, const json_t *config, const char *path) {
    const json_t *list = json_object_get(config, "modules_to_save");
    if (!is_off(list) && !json_is_array(list)) return nb_fail(NB_EINPUT, "%s: modules_to_save is not a list", path);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name || !*name) return nb_fail(NB_EINPUT, "%s: modules_to_save holds something other than names", path);
        keep_name(a, name);
    }
    return NB_OK;
}

/* ---- added tokens ---- */

static const json_t *row_ids(const json_t *config) {
    const json_t *ids = json_object_get(config, "trainable_token_indices");
    return json_is_object(ids) ? json_object_get(ids, "embed_tokens") : ids;
}

/* Rows of an embedding or head that is saved whole, or of an adapter for one. */
static nb_status whole_rows(const char *dir, const nb_spec *spec, int64_t *rows) {
    char *path = nb_path_join(dir, "adapter_model.safetensors");
    nb_st s = {0};
    nb_status st = nb_file_exists(path) ? nb_st_open_file(&s, path) : NB_OK;
    const char *modules[] = {nb_spec_embed_name(spec), nb_spec_head_name(spec)};
    for (int i = 0; i < 2 && s.n_tensors; i++) {
        const nb_st_tensor *t = tensor_named(&s, modules[i], "weight");
        if (t && t->n_dims == 2 && t->d[0] > *rows) *rows = t->d[0];
    }
    if (st == NB_OK && s.n_tensors) nb_st_close(&s);
    free(path);
    return st;
}

nb_status nb_adapter_rows_beyond(const char *dir, const nb_spec *spec, int64_t *n) {
    enum { MOST = 65536 };
    char *path = nb_path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    int64_t rows = spec->vocab;
    nb_status st = nb_file_exists(path) ? nb_json_load(path, &config) : NB_OK;
    const json_t *ids = row_ids(config);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int64_t id = json_integer_value(json_array_get(ids, i));
        if (id >= rows) rows = id + 1;
    }
    if (st == NB_OK) st = whole_rows(dir, spec, &rows);
    *n = rows - spec->vocab;
    if (st == NB_OK && *n > MOST)
        st = nb_fail(NB_EINPUT,
                     "%s: has rows for %lld tokens beyond the base's %lld: this is an adapter for another base model", path,
                     (long long)*n, (long long)spec->vocab);
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
    static const char rows[] = "token_adapter.trainable_tokens_delta";
    const nb_st_tensor *embed = tensor_named(l->s, nb_spec_embed_name(spec), rows),
                       *head = tensor_named(l->s, nb_spec_head_name(spec), rows);
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

static nb_status fill_one(const loader *l, const nb_tensor *p, const nb_st_tensor *t) {
    nb_adapter *a = l->a;
    int64_t n = nb_tensor_size(p);
    bool turned = nb_adapter_is_turned(a, p);
    float *read = nb_malloc((size_t)n * sizeof *read), *host = turned ? nb_malloc((size_t)n * sizeof *host) : read;
    nb_st_read_f32(t, read, 0, n);
    if (turned) nb_turn(host, read, p->d[1], p->d[0]);
    nb_status st = NB_OK;
    for (int64_t j = 0; j < n && st == NB_OK; j++)
        if (!isfinite(host[j])) st = nb_fail(NB_ENUMERIC, "%s: %s holds NaN or infinity", l->path, t->name);
    if (st == NB_OK) st = a->dev->be->put(a->dev, p->data, host, (size_t)n * sizeof *host);
    if (turned) free(host);
    free(read);
    return st;
}

static nb_status fill(loader *l, bool trainable) {
    nb_adapter *a = l->a;
    if (!a->n_params) return nb_fail(NB_EINPUT, "%s: no tensor belongs to this base model", l->path);
    NB_TRY(nb_adapter_place(a, trainable));
    for (int i = 0; i < a->n_params; i++) NB_TRY(fill_one(l, &a->params[i], l->from[i]));
    return NB_OK;
}

static nb_status nothing_left(const loader *l) {
    bool *used = nb_calloc((size_t)l->s->n_tensors + 1, sizeof *used);
    int i = 0;
    for (int j = 0; j < l->n_used; j++) used[l->from[j] - l->s->tensors] = true;
    for (int j = 0; j < l->n_beside; j++) used[l->beside[j] - l->s->tensors] = true;
    while (i < l->s->n_tensors && used[i]) i++;
    free(used);
    return i == l->s->n_tensors ? NB_OK
                                : nb_fail(NB_EINPUT,
                                          "%s: tensor %s has no place in this base model: the adapter is for another "
                                          "base, or of a kind nibble does not read",
                                          l->path, l->s->tensors[i].name);
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

/* The most a module can have: its own weights, or an adapter. */
static void count_params(const nb_module *m, void *arg) {
    (void)m;
    *(int *)arg += 3;
}

nb_status nb_adapter_load(nb_adapter **out, nb_model *m, const char *dir, bool trainable) {
    char *config_path = nb_path_join(dir, "adapter_config.json");
    json_t *config = NULL;
    nb_st s = {0};
    int max_params = 0;
    nb_modules_each(m, count_params, &max_params);
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
    NB_GO(st, read_saved(a, config, config_path), done);
    NB_GO(st, load_embedding(&l), done);
    nb_model_each_linear(m, true, load_linear, &l);
    nb_modules_each(m, load_whole, &l);
    NB_GO(st, l.st, done);
    NB_GO(st, load_beside(&l), done);
    NB_GO(st, load_rows(&l, config), done);
    NB_GO(st, nb_adapter_check_parts(a), done);
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
