/* Rows of a frozen embedding or output head that trained rows stand in for (added tokens). There are few of them. */
#include <string.h>

#include "kernels/cpu/cpu.h"

/* Index of id in the ascending row_ids, or -1. */
static int64_t find(const int32_t *row_ids, int64_t n, int32_t id) {
    int64_t lo = 0, hi = n;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (row_ids[mid] < id) lo = mid + 1;
        else hi = mid;
    }
    return lo < n && row_ids[lo] == id ? lo : -1;
}

nb_status nb_cpu_replace_rows_fwd(nb_dev *d, nb_elem *y_, const float *rows, const int32_t *ids, int64_t T,
                                  const int32_t *row_ids, int64_t n_rows, int64_t C, float scale) {
    float *y = y_;
    (void)d;
    for (int64_t t = 0; t < T; t++) {
        int64_t j = find(row_ids, n_rows, ids[t]);
        for (int64_t c = 0; j >= 0 && c < C; c++) y[t * C + c] = rows[j * C + c] * scale;
    }
    return NB_OK;
}

nb_status nb_cpu_replace_rows_bwd(nb_dev *d, float *drows, const nb_elem *dy_, const int32_t *ids, int64_t T,
                                  const int32_t *row_ids, int64_t n_rows, int64_t C, float scale, float beta) {
    const float *dy = dy_;
    (void)d;
    if (beta == 0) memset(drows, 0, (size_t)(n_rows * C) * sizeof *drows);
    for (int64_t t = 0; t < T; t++) {
        int64_t j = find(row_ids, n_rows, ids[t]);
        for (int64_t c = 0; j >= 0 && c < C; c++) drows[j * C + c] += dy[t * C + c] * scale;
    }
    return NB_OK;
}

nb_status nb_cpu_put_columns(nb_dev *d, float *y, const float *x, const int32_t *columns, int64_t m, int64_t V,
                             int64_t n) {
    (void)d;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) y[i * V + columns[j]] = x[i * n + j];
    return NB_OK;
}

nb_status nb_cpu_take_columns(nb_dev *d, nb_elem *x_, nb_elem *y_, const int32_t *columns, int64_t m, int64_t V, int64_t n) {
    float *x = x_, *y = y_;
    (void)d;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            x[i * n + j] = y[i * V + columns[j]];
            y[i * V + columns[j]] = 0;
        }
    return NB_OK;
}
