/* Rows of the embedding and of what replaces them, and their gradients. A row of the gradient is summed in the order of
 * the tokens: they are sorted by id first (stably), then a block takes each id's run of tokens. */
#include "kernels/cuda/nf4.h"
#include "kernels/cuda/vec.h"

namespace {

template <class T, class S, int N>
__global__ void embedding_kernel(T *y, const S *w, const int32_t *ids, int64_t rows, int64_t C, float scale) {
    FOR_ROWS(t, rows) {
        const S *row = w + ids[t] * C;
        FOR_GROUPS(c, N, C) {
            float v[N];
            load(v, row + c);
            for (int k = 0; k < N; k++) v[k] *= scale;
            store(y + t * C + c, v);
        }
    }
}

/* Rows of a weight in any format, element by element. */
template <class T>
__global__ void embedding_any_kernel(T *y, nb_weight w, const int32_t *ids, int64_t rows, float scale) {
    FOR_ROWS(t, rows) {
        FOR_GROUPS(c, 1, w.cols) {
            const float v[1] = {weight_value<float>(w, ids[t] * w.cols + c) * scale};
            store(y + t * w.cols + c, v);
        }
    }
}

/* First index in the ascending ids[n] whose element is not below id. */
__device__ __forceinline__ int64_t lower_bound(const int32_t *ids, int64_t n, int32_t id) {
    int64_t lo = 0, hi = n;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (ids[mid] < id) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

template <class T, int N>
__global__ void replace_kernel(T *y, const float *rows, const int32_t *ids, int64_t T_, const int32_t *row_ids,
                               int64_t n_rows, int64_t C, float scale) {
    FOR_ROWS(t, T_) {
        int64_t j = lower_bound(row_ids, n_rows, ids[t]);
        if (j == n_rows || row_ids[j] != ids[t]) continue;
        FOR_GROUPS(c, N, C) {
            float v[N];
            load(v, rows + j * C + c);
            for (int k = 0; k < N; k++) v[k] *= scale;
            store(y + t * C + c, v);
        }
    }
}

/* ---- gradients ---- */

/* x = beta * x. */
template <int N> __global__ void scale_kernel(float *x, float beta, int64_t n) {
    FOR_FLAT(i, N, n) {
        float zero[N];
        for (int k = 0; k < N; k++) zero[k] = 0;
        put(x + i, zero, beta);
    }
}

enum { SORT_TOKENS = 32, SORT_SLICES = 8 };

/* Where token t stands among all sorted by (id, t): the number of tokens before it in that order. Every pair is
 * compared; for as many tokens as a step has that is microseconds, and there is nothing to wait for. A block ranks 32
 * tokens, each by 8 threads that share out the others. */
__global__ void rank_kernel(int32_t *token, int32_t *sorted_id, const int32_t *ids, int32_t T) {
    SHARED(int32_t, part, [SORT_SLICES][SORT_TOKENS]);
    const int32_t t = (int32_t)(blockIdx.x * SORT_TOKENS + threadIdx.x), id = t < T ? ids[t] : 0;
    int32_t before = 0;
    for (int32_t s = (int32_t)threadIdx.y; s < T; s += SORT_SLICES) {
        int32_t other = ids[s];
        before += other < id || (other == id && s < t);
    }
    part[threadIdx.y][threadIdx.x] = before;
    __syncthreads();
    if (threadIdx.y || t >= T) return;
    for (int k = 1; k < SORT_SLICES; k++) before += part[k][threadIdx.x];
    token[before] = t;
    sorted_id[before] = id;
}

enum { AHEAD = 4 }; /* rows whose loads are under way together */

/* out[row] += sum over the tokens of one id, in order, of dy[t] * scale. Block x takes the run of equal ids that begins
 * at place x of the sorted ones (row: the id), or with row_ids the run of id row_ids[x] (row: x). */
template <class T, int N>
__global__ void runs_kernel(float *out, const T *dy, const int32_t *token, const int32_t *sorted_id, int64_t n,
                            const int32_t *row_ids, int64_t C, float scale) {
    int64_t first = row_ids ? lower_bound(sorted_id, n, row_ids[blockIdx.x]) : (int64_t)blockIdx.x, end = first;
    if (!row_ids && first > 0 && sorted_id[first - 1] == sorted_id[first]) return;
    const int32_t id = row_ids ? row_ids[blockIdx.x] : sorted_id[first];
    end = lower_bound(sorted_id + first, n - first, id + 1) + first;
    if (first == end) return;
    float *row = out + (row_ids ? (int64_t)blockIdx.x : (int64_t)id) * C;
    FOR_GROUPS(c, N, C) {
        float sum[N];
        load(sum, row + c);
        for (int64_t i = first; i < end; i += AHEAD) {
            typename Raw<N>::type group[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (i + a < end) group[a] = fetch<N>(dy + token[i + a] * C + c);
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                float v[N];
                if (i + a >= end) break;
                decode<T>(v, group[a]);
                for (int k = 0; k < N; k++) sum[k] += v[k] * scale;
            }
        }
        store(row + c, sum);
    }
}

/* out[rows,C] = beta * out, then the runs' sums on top. row_ids NULL: out has a row for every id. */
template <class T>
nb_status sum_by_id(nb_dev *d, float *out, int64_t rows, const nb_elem *dy, const int32_t *ids, int64_t n,
                    const int32_t *row_ids, int64_t C, float scale, float beta) {
    const int64_t size = rows * C;
    if (!size) return NB_OK;
    if (beta != 1) {
        const int N = group_of<float>(size, out);
        auto kernel = N > 1 ? scale_kernel<4> : scale_kernel<1>;
        LAUNCH(kernel, grid_for(size / N, 256), 256, 0, gpu_stream(d), out, beta, size);
    }
    if (n) {
        int32_t *token = (int32_t *)gpu_ws(d, 2 * (size_t)n * sizeof(int32_t)), *sorted_id = token + n;
        LAUNCH(rank_kernel, (unsigned)div_up(n, SORT_TOKENS), dim3(SORT_TOKENS, SORT_SLICES, 1), 0, gpu_stream(d),
               token, sorted_id, ids, (int32_t)n);
        const int N = group_of<T>(C, out, dy);
        auto kernel = N > 1 ? runs_kernel<T, GROUP<T>> : runs_kernel<T, 1>;
        LAUNCH(kernel, (unsigned)(row_ids ? rows : n), block_for_rows(C / N).x, 0, gpu_stream(d), out, (const T *)dy,
               token, sorted_id, n, row_ids, C, scale);
    }
    return gpu_launched(d, "sums of rows by id");
}

template <class T, class S>
void embed(nb_dev *d, nb_elem *y, const nb_weight *w, const int32_t *ids, int64_t rows, float scale) {
    const int64_t C = w->cols;
    const int N = group_of<T>(C, y, w->data);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? embedding_kernel<T, S, GROUP<T>> : embedding_kernel<T, S, 1>;
    LAUNCH(kernel, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, (const S *)w->data, ids,
           rows, C, scale);
}

template <class T>
nb_status embedding_fwd(nb_dev *d, nb_elem *y, const nb_weight *w, const int32_t *ids, int64_t rows, float scale) {
    if (!rows || !w->cols) return NB_OK;
    if (w->format == NB_FMT_F32) embed<T, float>(d, y, w, ids, rows, scale);
    else if (w->format == NB_FMT_BF16) embed<T, bf16>(d, y, w, ids, rows, scale);
    else if (w->format == NB_FMT_F16) embed<T, __half>(d, y, w, ids, rows, scale);
    else {
        const dim3 block = block_for_rows(w->cols);
        LAUNCH(embedding_any_kernel<T>, grid_for(rows, block.y), block, 0, gpu_stream(d), (T *)y, *w, ids, rows, scale);
    }
    return gpu_launched(d, "embedding_fwd");
}

template <class T>
nb_status replace_rows(nb_dev *d, nb_elem *y, const float *rows, const int32_t *ids, int64_t T_, const int32_t *row_ids,
                       int64_t n_rows, int64_t C, float scale) {
    if (!T_ || !n_rows || !C) return NB_OK;
    const int N = group_of<T>(C, y, rows);
    const dim3 block = block_for_rows(C / N);
    auto kernel = N > 1 ? replace_kernel<T, GROUP<T>> : replace_kernel<T, 1>;
    LAUNCH(kernel, grid_for(T_, block.y), block, 0, gpu_stream(d), (T *)y, rows, ids, T_, row_ids, n_rows, C,
           scale);
    return gpu_launched(d, "replace_rows_fwd");
}

} // namespace

extern "C" nb_status NB_GPU(embedding_fwd)(nb_dev *d, nb_elem *y, const nb_weight *w, const int32_t *ids, int64_t T,
                                           float scale) {
    return BY_ELEM(embedding_fwd, d, y, w, ids, T, scale);
}

extern "C" nb_status NB_GPU(embedding_bwd)(nb_dev *d, float *dw, const nb_elem *dy, const int32_t *ids, int64_t T,
                                           int64_t V, int64_t C, float scale, float beta) {
    return BY_ELEM(sum_by_id, d, dw, V, dy, ids, T, NULL, C, scale, beta);
}

extern "C" nb_status NB_GPU(replace_rows_fwd)(nb_dev *d, nb_elem *y, const float *rows, const int32_t *ids, int64_t T,
                                              const int32_t *row_ids, int64_t n_rows, int64_t C, float scale) {
    return BY_ELEM(replace_rows, d, y, rows, ids, T, row_ids, n_rows, C, scale);
}

extern "C" nb_status NB_GPU(replace_rows_bwd)(nb_dev *d, float *drows, const nb_elem *dy, const int32_t *ids, int64_t T,
                                              const int32_t *row_ids, int64_t n_rows, int64_t C, float scale,
                                              float beta) {
    return BY_ELEM(sum_by_id, d, drows, n_rows, dy, ids, T, row_ids, C, scale, beta);
}
