/* Attention, backward: the row, and the kernels for tensor cores. With p = exp(score - lse), g = do v^T and
 * delta = sum of do * o of a query, the gradient of q.k is p (g - delta) times the slope of the score. The scores are
 * made anew, once with queries that stay (dq) and once with keys that stay (dk, dv): a sum has one block, one order. */
#include "kernels/cuda/attention_mma.h"

namespace {
/* Each query's and head's stats. Eight lanes a query, which read its row whole; a block has queries of one head. */
enum { STATS_LANES = 8, STATS_THREADS = 256 };
template <class T>
__global__ void stats_kernel(float4 *stats, const T *d_o, const T *o, const float *lse, int64_t Tq, int H, int D) {
    int h = blockIdx.x % H, lane = threadIdx.x % STATS_LANES;
    int64_t t = (int64_t)(blockIdx.x / H) * (STATS_THREADS / STATS_LANES) + threadIdx.x / STATS_LANES;
    const int64_t at = t < Tq ? (t * H + h) * D : 0;
    float sum = 0;
    for (int c = lane * 8; c < D && t < Tq; c += STATS_LANES * 8) {
        float x[8], y[8];
        load8(x, d_o + at + c, D - c, D % 8 == 0);
        load8(y, o + at + c, D - c, D % 8 == 0);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * y[i];
    }
    for (int by = STATS_LANES / 2; by; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (t < Tq && lane == 0) stats[h * Tq + t] = make_float4(lse[t * H + h] * LOG2E, sum, 0, 0);
}

enum { OWN = 64 }; /* rows of a block's own tile: 16 a warp */

/* Of pairs of a query and a key: s = q.k becomes p, g = do.v the gradient of q.k but for `scale`. stats(j, e) are those
 * of the pair's query; edge: some pairs are not seen(j, e). */
template <int B, class Stats, class Seen>
__device__ __forceinline__ void pair_steps(float (&s)[B / 8][4], float (&g)[B / 8][4], const attention<bf16> &a,
                                           bool edge, Stats stats, Seen seen) {
#pragma unroll
    for (int j = 0; j < B / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) g[j][e] -= stats(j, e).y;
    if (a.squash > 0)
#pragma unroll
        for (int j = 0; j < B / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = tanh_fast(s[j][e] * a.squash), g[j][e] *= 1 - s[j][e] * s[j][e];
    if (edge)
#pragma unroll
        for (int j = 0; j < B / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = seen(j, e) ? s[j][e] : -INFINITY;
#pragma unroll
    for (int j = 0; j < B / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = exp2_approx(s[j][e] * a.factor2 - stats(j, e).x), g[j][e] *= s[j][e];
}

/* dq of 64 queries of one head; B keys in a tile. K and V of the next tile arrive while this one is worked on. */
template <int D, int B> __global__ void __launch_bounds__(MMA_THREADS) dq_kernel(attention<bf16> a) {
    constexpr int LD = ROW_SIZE<D>;
    SHARED_DYN(bf16, smem);
    bf16 *qs = smem, *dos = qs + OWN * LD, *ring = dos + OWN * LD; /* ring: two pairs of tiles of K and V */
    query_tile b;
    if (!find_queries(b, a, OWN)) return;
    const int q_stride = a.H * D, k_stride = a.KV * D, lane = threadIdx.x & 31, row0 = threadIdx.x / 32 * 16;
    const int64_t q_at = (int64_t)b.q0 * q_stride + b.h * D, k_at = (int64_t)b.k0 * k_stride + b.kv * D;
    int begin = max(b.first - a.window + 1, 0) / B, end = b.last / B + 1;
    auto load_pair = [&](int tile) {
        bf16 *to = ring + tile % 2 * 2 * B * LD;
        const int64_t from = k_at + (int64_t)tile * B * k_stride;
        load_rows<D, B>(to, a.k + from, k_stride, b.kn - tile * B);
        load_rows<D, B>(to + B * LD, a.v + from, k_stride, b.kn - tile * B);
        cp_async_commit();
    };
    load_rows<D, OWN>(qs, a.q + q_at, q_stride, b.n);
    load_rows<D, OWN>(dos, a.d_o + q_at, q_stride, b.n);
    load_pair(begin);

    float acc[1][D / 8][4];
    float2 stats[2];
#pragma unroll
    for (int i = 0; i < D / 8; i++) acc[0][i][0] = acc[0][i][1] = acc[0][i][2] = acc[0][i][3] = 0;
    int low = b.first + row0, high = row0 < b.n ? low + 15 : -1; /* this warp's positions */
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int row = row0 + lane / 4 + e * 8;
        float4 of_row = row < b.n ? a.stats[b.h * a.Tq + b.q0 + row] : make_float4(0, 0, 0, 0);
        stats[e] = make_float2(of_row.x, of_row.y);
    }
    for (int tile = begin; tile < end; tile++) {
        int key0 = tile * B;
        const bf16 *ks = ring + tile % 2 * 2 * B * LD;
        cp_async_wait<0>();
        __syncthreads(); /* the pair is there, and nobody reads the other one any more */
        if (tile + 1 < end) load_pair(tile + 1);
        if (key0 > high || key0 + B <= low - a.window + 1) continue;
        float s[1][B / 8][4], g[1][B / 8][4];
        uint32_t w[1][B / 16][4];
        product_rows<D, 1, B>(s, qs + row0 * LD, ks);
        product_rows<D, 1, B>(g, dos + row0 * LD, ks + B * LD);
        pair_steps<B>(s[0], g[0], a, key0 + B - 1 > low || key0 <= high - a.window,
                      [&](int, int e) { return stats[e / 2]; },
                      [&](int j, int e) {
                          int key = key0 + j * 8 + lane % 4 * 2 + e % 2, pos = low + lane / 4 + e / 2 * 8;
                          return key <= pos && key > pos - a.window;
                      });
        pack_operand<B>(w[0], g[0]);
        product_add<D, 1, B>(acc, w, ks);
    }
    __syncthreads(); /* the own tiles' place serves store_rows */
    const float scale[1][2] = {{a.scale, a.scale}};
    store_rows<D, 1>(a.dq + q_at + (int64_t)row0 * q_stride, q_stride, b.n - row0, a.beta_q, acc, scale,
                     (float *)smem + row0 * LD);
}

/* Adds what the second crew has in acc to the first crew's, lane by lane. place: as many floats. */
template <int D>
__device__ __forceinline__ void join_crews(float (&acc)[1][D / 8][4], float *place, int crew) {
    float4 *mine = (float4 *)place + threadIdx.x % MMA_THREADS;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        if (crew == 1) mine[i * MMA_THREADS] = make_float4(acc[0][i][0], acc[0][i][1], acc[0][i][2], acc[0][i][3]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        if (crew == 0) {
            float4 x = mine[i * MMA_THREADS];
            acc[0][i][0] += x.x, acc[0][i][1] += x.y, acc[0][i][2] += x.z, acc[0][i][3] += x.w;
        }
    __syncthreads();
}

/* dk (if DK) and dv (if DV) of 64 keys of one key/value head, from all queries that see them, head by head of its
 * group; B queries in a tile. Here s and g are made with keys as rows. Queries' stats stand between the rows of Q.
 *
 * The first keys of a long document are seen by most queries, and all else is done before they are. So CREWS crews of
 * four warps take turns at the tiles, each with a ring of its own and in step with the other only in the end. */
template <int D, int B, int CREWS, bool DK, bool DV>
__global__ void __launch_bounds__(MMA_THREADS *CREWS) dkv_kernel(attention<bf16> a) {
    constexpr int LD = ROW_SIZE<D>;
    SHARED_DYN(bf16, smem);
    const int lane = threadIdx.x & 31, crew = threadIdx.x / MMA_THREADS, row0 = threadIdx.x / 32 % 4 * 16;
    bf16 *ks = smem, *vs = ks + OWN * LD, *ring = vs + (OWN + 4 * B * crew) * LD; /* two pairs of tiles of Q and dO */
    int kv = blockIdx.x % a.KV, group = a.H / a.KV;
    seg_tile t;
    if (!find_tile(t, a.segs, a.n_segs, blockIdx.x / a.KV, OWN, true)) return;
    const int q_stride = a.H * D, k_stride = a.KV * D;
    const int64_t at = ((int64_t)t.k0 + t.row) * k_stride + kv * D;
    int n = min(t.kn - t.row, (int)OWN), shift = t.kn - t.qn;
    /* Queries that see any of these keys, counted from the segment's first; and their tiles. */
    int from = max(t.row - shift, 0), upto = (int)min((int64_t)t.row + n - 1 + a.window - shift, (int64_t)t.qn);
    int begin = from / B, tiles = max((upto + B - 1) / B - begin, 0);
    auto load_pair = [&](int i, int slot) { /* number i of all heads' tiles */
        int h = kv * group + i / tiles, q0 = (begin + i % tiles) * B, left = t.qn - q0, row = threadIdx.x % MMA_THREADS;
        const int64_t first = (int64_t)t.q0 + q0, q_at = first * q_stride + h * D;
        bf16 *to = ring + slot * 2 * B * LD;
        load_rows<D, B>(to, a.q + q_at, q_stride, left);
        load_rows<D, B>(to + B * LD, a.d_o + q_at, q_stride, left);
        if (row < B) cp_async16(to + row * LD + D, a.stats + (row < left ? h * a.Tq + first + row : 0), row < left);
        cp_async_commit();
    };
    if (crew == 0) load_rows<D, OWN>(ks, a.k + at, k_stride, n);
    if (DK && crew == CREWS - 1) load_rows<D, OWN>(vs, a.v + at, k_stride, n);
    if (crew < group * tiles) load_pair(crew, 0);
    cp_async_commit(); /* there may be no pair */
    cp_async_wait<0>();
    __syncthreads(); /* K and V are there, which all crews read */

    float dk[1][D / 8][4], dv[1][D / 8][4];
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) dk[0][i][e] = dv[0][i][e] = 0;
    int low = t.row + row0, high = low + min(15, n - 1 - row0); /* this warp's keys */
    for (int i = crew, slot = 0; i < group * tiles; i += CREWS, slot ^= 1) {
        int pos0 = (begin + i % tiles) * B + shift; /* of the tile's first query */
        const bf16 *qs = ring + slot * 2 * B * LD, *dos = qs + B * LD;
        cp_async_wait<0>();
        bar_sync(1 + crew, MMA_THREADS); /* the crew's pair is there, and nobody reads the other one any more */
        if (i + CREWS < group * tiles) load_pair(i + CREWS, slot ^ 1);
        if (low > high || low >= pos0 + B || high <= pos0 - a.window) continue;
        float s[1][B / 8][4], g[1][B / 8][4] = {};
        uint32_t w[1][B / 16][4];
        product_rows<D, 1, B>(s, ks + row0 * LD, qs);
        if (DK) product_rows<D, 1, B>(g, vs + row0 * LD, dos);
        pair_steps<B>(s[0], g[0], a, high > pos0 || low <= pos0 + B - 1 - a.window || pos0 + B > t.kn,
                      [&](int j, int e) { return *(const float2 *)(qs + (j * 8 + lane % 4 * 2 + e % 2) * LD + D); },
                      [&](int j, int e) {
                          int key = low + lane / 4 + e / 2 * 8, pos = pos0 + j * 8 + lane % 4 * 2 + e % 2;
                          return key <= pos && key > pos - a.window && pos < t.kn;
                      });
        if (DV) {
            pack_operand<B>(w[0], s[0]);
            product_add<D, 1, B>(dv, w, dos);
        }
        if (DK) {
            pack_operand<B>(w[0], g[0]);
            product_add<D, 1, B>(dk, w, qs);
        }
    }
    if (CREWS > 1 && DV) join_crews<D>(dv, (float *)smem, crew);
    if (CREWS > 1 && DK) join_crews<D>(dk, (float *)smem, crew);
    __syncthreads(); /* the own tiles' place serves store_rows */
    if (crew > 0) return;
    const float one[1][2] = {{1, 1}}, scale[1][2] = {{a.scale, a.scale}};
    const int64_t to = at + (int64_t)row0 * k_stride;
    float *stage = (float *)smem + row0 * LD;
    if (DV && a.dv) store_rows<D, 1>(a.dv + to, k_stride, n - row0, a.beta_v, dv, one, stage);
    if (DK && a.dk) store_rows<D, 1>(a.dk + to, k_stride, n - row0, a.beta_k, dk, scale, stage);
}

/* crews: of MMA_THREADS threads and a ring each. */
template <class K> void launch(nb_dev *d, K kernel, const attention<bf16> &a, int64_t blocks, int B, int crews) {
    const int smem = (2 * OWN + 4 * B * crews) * (a.D + 8) * (int)sizeof(bf16);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    LAUNCH(kernel, dim3((unsigned)blocks), dim3((unsigned)(MMA_THREADS * crews)), smem, gpu_stream(d), a);
}

template <int D, int B, int CREWS> void backward_of(nb_dev *d, const attention<bf16> &a) {
    const int64_t keys = a.KV * tiles_of(a.Tk, a.n_segs, OWN);
    if (a.dq) launch(d, dq_kernel<D, B>, a, a.H * tiles_of(a.Tq, a.n_segs, OWN), B, 1);
    if constexpr (D <= 128) {
        if (a.dk || a.dv) launch(d, dkv_kernel<D, B, CREWS, true, true>, a, keys, B, CREWS);
    } else { /* the sums of both would take more registers than there are */
        if (a.dk) launch(d, dkv_kernel<D, B, CREWS, true, false>, a, keys, B, CREWS);
        if (a.dv) launch(d, dkv_kernel<D, B, CREWS, false, true>, a, keys, B, CREWS);
    }
}

/* For cards whose blocks may have so much shared memory; all have 99 KB. */
const struct {
    int D, smem;
    void (*launch)(nb_dev *d, const attention<bf16> &a);
} variants[] = {{64, 0, backward_of<64, 64, 2>},
                {80, 0, backward_of<80, 32, 2>},
                {96, 0, backward_of<96, 32, 2>},
                {128, 102 << 10, backward_of<128, 32, 2>},
                {128, 0, backward_of<128, 32, 1>},
                {256, 0, backward_of<256, 16, 1>}};

bool on_tensor_cores(nb_dev *d, const attention<bf16> &a) {
    for (const auto &v : variants)
        if (v.D == a.D && v.smem <= ((const nb_gpu *)d->impl)->smem_max) return v.launch(d, a), true;
    return false;
}
bool on_tensor_cores(nb_dev *, const attention<float> &) { return false; }

template <class T> void backward(nb_dev *d, attention<T> &a, const nb_elem *o, const float *lse) {
    const int64_t blocks = div_up(a.Tq, STATS_THREADS / STATS_LANES) * a.H;
    float4 *stats = (float4 *)gpu_ws(d, sizeof(float4) * (size_t)(a.Tq * a.H));
    LAUNCH(stats_kernel<T>, dim3((unsigned)blocks), dim3(STATS_THREADS), 0, gpu_stream(d), stats, a.d_o, (const T *)o,
           lse, a.Tq, a.H, a.D);
    a.stats = stats;
    if (!on_tensor_cores(d, a)) NB_GPU(attention_simt_bwd)(d, a);
}
} // namespace

extern "C" nb_status NB_GPU(attention_bwd)(nb_dev *d, nb_elem *dq, float beta_q, nb_elem *dk, float beta_k, nb_elem *dv,
                                           float beta_v, const nb_elem *d_o, const nb_elem *q, const nb_elem *k,
                                           const nb_elem *v, const nb_elem *o, const float *lse, const nb_seg *segs,
                                           int64_t n_segs, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D,
                                           float scale, float cap, int64_t window) {
    attention_shape shape = {segs, n_segs, Tq, Tk, H, KV, D, scale, cap, window};
    attention_grads grads = {d_o, dq, dk, dv, beta_q, beta_k, beta_v};
    if (Tq == 0) return NB_OK;
    if (d->elem == NB_BF16) {
        attention<bf16> a = attention_of<bf16>(q, k, v, shape, grads);
        backward(d, a, o, lse);
    } else {
        attention<float> a = attention_of<float>(q, k, v, shape, grads);
        backward(d, a, o, lse);
    }
    return gpu_launched(d, "attention_bwd");
}
