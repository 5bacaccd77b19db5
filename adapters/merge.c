#include "adapters/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/names.h"
#include "model/safetensors.h"

typedef struct merger {
    nb_session *s;
    nb_base *stored; /* a base in GGUF or in 4 bits as it is stored; NULL: `base` is a folder's tensors */
    nb_dev *dev;   /* the processor, f32 */
    float *trained; /* the adapter's values in host memory */
    bool roundtrip;
    nb_names adapted, whole; /* modules with an adapter, tensors trained whole, to their places in the adapter's lists */
    char *head;     /* "lm_head.weight" where that comes apart from the embedding; else NULL */
    nb_progress bar;
    double done;
} merger;

/* ---- one tensor ---- */

static bool is_weight_of(const char *tensor, const char *module) {
    size_t n = strlen(module);
    return !strncmp(tensor, module, n) && !strcmp(tensor + n, ".weight");
}

static void index_adapter(merger *m, const nb_adapter *a) {
    for (int i = 0; i < a->n_attached; i++)
        nb_names_add(&m->adapted, a->attached[i].module, strlen(a->attached[i].module), i);
    for (int i = 0; i < a->n_whole; i++) {
        const char *name = a->whole[i].param->name + (a->full ? 0 : strlen(NB_PEFT_PREFIX));
        nb_names_add(&m->whole, name, strlen(name), i);
    }
}

static const struct nb_attached *adapted(const merger *m, const char *tensor) {
    int64_t i = nb_names_find_weight(&m->adapted, tensor);
    return i < 0 ? NULL : &m->s->adapter->attached[i];
}

/* Where a tensor's values are that are not taken as they lie in the folder: the linear layers as they were quantized in
 * training, and what a base holds in blocks or in 4 bits. */
static const nb_weight *held(const merger *m, const nb_st_tensor *t) {
    if (!t->data) return nb_base_matrix(m->stored, t->name);
    const nb_weight *w = m->roundtrip ? nb_base_matrix(m->s->base, t->name) : NULL;
    return w && w->format == NB_FMT_NF4 ? w : NULL;
}

static void store_one(void *out, nb_dtype dtype, int64_t at, float x) {
    if (dtype == NB_F32) ((float *)out)[at] = x;
    else ((uint16_t *)out)[at] = dtype == NB_BF16 ? nb_f32_to_bf16(x) : nb_f32_to_f16(x);
}

static void store(void *out, nb_dtype dtype, int64_t at, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) store_one(out, dtype, at + i, x[i]);
}

static const float *trained(const merger *m, const nb_tensor *p) {
    return m->trained + ((const float *)p->data - m->s->adapter->data);
}

/* GPT-2's folders have the linear layers of blocks as [in, out]. */
static bool is_turned(const nb_spec *s, const char *tensor) {
    return s->stored_transposed && !is_weight_of(tensor, nb_spec_embed_name(s)) &&
           !is_weight_of(tensor, nb_spec_positions_name(s)) && !is_weight_of(tensor, nb_spec_head_name(s));
}

/* w[n, cols] += scale * (B A) of rows i..i+n; the embedding's is A B^T. */
static nb_status add_product(const merger *m, const struct nb_attached *at, float *w, int64_t i, int64_t n,
                             int64_t cols) {
    const float *A = trained(m, at->A), *B = trained(m, at->B);
    nb_mat left = nb_mat_of((at->lin ? B : A) + i * at->r, at->r, NB_F32),
           right = at->lin ? nb_mat_of(A, cols, NB_F32) : nb_mat_t(B, at->r, NB_F32);
    return m->dev->k->gemm(m->dev, nb_mat_of(w, cols, NB_F32), left, right, n, cols, at->r, at->scale, 1);
}

/* out = round(W + scale * B A), with DoRA each row of its magnitude, some rows at a time; W the weights that are held
 * where given, else as stored, and only W where nothing is attached. */
static nb_status merge_linear(merger *m, const nb_st_tensor *t, const struct nb_attached *at, const nb_weight *held_w,
                              void *out) {
    enum { ROWS = 256 };
    const nb_weight *shape = !at ? held_w : at->lin ? &at->lin->base->w : &m->s->base->embed;
    int64_t rows = shape->rows, cols = shape->cols;
    bool turned = is_turned(&m->s->base->spec, t->name);
    if (t->n_dims != 2 || t->d[turned] != rows || t->d[!turned] != cols)
        return nb_fail(NB_EINPUT, "%s is not a [%lld,%lld] matrix", t->name, (long long)rows, (long long)cols);
    float *w = nb_malloc((size_t)(ROWS * cols) * sizeof *w);
    nb_status st = NB_OK;
    for (int64_t i = 0; i < rows && st == NB_OK; i += ROWS) {
        int64_t n = rows - i < ROWS ? rows - i : ROWS;
        if (held_w) nb_weight_decode(w, cols, held_w, i, n, 0, cols);
        else if (turned) nb_st_read_columns_f32(t, w, i, n);
        else nb_st_read_f32(t, w, i * cols, n * cols);
        if (at) st = add_product(m, at, w, i, n, cols);
        if (at && at->magnitude && st == NB_OK) nb_dora_rescale(w, trained(m, at->magnitude) + i, n, cols);
        for (int64_t j = 0; j < n * cols && st == NB_OK; j++)
            if (!isfinite(w[j])) st = nb_fail(NB_ENUMERIC, "%s: the merged weight is not finite", t->name);
        if (!turned) store(out, t->dtype, i * cols, w, n * cols);
        for (int64_t j = 0; j < n * cols && turned; j++) store_one(out, t->dtype, j % cols * rows + i + j / cols, w[j]);
    }
    free(w);
    return st;
}

/* Embedding or untied head with the adapter's token rows put in; *source has those of a vocabulary that grew. */
static const nb_tensor *replaced_rows(const merger *m, const char *tensor, const nb_weight **source) {
    const nb_spec *spec = m->s->model->spec;
    static const nb_token_rows none;
    const nb_token_rows *rows = m->s->adapter ? &m->s->adapter->rows : &none;
    char *embed = nb_asprintf("%s.weight", nb_spec_embed_name(spec)),
         *head = nb_asprintf("%s.weight", nb_spec_head_name(spec));
    const nb_tensor *t = !rows->n                 ? NULL
                         : !strcmp(tensor, embed) ? rows->embed
                         : !strcmp(tensor, head)  ? rows->head
                                                  : NULL;
    *source = !strcmp(tensor, head) ? nb_base_stored_head(m->s->base) : &m->s->base->embed;
    free(embed), free(head);
    return t;
}

/* As the file has it. */
static void store_whole(const merger *m, const nb_tensor *p, nb_dtype dtype, void *out) {
    const float *x = trained(m, p);
    bool turned = nb_adapter_is_turned(m->s->adapter, p);
    if (!turned) store(out, dtype, 0, x, nb_tensor_size(p));
    for (int64_t i = 0; turned && i < p->d[0]; i++)
        for (int64_t j = 0; j < p->d[1]; j++) store_one(out, dtype, j * p->d[0] + i, x[i * p->d[1] + j]);
}

/* What stands for the tensor, trained whole, or NULL. */
static const nb_tensor *whole(const merger *m, const char *tensor) {
    int64_t i = nb_names_find(&m->whole, tensor, strlen(tensor));
    return i < 0 ? NULL : m->s->adapter->whole[i].param;
}

/* A tensor of the merged folder: its name there, and the base's that it comes from. */
typedef struct piece {
    const char *name;
    const nb_st_tensor *from;
} piece;

/* A head that was the embedding and is no more gets a tensor of its own, in the embedding's file. */
static const nb_st_tensor *tied_embedding(const merger *m, const nb_st *base) {
    char *embed = nb_asprintf("%s.weight", nb_spec_embed_name(m->s->model->spec));
    const nb_st_tensor *t = nb_st_find(base, embed);
    free(embed);
    return t;
}

/* The merged tensors of one file. Caller frees the list. */
static piece *pieces_of(const merger *m, const nb_st *base, int shard, int *n) {
    piece *list = nb_calloc((size_t)base->n_tensors + 1, sizeof *list);
    const nb_st_tensor *embed = m->head ? tied_embedding(m, base) : NULL;
    *n = 0;
    for (int i = 0; i < base->n_tensors; i++) {
        const nb_st_tensor *t = &base->tensors[i];
        if (t->shard == shard && !(m->head && !strcmp(t->name, m->head))) list[(*n)++] = (piece){t->name, t};
    }
    if (embed && embed->shard == shard) list[(*n)++] = (piece){m->head, embed};
    return list;
}

/* Rows a matrix of the base has in the merged folder: an embedding may have more. */
static int64_t merged_rows(const merger *m, const piece *p) {
    const nb_weight *source;
    const nb_tensor *w = whole(m, p->name);
    if (w) return nb_adapter_is_turned(m->s->adapter, w) ? w->d[1] : w->d[0];
    return p->from->n_dims == 2 && replaced_rows(m, p->name, &source) ? source->rows : p->from->d[0];
}

static nb_status put_tensor(merger *m, nb_st_writer *w, const piece *p) {
    const nb_st_tensor *t = p->from;
    const nb_adapter *a = m->s->adapter;
    const struct nb_attached *at = adapted(m, p->name);
    const nb_weight *values = held(m, t);
    const nb_weight *source;
    const nb_tensor *rows = replaced_rows(m, p->name, &source), *all = whole(m, p->name);
    if (!at && !values && !rows && !all) return nb_st_write_data(w, p->name, t->data, t->bytes);
    if (t->dtype != NB_F32 && t->dtype != NB_BF16 && t->dtype != NB_F16)
        return nb_fail(NB_EUNSUPPORTED, "%s is stored as %s: only float weights can be merged into", p->name,
                       nb_dtype_name(t->dtype));
    void *out;
    size_t bytes = t->d[0] ? t->bytes / (size_t)t->d[0] * (size_t)merged_rows(m, p) : 0;
    NB_TRY(nb_big_alloc(&out, bytes, p->name));
    nb_status st = NB_OK;
    if (all) {
        store_whole(m, all, t->dtype, out);
    } else if (at || (values && !rows)) {
        st = merge_linear(m, t, at, values, out);
    } else {
        if (values) st = merge_linear(m, t, NULL, values, out);
        else memcpy(out, source->data, bytes);
        for (int64_t i = 0; i < a->rows.n; i++)
            store(out, t->dtype, a->rows.ids[i] * rows->d[1], trained(m, rows) + i * rows->d[1], rows->d[1]);
    }
    if (st == NB_OK) st = nb_st_write_data(w, p->name, out, bytes);
    nb_big_free(out, bytes);
    return st;
}

/* ---- folders ---- */

static nb_status write_shard(merger *m, const nb_st *base, int shard, const char *dir) {
    char *path = nb_path_join(dir, nb_path_base(base->files[shard].path));
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w;
    nb_status st = nb_st_write_begin(&w, path, meta);
    json_decref(meta);
    free(path);
    if (st != NB_OK) return st;
    int n;
    piece *list = pieces_of(m, base, shard, &n);
    for (int i = 0; i < n && st == NB_OK; i++) {
        int64_t d[8];
        memcpy(d, list[i].from->d, sizeof d);
        d[0] = merged_rows(m, &list[i]);
        st = nb_st_write_declare(w, list[i].name, list[i].from->dtype, list[i].from->n_dims, d);
    }
    for (int i = 0; i < n && st == NB_OK; i++) {
        st = put_tensor(m, w, &list[i]);
        nb_progress_set(&m->bar, m->done += (double)list[i].from->bytes / 1e6, NULL);
    }
    free(list);
    if (st == NB_OK) return nb_st_write_end(w);
    nb_st_write_abort(w);
    return st;
}

/* "folder/" -> "folder": the names beside it are made from it. Caller frees. */
static char *without_slash(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    return nb_strndup(path, n);
}

static nb_status check_out(const char *out, uint64_t need) {
    char **names;
    int n = 0;
    if (nb_file_exists(out)) {
        NB_TRY(nb_list_dir(out, &names, &n));
        for (int i = 0; i < n; i++) free(names[i]);
        free(names);
        if (n) return nb_fail(NB_EINPUT, "%s: is not empty; nothing was written. Name another folder", out);
    }
    uint64_t room;
    NB_TRY(nb_free_space(out, &room));
    char a[16], b[16];
    if (room < need)
        return nb_fail(NB_EIO, "%s: %s free, %s needed", out, nb_bytes((double)room, a), nb_bytes((double)need, b));
    return NB_OK;
}

/* The index of the shards, which are as they were; the size it tells is the merged folder's. */
static nb_status write_index(const merger *m, const nb_st *base, const char *from, const char *to) {
    json_t *root;
    json_int_t total = 0;
    NB_TRY(nb_json_load(from, &root));
    json_t *map = json_object();
    json_object_set_new(root, "weight_map", map);
    for (int f = 0; f < base->n_files; f++) {
        int n;
        piece *list = pieces_of(m, base, f, &n);
        for (int i = 0; i < n; i++) {
            const nb_st_tensor *t = list[i].from;
            bool grows = t->n_dims && t->d[0];
            json_object_set_new(map, list[i].name, json_string(nb_path_base(base->files[f].path)));
            total += grows ? (json_int_t)t->bytes / t->d[0] * merged_rows(m, &list[i]) : (json_int_t)t->bytes;
        }
        free(list);
    }
    json_t *meta = json_object_get(root, "metadata");
    if (json_is_object(meta)) json_object_set_new(meta, "total_size", json_integer(total));
    nb_status st = nb_json_save(to, root);
    json_decref(root);
    return st;
}

/* A template that the configuration named, where it is not the tokenizer's own. */
static nb_status write_template(const nb_session *s, const char *dir) {
    const nb_chat_template *own = NULL;
    const char *jinja = s->chat ? nb_chat_template_jinja(s->chat) : NULL;
    if (nb_tokenizer_chat_template(s->tokenizer) &&
        nb_chat_template_find(&own, "tokenizer_default", s->tokenizer) != NB_OK)
        own = NULL;
    if (!jinja || own == s->chat) return NB_OK;
    char *path = nb_path_join(dir, "chat_template.jinja");
    nb_status st = nb_file_write(path, jinja, strlen(jinja));
    free(path);
    return st;
}

static nb_status write_folder(merger *m, const nb_st *base, const char *dir) {
    const char *from = m->s->base->dir;
    char *index = nb_path_join(from, "model.safetensors.index.json"),
         *index_out = nb_path_join(dir, "model.safetensors.index.json");
    nb_status st;
    NB_GO(st, nb_mkdirs(dir), done);
    NB_GO(st, nb_copy_model_files(from, dir), done);
    if (m->s->own_tokenizer || m->head || (m->s->adapter && m->s->adapter->n_whole))
        NB_GO(st, nb_put_vocabulary(&m->s->base->spec, m->s->own_tokenizer ? m->s->tokenizer : NULL, m->head != NULL, dir),
              done);
    NB_GO(st, write_template(m->s, dir), done);
    if (m->s->base->prequantized) NB_GO(st, nb_put_float(dir), done);
    if (nb_file_exists(index) && !m->stored) NB_GO(st, write_index(m, base, index, index_out), done);
    for (int f = 0; f < base->n_files && st == NB_OK; f++) st = write_shard(m, base, f, dir);
done:
    free(index), free(index_out);
    return st;
}

/* The base's tensors as they are stored, whatever the session holds. */
static nb_status open_stored(merger *m, nb_st *out) {
    const nb_base *b = m->s->base;
    if (!b->is_gguf && !b->prequantized) return nb_base_open_files(out, &b->spec, b->dir);
    NB_TRY(nb_base_load(&m->stored, b->dir, &(nb_base_options){.keep_quantized = true}));
    nb_base_list(m->stored, out);
    return NB_OK;
}

/* The trained values, and a device for the products with matrices of so many columns. */
static nb_status fetch_adapter(merger *m, int64_t widest) {
    const nb_adapter *a = m->s->adapter;
    m->trained = nb_malloc((size_t)a->n * sizeof *m->trained);
    NB_TRY(m->s->dev->be->get(m->s->dev, m->trained, a->data, (size_t)a->n * sizeof *m->trained));
    NB_TRY(nb_dev_open(&m->dev, "cpu", NB_F32));
    return nb_dev_reserve(m->dev, m->dev->be->gemm_ws(m->dev, 256, widest, nb_adapter_largest_rank(a)));
}

static nb_status merge_float(nb_session *s, const char *out, bool roundtrip) {
    nb_st base;
    merger m = {.s = s, .roundtrip = roundtrip};
    char *tmp = nb_asprintf("%s.tmp", out);
    uint64_t bytes = 0;
    int64_t widest = s->base->spec.vocab > 65536 ? s->base->spec.vocab : 65536;
    nb_status st = open_stored(&m, &base);
    if (st != NB_OK) {
        free(tmp);
        return st;
    }
    if (s->adapter && nb_adapter_unties(s->adapter))
        m.head = nb_asprintf("%s.weight", nb_spec_head_name(s->model->spec));
    for (int i = 0; i < base.n_tensors; i++) bytes += base.tensors[i].bytes;
    NB_GO(st, check_out(out, bytes + (1 << 20)), done);
    if (s->adapter) index_adapter(&m, s->adapter);
    if (s->adapter) NB_GO(st, fetch_adapter(&m, widest), done);
    NB_GO(st, nb_remove_tree(tmp), done);
    nb_progress_begin(&m.bar, "merge", (double)bytes / 1e6, "MB");
    st = write_folder(&m, &base, tmp);
    nb_progress_end(&m.bar);
    if (st == NB_OK) st = nb_replace_dir(tmp, out);
done:
    if (st != NB_OK) nb_remove_tree(tmp);
    if (m.dev) nb_dev_close(m.dev);
    nb_st_close(&base);
    nb_base_free(m.stored);
    free(m.trained);
    free(m.head);
    nb_names_free(&m.adapted);
    nb_names_free(&m.whole);
    free(tmp);
    return st;
}

/* A base stored in 4 bits has no other weights than those that an adapter was trained on. */
static nb_status refuse_prequantized(const nb_session *s, nb_merge_mode mode, const char *name) {
    if (!s->base->prequantized || mode == NB_MERGE_NF4_ROUNDTRIP) return NB_OK;
    return nb_fail(
        NB_EUNSUPPORTED,
        "%s is stored in 4 bits, so --mode %s has no float weights to merge into: merge into the model it was "
        "quantized from, or with --mode nf4-roundtrip into what the 4 bits stand for",
        s->base->dir, name);
}

static nb_status merge_requant(nb_session *s, const char *out) {
    NB_TRY(check_out(out, 0));
    char *whole = nb_asprintf("%s.float.tmp", out);
    nb_status st = nb_remove_tree(whole);
    if (st == NB_OK) st = merge_float(s, whole, false);
    if (st == NB_OK) st = nb_base_quantize_dir(whole, out, s->base->quantized ? s->base->double_quant : true);
    nb_remove_tree(whole);
    free(whole);
    return st;
}

nb_status nb_merge(nb_session *s, const char *out_dir, nb_merge_mode mode) {
    static const char *const names[] = {"original", "nf4-roundtrip", "requant"};
    if (!s->adapter && !s->base->is_gguf && !s->base->prequantized)
        return nb_fail(NB_EINPUT, "there is nothing to merge without an adapter");
    NB_TRY(refuse_prequantized(s, mode, names[mode]));
    if (mode == NB_MERGE_NF4_ROUNDTRIP && !s->base->quantized)
        return nb_fail(
            NB_EINPUT,
            "--mode nf4-roundtrip: the base was not quantized in training (or --no-load-in-4bit was given): use "
            "--mode original");
    char *out = without_slash(out_dir);
    nb_status st =
        mode == NB_MERGE_REQUANT ? merge_requant(s, out) : merge_float(s, out, mode == NB_MERGE_NF4_ROUNDTRIP);
    free(out);
    return st;
}

/* ---- drift ---- */

static const char paragraph[] =
    "The harbour was quiet when the first boats came in. Two men in oilskins lifted the crates onto the quay, "
    "counted them twice, and wrote the number down: 48 boxes of herring, 3 of mackerel, order AX-2207. \"Where do "
    "these go?\" asked the younger one. \"To the market in Elm Street,\" said the other, \"and quickly, before "
    "the rain.\" By noon everything was sold, the price was 12.50 a box, and the gulls had gone back to the "
    "cliffs. Question: how many boxes were there? Answer: fifty-one.";

static nb_status all_logits(nb_model *m, nb_arena *arena, const int32_t *ids, int64_t n, float *logits) {
    nb_runner *r;
    NB_TRY(nb_runner_open_logits(&r, m, arena, n, n, NULL));
    int32_t *pos = nb_calloc((size_t)n, sizeof *pos);
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)i;
    nb_seg seg = {0, (int32_t)n, 0, (int32_t)n};
    nb_batch b = {.n = n, .ids = ids, .pos = pos, .sample = (const uint32_t *)pos, .segs = &seg, .n_segs = 1};
    nb_status st = nb_runner_logits(r, &b, NULL, pos, n, logits);
    free(pos);
    nb_runner_free(r);
    return st;
}

static double log_sum_exp(const float *x, int64_t n) {
    double max = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

static void add_position(nb_drift *d, const float *p, const float *q, int64_t V) {
    double lp = log_sum_exp(p, V), lq = log_sum_exp(q, V), kl = 0, worst = 0;
    int64_t top_p = 0, top_q = 0;
    for (int64_t v = 0; v < V; v++) {
        double a = p[v] - lp, b = q[v] - lq;
        kl += exp(a) * (a - b);
        if (exp(a) >= 0.01 && fabs(a - b) > worst) worst = fabs(a - b);
        if (p[v] > p[top_p]) top_p = v;
        if (q[v] > q[top_q]) top_q = v;
    }
    if (kl < 0) kl = 0; /* rounding */
    d->mean_kl += kl;
    if (kl > d->max_kl) d->max_kl = kl;
    if (worst > d->max_abs) d->max_abs = worst;
    d->same_argmax += top_p == top_q;
    d->positions++;
}

nb_status nb_merge_drift(nb_drift *d, nb_session *s, const char *merged, const char *probe) {
    *d = (nb_drift){0};
    nb_ids ids = {0};
    nb_session other = {0};
    nb_session_options o = {.base = merged, .load_in_4bit = -1, .dtype = s->dev->compute == NB_BF16 ? "bf16" : "f32",
                            .device = s->device, .quantized_cache = ""};
    int64_t V = s->base->spec.vocab;
    float *p = NULL, *q = NULL;
    nb_status st;
    if (!probe) probe = paragraph;
    NB_GO(st, nb_tokenizer_encode(s->tokenizer, probe, strlen(probe), NB_TOK_SPECIAL, &ids), done);
    if (ids.n > s->model->positions) ids.n = s->model->positions;
    if (ids.n > 512) ids.n = 512;
    NB_GO(st, nb_session_open(&other, &o), done);
    p = nb_malloc((size_t)(ids.n * V) * sizeof *p);
    q = nb_malloc((size_t)(ids.n * V) * sizeof *q);
    NB_GO(st, all_logits(s->model, &s->arena, ids.id, ids.n, p), done);
    NB_GO(st, all_logits(other.model, &other.arena, ids.id, ids.n, q), done);
    for (int64_t i = 0; i < ids.n; i++) add_position(d, p + i * V, q + i * V, V);
    d->mean_kl /= (double)d->positions;
    d->same_argmax /= (double)d->positions;
done:
    free(p), free(q);
    nb_session_close(&other);
    nb_ids_free(&ids);
    return st;
}
