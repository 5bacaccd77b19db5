/* Rows of the embedding matrix, whatever its format, and their gradient. */
#include "kernels/cpu/cpu.h"

nb_status nb_cpu_embedding_fwd(nb_dev *d, nb_elem *y_, const nb_weight *w, const int32_t *ids, int64_t T, float scale) {
    float *y = y_;
    (void)d;
    int64_t C = w->cols;
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++) {
        float *yt = y + t * C;
        NB_ASSERT(ids[t] >= 0 && ids[t] < w->rows);
        nb_weight_decode(yt, C, w, ids[t], 1, 0, C);
        if (scale != 1)
            for (int64_t c = 0; c < C; c++) yt[c] *= scale;
    }
    return NB_OK;
}

/* Tasks own ranges of the vocabulary and walk all of ids in order, so that each row of dw is summed in
 * the order of t whatever the number of threads. */
nb_status nb_cpu_embedding_bwd(nb_dev *d, float *dw, const nb_elem *dy_, const int32_t *ids, int64_t T, int64_t V,
                               int64_t C, float scale, float beta) {
    const float *dy = dy_;
    (void)d;
    int64_t range = (V + 63) / 64;
#pragma omp parallel for schedule(dynamic)
    for (int64_t v0 = 0; v0 < V; v0 += range) {
        int64_t v1 = v0 + range < V ? v0 + range : V;
        if (beta != 1)
            for (int64_t i = v0 * C; i < v1 * C; i++) dw[i] = beta != 0 ? beta * dw[i] : 0;
        for (int64_t t = 0; t < T; t++) {
            if (ids[t] < v0 || ids[t] >= v1) continue;
            float *row = dw + ids[t] * C;
            for (int64_t c = 0; c < C; c++) row[c] += dy[t * C + c] * scale;
        }
    }
    return NB_OK;
}
