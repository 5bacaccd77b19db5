/* A model folder in 4 bits, as transformers and bitsandbytes save it. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/base.h"

enum { LARGEST_COPY = 64 << 20 }; /* bytes; the largest tokenizer.json in use has half of that */

/* The tensors that stay as they are: all that is used but the linear layers' weights. Caller frees. */
static bool *tensors_to_copy(const nb_base *b) {
    const nb_st *s = &b->store->st;
    bool *copy = nb_calloc((size_t)s->n_tensors + 1, sizeof *copy);
    memcpy(copy, b->store->used, (size_t)s->n_tensors * sizeof *copy);
    int64_t slots = nb_spec_slots(&b->spec);
    for (int64_t i = 0; i < b->spec.layers * slots; i++) {
        const char *module = b->layer[0].lin[i].name;
        if (!module || nb_spec_stays_float((int)(i % slots))) continue;
        char *name = nb_asprintf("%s.weight", module);
        const nb_st_tensor *t = nb_st_find(s, name);
        if (t) copy[t - s->tensors] = false;
        free(name);
    }
    return copy;
}

static nb_status write_weights(nb_base *b, const char *dir, bool double_quant) {
    const nb_st *s = &b->store->st;
    bool *copy = tensors_to_copy(b);
    char *path = nb_path_join(dir, "model.safetensors");
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_st_writer *w = NULL;
    nb_status st = nb_st_write_begin(&w, path, meta);
    if (st == NB_OK) st = nb_base_declare_nf4(b, w, double_quant);
    for (int i = 0; i < s->n_tensors && st == NB_OK; i++) {
        const nb_st_tensor *t = &s->tensors[i];
        if (copy[i]) st = nb_st_write_declare(w, t->name, t->dtype, t->n_dims, t->d);
    }
    if (st == NB_OK) st = nb_base_write_nf4(b, w, double_quant);
    for (int i = 0; i < s->n_tensors && st == NB_OK; i++)
        if (copy[i]) st = nb_st_write_data(w, s->tensors[i].name, s->tensors[i].data, s->tensors[i].bytes);
    if (st == NB_OK) st = nb_st_write_end(w);
    else nb_st_write_abort(w);
    json_decref(meta);
    free(path);
    free(copy);
    return st;
}

/* What stays float, as transformers wants it: the names of the modules. */
static json_t *kept_modules(const nb_base *b) {
    json_t *list = json_pack("[s]", nb_spec_head_name(&b->spec));
    for (int k = 0; k < NB_SLOTS; k++)
        for (int64_t l = 0; l < b->spec.layers && nb_spec_stays_float(k); l++) {
            const char *module = b->layer[l].lin[k].name;
            if (!module) continue;
            json_array_append_new(list, json_string(strrchr(module, '.') + 1));
            break;
        }
    return list;
}

/* config.json with the entry BitsAndBytesConfig.to_dict() of transformers leaves. */
static nb_status write_config(const nb_base *b, const char *dir, bool double_quant) {
    char *from = nb_path_join(b->dir, "config.json"), *to = nb_path_join(dir, "config.json");
    json_t *c;
    nb_status st = nb_json_load(from, &c);
    if (st == NB_OK) {
        json_t *q = json_pack("{s:b, s:b, s:s, s:s, s:s, s:b, s:b, s:b, s:n, s:f, s:b, s:b, s:s}", "_load_in_4bit", 1,
                              "_load_in_8bit", 0, "bnb_4bit_compute_dtype", nb_dtype_name(b->spec.dtype),
                              "bnb_4bit_quant_storage", "uint8", "bnb_4bit_quant_type", "nf4",
                              "bnb_4bit_use_double_quant", (int)double_quant, "llm_int8_enable_fp32_cpu_offload", 0,
                              "llm_int8_has_fp16_weight", 0, "llm_int8_skip_modules", "llm_int8_threshold", 6.0,
                              "load_in_4bit", 1, "load_in_8bit", 0, "quant_method", "bitsandbytes");
        NB_ASSERT(q);
        if (b->spec.experts) json_object_set_new(q, "llm_int8_skip_modules", kept_modules(b));
        json_object_set_new(c, "quantization_config", q);
        st = nb_json_save(to, c);
    }
    json_decref(c);
    free(from);
    free(to);
    return st;
}

/* Everything that is no weights file: tokenizer, templates, generation settings, licence, model card. */
static bool is_copied(const char *path) {
    static const char *const weights[] = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"};
    const char *name = nb_path_base(path), *ext = nb_path_ext(path);
    struct stat sb;
    for (int i = 0; i < NB_LEN(weights); i++)
        if (!strcmp(ext, weights[i])) return false;
    return name[0] != '.' && strcmp(name, "config.json") != 0 && !strstr(name, ".index.json") &&
           stat(path, &sb) == 0 && S_ISREG(sb.st_mode) && sb.st_size <= LARGEST_COPY;
}

static nb_status copy_rest(const nb_base *b, const char *dir) {
    char **names;
    int n;
    NB_TRY(nb_list_dir(b->dir, &names, &n));
    nb_status st = NB_OK;
    for (int i = 0; i < n; i++) {
        char *from = nb_path_join(b->dir, names[i]), *to = nb_path_join(dir, names[i]);
        if (st == NB_OK && is_copied(from)) st = nb_file_copy(from, to);
        free(from);
        free(to);
        free(names[i]);
    }
    free(names);
    return st;
}

static nb_status check_free_place(const char *dir) {
    char **names;
    int n;
    if (!nb_file_exists(dir)) return NB_OK;
    if (!nb_is_dir(dir)) return nb_fail(NB_EINPUT, "%s: is a file; give the name of a new folder", dir);
    NB_TRY(nb_list_dir(dir, &names, &n));
    for (int i = 0; i < n; i++) free(names[i]);
    free(names);
    return n ? nb_fail(NB_EINPUT, "%s: exists and is not empty; give the name of a new folder", dir) : NB_OK;
}

/* Moves the finished folder to its name. An empty folder there is replaced. */
static nb_status move_into_place(const char *tmp, const char *dir) {
    NB_TRY(nb_sync_dir(tmp));
    if (rename(tmp, dir) < 0) return nb_fail(NB_EIO, "%s: cannot be renamed to %s: %s", tmp, dir, strerror(errno));
    return NB_OK;
}

nb_status nb_base_quantize_dir(const char *dir_or_name, const char *dir_out, bool double_quant) {
    nb_base *b = NULL;
    NB_TRY(check_free_place(dir_out));
    NB_TRY(nb_base_load(&b, dir_or_name, &(nb_base_options){.quantized_cache = ""}));
    if (b->is_gguf) {
        nb_status no = nb_fail(NB_EUNSUPPORTED, "%s: is GGUF: make a folder of it first (nibble export --format hf)",
                               b->dir);
        nb_base_free(b);
        return no;
    }
    char *out = nb_strdup(dir_out);
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) out[n - 1] = 0;
    char *tmp = nb_asprintf("%s.tmp-%ld", out, (long)getpid());
    nb_status st = nb_mkdirs(tmp);
    if (st == NB_OK) st = copy_rest(b, tmp);
    if (st == NB_OK) st = write_config(b, tmp, double_quant);
    if (st == NB_OK) st = write_weights(b, tmp, double_quant);
    if (st == NB_OK) st = move_into_place(tmp, out);
    if (st != NB_OK) {
        char *message = nb_strdup(nb_message());
        nb_remove_tree(tmp); /* may fail and overwrite the message */
        nb_fail(st, "%s", message);
        free(message);
    }
    free(tmp);
    free(out);
    nb_base_free(b);
    return st;
}

/* ---- reading back ---- */

/* Elements of one block: NF4's levels are at most 0.304 of the largest value apart, the bytes of double quantization at
 * most 0.0144 of theirs, and the product is rounded to the dtype. */
static nb_status compare_block(const nb_weight *q, int64_t block, const float *want, const float *got, int64_t n,
                               const char *module) {
    double largest = 0, step;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)want[i]));
    step = (0.152 + 0x1p-8) * largest;
    if (q->nf4.absmax_u8) step += 0.0072 * q->nf4.nested_absmax[block / q->nf4.nested_blocksize];
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)want[i] - got[i]) <= step))
            return nb_fail(NB_ENUMERIC, "%s.weight: element %lld is %g and reads back from NF4 as %g", module,
                           (long long)(block * q->nf4.blocksize + i), want[i], got[i]);
    return NB_OK;
}

static nb_status compare_linear(const nb_base_linear *float_lin, const nb_base_linear *four) {
    const nb_weight *w = &float_lin->w, *q = &four->w;
    if (q->format != NB_FMT_NF4 || w->rows != q->rows || w->cols != q->cols)
        return nb_fail(NB_EIO, "%s.weight does not read back in 4 bits", float_lin->name);
    int64_t size = q->nf4.blocksize, block = 0; /* so many rows are whole blocks */
    float *x = nb_malloc((size_t)(size * w->cols) * sizeof *x), *y = nb_malloc((size_t)(size * w->cols) * sizeof *y);
    nb_status st = NB_OK;
    for (int64_t i = 0; i < w->rows && st == NB_OK; i += size) {
        int64_t rows = w->rows - i < size ? w->rows - i : size, n = rows * w->cols;
        nb_weight_decode(x, w->cols, w, i, rows, 0, w->cols);
        nb_weight_decode(y, w->cols, q, i, rows, 0, w->cols);
        for (int64_t at = 0; at < n && st == NB_OK; at += size, block++)
            st = compare_block(q, block, x + at, y + at, n - at < size ? n - at : size, float_lin->name);
    }
    free(x), free(y);
    return st;
}

static nb_status compare_rest(const nb_base *b, const nb_base *q, int64_t *n) {
    const nb_st *s = &b->store->st;
    bool *copied = tensors_to_copy(b);
    nb_status st = NB_OK;
    for (int i = 0; i < s->n_tensors && st == NB_OK; i++) {
        const nb_st_tensor *t = &s->tensors[i], *u = copied[i] ? nb_st_find(&q->store->st, t->name) : NULL;
        if (!copied[i]) continue;
        if (!u || u->dtype != t->dtype || u->bytes != t->bytes || memcmp(u->data, t->data, t->bytes) != 0)
            st = nb_fail(NB_EIO, "%s: \"%s\" does not read back as it was written", q->dir, t->name);
        ++*n;
    }
    free(copied);
    return st;
}

nb_status nb_base_verify_quantized(const char *dir_or_name, const char *dir_out, int64_t *n, int64_t *bytes) {
    nb_base *b = NULL, *q = NULL;
    *n = *bytes = 0;
    nb_status st = nb_base_load(&b, dir_or_name, &(nb_base_options){.quantized_cache = ""});
    if (st == NB_OK) st = nb_base_load(&q, dir_out, &(nb_base_options){.load_in_4bit = true, .quantized_cache = ""});
    int64_t slots = st == NB_OK ? nb_spec_slots(&b->spec) : 0;
    for (int64_t i = 0; st == NB_OK && i < b->spec.layers * slots; i++) {
        const nb_base_linear *lin = &b->layer[0].lin[i];
        if (!lin->w.rows || nb_spec_stays_float((int)(i % slots))) continue;
        st = compare_linear(lin, &q->layer[0].lin[i]);
        ++*n;
    }
    if (st == NB_OK) st = compare_rest(b, q, n);
    for (int i = 0; st == NB_OK && i < q->store->st.n_tensors; i++) *bytes += (int64_t)q->store->st.tensors[i].bytes;
    nb_base_free(b), nb_base_free(q);
    return st;
}
