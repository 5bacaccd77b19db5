/* lm_head_quant: the output head in fewer bits. A tied head gets a copy of its own; the embedding stays as it is. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/base.h"
#include "model/gguf.h"

enum { BLOCK = 64, NESTED_BLOCK = 256, CACHE_VERSION = 1 };
enum { ROWS = 64 /* decoded at once: whole blocks, whatever the number of columns */ };

const char *nb_head_quant_name(nb_head_quant q) {
    static const char *const names[] = {[NB_HEAD_STORED] = "none", [NB_HEAD_NF4] = "nf4", [NB_HEAD_INT8] = "int8"};
    return names[q];
}

/* A quantized head is one block of bytes, in memory as in its file of the cache: the values; of NF4 also the scales,
 * which are quantized too, as bitsandbytes does (4.13 bits a weight). int8 is GGUF's Q8_0: 32 values and a scale, 8.5
 * bits a weight. */
typedef struct layout {
    int64_t blocks, nested_blocks;
    size_t u8, nested, offset, bytes; /* where the scales begin, theirs, the offset; in all */
} layout;

static size_t aligned(size_t n) { return (n + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN; }

static layout layout_of(const nb_weight *w) {
    const int64_t n = w->rows * w->cols, blocks = (n + BLOCK - 1) / BLOCK;
    layout l = {.blocks = blocks, .nested_blocks = (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK,
                .bytes = (size_t)nb_format_bytes(w->format, n)};
    if (w->format != NB_FMT_NF4) return l;
    l.u8 = aligned(l.bytes);
    l.nested = aligned(l.u8 + (size_t)blocks);
    l.offset = l.nested + (size_t)l.nested_blocks * sizeof(float);
    l.bytes = l.offset + sizeof(float);
    return l;
}

/* Rows [row, row + ROWS) of w into the block; false where one is not finite. */
static bool quantize_rows(const nb_weight *out, uint8_t *block, float *absmax, const nb_weight *w, int64_t row,
                          float *x) {
    const int64_t rows = w->rows - row < ROWS ? w->rows - row : ROWS, n = rows * w->cols, at = row * w->cols;
    bool finite = true;
    nb_weight_decode(x, w->cols, w, row, rows, 0, w->cols);
    for (int64_t i = 0; i < n; i++) finite &= isfinite(x[i]) != 0;
    if (out->format == NB_FMT_NF4) nb_nf4_quantize(block + at / 2, absmax + at / BLOCK, x, NB_F32, n);
    else nb_gguf_encode(NB_GGUF_Q8_0, block + nb_format_bytes(NB_FMT_Q8_0, at), x, n);
    return finite;
}

static nb_status quantize(const nb_base *b, const nb_weight *out, const layout *l, uint8_t *block) {
    const nb_weight *w = &b->head.w;
    void *absmax;
    int bad = 0;
    NB_TRY(nb_big_alloc(&absmax, (size_t)l->blocks * sizeof(float), "the output head"));
#pragma omp parallel reduction(| : bad)
    {
        float *x = nb_malloc((size_t)(ROWS * w->cols) * sizeof *x);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < w->rows; row += ROWS) bad |= !quantize_rows(out, block, absmax, w, row, x);
        free(x);
    }
    if (out->format == NB_FMT_NF4) {
        float *nested = (float *)(void *)(block + l->nested), *offset = (float *)(void *)(block + l->offset);
        nb_nf4_quantize_absmax(block + l->u8, nested, offset, absmax, l->blocks);
    }
    nb_big_free(absmax, (size_t)l->blocks * sizeof(float));
    return bad ? nb_fail(NB_ENUMERIC, "%s: %s.weight holds NaN or infinity: the base is damaged", b->dir, b->head.name)
               : NB_OK;
}

static void point(nb_weight *w, const layout *l, const uint8_t *block, nb_dtype dtype) {
    w->data = block;
    if (w->format != NB_FMT_NF4) return;
    w->nf4 = (nb_nf4){.code = nb_nf4_code, .absmax_u8 = block + l->u8, .nested_code = nb_dynamic_code,
                      .nested_absmax = (const float *)(const void *)(block + l->nested), .blocksize = BLOCK,
                      .nested_blocksize = NESTED_BLOCK, .dtype = dtype};
    memcpy(&w->nf4.nested_offset, block + l->offset, sizeof w->nf4.nested_offset);
}

/* The cache's file of this head: its name says base, rows (added tokens) and form. NULL: there is no cache. */
static char *cache_file(const nb_base *b, nb_head_quant q, const char *cache) {
    char *user = NULL;
    nb_hex key;
    if ((cache && !*cache) || (!cache && nb_cache_dir(&user) != NB_OK)) return NULL;
    nb_sha256 h = nb_sha256_open();
    nb_sha256_add_str(&h, b->sha256);
    nb_sha256_add_str(&h, nb_head_quant_name(q));
    nb_sha256_add(&h, &b->head.w.rows, sizeof b->head.w.rows);
    nb_sha256_add(&h, (uint8_t[]){CACHE_VERSION}, 1);
    nb_sha256_close(&h, key);
    char *path = cache ? nb_asprintf("%s/head-%s", cache, key) : nb_asprintf("%s/nf4/head-%s", user, key);
    free(user);
    return path;
}

/* True: *block is the file's, mapped as long as the base lives. */
static bool cached(nb_base *b, const char *path, size_t bytes, const uint8_t **block) {
    nb_map *m = &b->store->head;
    if (!path || !nb_file_exists(path) || nb_map_open(m, path) != NB_OK) return false;
    *block = m->data;
    if (m->size == bytes) return true;
    nb_warn("%s has %zu bytes instead of %zu and is made anew", path, m->size, bytes);
    nb_map_close(m);
    return false;
}

static void keep_in_cache(const char *path, const uint8_t *block, size_t bytes) {
    char *dir = nb_strndup(path, (size_t)(nb_path_base(path) - path));
    if (nb_mkdirs(dir) != NB_OK || nb_file_write(path, block, bytes) != NB_OK)
        nb_warn("the quantized output head is not cached, the next start quantizes again: %s", nb_message());
    free(dir);
}

nb_status nb_base_quantize_head(nb_base *b, nb_head_quant q, const char *cache) {
    if (q == NB_HEAD_STORED) return NB_OK;
    nb_weight w = {.format = q == NB_HEAD_NF4 ? NB_FMT_NF4 : NB_FMT_Q8_0, .rows = b->head.w.rows,
                   .cols = b->head.w.cols};
    NB_TRY(nb_weight_check(&w, b->head.name));
    const layout l = layout_of(&w);
    char *path = cache_file(b, q, cache);
    const uint8_t *block;
    uint8_t *made;
    nb_status st = NB_OK;
    if (!cached(b, path, l.bytes, &block)) {
        st = nb_base_buffer(b, (void **)&made, l.bytes, "the output head");
        if (st == NB_OK) st = quantize(b, &w, &l, made);
        if (st == NB_OK && path) keep_in_cache(path, made, l.bytes);
        block = made;
    }
    free(path);
    NB_TRY(st);
    point(&w, &l, block, b->spec.dtype);
    b->head_stored = b->head.w;
    b->head_quant = q;
    b->head.w = w;
    return NB_OK;
}
