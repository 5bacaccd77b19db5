#include "model/safetensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/mem.h"

enum { MAX_HEADER = 100000000, MAX_DIMS = 8 }; /* the format's limit on the header; ours on the rank */

/* Names of the format, and ours where we have one. */
static const struct {
    const char *name;
    int dtype; /* -1: known, not handled */
} dtypes[] = {
    {"F32", NB_F32}, {"BF16", NB_BF16}, {"F16", NB_F16}, {"F64", NB_F64}, {"I64", NB_I64}, {"I32", NB_I32},
    {"U8", NB_U8},   {"I8", NB_I8},     {"BOOL", NB_BOOL}, {"I16", -1},   {"U16", -1},     {"U32", -1},
    {"U64", -1},     {"F8_E5M2", -1},   {"F8_E4M3", -1},   {"F8_E8M0", -1}, {"F4", -1},    {"C64", -1},
};

const char *nb_st_dtype_name(nb_dtype dt) {
    for (int i = 0; i < NB_LEN(dtypes); i++)
        if (dtypes[i].dtype == (int)dt) return dtypes[i].name;
    return "?";
}

/* Names in messages come from the file: keep them short. */
#define BAD(...) nb_fail(NB_EINPUT, __VA_ARGS__)

static nb_status read_dtype(nb_dtype *out, const json_t *v, const char *path, const char *name) {
    if (!json_is_string(v)) return BAD("%s: tensor \"%.200s\" has no \"dtype\" text", path, name);
    const char *s = json_string_value(v);
    for (int i = 0; i < NB_LEN(dtypes); i++) {
        if (strcmp(s, dtypes[i].name) != 0) continue;
        if (dtypes[i].dtype < 0)
            return nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%.200s\" has dtype %s, which nibble does not read; "
                           "save it as F32, BF16 or F16", path, name, s);
        *out = (nb_dtype)dtypes[i].dtype;
        return NB_OK;
    }
    return BAD("%s: tensor \"%.200s\" has the unknown dtype \"%.40s\"", path, name, s);
}

static nb_status read_shape(nb_st_tensor *t, const json_t *v, const char *path) {
    if (!json_is_array(v)) return BAD("%s: tensor \"%.200s\" has no \"shape\" list", path, t->name);
    size_t n = json_array_size(v);
    if (n > MAX_DIMS)
        return nb_fail(NB_EUNSUPPORTED, "%s: tensor \"%.200s\" has %zu dimensions, nibble reads up to %d", path,
                       t->name, n, MAX_DIMS);
    t->n_dims = (int)n;
    int64_t bytes = nb_dtype_size(t->dtype);
    bool empty = false;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(v, i);
        t->d[i] = json_is_integer(d) ? json_integer_value(d) : -1;
        if (t->d[i] < 0) return BAD("%s: tensor \"%.200s\" has a dimension that is not a count", path, t->name);
        if (t->d[i] == 0) empty = true;
        else if (__builtin_mul_overflow(bytes, t->d[i], &bytes))
            return BAD("%s: tensor \"%.200s\" is larger than any machine (its shape overflows)", path, t->name);
    }
    t->bytes = empty ? 0 : (size_t)bytes;
    return NB_OK;
}

/* One entry of the header. */
static nb_status read_entry(nb_st_tensor *t, const char *name, const json_t *e, const nb_map *m, size_t data_at) {
    const char *path = m->path;
    size_t data_size = m->size - data_at;
    t->name = nb_strdup(name);
    if (!json_is_object(e)) return BAD("%s: the entry of tensor \"%.200s\" is not an object", path, name);
    NB_TRY(read_dtype(&t->dtype, json_object_get(e, "dtype"), path, name));
    NB_TRY(read_shape(t, json_object_get(e, "shape"), path));
    const json_t *o = json_object_get(e, "data_offsets"), *o0 = json_array_get(o, 0), *o1 = json_array_get(o, 1);
    if (json_array_size(o) != 2 || !json_is_integer(o0) || !json_is_integer(o1))
        return BAD("%s: tensor \"%.200s\" has no \"data_offsets\": [begin, end]", path, name);
    int64_t from = json_integer_value(o0), to = json_integer_value(o1);
    if (from < 0 || to < from)
        return BAD("%s: tensor \"%.200s\" has impossible offsets [%lld, %lld]", path, name, (long long)from,
                   (long long)to);
    if ((uint64_t)to > data_size)
        return BAD("%s: tensor \"%.200s\" ends at byte %lld of the data, but there are only %zu: the file is "
                   "truncated or damaged; fetch it again", path, name, (long long)to, data_size);
    if ((size_t)(to - from) != t->bytes)
        return BAD("%s: tensor \"%.200s\" takes %lld bytes by its offsets and %zu by its shape and dtype", path, name,
                   (long long)(to - from), t->bytes);
    t->data = m->data + data_at + from;
    return NB_OK;
}

static int by_place(const void *x, const void *y) {
    const nb_st_tensor *s = x, *t = y;
    if (s->data != t->data) return s->data < t->data ? -1 : 1;
    return s->bytes != t->bytes ? (s->bytes < t->bytes ? -1 : 1) : strcmp(s->name, t->name);
}

static int by_name(const void *x, const void *y) {
    return strcmp(((const nb_st_tensor *)x)->name, ((const nb_st_tensor *)y)->name);
}

/* The format wants the tensors to cover the data without gap or overlap. */
static nb_status check_cover(nb_st_tensor *t, int n, const nb_map *m, size_t data_at) {
    if (n) qsort(t, (size_t)n, sizeof *t, by_place);
    const uint8_t *at = m->data + data_at, *end = m->data + m->size;
    for (int i = 0; i < n; at = (const uint8_t *)t[i].data + t[i].bytes, i++)
        if ((const uint8_t *)t[i].data != at)
            return BAD("%s: tensor \"%.200s\" %s at offset %zu; the file is damaged", m->path, t[i].name,
                       (const uint8_t *)t[i].data < at ? "overlaps another" : "leaves a gap before it",
                       (size_t)((const uint8_t *)t[i].data - m->data) - data_at);
    if (at != end)
        return BAD("%s: %zu bytes behind the last tensor belong to none; the file is damaged", m->path,
                   (size_t)(end - at));
    return NB_OK;
}

static nb_status read_header(json_t **head, size_t *data_at, const nb_map *m) {
    uint64_t n = 0;
    if (m->size < 8) return BAD("%s: %zu bytes are no safetensors file", m->path, m->size);
    for (int i = 0; i < 8; i++) n |= (uint64_t)m->data[i] << 8 * i;
    if (n > MAX_HEADER)
        return BAD("%s: offset 0: a header of %llu bytes is over the format's 100 MB; this is no safetensors file",
                   m->path, (unsigned long long)n);
    if (n > m->size - 8)
        return BAD("%s: offset 0: the header has %llu bytes, the file only %zu more: it is truncated; fetch it again",
                   m->path, (unsigned long long)n, m->size - 8);
    if (n == 0 || m->data[8] != '{') return BAD("%s: offset 8: no JSON header; this is no safetensors file", m->path);
    json_error_t err;
    *head = json_loadb((const char *)m->data + 8, (size_t)n, JSON_REJECT_DUPLICATES, &err);
    if (!*head) return BAD("%s: offset %d: the header is not valid JSON: %s", m->path, 8 + err.position, err.text);
    *data_at = 8 + (size_t)n;
    return NB_OK;
}

/* Adds the tensors of s->files[shard]. */
static nb_status read_file(nb_st *s, int shard) {
    const nb_map *m = &s->files[shard];
    json_t *head = NULL;
    size_t data_at = 0;
    NB_TRY(read_header(&head, &data_at, m));
    nb_status st = NB_OK;
    int first = s->n_tensors;
    s->tensors = nb_realloc(s->tensors, (size_t)first + json_object_size(head), sizeof *s->tensors);
    const char *name;
    json_t *e;
    json_object_foreach(head, name, e) {
        if (!strcmp(name, "__metadata__")) {
            if (!json_is_object(e)) NB_GO(st, BAD("%s: \"__metadata__\" is not an object", m->path), out);
            if (!s->metadata) s->metadata = json_incref(e);
            continue;
        }
        nb_st_tensor *t = &s->tensors[s->n_tensors++];
        *t = (nb_st_tensor){.shard = shard};
        NB_GO(st, read_entry(t, name, e, m, data_at), out);
    }
    st = check_cover(s->tensors + first, s->n_tensors - first, m, data_at);
out:
    json_decref(head);
    return st;
}

static nb_status finish(nb_st *s) {
    if (s->n_tensors) qsort(s->tensors, (size_t)s->n_tensors, sizeof *s->tensors, by_name);
    for (int i = 1; i < s->n_tensors; i++) {
        const nb_st_tensor *t = &s->tensors[i - 1];
        if (!strcmp(t->name, t[1].name))
            return BAD("tensor \"%.200s\" is both in %s and in %s", t->name, s->files[t->shard].path,
                       s->files[t[1].shard].path);
    }
    return NB_OK;
}

static nb_status open_files(nb_st *s, char *const *paths, int n) {
    *s = (nb_st){.files = nb_calloc((size_t)n, sizeof *s->files)};
    nb_status st = NB_OK;
    for (int i = 0; i < n && st == NB_OK; i++) {
        st = nb_map_open(&s->files[i], paths[i]);
        if (st != NB_OK) break;
        s->n_files++;
        st = read_file(s, i);
    }
    if (st == NB_OK) st = finish(s);
    if (st != NB_OK) nb_st_close(s);
    return st;
}

nb_status nb_st_open_file(nb_st *s, const char *path) {
    char *p = (char *)(uintptr_t)path; /* only read */
    return open_files(s, &p, 1);
}

void nb_st_close(nb_st *s) {
    for (int i = 0; i < s->n_tensors; i++) free(s->tensors[i].name);
    for (int i = 0; i < s->n_files; i++) nb_map_close(&s->files[i]);
    free(s->tensors);
    free(s->files);
    json_decref(s->metadata);
    *s = (nb_st){0};
}

static int by_text(const void *x, const void *y) { return strcmp(*(char *const *)x, *(char *const *)y); }

/* The shards an index names, sorted, each once, as paths in `dir`. */
static nb_status index_files(char ***paths, int *n, const json_t *map, const char *dir, const char *index) {
    const char *name;
    json_t *v;
    *paths = nb_calloc(json_object_size(map), sizeof **paths);
    *n = 0;
    json_object_foreach((json_t *)(uintptr_t)map, name, v) {
        const char *f = json_string_value(v);
        /* A shard lies beside its index: an index must not make us read elsewhere. */
        if (!f || !*f || strchr(f, '/') || f[0] == '.')
            return BAD("%s: weight_map[\"%.200s\"] is not the name of a file beside it", index, name);
        (*paths)[(*n)++] = nb_path_join(dir, f);
    }
    if (*n) qsort(*paths, (size_t)*n, sizeof **paths, by_text);
    int k = 0;
    for (int i = 0; i < *n; i++) {
        if (k && !strcmp((*paths)[k - 1], (*paths)[i])) free((*paths)[i]);
        else (*paths)[k++] = (*paths)[i];
    }
    *n = k;
    return NB_OK;
}

/* Every tensor of the index is in the shard it names. */
static nb_status check_index(const nb_st *s, const json_t *map, const char *index) {
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)map, name, v) {
        const nb_st_tensor *t = nb_st_find(s, name);
        const char *want = json_string_value(v);
        if (!t || strcmp(nb_path_base(s->files[t->shard].path), want) != 0)
            return BAD("%s: says that tensor \"%.200s\" is in %s, which does not hold it", index, name, want);
    }
    return NB_OK;
}

static nb_status open_index(nb_st *s, const char *dir, const char *index) {
    json_t *root;
    char **paths = NULL;
    int n = 0;
    NB_TRY(nb_json_load(index, &root));
    const json_t *map = json_object_get(root, "weight_map");
    nb_status st = json_object_size(map) ? NB_OK : BAD("%s: no \"weight_map\" that names tensors", index);
    if (st == NB_OK) st = index_files(&paths, &n, map, dir, index);
    for (int i = 0; i < n && st == NB_OK; i++)
        if (!nb_file_exists(paths[i]))
            st = BAD("%s: names the shard %s, which is not there; fetch it", index, nb_path_base(paths[i]));
    if (st == NB_OK) st = open_files(s, paths, n);
    if (st == NB_OK) {
        st = check_index(s, map, index);
        if (st != NB_OK) nb_st_close(s);
    }
    for (int i = 0; i < n; i++) free(paths[i]);
    free(paths);
    json_decref(root);
    return st;
}

nb_status nb_st_open_dir(nb_st *s, const char *dir, const char *stem) {
    *s = (nb_st){0};
    char *index = nb_asprintf("%s/%s.safetensors.index.json", dir, stem);
    char *single = nb_asprintf("%s/%s.safetensors", dir, stem);
    nb_status st = nb_file_exists(index) ? open_index(s, dir, index) : nb_st_open_file(s, single);
    free(index);
    free(single);
    return st;
}

const nb_st_tensor *nb_st_find(const nb_st *s, const char *name) {
    nb_st_tensor key = {.name = (char *)(uintptr_t)name};
    return s->n_tensors ? bsearch(&key, s->tensors, (size_t)s->n_tensors, sizeof key, by_name) : NULL;
}

nb_status nb_st_add_prefix(nb_st *s, const char *prefix, const char *other) {
    for (int i = 0; i < s->n_tensors; i++) {
        char *name = s->tensors[i].name;
        size_t n = strlen(other);
        if (!strncmp(name, prefix, strlen(prefix)) || (!strncmp(name, other, n) && name[n] == '.')) continue;
        s->tensors[i].name = nb_asprintf("%s%s", prefix, name);
        free(name);
    }
    return finish(s);
}

void nb_st_read_columns_f32(const nb_st_tensor *t, float *out, int64_t first, int64_t n) {
    int64_t rows = t->d[0];
    float *part = nb_malloc((size_t)n * sizeof *part);
    for (int64_t i = 0; i < rows; i++) {
        nb_st_read_f32(t, part, i * t->d[1] + first, n);
        for (int64_t j = 0; j < n; j++) out[j * rows + i] = part[j];
    }
    free(part);
}

void nb_st_read_f32(const nb_st_tensor *t, float *out, int64_t first, int64_t n) {
    const uint8_t *p = (const uint8_t *)t->data + first * nb_dtype_size(t->dtype);
    NB_ASSERT(t->dtype == NB_F32 || t->dtype == NB_BF16 || t->dtype == NB_F16 || t->dtype == NB_F64);
    NB_ASSERT(first >= 0 && n >= 0 && (size_t)(first + n) * (size_t)nb_dtype_size(t->dtype) <= t->bytes);
    if (t->dtype == NB_F32 && n) memcpy(out, p, (size_t)n * 4);
    for (int64_t i = 0; i < n && t->dtype != NB_F32; i++) {
        uint16_t h;
        double d;
        if (t->dtype == NB_F64) memcpy(&d, p + i * 8, 8), out[i] = (float)d;
        else memcpy(&h, p + i * 2, 2), out[i] = t->dtype == NB_BF16 ? nb_bf16_to_f32(h) : nb_f16_to_f32(h);
    }
}
