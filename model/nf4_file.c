/* A linear layer in 4 bits as bitsandbytes saves it (QuantState.as_dict(packed=True)), out and in:
 *
 *      M.weight                                U8   [(n+1)/2, 1]   n = rows * cols
 *      M.weight.absmax                         F32  [blocks], or U8 [blocks] with double quantization
 *      M.weight.quant_map                      F32  [16]
 *      M.weight.nested_absmax                  F32  [ceil(blocks/256)]     with double quantization
 *      M.weight.nested_quant_map               F32  [256]                  with double quantization
 *      M.weight.quant_state.bitsandbytes__nf4  U8   [length]       JSON text
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/mem.h"
#include "model/base.h"

enum { BLOCK = 64, NESTED_BLOCK = 256 };
/* The text's length is declared before its numbers are known, so it is padded with spaces to this many bytes. */
enum { STATE_BYTES = 256 };

static int64_t div_up(int64_t n, int64_t d) { return (n + d - 1) / d; }

static nb_status declare(nb_st_writer *w, const char *module, const char *part, nb_dtype dt, int n_dims, int64_t d0,
                         int64_t d1) {
    char *name = nb_asprintf("%s.weight%s", module, part);
    int64_t d[2] = {d0, d1};
    nb_status st = nb_st_write_declare(w, name, dt, n_dims, d);
    free(name);
    return st;
}

nb_status nb_nf4_declare(nb_st_writer *w, const char *module, int64_t rows, int64_t cols, bool double_quant) {
    int64_t n = rows * cols, blocks = div_up(n, BLOCK);
    NB_TRY(declare(w, module, "", NB_U8, 2, (n + 1) / 2, 1));
    NB_TRY(declare(w, module, ".absmax", double_quant ? NB_U8 : NB_F32, 1, blocks, 0));
    NB_TRY(declare(w, module, ".quant_map", NB_F32, 1, 16, 0));
    if (double_quant) {
        NB_TRY(declare(w, module, ".nested_absmax", NB_F32, 1, div_up(blocks, NESTED_BLOCK), 0));
        NB_TRY(declare(w, module, ".nested_quant_map", NB_F32, 1, 256, 0));
    }
    return declare(w, module, ".quant_state.bitsandbytes__nf4", NB_U8, 1, STATE_BYTES, 0);
}

/* The fewest digits that read back as the same double, as Python prints it. */
static void real_text(char out[32], double x) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, x);
        if (strtod(out, NULL) == x) break;
    }
    if (!strpbrk(out, ".e")) strcat(out, ".0");
}

static void state_text(char out[STATE_BYTES], const nb_weight *w) {
    char text[STATE_BYTES + 1], offset[32];
    int n = snprintf(text, sizeof text, "{\"quant_type\": \"nf4\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": "
                     "[%lld, %lld]", w->nf4.blocksize, nb_dtype_name(w->nf4.dtype), (long long)w->rows,
                     (long long)w->cols);
    if (w->nf4.absmax_u8) {
        real_text(offset, (double)w->nf4.nested_offset);
        n += snprintf(text + n, sizeof text - (size_t)n, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", "
                      "\"nested_offset\": %s", w->nf4.nested_blocksize, offset);
    }
    n += snprintf(text + n, sizeof text - (size_t)n, "}");
    NB_ASSERT(n <= STATE_BYTES);
    memset(out, ' ', STATE_BYTES);
    memcpy(out, text, (size_t)n);
}

static nb_status put(nb_st_writer *w, const char *module, const char *part, const void *data, int64_t bytes) {
    char *name = nb_asprintf("%s.weight%s", module, part);
    nb_status st = nb_st_write_data(w, name, data, (size_t)bytes);
    free(name);
    return st;
}

nb_status nb_nf4_write(nb_st_writer *out, const char *module, const nb_weight *w) {
    const nb_nf4 *q = &w->nf4;
    int64_t n = w->rows * w->cols, blocks = div_up(n, BLOCK);
    char state[STATE_BYTES];
    NB_ASSERT(q->blocksize == BLOCK && (!q->absmax_u8 || q->nested_blocksize == NESTED_BLOCK));
    NB_TRY(put(out, module, "", w->data, (n + 1) / 2));
    NB_TRY(put(out, module, ".quant_map", q->code, 64));
    if (q->absmax_u8) {
        NB_TRY(put(out, module, ".absmax", q->absmax_u8, blocks));
        NB_TRY(put(out, module, ".nested_absmax", q->nested_absmax, div_up(blocks, NESTED_BLOCK) * 4));
        NB_TRY(put(out, module, ".nested_quant_map", q->nested_code, 1024));
    } else {
        NB_TRY(put(out, module, ".absmax", q->absmax, blocks * 4));
    }
    state_text(state, w);
    return put(out, module, ".quant_state.bitsandbytes__nf4", state, STATE_BYTES);
}

/* ---- in ---- */

/* M.weight + part, or NULL. Counts as used when it is of the folder's own files. */
static const nb_st_tensor *take(nb_base *b, const nb_st *s, const char *module, const char *part) {
    char *name = nb_asprintf("%s.weight%s", module, part);
    const nb_st_tensor *t = nb_st_find(s, name);
    if (t && s == &b->store->st) b->store->used[t - s->tensors] = true;
    free(name);
    return t;
}

/* A part of `count` elements of this dtype, aligned. */
static nb_status part_data(nb_base *b, const nb_st *s, const char *module, const char *part, nb_dtype dt,
                           int64_t count, const void **out) {
    const nb_st_tensor *t = take(b, s, module, part);
    if (!t) return nb_fail(NB_EINPUT, "%s: has no tensor \"%s.weight%s\"; the 4-bit weight cannot be read without it",
                           s->files[0].path, module, part);
    if (t->dtype != dt || t->bytes != (size_t)count * (size_t)nb_dtype_size(dt))
        return nb_fail(NB_ESHAPE, "%s: tensor \"%s\" holds %zu bytes of %s, wanted %lld elements of %s",
                       s->files[t->shard].path, t->name, t->bytes, nb_st_dtype_name(t->dtype), (long long)count,
                       nb_st_dtype_name(dt));
    return nb_base_data(b, t, out);
}

/* The JSON of the quant_state: checks it against the shape wanted and what the kernels can do. */
static nb_status read_state(nb_weight *w, bool *nested, const nb_st_tensor *t, const char *path) {
    json_error_t err;
    json_t *j = json_loadb(t->data, t->bytes, JSON_REJECT_DUPLICATES, &err);
    if (!j) return nb_fail(NB_EINPUT, "%s: tensor \"%s\" is not JSON text: %s", path, t->name, err.text);
    const json_t *shape = json_object_get(j, "shape");
    const char *dtype = "", *type = "", *nested_dtype = "float32";
    int64_t block = 0, nested_block = 0;
    double offset = 0;
    nb_status st;
    *nested = json_object_get(j, "nested_blocksize") != NULL;
    NB_GO(st, nb_json_str(j, "quant_type", &type, t->name), out);
    NB_GO(st, nb_json_str(j, "dtype", &dtype, t->name), out);
    NB_GO(st, nb_json_str(j, "nested_dtype", &nested_dtype, t->name), out);
    NB_GO(st, nb_json_int(j, "blocksize", &block, t->name), out);
    NB_GO(st, nb_json_int(j, "nested_blocksize", &nested_block, t->name), out);
    NB_GO(st, nb_json_real(j, "nested_offset", &offset, t->name), out);
    int dt = NB_F32;
    while (dt <= NB_F16 && strcmp(dtype, nb_dtype_name((nb_dtype)dt)) != 0) dt++;
    if (strcmp(type, "nf4") != 0 || dt > NB_F16 || strcmp(nested_dtype, "float32") != 0 || block < 16 ||
        block > 4096 || (block & (block - 1)) || (*nested && (nested_block < 1 || nested_block > 1 << 20)) ||
        !isfinite(offset)) {
        st = nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%s\": quant_type \"%.20s\", blocksize %lld, dtype \"%.20s\" is not "
                     "a form that nibble reads", path, t->name, type, (long long)block, dtype);
    } else if (json_array_size(shape) != 2 || json_integer_value(json_array_get(shape, 0)) != w->rows ||
               json_integer_value(json_array_get(shape, 1)) != w->cols) {
        st = nb_fail(NB_ESHAPE, "%s: tensor \"%s\" says shape [%lld, %lld], config.json says [%lld, %lld]", path,
                     t->name, (long long)json_integer_value(json_array_get(shape, 0)),
                     (long long)json_integer_value(json_array_get(shape, 1)), (long long)w->rows, (long long)w->cols);
    }
    w->nf4 = (nb_nf4){.blocksize = (int32_t)block, .nested_blocksize = (int32_t)nested_block, .dtype = (nb_dtype)dt,
                      .nested_offset = (float)offset};
out:
    json_decref(j);
    return st;
}

nb_status nb_nf4_read(nb_base *b, const nb_st *s, nb_weight *w, const char *module, int64_t rows, int64_t cols,
                      bool *found) {
    const nb_st_tensor *state = take(b, s, module, ".quant_state.bitsandbytes__nf4");
    *found = state != NULL;
    if (!state) {
        const nb_st_tensor *fp4 = take(b, s, module, ".quant_state.bitsandbytes__fp4"), *bytes = take(b, s, module, "");
        if (fp4)
            return nb_fail(NB_EUNSUPPORTED, "%s: \"%s\" is quantized to FP4, which nibble does not read; give the "
                           "original weights", s->files[fp4->shard].path, module);
        return bytes && bytes->dtype == NB_U8
                   ? nb_fail(NB_EINPUT, "%s: \"%s.weight\" holds packed bytes, and there is no \"quant_state\" that says "
                             "how: save the model again with bitsandbytes, or give the original weights",
                             s->files[bytes->shard].path, module) : NB_OK;
    }
    const char *path = s->files[state->shard].path;
    bool nested = false;
    nb_nf4 *q = &w->nf4;
    *w = (nb_weight){.format = NB_FMT_NF4, .rows = rows, .cols = cols};
    NB_TRY(read_state(w, &nested, state, path));
    int64_t n = rows * cols, blocks = div_up(n, q->blocksize);
    /* bitsandbytes may hold the bytes as another dtype ("quant_storage"): what counts is that all are there. */
    const nb_st_tensor *t = take(b, s, module, "");
    if (!t || t->bytes < (size_t)(n + 1) / 2 || t->bytes >= (size_t)(n + 1) / 2 + 8)
        return nb_fail(NB_ESHAPE, "%s: tensor \"%s.weight\" holds %zu bytes; [%lld, %lld] in 4 bits takes %lld", path,
                       module, t ? t->bytes : 0, (long long)rows, (long long)cols, (long long)(n + 1) / 2);
    w->data = t->data;
    const void *code, *absmax, *nested_absmax, *nested_code;
    NB_TRY(part_data(b, s, module, ".quant_map", NB_F32, 16, &code));
    NB_TRY(part_data(b, s, module, ".absmax", nested ? NB_U8 : NB_F32, blocks, &absmax));
    q->code = code;
    if (nested) q->absmax_u8 = absmax;
    else q->absmax = absmax;
    if (!nested) return NB_OK;
    int64_t n_nested = div_up(blocks, q->nested_blocksize);
    NB_TRY(part_data(b, s, module, ".nested_absmax", NB_F32, n_nested, &nested_absmax));
    NB_TRY(part_data(b, s, module, ".nested_quant_map", NB_F32, 256, &nested_code));
    q->nested_absmax = nested_absmax;
    q->nested_code = nested_code;
    return NB_OK;
}
