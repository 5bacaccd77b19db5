/* DoRA (Liu et al., 2024) as PEFT has it: a trained magnitude for every row of an adapted weight. */
#include <math.h>
#include <stdlib.h>

#include "adapters/parts.h"
#include "core/mem.h"

static double square_sum(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void row_squares(float *out, const nb_weight *w) {
    enum { ROWS = 32 };
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < w->rows; i += ROWS) {
        int64_t n = w->rows - i < ROWS ? w->rows - i : ROWS;
        float *rows = nb_malloc((size_t)(n * w->cols) * sizeof *rows);
        nb_weight_decode(rows, w->cols, w, i, n, 0, w->cols);
        for (int64_t j = 0; j < n; j++) out[i + j] = (float)square_sum(rows + j * w->cols, w->cols);
        free(rows);
    }
}

static bool is_expert(const nb_model *m, const nb_linear *lin) {
    return lin != &m->head && (lin - m->block[0].lin) % nb_spec_slots(m->spec) >= NB_SLOTS;
}

nb_status nb_dora_open(nb_adapter *a, bool with_magnitudes) {
    nb_status st = NB_OK;
    for (int i = 0; i < a->n_attached && st == NB_OK; i++) {
        struct nb_attached *at = &a->attached[i];
        if (is_expert(a->model, at->lin))
            return nb_fail(NB_EUNSUPPORTED, "%s: DoRA on a mixture's experts is not in this version: use plain LoRA, or "
                           "leave the experts out of lora_target_modules", at->module);
        const nb_weight *w = &at->lin->base->w;
        size_t bytes = (size_t)w->rows * sizeof(float);
        float *host = nb_malloc(bytes);
        row_squares(host, w);
        st = a->dev->be->alloc(a->dev, (void **)&at->squares, bytes, "norms of the base's rows");
        if (st == NB_OK) st = a->dev->be->put(a->dev, at->squares, host, bytes);
        for (int64_t j = 0; j < w->rows; j++) host[j] = sqrtf(host[j]);
        if (st == NB_OK && with_magnitudes) st = a->dev->be->put(a->dev, at->magnitude->data, host, bytes);
        free(host);
    }
    return st;
}

void nb_dora_rescale(float *rows, const float *magnitude, int64_t n, int64_t C) {
    for (int64_t i = 0; i < n; i++) {
        float by = (float)((double)magnitude[i] / sqrt(square_sum(rows + i * C, C)));
        for (int64_t c = 0; c < C; c++) rows[i * C + c] *= by;
    }
}
