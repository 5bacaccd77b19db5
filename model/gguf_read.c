/* Reading GGUF: nothing in the file is believed before it is checked. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/gguf.h"

typedef struct cursor {
    const nb_map *map;
    size_t at;
} cursor;

static size_t left(const cursor *c) { return c->map->size - c->at; }

static nb_status ends_early(const cursor *c, const char *in) {
    return nb_fail(NB_EINPUT, "%s: ends within %s at byte %zu: truncated, or not a GGUF file", c->map->path, in, c->at);
}

static nb_status number(cursor *c, int bytes, uint64_t *out, const char *in) {
    *out = 0;
    if (left(c) < (size_t)bytes) return ends_early(c, in);
    for (int i = 0; i < bytes; i++) *out |= (uint64_t)c->map->data[c->at + (size_t)i] << 8 * i;
    c->at += (size_t)bytes;
    return NB_OK;
}

static nb_status skip(cursor *c, uint64_t bytes, const char *in) {
    if (bytes > left(c)) return ends_early(c, in);
    c->at += (size_t)bytes;
    return NB_OK;
}

/* A name: text without NUL, at most so many bytes. Caller frees. */
static nb_status name(cursor *c, uint64_t max, char **out, const char *in) {
    uint64_t n;
    NB_TRY(number(c, 8, &n, in));
    size_t at = c->at;
    if (n > max)
        return nb_fail(NB_EINPUT, "%s: byte %zu: %s of %llu bytes", c->map->path, at, in, (unsigned long long)n);
    NB_TRY(skip(c, n, in));
    if (n && memchr(c->map->data + at, 0, (size_t)n))
        return nb_fail(NB_EINPUT, "%s: byte %zu: %s with a NUL", c->map->path, at, in);
    *out = nb_strndup((const char *)c->map->data + at, (size_t)n);
    return NB_OK;
}

/* ---- keys ---- */

static const uint8_t kind_bytes[NB_GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static nb_status kind(cursor *c, nb_gguf_kind *out, const char *key) {
    uint64_t v;
    NB_TRY(number(c, 4, &v, "a key"));
    if (v >= NB_GGUF_KINDS)
        return nb_fail(NB_EINPUT, "%s: key \"%s\" has a value of kind %llu, which is none", c->map->path, key,
                       (unsigned long long)v);
    *out = (nb_gguf_kind)v;
    return NB_OK;
}

static nb_status array(cursor *c, nb_gguf_key *k) {
    NB_TRY(kind(c, &k->of, k->name));
    NB_TRY(number(c, 8, &k->n, "an array"));
    k->data = c->map->data + c->at;
    if (k->of == NB_GGUF_KARRAY)
        return nb_fail(NB_EUNSUPPORTED, "%s: key \"%s\" is an array of arrays", c->map->path, k->name);
    uint64_t least = k->of == NB_GGUF_KSTR ? 8 : kind_bytes[k->of];
    if (k->n > left(c) / least)
        return nb_fail(NB_EINPUT, "%s: key \"%s\" has an array of %llu, more than the file has room for", c->map->path,
                       k->name, (unsigned long long)k->n);
    if (k->of != NB_GGUF_KSTR) return skip(c, k->n * least, k->name);
    for (uint64_t i = 0; i < k->n; i++) {
        uint64_t n;
        NB_TRY(number(c, 8, &n, k->name));
        NB_TRY(skip(c, n, k->name));
    }
    return NB_OK;
}

static nb_status read_key(cursor *c, nb_gguf_key *k) {
    NB_TRY(name(c, 65535, &k->name, "a key"));
    NB_TRY(kind(c, &k->kind, k->name));
    if (k->kind == NB_GGUF_KARRAY) return array(c, k);
    k->n = kind_bytes[k->kind];
    if (k->kind == NB_GGUF_KSTR) NB_TRY(number(c, 8, &k->n, k->name));
    k->data = c->map->data + c->at;
    return skip(c, k->n, k->name);
}

/* ---- tensors ---- */

static nb_status read_tensor(cursor *c, nb_gguf_tensor *t, uint64_t *offset) {
    const char *path = c->map->path;
    uint64_t n, type;
    int64_t values = 1;
    NB_TRY(name(c, NB_GGUF_MAX_NAME, &t->name, "a tensor's name"));
    NB_TRY(number(c, 4, &n, t->name));
    if (n < 1 || n > NB_GGUF_MAX_DIMS)
        return nb_fail(NB_EINPUT, "%s: tensor \"%s\" has %llu dimensions", path, t->name, (unsigned long long)n);
    t->n_dims = (int)n;
    for (int i = 0; i < NB_GGUF_MAX_DIMS; i++) {
        n = 1;
        if (i < t->n_dims) NB_TRY(number(c, 8, &n, t->name));
        if (n < 1 || n > INT64_MAX / 64 || __builtin_mul_overflow(values, (int64_t)n, &values) ||
            values > INT64_MAX / 64)
            return nb_fail(NB_EINPUT, "%s: tensor \"%s\" has an impossible shape", path, t->name);
        t->ne[i] = (int64_t)n;
    }
    NB_TRY(number(c, 4, &type, t->name));
    NB_TRY(number(c, 8, offset, t->name));
    t->type = (nb_gguf_type)type;
    if (!nb_gguf_type_name(t->type))
        return nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%s\" is stored as ggml type %llu: f32, f16, bf16, q4_0, q4_1, "
                       "q5_0, q5_1, q8_0, q4_k, q5_k and q6_k are read", path, t->name, (unsigned long long)type);
    if (t->ne[0] % nb_format_block(nb_gguf_type_format(t->type)))
        return nb_fail(NB_EINPUT, "%s: tensor \"%s\" has rows that are not whole blocks", path, t->name);
    t->bytes = nb_gguf_bytes(t->type, values);
    return NB_OK;
}

static int by_name(const void *x, const void *y) {
    return strcmp(((const nb_gguf_tensor *)x)->name, ((const nb_gguf_tensor *)y)->name);
}

/* Puts the tensors' data behind the header, once all offsets are known. */
static nb_status place(nb_gguf *g, const cursor *c, const uint64_t *offset) {
    int64_t align = NB_GGUF_ALIGN;
    nb_gguf_int(g, "general.alignment", &align);
    if (align < 8 || align > 1 << 20 || align & (align - 1))
        return nb_fail(NB_EINPUT, "%s: general.alignment is %lld", g->map.path, (long long)align);
    uint64_t start = ((uint64_t)c->at + (uint64_t)align - 1) / (uint64_t)align * (uint64_t)align, size = g->map.size;
    for (int64_t i = 0; i < g->n_tensors; i++) {
        nb_gguf_tensor *t = &g->tensors[i];
        if (offset[i] % (uint64_t)align || start > size || offset[i] > size - start ||
            t->bytes > size - start - offset[i])
            return nb_fail(NB_EINPUT,
                           "%s: tensor \"%s\" (%zu bytes at offset %llu of the data) is not inside the file of %llu "
                           "bytes, or not aligned",
                           g->map.path, t->name, t->bytes, (unsigned long long)offset[i], (unsigned long long)size);
        t->data = g->map.data + start + offset[i];
    }
    if (g->n_tensors) qsort(g->tensors, (size_t)g->n_tensors, sizeof *g->tensors, by_name);
    for (int64_t i = 1; i < g->n_tensors; i++)
        if (!by_name(&g->tensors[i - 1], &g->tensors[i]))
            return nb_fail(NB_EINPUT, "%s: two tensors named \"%s\"", g->map.path, g->tensors[i].name);
    return NB_OK;
}

static nb_status read_all(nb_gguf *g) {
    enum { LEAST_KEY = 13, LEAST_TENSOR = 32 }; /* bytes that one takes at least */
    cursor c = {&g->map, 0};
    uint64_t magic, version, tensors, keys;
    NB_TRY(number(&c, 4, &magic, "the header"));
    if (magic != 0x46554747) return nb_fail(NB_EINPUT, "%s: does not begin with GGUF", g->map.path);
    NB_TRY(number(&c, 4, &version, "the header"));
    if (version != 2 && version != 3)
        return nb_fail(NB_EUNSUPPORTED, "%s: GGUF version %llu: 2 and 3 are read", g->map.path,
                       (unsigned long long)version);
    NB_TRY(number(&c, 8, &tensors, "the header"));
    NB_TRY(number(&c, 8, &keys, "the header"));
    if (keys > left(&c) / LEAST_KEY || tensors > left(&c) / LEAST_TENSOR)
        return nb_fail(NB_EINPUT, "%s: says it has %llu keys and %llu tensors, more than it has room for", g->map.path,
                       (unsigned long long)keys, (unsigned long long)tensors);
    g->keys = nb_calloc((size_t)keys + 1, sizeof *g->keys);
    while (g->n_keys < (int64_t)keys) NB_TRY(read_key(&c, &g->keys[g->n_keys++]));
    g->tensors = nb_calloc((size_t)tensors + 1, sizeof *g->tensors);
    uint64_t *offset = nb_calloc((size_t)tensors + 1, sizeof *offset);
    nb_status st = NB_OK;
    for (; st == NB_OK && g->n_tensors < (int64_t)tensors; g->n_tensors++)
        st = read_tensor(&c, &g->tensors[g->n_tensors], &offset[g->n_tensors]);
    if (st == NB_OK) st = place(g, &c, offset);
    free(offset);
    return st;
}

nb_status nb_gguf_open(nb_gguf *g, const char *path) {
    *g = (nb_gguf){0};
    NB_TRY(nb_map_open(&g->map, path));
    nb_status st = read_all(g);
    if (st != NB_OK) nb_gguf_close(g);
    return st;
}

void nb_gguf_close(nb_gguf *g) {
    for (int64_t i = 0; i < g->n_keys; i++) free(g->keys[i].name);
    for (int64_t i = 0; i < g->n_tensors; i++) free(g->tensors[i].name);
    free(g->keys);
    free(g->tensors);
    nb_map_close(&g->map);
    *g = (nb_gguf){0};
}

/* ---- looking up ---- */

const nb_gguf_key *nb_gguf_find_key(const nb_gguf *g, const char *key) {
    for (int64_t i = 0; i < g->n_keys; i++)
        if (!strcmp(g->keys[i].name, key)) return &g->keys[i];
    return NULL;
}

const nb_gguf_tensor *nb_gguf_find_tensor(const nb_gguf *g, const char *tensor) {
    nb_gguf_tensor wanted = {.name = (char *)tensor};
    return g->n_tensors ? bsearch(&wanted, g->tensors, (size_t)g->n_tensors, sizeof wanted, by_name) : NULL;
}

bool nb_gguf_int(const nb_gguf *g, const char *key, int64_t *out) {
    const nb_gguf_key *k = nb_gguf_find_key(g, key);
    if (!k) return false;
    uint64_t v = 0;
    bool is_signed =
        k->kind == NB_GGUF_KI8 || k->kind == NB_GGUF_KI16 || k->kind == NB_GGUF_KI32 || k->kind == NB_GGUF_KI64;
    if (k->kind == NB_GGUF_KF32 || k->kind == NB_GGUF_KF64 || !kind_bytes[k->kind]) return false;
    for (uint64_t i = 0; i < k->n; i++) v |= (uint64_t)k->data[i] << 8 * i;
    if (is_signed && k->n < 8 && v >> (8 * k->n - 1)) v -= (uint64_t)1 << 8 * k->n;
    *out = (int64_t)v;
    return true;
}

bool nb_gguf_real(const nb_gguf *g, const char *key, double *out) {
    const nb_gguf_key *k = nb_gguf_find_key(g, key);
    float f;
    if (!k || (k->kind != NB_GGUF_KF32 && k->kind != NB_GGUF_KF64)) return false;
    if (k->kind == NB_GGUF_KF32) memcpy(&f, k->data, 4), *out = f;
    else memcpy(out, k->data, 8);
    return true;
}

char *nb_gguf_str(const nb_gguf *g, const char *key) {
    const nb_gguf_key *k = nb_gguf_find_key(g, key);
    return k && k->kind == NB_GGUF_KSTR ? nb_strndup((const char *)k->data, (size_t)k->n) : NULL;
}

static const nb_gguf_key *list_of(const nb_gguf *g, const char *key, nb_gguf_kind of, nb_gguf_kind or) {
    const nb_gguf_key *k = nb_gguf_find_key(g, key);
    return k && k->kind == NB_GGUF_KARRAY && (k->of == of || k->of == or) ? k : NULL;
}

bool nb_gguf_strs(const nb_gguf *g, const char *key, char ***out, int64_t *n) {
    const nb_gguf_key *k = list_of(g, key, NB_GGUF_KSTR, NB_GGUF_KSTR);
    if (!k) return false;
    const uint8_t *p = k->data;
    bool whole = true;
    *out = nb_calloc((size_t)k->n + 1, sizeof **out);
    for (*n = 0; *n < (int64_t)k->n; ++*n) {
        uint64_t len = 0; /* checked when the file was opened */
        for (int i = 0; i < 8; i++) len |= (uint64_t)p[i] << 8 * i;
        (*out)[*n] = nb_strndup((const char *)p + 8, (size_t)len);
        whole &= strlen((*out)[*n]) == len;
        p += 8 + len;
    }
    for (int64_t i = 0; i < *n && !whole; i++) free((*out)[i]);
    if (!whole) {
        free(*out);
        *out = NULL;
    }
    return whole;
}

bool nb_gguf_f32s(const nb_gguf *g, const char *key, float **out, int64_t *n) {
    const nb_gguf_key *k = list_of(g, key, NB_GGUF_KF32, NB_GGUF_KF32);
    if (!k) return false;
    *n = (int64_t)k->n;
    *out = nb_malloc((size_t)k->n * sizeof **out + 1);
    if (k->n) memcpy(*out, k->data, (size_t)k->n * sizeof **out);
    return true;
}

bool nb_gguf_i32s(const nb_gguf *g, const char *key, int32_t **out, int64_t *n) {
    const nb_gguf_key *k = list_of(g, key, NB_GGUF_KI32, NB_GGUF_KU32);
    if (!k) return false;
    *n = (int64_t)k->n;
    *out = nb_malloc((size_t)k->n * sizeof **out + 1);
    if (k->n) memcpy(*out, k->data, (size_t)k->n * sizeof **out);
    return true;
}
