/* Sums over the rows of a matrix: gradients of biases and of norms' weights. A block sums a strip of columns over a
 * part of the rows, a second launch sums the parts; both in an order that only T and C decide. */
#include "kernels/cuda/vec.h"

namespace {

enum {
    LANES = 32, DEPTH = 8, /* a block: lanes side by side along the columns, DEPTH rows at a time */
    MOST_PARTS = 128,
    PART_ROWS = 32         /* fewest rows worth a part */
};

/* out[c] (+ beta * out[c]) = the sum of `mine` over the block's DEPTH rows of threads. */
template <int N>
__device__ __forceinline__ void sum_block(float *out, float beta, const float (&mine)[N], int64_t c0, int64_t C) {
    /* Column i is element i % N of lane i / N: lanes side by side in both directions, each in a bank of its own. */
    SHARED(float, part, [DEPTH][N][LANES + LANES / N]);
    __syncthreads(); /* an earlier call's readers are done */
    for (int k = 0; k < N; k++) part[threadIdx.y][k][threadIdx.x] = mine[k];
    __syncthreads();
    int i = (int)(threadIdx.y * LANES + threadIdx.x);
    if (i >= LANES * N || c0 + i >= C) return;
    float sum = 0;
    for (int y = 0; y < DEPTH; y++) sum += part[y][i % N][i / N];
    out[c0 + i] = beta != 0 ? sum + beta * out[c0 + i] : sum;
}

/* Block (strip, part): out_w[part][C] = sum of dy * (x - mean) * rstd, out_b[part][C] = sum of dy. */
template <class T, int N>
__global__ void __launch_bounds__(LANES * DEPTH)
sums_kernel(float *out_w, float beta_w, float *out_b, float beta_b, const T *dy, const T *x, const float *mean,
            const float *rstd, int64_t rows, int64_t part_rows, int64_t C) {
    int64_t c0 = (int64_t)blockIdx.x * LANES * N, c = c0 + threadIdx.x * N;
    int64_t first = blockIdx.y * part_rows, end = first + part_rows < rows ? first + part_rows : rows;
    float sum_w[N], sum_b[N];
    for (int k = 0; k < N; k++) sum_w[k] = sum_b[k] = 0;
    if (c < C)
        for (int64_t t = first + threadIdx.y; t < end; t += DEPTH) {
            float g[N], v[N];
            load(g, dy + t * C + c);
            for (int k = 0; k < N; k++) sum_b[k] += g[k];
            if (!out_w) continue;
            load(v, x + t * C + c);
            float mu = mean ? mean[t] : 0, r = rstd[t];
            for (int k = 0; k < N; k++) sum_w[k] += g[k] * ((v[k] - mu) * r);
        }
    if (out_w) sum_block(out_w + blockIdx.y * C, beta_w, sum_w, c0, C);
    if (out_b) sum_block(out_b + blockIdx.y * C, beta_b, sum_b, c0, C);
}

int64_t part_rows(int64_t T) {
    int64_t even = div_up(T, MOST_PARTS), least = PART_ROWS;
    return even > least ? even : least;
}

template <class T>
void sums(nb_dev *d, float *out_w, float beta_w, float *out_b, float beta_b, const void *dy, const void *x,
          const float *mean, const float *rstd, int64_t rows, int64_t part, int64_t C) {
    const int N = group_of<T>(C, dy, x);
    const dim3 grid((unsigned)div_up(C, LANES * N), rows ? (unsigned)div_up(rows, part) : 1);
    auto kernel = N > 1 ? sums_kernel<T, GROUP<T>> : sums_kernel<T, 1>;
    LAUNCH(kernel, grid, dim3(LANES, DEPTH, 1), 0, gpu_stream(d), out_w, beta_w, out_b, beta_b, (const T *)dy,
           (const T *)x, mean, rstd, rows, part, C);
}

template <class T>
nb_status column_sums(nb_dev *d, float *out_w, float beta_w, float *out_b, float beta_b, const nb_elem *dy,
                      const nb_elem *x, const float *mean, const float *rstd, int64_t rows, int64_t C) {
    int64_t part = part_rows(rows), parts = div_up(rows, part), bytes = parts * C * (int64_t)sizeof(float);
    if (!C) return NB_OK;
    if (parts <= 1) {
        sums<T>(d, out_w, beta_w, out_b, beta_b, dy, x, mean, rstd, rows, part, C);
        return gpu_launched(d, "column sums");
    }
    float *part_w = (float *)gpu_ws(d, (size_t)(bytes * (out_w && out_b ? 2 : 1)));
    float *part_b = out_w ? part_w + parts * C : part_w;
    sums<T>(d, out_w ? part_w : NULL, 0, out_b ? part_b : NULL, 0, dy, x, mean, rstd, rows, part, C);
    if (out_w) sums<float>(d, NULL, 0, out_w, beta_w, part_w, NULL, NULL, NULL, parts, parts, C);
    if (out_b) sums<float>(d, NULL, 0, out_b, beta_b, part_b, NULL, NULL, NULL, parts, parts, C);
    return gpu_launched(d, "column sums");
}

} // namespace

extern "C" nb_status NB_GPU(column_sums)(nb_dev *d, float *out_w, float beta_w, float *out_b, float beta_b,
                                         const nb_elem *dy, const nb_elem *x, const float *mean, const float *rstd,
                                         int64_t T, int64_t C) {
    return BY_ELEM(column_sums, d, out_w, beta_w, out_b, beta_b, dy, x, mean, rstd, T, C);
}

extern "C" nb_status NB_GPU(bias_bwd)(nb_dev *d, float *dbias, const nb_elem *dy, int64_t T, int64_t C, float beta) {
    return NB_GPU(column_sums)(d, NULL, 0, dbias, beta, dy, NULL, NULL, NULL, T, C);
}

/* The most of: parts of two sums at once (a layer norm's w and bias), the tokens sorted by id (embedding.cu), and what
 * sum_squares takes. */
extern "C" size_t NB_GPU(rows_ws)(const nb_dev *d, int64_t T, int64_t C) {
    (void)d;
    int64_t n = div_up(T, part_rows(T)), parts = n > 1 ? 2 * n * C * (int64_t)sizeof(float) : 0;
    int64_t sorted = 2 * T * (int64_t)sizeof(int32_t), least = 8192;
    int64_t most = parts > sorted ? parts : sorted;
    return (size_t)(most > least ? most : least);
}
