/* Writing safetensors. The data is laid out as the reference writer does: wider dtypes first, then by name, so
 * that every tensor is aligned to its dtype and equal content gives equal bytes. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"
#include "core/names.h"
#include "model/safetensors.h"

typedef struct slot {
    char *name;
    nb_dtype dtype;
    int n_dims;
    int64_t d[8];
    uint64_t at, bytes; /* in the data */
    bool written;
} slot;

struct nb_st_writer {
    nb_out out;
    json_t *metadata;
    slot *slots;
    int n, cap;
    uint64_t data_at; /* in the file; 0 until the layout is fixed */
    nb_names names;   /* of the slots, from then on */
};

nb_status nb_st_write_begin(nb_st_writer **w, const char *path, const json_t *metadata) {
    *w = NB_NEW(nb_st_writer);
    (*w)->metadata = metadata ? json_deep_copy(metadata) : NULL;
    nb_status st = nb_out_open(&(*w)->out, path);
    if (st != NB_OK) {
        nb_st_write_abort(*w);
        *w = NULL;
    }
    return st;
}

nb_status nb_st_write_declare(nb_st_writer *w, const char *name, nb_dtype dtype, int n_dims, const int64_t *d) {
    NB_ASSERT(!w->data_at && n_dims >= 0 && n_dims <= 8);
    slot s = {.name = nb_strdup(name), .dtype = dtype, .n_dims = n_dims, .bytes = (uint64_t)nb_dtype_size(dtype)};
    for (int i = 0; i < n_dims; i++) {
        s.d[i] = d[i];
        NB_ASSERT(d[i] >= 0);
        if (__builtin_mul_overflow(s.bytes, (uint64_t)d[i], &s.bytes)) {
            free(s.name);
            return nb_fail(NB_EINPUT, "%s: tensor \"%s\" is too large to write", w->out.path, name);
        }
    }
    NB_GROW(w->slots, w->n, w->cap);
    w->slots[w->n++] = s;
    return NB_OK;
}

static int by_layout(const void *x, const void *y) {
    const slot *s = x, *t = y;
    int ds = nb_dtype_size(s->dtype), dt = nb_dtype_size(t->dtype);
    return ds != dt ? dt - ds : strcmp(s->name, t->name);
}

static json_t *header(const nb_st_writer *w) {
    json_t *head = json_object();
    if (w->metadata) json_object_set(head, "__metadata__", w->metadata);
    for (int i = 0; i < w->n; i++) {
        const slot *s = &w->slots[i];
        json_t *shape = json_array();
        for (int k = 0; k < s->n_dims; k++) json_array_append_new(shape, json_integer(s->d[k]));
        json_t *e = json_pack("{s:s, s:o, s:[I, I]}", "dtype", nb_st_dtype_name(s->dtype), "shape", shape,
                              "data_offsets", (json_int_t)s->at, (json_int_t)(s->at + s->bytes));
        if (!e || json_object_set_new(head, s->name, e) < 0) { /* a name that is not UTF-8 */
            json_decref(head);
            return NULL;
        }
    }
    return head;
}

/* Fixes the layout and writes the header, once every tensor is declared. */
static nb_status write_header(nb_st_writer *w) {
    uint64_t at = 0, room;
    if (w->n) qsort(w->slots, (size_t)w->n, sizeof *w->slots, by_layout);
    for (int i = 0; i < w->n; i++) {
        NB_ASSERT(!i || strcmp(w->slots[i - 1].name, w->slots[i].name) != 0);
        nb_names_add(&w->names, w->slots[i].name, strlen(w->slots[i].name), i);
        w->slots[i].at = at;
        at += w->slots[i].bytes;
    }
    NB_TRY(nb_free_space(w->out.path, &room));
    if (at > room) {
        char need[16], have[16];
        return nb_fail(NB_EIO, "%s: needs %s and only %s is free on that disk; free some space or write elsewhere",
                       w->out.path, nb_bytes((double)at, need), nb_bytes((double)room, have));
    }
    json_t *head = header(w);
    char *text = head ? json_dumps(head, JSON_COMPACT) : NULL;
    json_decref(head);
    if (!text) return nb_fail(NB_EINPUT, "%s: a tensor's name or the metadata is not UTF-8 text", w->out.path);
    uint64_t n = strlen(text), padded = (n + 7) / 8 * 8;
    uint8_t size[8];
    for (int i = 0; i < 8; i++) size[i] = (uint8_t)(padded >> 8 * i);
    nb_status st = nb_out_write(&w->out, size, 8);
    if (st == NB_OK) st = nb_out_write(&w->out, text, n);
    if (st == NB_OK) st = nb_out_write(&w->out, "        ", padded - n);
    free(text);
    w->data_at = 8 + padded;
    return st;
}

nb_status nb_st_write_data(nb_st_writer *w, const char *name, const void *data, size_t bytes) {
    if (!w->data_at) NB_TRY(write_header(w));
    int64_t i = nb_names_find(&w->names, name, strlen(name));
    slot *s = i < 0 ? NULL : &w->slots[i];
    NB_ASSERT(s && !s->written && s->bytes == bytes);
    s->written = true;
    if (fseeko(w->out.f, (off_t)(w->data_at + s->at), SEEK_SET) < 0)
        return nb_fail(NB_EIO, "%s: cannot seek", w->out.path);
    return nb_out_write(&w->out, data, bytes);
}

static void release(nb_st_writer *w) {
    for (int i = 0; i < w->n; i++) free(w->slots[i].name);
    free(w->slots);
    nb_names_free(&w->names);
    json_decref(w->metadata);
    free(w);
}

nb_status nb_st_write_end(nb_st_writer *w) {
    nb_status st = w->data_at ? NB_OK : write_header(w);
    for (int i = 0; i < w->n; i++) NB_ASSERT(w->slots[i].written || st != NB_OK || w->slots[i].bytes == 0);
    if (st == NB_OK) st = nb_out_commit(&w->out);
    else nb_out_abort(&w->out);
    release(w);
    return st;
}

void nb_st_write_abort(nb_st_writer *w) {
    if (!w) return;
    nb_out_abort(&w->out);
    release(w);
}
