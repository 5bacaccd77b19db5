/* Additions, biases, row gathers and scalings: bound by memory bandwidth. beta 0 never reads the output. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

nb_status nb_cpu_add(nb_dev *d, nb_elem *y_, const nb_elem *x1_, const nb_elem *x2_, int64_t n, float beta) {
    float *y = y_;
    const float *x1 = x1_, *x2 = x2_;
    (void)d;
    if (x2 && beta == 0) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
        for (int64_t i = 0; i < n; i++) y[i] = x1[i] + x2[i];
    } else if (x2) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
        for (int64_t i = 0; i < n; i++) y[i] = x1[i] + x2[i] + beta * y[i];
    } else if (beta == 0) {
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
        for (int64_t i = 0; i < n; i++) y[i] = x1[i];
    } else {
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
        for (int64_t i = 0; i < n; i++) y[i] = x1[i] + beta * y[i];
    }
    return NB_OK;
}

nb_status nb_cpu_bias_fwd(nb_dev *d, void *y_, nb_dtype dtype, const float *bias, int64_t T, int64_t C) {
    NB_ASSERT(dtype == NB_F32);
    float *y = y_;
    (void)d;
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; c < C; c++) y[t * C + c] += bias[c];
    return NB_OK;
}

enum { STRIP = 64, ROWS = 128 }; /* columns a task sums; rows summed on their own before joining the total */

nb_status nb_cpu_bias_bwd(nb_dev *d, float *dbias, const nb_elem *dy_, int64_t T, int64_t C, float beta) {
    const float *dy = dy_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t c0 = 0; c0 < C; c0 += STRIP) {
        int64_t n = C - c0 < STRIP ? C - c0 : STRIP;
        float total[STRIP] = {0};
        for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
            float part[STRIP] = {0};
            for (int64_t t = t0; t < T && t < t0 + ROWS; t++)
                for (int64_t c = 0; c < n; c++) part[c] += dy[t * C + c0 + c];
            for (int64_t c = 0; c < n; c++) total[c] += part[c];
        }
        for (int64_t c = 0; c < n; c++) dbias[c0 + c] = beta != 0 ? total[c] + beta * dbias[c0 + c] : total[c];
    }
    return NB_OK;
}

nb_status nb_cpu_gather_rows(nb_dev *d, nb_elem *y_, const nb_elem *x_, const int32_t *index, int64_t n, int64_t C) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static) if (n * C > NB_FEW)
    for (int64_t i = 0; i < n; i++) memcpy(y + i * C, x + index[i] * C, sizeof(float) * (size_t)C);
    return NB_OK;
}

/* y = x * k + beta * y over one row. */
static void scale_row(float *y, const float *x, float k, int64_t C, float beta) {
    if (beta == 0)
        for (int64_t c = 0; c < C; c++) y[c] = x[c] * k;
    else
        for (int64_t c = 0; c < C; c++) y[c] = x[c] * k + beta * y[c];
}

nb_status nb_cpu_copy_rows(nb_dev *d, nb_elem *y_, int64_t ldy, const nb_elem *x_, int64_t ldx, int64_t T, int64_t C,
                           float beta) {
    (void)d;
    float *y = y_;
    const float *x = x_;
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++) scale_row(y + t * ldy, x + t * ldx, 1, C, beta);
    return NB_OK;
}

nb_status nb_cpu_scatter_rows(nb_dev *d, nb_elem *y_, const nb_elem *x_, const int32_t *index, const float *row_scale,
                              int64_t n, int64_t C, float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static) if (n * C > NB_FEW)
    for (int64_t i = 0; i < n; i++) scale_row(y + index[i] * C, x + i * C, row_scale ? row_scale[i] : 1.0f, C, beta);
    return NB_OK;
}

nb_status nb_cpu_scale_rows(nb_dev *d, nb_elem *y_, const nb_elem *x_, const float *row_scale, int64_t n, int64_t C,
                            float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static) if (n * C > NB_FEW)
    for (int64_t i = 0; i < n; i++) scale_row(y + i * C, x + i * C, row_scale[i], C, beta);
    return NB_OK;
}

nb_status nb_cpu_scale_columns(nb_dev *d, nb_elem *y_, const nb_elem *x_, const float *column_scale, int64_t T,
                               int64_t C, float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static) if (T * C > NB_FEW)
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = t * C, c = 0; c < C; c++, i++)
            y[i] = beta != 0 ? x[i] * column_scale[c] + beta * y[i] : x[i] * column_scale[c];
    return NB_OK;
}

nb_status nb_cpu_dora_scale(nb_dev *d, float *scale, float *inverse, const float *m, const float *squares,
                            const float *b, const float *aw, const float *bg, int64_t N, int64_t R, float s) {
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < N; j++) {
        float sum = 0;
        for (int64_t r = 0; r < R; r++) sum += b[j * R + r] * (2 * aw[r * N + j] + s * bg[j * R + r]);
        inverse[j] = 1 / sqrtf(squares[j] + s * sum);
        scale[j] = m[j] * inverse[j];
    }
    return NB_OK;
}

nb_status nb_cpu_fill(nb_dev *d, void *x_, nb_dtype dtype, float value, int64_t n) {
    (void)d;
    NB_ASSERT(dtype == NB_F32);
    float *x = x_;
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
    for (int64_t i = 0; i < n; i++) x[i] = value;
    return NB_OK;
}

nb_status nb_cpu_clamp_fwd(nb_dev *d, nb_elem *y_, const nb_elem *x_, int64_t n, float limit) {
    (void)d;
    float *y = y_;
    const float *x = x_;
#pragma omp parallel for simd schedule(static) if (parallel : n > NB_FEW)
    for (int64_t i = 0; i < n; i++) y[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
    return NB_OK;
}

nb_status nb_cpu_clamp_bwd(nb_dev *d, nb_elem *dx_, float beta, const nb_elem *dy_, const nb_elem *x_, int64_t n,
                           float limit) {
    (void)d;
    float *dx = dx_;
    const float *dy = dy_, *x = x_;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float g = x[i] >= -limit && x[i] <= limit ? dy[i] : 0;
        dx[i] = beta != 0 ? g + beta * dx[i] : g;
    }
    return NB_OK;
}
