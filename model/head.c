/* lm_head_quant: the output head in fewer bits. A tied head gets a copy of its own; the embedding stays as it is. */
#include <math.h>
#include <stdlib.h>

#include "core/mem.h"
#include "model/base.h"
#include "model/gguf.h"

enum { BLOCK = 64, NESTED_BLOCK = 256, ROWS = 64 /* decoded at once: whole blocks whatever the number of columns */ };

const char *nb_head_quant_name(nb_head_quant q) {
    static const char *const names[] = {[NB_HEAD_STORED] = "none", [NB_HEAD_NF4] = "nf4", [NB_HEAD_INT8] = "int8"};
    return names[q];
}

typedef struct room { /* where the values go */
    uint8_t *data;
    float *absmax; /* NF4: of every block, scratch */
} room;

/* Rows [row, row + ROWS) of w; false where one is not finite. */
static bool quantize_rows(const room *to, const nb_weight *w, nb_head_quant q, int64_t row, float *x) {
    const int64_t rows = w->rows - row < ROWS ? w->rows - row : ROWS, n = rows * w->cols, at = row * w->cols;
    bool finite = true;
    nb_weight_decode(x, w->cols, w, row, rows, 0, w->cols);
    for (int64_t i = 0; i < n; i++) finite &= isfinite(x[i]) != 0;
    if (q == NB_HEAD_NF4) nb_nf4_quantize(to->data + at / 2, to->absmax + at / BLOCK, x, NB_F32, n);
    else nb_gguf_encode(NB_GGUF_Q8_0, to->data + nb_format_bytes(NB_FMT_Q8_0, at), x, n);
    return finite;
}

static nb_status quantize(const nb_base *b, const room *to, nb_head_quant q) {
    const nb_weight *w = &b->head.w;
    int bad = 0;
#pragma omp parallel reduction(| : bad)
    {
        float *x = nb_malloc((size_t)(ROWS * w->cols) * sizeof *x);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < w->rows; row += ROWS) bad |= !quantize_rows(to, w, q, row, x);
        free(x);
    }
    return bad ? nb_fail(NB_ENUMERIC, "%s: %s.weight holds NaN or infinity: the base is damaged", b->dir, b->head.name)
               : NB_OK;
}

/* With the blocks' scales quantized too, as bitsandbytes does: 4.13 bits a weight. */
static nb_status to_nf4(nb_base *b, nb_weight *out) {
    const int64_t n = out->rows * out->cols, blocks = (n + BLOCK - 1) / BLOCK;
    const int64_t nested_blocks = (blocks + NESTED_BLOCK - 1) / NESTED_BLOCK;
    uint8_t *u8;
    float *nested;
    room to;
    void *scratch;
    NB_TRY(nb_base_buffer(b, (void **)&to.data, (size_t)(n + 1) / 2, "the output head"));
    NB_TRY(nb_base_buffer(b, (void **)&u8, (size_t)blocks, "the output head"));
    NB_TRY(nb_base_buffer(b, (void **)&nested, (size_t)nested_blocks * sizeof *nested, "the output head"));
    NB_TRY(nb_big_alloc(&scratch, (size_t)blocks * sizeof(float), "the output head"));
    to.absmax = scratch;
    out->format = NB_FMT_NF4;
    out->data = to.data;
    out->nf4 = (nb_nf4){.code = nb_nf4_code, .absmax_u8 = u8, .nested_absmax = nested, .nested_code = nb_dynamic_code,
                        .blocksize = BLOCK, .nested_blocksize = NESTED_BLOCK, .dtype = b->spec.dtype};
    nb_status st = quantize(b, &to, NB_HEAD_NF4);
    if (st == NB_OK) nb_nf4_quantize_absmax(u8, nested, &out->nf4.nested_offset, to.absmax, blocks);
    nb_big_free(scratch, (size_t)blocks * sizeof(float));
    return st;
}

/* GGUF's Q8_0: 32 values and a scale, 8.5 bits a weight. */
static nb_status to_int8(nb_base *b, nb_weight *out) {
    room to = {0};
    out->format = NB_FMT_Q8_0;
    NB_TRY(nb_weight_check(out, b->head.name));
    NB_TRY(nb_base_buffer(b, (void **)&to.data, (size_t)nb_weight_bytes(out), "the output head"));
    out->data = to.data;
    return quantize(b, &to, NB_HEAD_INT8);
}

nb_status nb_base_quantize_head(nb_base *b, nb_head_quant q) {
    if (q == NB_HEAD_STORED) return NB_OK;
    nb_weight w = {.rows = b->head.w.rows, .cols = b->head.w.cols};
    NB_TRY(q == NB_HEAD_NF4 ? to_nf4(b, &w) : to_int8(b, &w));
    b->head_stored = b->head.w;
    b->head_quant = q;
    b->head.w = w;
    return NB_OK;
}
