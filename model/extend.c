/* More rows for tokens that an embedding has no room for. */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/base.h"

/* Element by element in the weight's own dtype. */
static void put_row(const nb_weight *w, void *data, int64_t row, const float *x) {
    for (int64_t i = 0, at = row * w->cols; i < w->cols; i++, at++) {
        if (w->format == NB_FMT_F32) ((float *)data)[at] = x[i];
        else ((uint16_t *)data)[at] = w->format == NB_FMT_BF16 ? nb_f32_to_bf16(x[i]) : nb_f32_to_f16(x[i]);
    }
}

static void mean_row(const nb_weight *w, float *mean) {
    double *sum = nb_calloc((size_t)w->cols, sizeof *sum);
    for (int64_t i = 0; i < w->rows; i++) {
        nb_weight_decode(mean, w->cols, w, i, 1, 0, w->cols);
        for (int64_t c = 0; c < w->cols; c++) sum[c] += mean[c];
    }
    for (int64_t c = 0; c < w->cols; c++) mean[c] = (float)(sum[c] / (double)w->rows);
    free(sum);
}

static nb_status more_rows(nb_base *b, nb_weight *w, int64_t n, const char *module) {
    if (w->format > NB_FMT_F16)
        return nb_fail(NB_EUNSUPPORTED, "%s: %s is held in %s and cannot take the rows of added tokens: use the "
                       "original model", b->dir, module, nb_format_name(w->format));
    void *data;
    size_t old = (size_t)nb_weight_bytes(w), row = old / (size_t)w->rows;
    NB_TRY(nb_base_buffer(b, &data, old + (size_t)n * row, module));
    memcpy(data, w->data, old);
    float *mean = nb_calloc((size_t)w->cols, sizeof *mean);
    mean_row(w, mean);
    for (int64_t i = 0; i < n; i++) put_row(w, data, w->rows + i, mean);
    free(mean);
    w->data = data;
    w->rows += n;
    return NB_OK;
}

nb_status nb_base_extend(nb_base *b, int64_t n) {
    if (n <= 0) return NB_OK;
    NB_TRY(more_rows(b, &b->embed, n, nb_spec_embed_name(&b->spec)));
    if (b->spec.tied) b->head.w = b->embed;
    else NB_TRY(more_rows(b, &b->head.w, n, b->head.name));
    b->spec.vocab += n;
    return NB_OK;
}
