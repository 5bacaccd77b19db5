/* Whole rows and columns: gathers, scatters, scaled rows, parts of rows, columns of logits put and taken. */
#include "kernels/cuda/vec.h"

namespace {

enum { THREADS = 256 };

/* y[to[i]] = x[from[i]] * scale[i] + beta * y[to[i]]; to, from NULL: i; scale NULL: 1. Rows are ldy and ldx elements
 * apart. */
template <class T, int N>
__global__ void rows_kernel(T *y, int64_t ldy, const int32_t *to, const T *x, int64_t ldx, const int32_t *from,
                            const float *scale, int64_t rows, int64_t C, float beta) {
    FOR_ROWS(i, rows) {
        T *yi = y + (to ? to[i] : i) * ldy;
        const T *xi = x + (from ? from[i] : i) * ldx;
        float k = scale ? scale[i] : 1;
        FOR_GROUPS(c, N, C) {
            float v[N];
            load(v, xi + c);
            for (int j = 0; j < N; j++) v[j] *= k;
            put(yi + c, v, beta);
        }
    }
}

template <class T>
nb_status move_rows(nb_dev *d, nb_elem *y, int64_t ldy, const int32_t *to, const nb_elem *x, int64_t ldx,
                    const int32_t *from, const float *scale, int64_t rows, int64_t C, float beta) {
    if (!rows || !C) return NB_OK;
    const int N = group_of<T>(C | ldy | ldx, y, x); /* groups are a power of two: all three must be multiples */
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? rows_kernel<T, GROUP<T>> : rows_kernel<T, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, ldy, to, (const T *)x, ldx, from, scale,
           rows, C, beta);
    return gpu_launched(d, "rows by index");
}

/* Columns are few, and far apart in the rows of y[m,V]: a thread an element. */
__global__ void put_columns_kernel(float *y, const float *x, const int32_t *columns, int64_t m, int64_t V, int64_t n) {
    FOR_FLAT(i, 1, m * n) y[i / n * V + columns[i % n]] = x[i];
}

template <class T>
__global__ void take_columns_kernel(T *x, T *y, const int32_t *columns, int64_t m, int64_t V, int64_t n) {
    FOR_FLAT(i, 1, m * n) {
        T *from = y + i / n * V + columns[i % n];
        x[i] = *from;
        from_f32(*from, 0);
    }
}

template <class T>
nb_status take_columns(nb_dev *d, nb_elem *x, nb_elem *y, const int32_t *columns, int64_t m, int64_t V, int64_t n) {
    if (!m || !n) return NB_OK;
    LAUNCH(take_columns_kernel<T>, grid_for(m * n, THREADS), THREADS, 0, gpu_stream(d), (T *)x, (T *)y, columns, m, V,
           n);
    return gpu_launched(d, "take_columns");
}

} // namespace

extern "C" nb_status NB_GPU(gather_rows)(nb_dev *d, nb_elem *y, const nb_elem *x, const int32_t *index, int64_t n,
                                         int64_t C) {
    return BY_ELEM(move_rows, d, y, C, NULL, x, C, index, NULL, n, C, 0.0f);
}

extern "C" nb_status NB_GPU(scatter_rows)(nb_dev *d, nb_elem *y, const nb_elem *x, const int32_t *index,
                                          const float *row_scale, int64_t n, int64_t C, float beta) {
    return BY_ELEM(move_rows, d, y, C, index, x, C, NULL, row_scale, n, C, beta);
}

extern "C" nb_status NB_GPU(scale_rows)(nb_dev *d, nb_elem *y, const nb_elem *x, const float *row_scale, int64_t n,
                                        int64_t C, float beta) {
    return BY_ELEM(move_rows, d, y, C, NULL, x, C, NULL, row_scale, n, C, beta);
}

extern "C" nb_status NB_GPU(copy_rows)(nb_dev *d, nb_elem *y, int64_t ldy, const nb_elem *x, int64_t ldx, int64_t T,
                                       int64_t C, float beta) {
    return BY_ELEM(move_rows, d, y, ldy, NULL, x, ldx, NULL, NULL, T, C, beta);
}

extern "C" nb_status NB_GPU(put_columns)(nb_dev *d, float *y, const float *x, const int32_t *columns, int64_t m,
                                         int64_t V, int64_t n) {
    if (!m || !n) return NB_OK;
    LAUNCH(put_columns_kernel, grid_for(m * n, THREADS), THREADS, 0, gpu_stream(d), y, x, columns, m, V, n);
    return gpu_launched(d, "put_columns");
}

extern "C" nb_status NB_GPU(take_columns)(nb_dev *d, nb_elem *x, nb_elem *y, const int32_t *columns, int64_t m,
                                          int64_t V, int64_t n) {
    return BY_ELEM(take_columns, d, x, y, columns, m, V, n);
}
