/* Attention in f32 arithmetic, forward and backward, for any head size up to 256: the definition with running sums, row
 * by row. A warp has ROWS rows of its own. Of 32 rows of the other kind a lane takes one where scores are made, and all
 * of them, in their order, at its own places of D where weighted rows are added up. */
#include "kernels/cuda/attention.h"

namespace {
enum { WARPS = 4, ROWS = 4, OWN = WARPS * ROWS, TILE = 32, PLACES = ATTENTION_MAX_D / 32, THREADS = 32 * WARPS };

/* Floats between rows in shared memory: odd, so that 32 rows lie in 32 banks. */
__device__ __host__ constexpr int row_size(int D) { return D | 1; }

struct sums {
    float x[ROWS][PLACES];
};

/* The first n of `rows` rows as floats, zeros behind them. */
template <class T> __device__ void load_rows(float *tile, const T *from, int64_t stride, int n, int rows, int D) {
    for (int i = threadIdx.x; i < rows * D; i += THREADS) {
        int r = i / D, c = i % D;
        tile[r * row_size(D) + c] = r < n ? to_f32(from[r * stride + c]) : 0;
    }
}

/* s = the products of this warp's rows with the lane's row of the tile. */
__device__ __forceinline__ void products(float (&s)[ROWS], const float *own, const float *tile, int D) {
    const float *x = tile + (threadIdx.x & 31) * row_size(D);
#pragma unroll
    for (int r = 0; r < ROWS; r++) s[r] = 0;
    for (int c = 0; c < D; c++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) s[r] += own[r * row_size(D) + c] * x[c];
}

/* sum += each lane's weights times its row of the tile. all: 32 places of this warp's in shared memory. */
__device__ __forceinline__ void add_weighted(sums &sum, const float (&w)[ROWS], float4 *all, const float *tile, int D) {
    static_assert(ROWS == 4, "weights of a row of the tile are one float4");
    int lane = threadIdx.x & 31;
    __syncwarp();
    all[lane] = make_float4(w[0], w[1], w[2], w[3]);
    __syncwarp();
    for (int j = 0; j < TILE; j++) {
        float4 u = all[j];
        const float *x = tile + j * row_size(D);
#pragma unroll
        for (int i = 0; i < PLACES; i++) {
            if (lane + 32 * i >= D) break;
            float y = x[lane + 32 * i];
            sum.x[0][i] += u.x * y, sum.x[1][i] += u.y * y, sum.x[2][i] += u.z * y, sum.x[3][i] += u.w * y;
        }
    }
}

/* The first n of this warp's rows, times a factor each. */
template <class T>
__device__ void store_rows(T *to, int64_t stride, int n, float beta, const sums &sum, const float (&factor)[ROWS],
                           int D) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < PLACES; i++) {
            int c = (threadIdx.x & 31) + 32 * i;
            if (r >= n || c >= D) break;
            T *out = to + r * stride + c;
            float x = sum.x[r][i] * factor[r];
            from_f32(*out, beta != 0 ? x + beta * to_f32(*out) : x);
        }
}

/* A score, and its derivative by q.k over `scale`. */
template <class T> __device__ __forceinline__ float score(const attention<T> &a, float product, float &slope) {
    float x = a.squash > 0 ? tanhf(product * a.squash) : product;
    slope = a.squash > 0 ? 1 - x * x : 1;
    return x * a.factor;
}

template <class T> __global__ void __launch_bounds__(THREADS, 3) fwd_kernel(attention<T> a) {
    SHARED_DYN(float, smem);
    SHARED(float4, weights, [WARPS][TILE]);
    const int D = a.D, ld = row_size(D), lane = threadIdx.x & 31, warp = threadIdx.x / 32, row0 = warp * ROWS;
    float *qs = smem, *ks = qs + OWN * ld, *vs = ks + TILE * ld;
    query_tile b;
    if (!find_queries(b, a, OWN)) return;
    const int64_t q_stride = (int64_t)a.H * D, k_stride = (int64_t)a.KV * D;
    const int64_t q_at = b.q0 * q_stride + b.h * D, k_at = b.k0 * k_stride + b.kv * D;
    load_rows(qs, a.q + q_at, q_stride, b.n, OWN, D);

    sums sum = {};
    float largest[ROWS], total[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) largest[r] = -INFINITY, total[r] = 0;
    for (int tile = max(b.first - a.window + 1, 0) / TILE; tile <= b.last / TILE; tile++) {
        int key0 = tile * TILE, key = key0 + lane;
        __syncthreads();
        load_rows(ks, a.k + k_at + key0 * k_stride, k_stride, b.kn - key0, TILE, D);
        load_rows(vs, a.v + k_at + key0 * k_stride, k_stride, b.kn - key0, TILE, D);
        __syncthreads();
        float s[ROWS], slope;
        products(s, qs + row0 * ld, ks, D);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int pos = b.first + row0 + r;
            s[r] = key <= pos && key > pos - a.window ? score(a, s[r], slope) : -INFINITY;
            float top = fmaxf(largest[r], warp_max(s[r])), base = top == -INFINITY ? 0 : top;
            float shrink = expf(largest[r] - base);
            largest[r] = top;
            s[r] = expf(s[r] - base);
            total[r] = total[r] * shrink + s[r];
#pragma unroll
            for (int i = 0; i < PLACES; i++) sum.x[r][i] *= shrink;
        }
        add_weighted(sum, s, weights[warp], vs, D);
    }
    float inverse[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        total[r] = warp_sum(total[r]);
        inverse[r] = 1 / total[r];
        if (a.lse && lane == 0 && row0 + r < b.n)
            a.lse[(int64_t)(b.q0 + row0 + r) * a.H + b.h] = largest[r] + logf(total[r]);
    }
    store_rows(a.o + q_at + row0 * q_stride, q_stride, b.n - row0, 0, sum, inverse, D);
}

/* p and the gradient of q.k (over `scale`) of a query and a key: s = q.k becomes p, g = do.v the gradient. */
template <class T>
__device__ __forceinline__ void pair_step(const attention<T> &a, float &s, float &g, bool seen, float lse2,
                                          float delta) {
    float slope, z = score(a, s, slope);
    s = seen ? expf(z - lse2 * LN2) : 0;
    g = s * (g - delta) * slope;
}

template <class T> __global__ void __launch_bounds__(THREADS, 3) dq_kernel(attention<T> a) {
    SHARED_DYN(float, smem);
    SHARED(float4, weights, [WARPS][TILE]);
    const int D = a.D, ld = row_size(D), lane = threadIdx.x & 31, warp = threadIdx.x / 32, row0 = warp * ROWS;
    float *qs = smem, *dos = qs + OWN * ld, *ks = dos + OWN * ld, *vs = ks + TILE * ld;
    query_tile b;
    if (!find_queries(b, a, OWN)) return;
    const int64_t q_stride = (int64_t)a.H * D, k_stride = (int64_t)a.KV * D;
    const int64_t q_at = b.q0 * q_stride + b.h * D, k_at = b.k0 * k_stride + b.kv * D;
    load_rows(qs, a.q + q_at, q_stride, b.n, OWN, D);
    load_rows(dos, a.d_o + q_at, q_stride, b.n, OWN, D);

    sums dq = {};
    float4 stats[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        stats[r] = row0 + r < b.n ? a.stats[b.h * a.Tq + b.q0 + row0 + r] : make_float4(0, 0, 0, 0);
    for (int tile = max(b.first - a.window + 1, 0) / TILE; tile <= b.last / TILE; tile++) {
        int key0 = tile * TILE, key = key0 + lane;
        __syncthreads();
        load_rows(ks, a.k + k_at + key0 * k_stride, k_stride, b.kn - key0, TILE, D);
        load_rows(vs, a.v + k_at + key0 * k_stride, k_stride, b.kn - key0, TILE, D);
        __syncthreads();
        float s[ROWS], g[ROWS];
        products(s, qs + row0 * ld, ks, D);
        products(g, dos + row0 * ld, vs, D);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int pos = b.first + row0 + r;
            pair_step(a, s[r], g[r], key <= pos && key > pos - a.window, stats[r].x, stats[r].y);
        }
        add_weighted(dq, g, weights[warp], ks, D);
    }
    const float scale[ROWS] = {a.scale, a.scale, a.scale, a.scale};
    store_rows(a.dq + q_at + row0 * q_stride, q_stride, b.n - row0, a.beta_q, dq, scale, D);
}

/* dk and dv of OWN keys of one key/value head, from all queries that see them, head by head of its group. */
template <class T> __global__ void __launch_bounds__(THREADS, 3) dkv_kernel(attention<T> a) {
    SHARED_DYN(float, smem);
    SHARED(float4, weights, [WARPS][TILE]);
    const int D = a.D, ld = row_size(D), lane = threadIdx.x & 31, warp = threadIdx.x / 32, row0 = warp * ROWS;
    float *ks = smem, *vs = ks + OWN * ld, *qs = vs + OWN * ld, *dos = qs + TILE * ld;
    int kv = blockIdx.x % a.KV, group = a.H / a.KV;
    seg_tile t;
    if (!find_tile(t, a.segs, a.n_segs, blockIdx.x / a.KV, OWN, true)) return;
    const int64_t q_stride = (int64_t)a.H * D, k_stride = (int64_t)a.KV * D;
    const int64_t at = ((int64_t)t.k0 + t.row) * k_stride + kv * D, to = at + row0 * k_stride;
    int n = min(t.kn - t.row, (int)OWN), shift = t.kn - t.qn;
    int from = max(t.row - shift, 0), upto = min(t.row + n - 1 + a.window - shift, t.qn); /* queries that see a key */
    load_rows(ks, a.k + at, k_stride, n, OWN, D);
    load_rows(vs, a.v + at, k_stride, n, OWN, D);

    sums dk = {}, dv = {};
    for (int h = kv * group; h < (kv + 1) * group; h++)
        for (int tile = from / TILE; tile * TILE < upto; tile++) {
            int query0 = tile * TILE, query = query0 + lane, pos = query + shift;
            const int64_t row = (int64_t)t.q0 + query0, q_at = row * q_stride + h * D;
            __syncthreads();
            load_rows(qs, a.q + q_at, q_stride, t.qn - query0, TILE, D);
            load_rows(dos, a.d_o + q_at, q_stride, t.qn - query0, TILE, D);
            __syncthreads();
            float4 stats = query < t.qn ? a.stats[h * a.Tq + row + lane] : make_float4(0, 0, 0, 0);
            float s[ROWS], g[ROWS];
            products(s, ks + row0 * ld, qs, D);
            products(g, vs + row0 * ld, dos, D);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int key = t.row + row0 + r;
                bool seen = key <= pos && key > pos - a.window && query < t.qn;
                pair_step(a, s[r], g[r], seen, stats.x, stats.y);
            }
            if (a.dv) add_weighted(dv, s, weights[warp], dos, D);
            if (a.dk) add_weighted(dk, g, weights[warp], qs, D);
        }
    const float one[ROWS] = {1, 1, 1, 1}, scale[ROWS] = {a.scale, a.scale, a.scale, a.scale};
    if (a.dv) store_rows(a.dv + to, k_stride, n - row0, a.beta_v, dv, one, D);
    if (a.dk) store_rows(a.dk + to, k_stride, n - row0, a.beta_k, dk, scale, D);
}

template <class T>
void launch(nb_dev *d, void (*kernel)(attention<T>), const attention<T> &a, int64_t blocks, int rows) {
    const int smem = rows * row_size(a.D) * (int)sizeof(float);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    LAUNCH(kernel, dim3((unsigned)blocks), dim3(THREADS), smem, gpu_stream(d), a);
}
template <class T> void forward(nb_dev *d, const attention<T> &a) {
    launch(d, fwd_kernel<T>, a, a.H * tiles_of(a.Tq, a.n_segs, OWN), OWN + 2 * TILE);
}
template <class T> void backward(nb_dev *d, const attention<T> &a) {
    const int rows = 2 * OWN + 2 * TILE;
    if (a.dq) launch(d, dq_kernel<T>, a, a.H * tiles_of(a.Tq, a.n_segs, OWN), rows);
    if (a.dk || a.dv) launch(d, dkv_kernel<T>, a, a.KV * tiles_of(a.Tk, a.n_segs, OWN), rows);
}
} // namespace

void NB_GPU(attention_simt_fwd)(nb_dev *d, const attention<bf16> &a) { forward(d, a); }
void NB_GPU(attention_simt_fwd)(nb_dev *d, const attention<float> &a) { forward(d, a); }
void NB_GPU(attention_simt_bwd)(nb_dev *d, const attention<bf16> &a) { backward(d, a); }
void NB_GPU(attention_simt_bwd)(nb_dev *d, const attention<float> &a) { backward(d, a); }
