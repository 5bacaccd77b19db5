/* Quantizing a base to NF4, tensor by tensor with all threads on each, into a cache file that later loads map,
 * into memory when there can be no such file, or into a model folder. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/interrupt.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/base.h"

enum { BLOCK = 64, NESTED_BLOCK = 256, CACHE_VERSION = 1 };
enum { CHUNK = BLOCK * 2048 }; /* elements a thread takes at once: whole blocks, an even number of elements */

/* Where one quantized matrix goes. absmax is scratch when double quantization makes u8 and nested of it. */
typedef struct room {
    uint8_t *packed, *u8;
    float *absmax, *nested;
    void *turned; /* the weight in our order, where the file has another */
} room;

static int64_t n_blocks(int64_t n) { return (n + BLOCK - 1) / BLOCK; }
static int64_t n_nested(int64_t n) { return (n_blocks(n) + NESTED_BLOCK - 1) / NESTED_BLOCK; }

/* No NaN and no infinity: all bits of an exponent set mean one of them. */
static bool all_finite(const void *x, nb_dtype dt, int64_t n) {
    bool bad = false;
    if (dt == NB_F32) {
        const uint32_t *p = x;
        for (int64_t i = 0; i < n; i++) bad |= (p[i] & 0x7f800000u) == 0x7f800000u;
    } else {
        const uint16_t *p = x, mask = dt == NB_BF16 ? 0x7f80 : 0x7c00;
        for (int64_t i = 0; i < n; i++) bad |= (p[i] & mask) == mask;
    }
    return !bad;
}

static nb_status quantize(nb_weight *out, const nb_base_linear *lin, const room *to, bool double_quant) {
    const nb_weight *w = &lin->w;
    const void *data = lin->as_stored ? to->turned : w->data;
    int64_t n = w->rows * w->cols;
    nb_dtype dt = (nb_dtype)w->format;
    size_t size = (size_t)nb_dtype_size(dt);
    int bad = 0;
    NB_ASSERT(w->format <= NB_FMT_F16);
    if (lin->as_stored) nb_weight_turn(to->turned, w);
#pragma omp parallel for schedule(dynamic) reduction(| : bad)
    for (int64_t at = 0; at < n; at += CHUNK) {
        int64_t count = n - at < CHUNK ? n - at : CHUNK;
        const uint8_t *x = (const uint8_t *)data + (size_t)at * size;
        bad |= !all_finite(x, dt, count);
        nb_nf4_quantize(to->packed + at / 2, to->absmax + at / BLOCK, x, dt, count);
    }
    if (bad) return nb_fail(NB_ENUMERIC, "%s.weight holds NaN or infinity: the base is damaged", lin->name);
    *out = (nb_weight){.format = NB_FMT_NF4, .rows = w->rows, .cols = w->cols, .data = to->packed,
                       .nf4 = {.code = nb_nf4_code, .absmax = to->absmax, .blocksize = BLOCK, .dtype = dt}};
    if (!double_quant) return NB_OK;
    nb_nf4 *q = &out->nf4;
    nb_nf4_quantize_absmax(to->u8, to->nested, &q->nested_offset, to->absmax, n_blocks(n));
    q->absmax = NULL;
    q->absmax_u8 = to->u8;
    q->nested_absmax = to->nested;
    q->nested_code = nb_dynamic_code;
    q->nested_blocksize = NESTED_BLOCK;
    return NB_OK;
}

/* Calls f on every linear layer that is quantized. */
typedef nb_status visit(void *ctx, nb_base_linear *lin);
static nb_status each_linear(nb_base *b, visit *f, void *ctx) {
    for (int64_t l = 0; l < b->spec.layers; l++)
        for (int k = 0; k < nb_spec_slots(&b->spec); k++)
            if (b->layer[l].lin[k].w.rows && !nb_spec_stays_float(k)) NB_TRY(f(ctx, &b->layer[l].lin[k]));
    return NB_OK;
}

typedef struct job {
    nb_base *b;
    bool double_quant;
    nb_st_writer *w;  /* NULL: keep in memory */
    room to;          /* scratch for the largest matrix */
    int64_t largest;  /* elements */
    double total;     /* elements */
    nb_progress bar;
} job;

static nb_status measure(void *ctx, nb_base_linear *lin) {
    job *j = ctx;
    int64_t n = lin->w.rows * lin->w.cols;
    if (n > j->largest) j->largest = n;
    j->total += (double)n;
    return NB_OK;
}

static nb_status declare(void *ctx, nb_base_linear *lin) {
    job *j = ctx;
    return nb_nf4_declare(j->w, lin->name, lin->w.rows, lin->w.cols, j->double_quant);
}

static nb_status advance(job *j, const nb_base_linear *lin) {
    nb_progress_set(&j->bar, j->bar.done + (double)(lin->w.rows * lin->w.cols) / 1e6, NULL);
    return nb_interrupted() ? nb_fail(NB_EINTERRUPTED, "stopped while quantizing the base") : NB_OK;
}

static nb_status write_one(void *ctx, nb_base_linear *lin) {
    job *j = ctx;
    nb_weight q;
    NB_TRY(quantize(&q, lin, &j->to, j->double_quant));
    NB_TRY(nb_nf4_write(j->w, lin->name, &q));
    return advance(j, lin);
}

/* Replaces the layer's float weight by a quantized one in buffers of the base. */
static nb_status keep_one(void *ctx, nb_base_linear *lin) {
    job *j = ctx;
    int64_t n = lin->w.rows * lin->w.cols;
    room to = {.absmax = j->to.absmax, .turned = j->to.turned};
    void *p;
    NB_TRY(nb_base_buffer(j->b, &p, (size_t)(n + 1) / 2, lin->name));
    to.packed = p;
    if (j->double_quant) {
        NB_TRY(nb_base_buffer(j->b, &p, (size_t)n_blocks(n), lin->name));
        to.u8 = p;
        NB_TRY(nb_base_buffer(j->b, &p, (size_t)n_nested(n) * sizeof(float), lin->name));
        to.nested = p;
    } else {
        NB_TRY(nb_base_buffer(j->b, &p, (size_t)n_blocks(n) * sizeof(float), lin->name));
        to.absmax = p;
    }
    nb_weight q;
    NB_TRY(quantize(&q, lin, &to, j->double_quant));
    lin->w = q;
    lin->as_stored = false;
    return advance(j, lin);
}

static nb_status run(job *j, visit *f) {
    j->largest = 0, j->total = 0;
    each_linear(j->b, measure, j);
    size_t n = (size_t)j->largest, blocks = (size_t)n_blocks(j->largest), nested = (size_t)n_nested(j->largest);
    j->to = (room){nb_malloc(n / 2 + 1), nb_malloc(blocks), nb_malloc(blocks * sizeof(float)),
                   nb_malloc(nested * sizeof(float)), nb_malloc(j->b->spec.stored_transposed ? 4 * n : 1)};
    nb_progress_begin(&j->bar, "quantizing the base to 4 bits", j->total / 1e6, "M weights");
    nb_status st = each_linear(j->b, f, j);
    nb_progress_end(&j->bar);
    free(j->to.packed);
    free(j->to.u8);
    free(j->to.absmax);
    free(j->to.nested);
    free(j->to.turned);
    return st;
}

nb_status nb_base_declare_nf4(nb_base *b, nb_st_writer *w, bool double_quant) {
    job j = {.b = b, .double_quant = double_quant, .w = w};
    return each_linear(b, declare, &j);
}

nb_status nb_base_write_nf4(nb_base *b, nb_st_writer *w, bool double_quant) {
    job j = {.b = b, .double_quant = double_quant, .w = w};
    return run(&j, write_one);
}

/* ---- the cache ---- */

typedef struct cache {
    char *dir, *file, *manifest;
} cache;

static void cache_free(cache *c) {
    free(c->dir);
    free(c->file);
    free(c->manifest);
}

/* The folder of this base's cache: its name says base, double quantization and version of the form. */
static nb_status cache_place(cache *c, const nb_base *b, const nb_base_options *o) {
    char *root = NULL, *user;
    nb_hex key;
    *c = (cache){0};
    if (o->quantized_cache) {
        root = nb_strdup(o->quantized_cache);
    } else {
        NB_TRY(nb_cache_dir(&user));
        root = nb_path_join(user, "nf4");
        free(user);
    }
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add_str(&h, b->sha256);
    nb_sha256_add_str(&h, o->double_quant ? "nf4, double quantization" : "nf4");
    nb_sha256_add(&h, (uint8_t[]){CACHE_VERSION}, 1);
    nb_sha256_close(&h, key);
    c->dir = nb_path_join(root, key);
    c->file = nb_path_join(c->dir, "model.safetensors");
    c->manifest = nb_path_join(c->dir, "manifest.json");
    free(root);
    return NB_OK;
}

static int64_t file_size(const char *path) {
    struct stat sb;
    return stat(path, &sb) == 0 ? (int64_t)sb.st_size : -1;
}

static nb_status check_manifest(const cache *c, const nb_base *b, bool double_quant) {
    json_t *m;
    NB_TRY(nb_json_load(c->manifest, &m));
    const char *sha = json_string_value(json_object_get(m, "base_sha256"));
    bool ok = json_integer_value(json_object_get(m, "version")) == CACHE_VERSION && sha && !strcmp(sha, b->sha256) &&
              json_is_true(json_object_get(m, "double_quant")) == double_quant;
    long long want = (long long)json_integer_value(json_object_get(m, "bytes"));
    json_decref(m);
    if (!ok) return nb_fail(NB_EINPUT, "%s: is the manifest of something else", c->manifest);
    if (want != file_size(c->file))
        return nb_fail(NB_EINPUT, "%s: has %lld bytes, its manifest says %lld", c->file, (long long)file_size(c->file),
                       want);
    return NB_OK;
}

/* Points the layers at the cache file; they change only if all of it is sound. */
static nb_status cache_open(const cache *c, nb_base *b, bool double_quant) {
    nb_st *s = &b->store->cache;
    nb_base_linear *all = b->layer[0].lin; /* of every layer */
    int64_t slots = nb_spec_slots(&b->spec), n = b->spec.layers * slots;
    nb_weight *w = nb_calloc((size_t)n, sizeof *w);
    nb_status st;
    NB_GO(st, check_manifest(c, b, double_quant), out);
    NB_GO(st, nb_st_open_file(s, c->file), out);
    for (int64_t i = 0; i < n; i++) {
        const nb_base_linear *lin = &all[i];
        bool found = true;
        if (!lin->w.rows || nb_spec_stays_float((int)(i % slots))) continue;
        NB_GO(st, nb_nf4_read(b, s, &w[i], lin->name, lin->w.rows, lin->w.cols, &found), out);
        if (!found || (w[i].rows && !w[i].nf4.absmax == !double_quant))
            NB_GO(st, nb_fail(NB_EINPUT, "%s: \"%s\" is not there as wanted", c->file, lin->name), out);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!w[i].rows) continue;
        all[i].w = w[i];
        all[i].as_stored = false;
    }
out:
    free(w);
    if (st != NB_OK) nb_st_close(s);
    return st;
}

static nb_status write_manifest(const cache *c, const nb_base *b, bool double_quant) {
    json_t *m = json_pack("{s:i, s:s, s:b, s:I, s:s}", "version", CACHE_VERSION, "base_sha256", b->sha256,
                          "double_quant", double_quant, "bytes", (json_int_t)file_size(c->file), "base", b->dir);
    nb_status st = m ? nb_json_save(c->manifest, m) : nb_fail(NB_EINPUT, "%s: not UTF-8", b->dir);
    json_decref(m);
    return st;
}

static nb_status cache_build(const cache *c, nb_base *b, bool double_quant) {
    nb_st_writer *w;
    unlink(c->manifest); /* before the file it speaks of changes */
    NB_TRY(nb_mkdirs(c->dir));
    json_t *meta = json_pack("{s:s}", "format", "pt");
    nb_status st = nb_st_write_begin(&w, c->file, meta);
    json_decref(meta);
    NB_TRY(st);
    st = nb_base_declare_nf4(b, w, double_quant);
    if (st == NB_OK) st = nb_base_write_nf4(b, w, double_quant);
    if (st == NB_OK) st = nb_st_write_end(w);
    else nb_st_write_abort(w);
    if (st == NB_OK) st = write_manifest(c, b, double_quant);
    return st;
}

nb_status nb_base_to_nf4(nb_base *b, const nb_base_options *o) {
    cache c = {0};
    nb_status st = NB_EIO;
    if (!o->quantized_cache || *o->quantized_cache) {
        st = cache_place(&c, b, o);
        if (st == NB_OK && nb_file_exists(c.manifest)) {
            st = cache_open(&c, b, o->double_quant);
            if (st == NB_OK) goto out;
            nb_warn("the cache of the quantized base cannot be used and is built anew: %s", nb_message());
            st = NB_OK;
        }
        if (st == NB_OK) st = cache_build(&c, b, o->double_quant);
        if (st == NB_OK) st = cache_open(&c, b, o->double_quant);
        if (st == NB_ENUMERIC || st == NB_EINTERRUPTED) goto out; /* memory would not help */
        if (st != NB_OK) nb_warn("the quantized base is not cached, the next start quantizes again: %s", nb_message());
    }
    if (st != NB_OK) {
        job j = {.b = b, .double_quant = o->double_quant};
        st = run(&j, keep_one);
    }
out:
    cache_free(&c);
    return st;
}
