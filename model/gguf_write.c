/* Writing GGUF, and the types that tensors are stored in. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/gguf.h"

/* ---- types ---- */

static const struct { nb_gguf_type type; nb_format format; } types[] = {
    {NB_GGUF_F32, NB_FMT_F32},   {NB_GGUF_F16, NB_FMT_F16},   {NB_GGUF_BF16, NB_FMT_BF16}, {NB_GGUF_Q4_0, NB_FMT_Q4_0},
    {NB_GGUF_Q4_1, NB_FMT_Q4_1}, {NB_GGUF_Q5_0, NB_FMT_Q5_0}, {NB_GGUF_Q5_1, NB_FMT_Q5_1}, {NB_GGUF_Q8_0, NB_FMT_Q8_0},
    {NB_GGUF_Q4_K, NB_FMT_Q4_K}, {NB_GGUF_Q5_K, NB_FMT_Q5_K}, {NB_GGUF_Q6_K, NB_FMT_Q6_K},
};

static int row_of(nb_gguf_type t) {
    for (int i = 0; i < NB_LEN(types); i++)
        if (types[i].type == t) return i;
    return -1;
}

const char *nb_gguf_type_name(nb_gguf_type t) { return row_of(t) < 0 ? NULL : nb_format_name(types[row_of(t)].format); }

bool nb_gguf_type_find(const char *name, nb_gguf_type *t) {
    for (int i = 0; i < NB_LEN(types); i++)
        if (!strcmp(nb_format_name(types[i].format), name)) return *t = types[i].type, true;
    return false;
}

nb_format nb_gguf_type_format(nb_gguf_type t) {
    NB_ASSERT(row_of(t) >= 0);
    return types[row_of(t)].format;
}

size_t nb_gguf_bytes(nb_gguf_type t, int64_t n) {
    const nb_format f = nb_gguf_type_format(t);
    NB_ASSERT(n % nb_format_block(f) == 0);
    return (size_t)nb_format_bytes(f, n);
}

void nb_gguf_decode(nb_gguf_type t, float *out, const void *data, int64_t n) {
    const nb_weight w = {.format = nb_gguf_type_format(t), .rows = 1, .cols = n, .data = data};
    nb_weight_decode(out, n, &w, 0, 1, 0, n);
}

/* ---- writing ---- */

struct nb_gguf_writer {
    nb_out out;
    nb_text keys, infos; /* as they will be in the file */
    uint64_t n_keys;
    uint64_t *size;      /* [n] bytes of each declared tensor */
    int n, cap, current; /* the tensor being written */
    uint64_t written;    /* of it */
    uint64_t data_bytes; /* of all, padding included */
    bool begun;          /* the header is written */
};

static void add_number(nb_text *t, uint64_t v, int bytes) {
    char b[8];
    for (int i = 0; i < bytes; i++) b[i] = (char)(v >> 8 * i);
    nb_text_add(t, b, (size_t)bytes);
}

static void add_string(nb_text *t, const char *s) {
    add_number(t, strlen(s), 8);
    nb_text_puts(t, s);
}

static void add_real(nb_text *t, float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    add_number(t, u, 4);
}

nb_status nb_gguf_write_begin(nb_gguf_writer **w, const char *path) {
    *w = NB_NEW(nb_gguf_writer);
    nb_status st = nb_out_open(&(*w)->out, path);
    if (st != NB_OK) {
        nb_gguf_write_abort(*w);
        *w = NULL;
    }
    return st;
}

static nb_text *add_key(nb_gguf_writer *w, const char *key, nb_gguf_kind kind) {
    NB_ASSERT(!w->begun);
    w->n_keys++;
    add_string(&w->keys, key);
    add_number(&w->keys, kind, 4);
    return &w->keys;
}

static nb_text *add_array(nb_gguf_writer *w, const char *key, nb_gguf_kind of, int64_t n) {
    nb_text *t = add_key(w, key, NB_GGUF_KARRAY);
    add_number(t, of, 4);
    add_number(t, (uint64_t)n, 8);
    return t;
}

void nb_gguf_put_u32(nb_gguf_writer *w, const char *key, uint32_t v) {
    add_number(add_key(w, key, NB_GGUF_KU32), v, 4);
}
void nb_gguf_put_f32(nb_gguf_writer *w, const char *key, float v) { add_real(add_key(w, key, NB_GGUF_KF32), v); }
void nb_gguf_put_bool(nb_gguf_writer *w, const char *key, bool v) { add_number(add_key(w, key, NB_GGUF_KBOOL), v, 1); }
void nb_gguf_put_str(nb_gguf_writer *w, const char *key, const char *s) {
    add_string(add_key(w, key, NB_GGUF_KSTR), s);
}

void nb_gguf_put_strs(nb_gguf_writer *w, const char *key, const char *const *s, int64_t n) {
    nb_text *t = add_array(w, key, NB_GGUF_KSTR, n);
    for (int64_t i = 0; i < n; i++) add_string(t, s[i]);
}

void nb_gguf_put_f32s(nb_gguf_writer *w, const char *key, const float *v, int64_t n) {
    nb_text *t = add_array(w, key, NB_GGUF_KF32, n);
    for (int64_t i = 0; i < n; i++) add_real(t, v[i]);
}

void nb_gguf_put_i32s(nb_gguf_writer *w, const char *key, const int32_t *v, int64_t n) {
    nb_text *t = add_array(w, key, NB_GGUF_KI32, n);
    for (int64_t i = 0; i < n; i++) add_number(t, (uint32_t)v[i], 4);
}

static uint64_t padded(uint64_t n) { return (n + NB_GGUF_ALIGN - 1) / NB_GGUF_ALIGN * NB_GGUF_ALIGN; }

nb_status nb_gguf_write_declare(nb_gguf_writer *w, const char *name, nb_gguf_type type, int n_dims, const int64_t *ne) {
    NB_ASSERT(!w->begun && n_dims >= 1 && n_dims <= NB_GGUF_MAX_DIMS);
    if (strlen(name) > NB_GGUF_MAX_NAME)
        return nb_fail(NB_EUNSUPPORTED, "%s: GGUF has no room for a name as long as \"%s\"", w->out.path, name);
    int64_t values = 1;
    add_string(&w->infos, name);
    add_number(&w->infos, (uint64_t)n_dims, 4);
    for (int i = 0; i < n_dims; i++) {
        add_number(&w->infos, (uint64_t)ne[i], 8);
        values *= ne[i];
    }
    add_number(&w->infos, type, 4);
    add_number(&w->infos, w->data_bytes, 8);
    NB_GROW(w->size, w->n, w->cap);
    w->size[w->n] = nb_gguf_bytes(type, values);
    w->data_bytes += padded(w->size[w->n++]);
    return NB_OK;
}

static nb_status pad(nb_gguf_writer *w, uint64_t n) {
    static const char zeros[NB_GGUF_ALIGN];
    return nb_out_write(&w->out, zeros, padded(n) - n);
}

static nb_status write_header(nb_gguf_writer *w) {
    uint64_t room, header;
    nb_text head = {0};
    NB_TRY(nb_free_space(w->out.path, &room));
    if (w->data_bytes > room) {
        char need[16], have[16];
        return nb_fail(NB_EIO, "%s: needs %s and only %s is free on that disk; free some space or write elsewhere",
                       w->out.path, nb_bytes((double)w->data_bytes, need), nb_bytes((double)room, have));
    }
    w->begun = true;
    nb_text_puts(&head, "GGUF");
    add_number(&head, 3, 4);
    add_number(&head, (uint64_t)w->n, 8);
    add_number(&head, w->n_keys, 8);
    header = head.n + w->keys.n + w->infos.n;
    nb_status st = nb_out_write(&w->out, head.s, head.n);
    if (st == NB_OK && w->keys.n) st = nb_out_write(&w->out, w->keys.s, w->keys.n);
    if (st == NB_OK && w->infos.n) st = nb_out_write(&w->out, w->infos.s, w->infos.n);
    if (st == NB_OK) st = pad(w, header);
    nb_text_free(&head);
    return st;
}

nb_status nb_gguf_write_data(nb_gguf_writer *w, const void *data, size_t bytes) {
    if (!w->begun) NB_TRY(write_header(w));
    NB_ASSERT(w->current < w->n && bytes <= w->size[w->current] - w->written);
    NB_TRY(nb_out_write(&w->out, data, bytes));
    w->written += bytes;
    if (w->written < w->size[w->current]) return NB_OK;
    w->written = 0;
    return pad(w, w->size[w->current++]);
}

static void release(nb_gguf_writer *w) {
    nb_text_free(&w->keys);
    nb_text_free(&w->infos);
    free(w->size);
    free(w);
}

nb_status nb_gguf_write_end(nb_gguf_writer *w) {
    nb_status st = w->begun ? NB_OK : write_header(w);
    NB_ASSERT(st != NB_OK || w->current == w->n);
    if (st == NB_OK) st = nb_out_commit(&w->out);
    else nb_out_abort(&w->out);
    release(w);
    return st;
}

void nb_gguf_write_abort(nb_gguf_writer *w) {
    if (!w) return;
    nb_out_abort(&w->out);
    release(w);
}
