#include "model/weights.h"

#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/nearest.h"
#include "model/base.h"
#include "model/gguf_base.h"

/* The first formats are the dtypes of the same name, in the same order. */
_Static_assert((int)NB_FMT_F32 == (int)NB_F32 && (int)NB_FMT_BF16 == (int)NB_BF16 && (int)NB_FMT_F16 == (int)NB_F16,
               "a dtype converts to its format");

nb_status nb_base_buffer(nb_base *b, void **out, size_t bytes, const char *what) {
    struct nb_base_store *s = b->store;
    NB_TRY(nb_big_alloc(out, bytes, what));
    NB_GROW(s->bufs, s->n_bufs, s->cap);
    s->bufs[s->n_bufs].p = *out;
    s->bufs[s->n_bufs++].bytes = bytes;
    return NB_OK;
}

nb_status nb_base_data(nb_base *b, const nb_st_tensor *t, const void **out) {
    *out = t->data;
    if ((uintptr_t)t->data % (uintptr_t)nb_dtype_size(t->dtype) == 0) return NB_OK;
    void *copy;
    NB_TRY(nb_base_buffer(b, &copy, t->bytes, t->name));
    memcpy(copy, t->data, t->bytes);
    *out = copy;
    return NB_OK;
}

/* The same but for numbers: the same module of another layer. */
static bool is_sibling(const char *x, const char *y) {
    for (;;) {
        x += strspn(x, "0123456789");
        y += strspn(y, "0123456789");
        if (*x != *y) return false;
        if (!*x) return true;
        x++, y++;
    }
}

/* What a missing name may have been meant to be: the nearest, else one that ends alike for at least half of it. */
static const char *guess(const nb_st *s, const char *name) {
    const char **names = nb_calloc((size_t)s->n_tensors + 1, sizeof *names);
    for (int i = 0; i < s->n_tensors; i++)
        if (!is_sibling(s->tensors[i].name, name)) names[i] = s->tensors[i].name;
    const char *best = nb_nearest(name, names, s->n_tensors);
    size_t len = strlen(name), best_tail = best ? len : len / 2;
    for (int i = 0; i < s->n_tensors; i++) {
        size_t n = names[i] ? strlen(names[i]) : 0, tail = 0;
        while (tail < n && tail < len && names[i][n - 1 - tail] == name[len - 1 - tail]) tail++;
        if (tail > best_tail) best = names[i], best_tail = tail;
    }
    free(names);
    return best;
}

static void shape_text(char out[160], int n_dims, const int64_t *d) {
    int n = snprintf(out, 160, "[");
    for (int i = 0; i < n_dims; i++)
        n += snprintf(out + n, 160 - (size_t)n, "%s%lld", i ? ", " : "", (long long)d[i]);
    snprintf(out + n, 160 - (size_t)n, "]");
}

nb_status nb_base_find(nb_base *b, const nb_st *s, const char *name, int64_t d0, int64_t d1,
                       const nb_st_tensor **out) {
    const nb_st_tensor *t = *out = nb_st_find(s, name);
    if (!t) {
        const char *near = guess(s, name);
        return nb_fail(NB_EINPUT, "%s: has no tensor \"%s\"%s%.200s%s; the weights do not belong to this config.json",
                       s->n_files == 1 ? s->files[0].path : b->dir, name, near ? " (nearest: \"" : "",
                       near ? near : "", near ? "\")" : "");
    }
    if (s == &b->store->st) b->store->used[t - s->tensors] = true;
    int64_t want[2] = {d0, d1};
    int n = d1 ? 2 : 1;
    if (t->n_dims != n || t->d[0] != d0 || (d1 && t->d[1] != d1)) {
        char have[160], need[160];
        shape_text(have, t->n_dims, t->d);
        shape_text(need, n, want);
        return nb_fail(NB_ESHAPE, "%s: tensor \"%s\" has shape %s, config.json says %s", s->files[t->shard].path, name,
                       have, need);
    }
    return NB_OK;
}

nb_status nb_base_check_float(const nb_st *s, const nb_st_tensor *t) {
    if (t->dtype <= NB_F16) return NB_OK;
    return nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%s\" is %s; nibble computes with F32, BF16 and F16 weights",
                   s->files[t->shard].path, t->name, nb_st_dtype_name(t->dtype));
}

/* A small vector (norm, bias) as f32. */
static nb_status vector(nb_base *b, const float **out, const char *module, const char *what, int64_t n) {
    const nb_st *s = &b->store->st;
    char *name = nb_asprintf("%s.%s", module, what);
    const nb_st_tensor *t;
    void *p;
    nb_status st;
    NB_GO(st, nb_base_find(b, s, name, n, 0, &t), done);
    NB_GO(st, nb_base_check_float(s, t), done);
    NB_GO(st, nb_base_buffer(b, &p, (size_t)n * sizeof(float), name), done);
    nb_st_read_f32(t, p, 0, n);
    *out = p;
done:
    free(name);
    return st;
}

/* MODULE.weight as it lies in the file: floats, [cols, rows] if turned, or 4 bits as bitsandbytes saves them (which
 * turns first). */
static nb_status matrix(nb_base *b, nb_weight *w, const char *module, int64_t rows, int64_t cols, bool turned) {
    const nb_st *s = &b->store->st;
    bool found;
    NB_TRY(nb_nf4_read(b, s, w, module, rows, cols, &found));
    if (found) {
        b->prequantized = b->quantized = true;
        b->double_quant = w->nf4.absmax_u8 != NULL;
        return NB_OK;
    }
    char *name = nb_asprintf("%s.weight", module);
    const nb_st_tensor *t;
    const void *data;
    nb_status st;
    NB_GO(st, nb_base_find(b, s, name, turned ? cols : rows, turned ? rows : cols, &t), done);
    NB_GO(st, nb_base_check_float(s, t), done);
    NB_GO(st, nb_base_data(b, t, &data), done);
    *w = (nb_weight){.format = (nb_format)t->dtype, .rows = rows, .cols = cols, .data = data};
done:
    free(name);
    return st;
}

nb_status nb_base_ones(nb_base *b, const float **out, int64_t n) {
    float *ones;
    NB_TRY(nb_base_buffer(b, (void **)&ones, (size_t)n * sizeof *ones, "norms"));
    for (int64_t i = 0; i < n; i++) ones[i] = 1;
    *out = ones;
    return NB_OK;
}

/* Weight and bias of a norm; those of one without tensors are ones. */
static nb_status norm_vectors(nb_base *b, const float **weight, const float **bias, const char *module, int64_t n) {
    if (b->spec.bare_norm) return nb_base_ones(b, weight, n);
    NB_TRY(vector(b, weight, module, "weight", n));
    return b->spec.norm_kind == NB_NORM_LAYER ? vector(b, bias, module, "bias", n) : NB_OK;
}

static nb_status load_layer(nb_base *b, int64_t l) {
    const nb_spec *s = &b->spec;
    nb_base_layer *y = &b->layer[l];
    int64_t rows, cols;
    for (nb_norm_slot k = 0; k < NB_NORMS; k++) {
        char *module = nb_spec_norm_name(s, l, k);
        if (!module) continue;
        nb_status st = norm_vectors(b, &y->norm[k], &y->norm_bias[k], module, nb_spec_norm_size(s, k));
        free(module);
        NB_TRY(st);
    }
    for (int k = 0; k < nb_spec_slots(s); k++) {
        nb_base_linear *lin = &y->lin[k];
        nb_spec_linear_shape(s, l, k, &rows, &cols);
        if (!rows) continue;
        NB_TRY(matrix(b, &lin->w, lin->name, rows, cols, s->stored_transposed));
        lin->as_stored = s->stored_transposed && lin->w.format != NB_FMT_NF4;
        if (nb_spec_linear_bias(s, k)) NB_TRY(vector(b, &lin->bias, lin->name, "bias", rows));
    }
    return NB_OK;
}

bool nb_base_is_derived(const nb_st_tensor *t) {
    const char *end = strrchr(t->name, '.');
    return strstr(t->name, "rotary_emb.inv_freq") || strstr(t->name, "masked_bias") ||
           (t->n_dims == 4 && end && !strcmp(end, ".bias"));
}

/* Says once which tensors nothing asked for. Derived tables, and the head of a tied model, are known. */
static void warn_unused(const nb_base *b) {
    const nb_st *s = &b->store->st;
    nb_text list = {0};
    char *head = nb_asprintf("%s.weight", b->head.name);
    int n = 0;
    for (int i = 0; i < s->n_tensors; i++) {
        const char *name = s->tensors[i].name;
        if (b->store->used[i] || nb_base_is_derived(&s->tensors[i]) || (b->spec.tied && !strcmp(name, head))) continue;
        if (n++ < 5) nb_text_printf(&list, "%s%s", n > 1 ? ", " : "", name);
    }
    if (n) nb_warn("%s: %d tensor%s this architecture does not use: %s%s", b->dir, n, n == 1 ? "" : "s", list.s,
                   n > 5 ? ", ..." : "");
    nb_text_free(&list);
    free(head);
}

nb_status nb_base_open_files(nb_st *st, const nb_spec *s, const char *dir) {
    const char *embed = nb_spec_embed_name(s);
    char *prefix = nb_strndup(embed, (size_t)(strchr(embed, '.') - embed) + 1);
    char *whole = nb_asprintf("%s.weight", embed), *bare = nb_asprintf("%s.weight", embed + strlen(prefix));
    nb_status ok = nb_st_open_dir(st, dir, "model");
    if (ok == NB_OK && !nb_st_find(st, whole) && nb_st_find(st, bare)) {
        ok = nb_st_add_prefix(st, prefix, nb_spec_head_name(s));
        if (ok != NB_OK) nb_st_close(st);
    }
    free(prefix), free(whole), free(bare);
    return ok;
}

static bool has_no_weights(const char *dir) {
    static const char *const files[] = {"model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"};
    bool any = false;
    for (int i = 0; i < NB_LEN(files) && !any; i++) {
        char *path = nb_path_join(dir, files[i]);
        any = nb_file_exists(path);
        free(path);
    }
    return !any;
}

static nb_status open_weights(nb_base *b) {
    char *index = nb_path_join(b->dir, "model.safetensors.index.json");
    char *single = nb_path_join(b->dir, "model.safetensors"), *pickle = nb_path_join(b->dir, "pytorch_model.bin");
    nb_status st;
    if (nb_file_exists(index) || nb_file_exists(single)) st = nb_base_open_files(&b->store->st, &b->spec, b->dir);
    else if (nb_file_exists(pickle))
        st = nb_fail(NB_EUNSUPPORTED, "%s: pickled weights are not read; save the model as safetensors", pickle);
    else
        st = nb_fail(NB_EINPUT, "%s: has neither model.safetensors nor model.safetensors.index.json; fetch the weights",
                     b->dir);
    free(index);
    free(single);
    free(pickle);
    if (st == NB_OK) b->store->used = nb_calloc((size_t)b->store->st.n_tensors + 1, sizeof(bool));
    return st;
}

bool nb_base_is_quantized(const char *dir) {
    char *path = nb_path_join(dir, "config.json");
    json_t *c = NULL;
    bool is = nb_file_exists(path) && nb_json_load(path, &c) == NB_OK &&
              json_is_object(json_object_get(c, "quantization_config"));
    json_decref(c);
    free(path);
    return is;
}

/* Which quantized checkpoints we read: bitsandbytes' in 4 bits. The tensors themselves say the rest. */
static nb_status check_quantization_config(const nb_base *b) {
    char *path = nb_path_join(b->dir, "config.json");
    json_t *c;
    const char *method = "none";
    bool eight = false;
    nb_status st = nb_json_load(path, &c);
    const json_t *q = st == NB_OK ? json_object_get(c, "quantization_config") : NULL;
    if (st == NB_OK && json_is_object(q)) {
        st = nb_json_str(q, "quant_method", &method, path);
        if (st == NB_OK) st = nb_json_bool(q, "load_in_8bit", &eight, path);
        if (st == NB_OK && (strcmp(method, "bitsandbytes") != 0 || eight))
            st = nb_fail(NB_EUNSUPPORTED, "%s: the weights are quantized by \"%.40s\"%s; nibble reads bitsandbytes' "
                         "4-bit form and unquantized weights", path, method, eight ? " in 8 bits" : "");
    }
    json_decref(c);
    free(path);
    return st;
}

static nb_status load_files(nb_base *b) {
    const nb_spec *s = &b->spec;
    NB_TRY(check_quantization_config(b));
    NB_TRY(open_weights(b));
    NB_TRY(matrix(b, &b->embed, nb_spec_embed_name(s), s->vocab, s->hidden, false));
    if (s->learned_positions) NB_TRY(matrix(b, &b->positions, nb_spec_positions_name(s), s->context, s->hidden, false));
    if (s->tied) b->head.w = b->embed;
    else NB_TRY(matrix(b, &b->head.w, b->head.name, s->vocab, s->hidden, false));
    if (s->head_bias) NB_TRY(vector(b, &b->head.bias, b->head.name, "bias", s->vocab));
    NB_TRY(norm_vectors(b, &b->final_norm, &b->final_norm_bias, nb_spec_final_norm_name(s), s->hidden));
    for (int64_t l = 0; l < s->layers; l++) NB_TRY(load_layer(b, l));
    warn_unused(b);
    return NB_OK;
}

/* A base drawn anew is named by its config, its seed and how it is held. */
static nb_status reinit_sha256(nb_base *b, const nb_base_options *o) {
    char *path = nb_path_join(b->dir, "config.json");
    nb_hex config;
    nb_status st = nb_sha256_file(path, config);
    free(path);
    NB_TRY(st);
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add_str(&h, "reinit");
    nb_sha256_add_str(&h, config);
    nb_sha256_add(&h, &o->seed, sizeof o->seed);
    nb_sha256_add_str(&h, o->keep_f32 ? "f32" : "config");
    nb_sha256_close(&h, b->sha256);
    return NB_OK;
}

static nb_status fill(nb_base *b, const char *dir_or_name, const nb_base_options *o) {
    NB_TRY(nb_base_resolve(dir_or_name, &b->dir));
    NB_TRY(nb_spec_load(&b->spec, b->dir));
    b->is_gguf = nb_gguf_is(b->dir);
    nb_base_make_room(b);
    b->head.name = nb_strdup(nb_spec_head_name(&b->spec));
    nb_base_name_linear(b);
    if (o->reinit && b->is_gguf)
        return nb_fail(NB_EINPUT, "%s: reinit_weights wants a folder with config.json, not a GGUF file", b->dir);
    if (o->reinit && o->load_in_4bit)
        return nb_fail(NB_EINPUT, "%s: weights drawn anew (reinit_weights) are trained whole, load_in_4bit freezes "
                       "them: set one of the two to false", b->dir);
    if (o->reinit) {
        NB_TRY(reinit_sha256(b, o));
        return nb_base_reinit(b, o);
    }
    bool hollow = o->hollow_ok && !b->is_gguf && has_no_weights(b->dir);
    if (hollow) NB_TRY(check_quantization_config(b));
    NB_TRY(hollow ? nb_base_hollow(b, o) : b->is_gguf ? nb_base_load_gguf(b) : load_files(b));
    if (!hollow) NB_TRY(nb_base_sha256(b->dir, b->sha256));
    if (b->prequantized && !o->load_in_4bit && !o->keep_quantized)
        return nb_fail(NB_EINPUT, "%s: is saved in 4 bits; set load_in_4bit: true (adapter: qlora), or give the "
                       "original model", b->dir);
    return NB_OK;
}

nb_status nb_base_ready(nb_base *b, const nb_base_options *o) {
    if (o->reinit) return NB_OK;
    if (o->load_in_4bit && b->in_blocks)
        nb_info("%s: its weights are quantized already (%s): load_in_4bit leaves them as they are", b->dir,
                nb_base_format(b));
    if (!o->load_in_4bit || b->prequantized || b->in_blocks || b->hollow) return nb_base_turn(b);
    NB_TRY(nb_base_to_nf4(b, o));
    b->quantized = true;
    b->double_quant = o->double_quant;
    return NB_OK;
}

static nb_status load(nb_base **out, const char *dir_or_name, const nb_base_options *o, bool ready) {
    nb_base *b = NB_NEW(nb_base);
    b->store = NB_NEW(struct nb_base_store);
    nb_status st = fill(b, dir_or_name, o);
    if (st == NB_OK && ready) st = nb_base_ready(b, o);
    *out = st == NB_OK ? b : NULL;
    if (st != NB_OK) nb_base_free(b);
    return st;
}

nb_status nb_base_open(nb_base **out, const char *dir_or_name, const nb_base_options *o) {
    return load(out, dir_or_name, o, false);
}

nb_status nb_base_load(nb_base **out, const char *dir_or_name, const nb_base_options *o) {
    return load(out, dir_or_name, o, true);
}

static int64_t linear_bytes(const nb_base_linear *lin, bool in_4bit) {
    nb_weight w = lin->w;
    if (in_4bit && w.format != NB_FMT_NF4) {
        w.format = NB_FMT_NF4;
        w.nf4 = (nb_nf4){.blocksize = 64, .nested_blocksize = 256};
    }
    return nb_weight_bytes(&w) + (lin->bias ? w.rows * (int64_t)sizeof(float) : 0);
}

int64_t nb_base_bytes(const nb_base *b, bool in_4bit) {
    const nb_spec *s = &b->spec;
    int64_t bytes = nb_weight_bytes(&b->embed) + nb_weight_bytes(&b->positions) + s->hidden * (int64_t)sizeof(float);
    if (b->head.w.data != b->embed.data) bytes += linear_bytes(&b->head, false);
    for (int64_t l = 0; l < s->layers; l++) {
        for (nb_norm_slot k = 0; k < NB_NORMS; k++) bytes += nb_spec_norm_size(s, k) * (int64_t)sizeof(float);
        for (int k = 0; k < nb_spec_slots(s); k++)
            bytes += linear_bytes(&b->layer[l].lin[k], in_4bit && !nb_spec_stays_float(k));
    }
    return bytes;
}

void nb_base_make_room(nb_base *b) {
    int64_t L = b->spec.layers, slots = nb_spec_slots(&b->spec);
    b->layer = nb_calloc((size_t)L, sizeof *b->layer);
    b->layer[0].lin = nb_calloc((size_t)(L * slots), sizeof *b->layer[0].lin);
    for (int64_t l = 1; l < L; l++) b->layer[l].lin = b->layer[0].lin + l * slots;
}

void nb_base_name_linear(nb_base *b) {
    int64_t slots = nb_spec_slots(&b->spec);
    for (int64_t i = 0; i < b->spec.layers * slots; i++) {
        char *name = b->layer[0].lin[i].name = nb_spec_linear_name(&b->spec, i / slots, (int)(i % slots));
        if (name) nb_names_add(&b->store->linear, name, strlen(name), i);
    }
}

void nb_base_free_room(nb_base *b) {
    if (!b->layer) return;
    for (int64_t i = 0; i < b->spec.layers * nb_spec_slots(&b->spec); i++) free(b->layer[0].lin[i].name);
    free(b->layer[0].lin);
    free(b->layer);
    b->layer = NULL;
}

void nb_base_free(nb_base *b) {
    if (!b) return;
    nb_base_free_room(b);
    for (int i = 0; i < b->store->n_bufs; i++) nb_big_free(b->store->bufs[i].p, b->store->bufs[i].bytes);
    nb_st_close(&b->store->st);
    nb_st_close(&b->store->cache);
    nb_map_close(&b->store->head);
    if (b->store->gguf) nb_gguf_model_close(b->store->gguf);
    free(b->store->gguf);
    nb_names_free(&b->store->linear);
    free(b->store->bufs);
    free(b->store->used);
    free(b->store);
    free(b->head.name);
    free(b->dir);
    free(b);
}
