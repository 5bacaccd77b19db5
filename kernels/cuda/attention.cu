/* Attention, forward: the row, and the kernel for tensor cores. */
#include "kernels/cuda/attention_mma.h"

namespace {
/* What one tile of keys gives to one row's running softmax: s are the scores before `factor` (-INFINITY: not seen) and
 * become their weights, relative to the largest seen so far. Returns what the sums of earlier tiles are scaled by. */
template <int E, int KEYS>
__device__ __forceinline__ float softmax_step(float (&s)[KEYS / 8][4], float &largest, float &sum, float factor) {
    float top = largest;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) top = fmaxf(top, fmaxf(s[j][2 * E], s[j][2 * E + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    float base = top == -INFINITY ? 0 : top * factor, shrink = exp2_approx(largest * factor - base);
    largest = top, sum *= shrink;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 2 * E; e < 2 * E + 2; e++) s[j][e] = exp2_approx(s[j][e] * factor - base), sum += s[j][e];
    return shrink;
}

/* The scores of a tile of keys from key0 on, before `factor`, for rows at positions from low on; edge: some are not
 * seen. */
template <int M, int KEYS>
__device__ __forceinline__ void cap_and_mask(float (&s)[M][KEYS / 8][4], bool edge, int key0, int low, float squash,
                                             int window) {
    int lane = threadIdx.x & 31;
    if (squash > 0)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[m][j][e] = tanh_fast(s[m][j][e] * squash);
    if (edge)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int key = key0 + j * 8 + lane % 4 * 2 + e % 2, pos = low + m * 16 + lane / 4 + e / 2 * 8;
                    if (key > pos || key <= pos - window) s[m][j][e] = -INFINITY;
                }
}

/* One block: M * 64 queries of one head against all keys they see, KEYS at a time. K arrives while the product with V
 * is made, V while the product with K is. */
template <int D, int M, int KEYS> __global__ void __launch_bounds__(MMA_THREADS) fwd_kernel(attention<bf16> a) {
    constexpr int LD = ROW_SIZE<D>, ROWS = 64 * M;
    SHARED_DYN(bf16, smem);
    bf16 *qs = smem, *ks = qs + ROWS * LD, *vs = ks + KEYS * LD;
    query_tile b;
    if (!find_queries(b, a, ROWS)) return;
    const int q_stride = a.H * D, k_stride = a.KV * D, lane = threadIdx.x & 31, row0 = threadIdx.x / 32 * 16 * M;
    const int64_t k_at = (int64_t)b.k0 * k_stride + b.kv * D;
    int begin = max(b.first - a.window + 1, 0) / KEYS, end = b.last / KEYS + 1; /* tiles of keys */
    load_rows<D, ROWS>(qs, a.q + (int64_t)b.q0 * q_stride + b.h * D, q_stride, b.n);
    load_rows<D, KEYS>(ks, a.k + k_at + (int64_t)begin * KEYS * k_stride, k_stride, b.kn - begin * KEYS);
    cp_async_commit();

    float acc[M][D / 8][4], largest[M][2], sum[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        largest[m][0] = largest[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0;
#pragma unroll
        for (int i = 0; i < D / 8; i++) acc[m][i][0] = acc[m][i][1] = acc[m][i][2] = acc[m][i][3] = 0;
    }
    int low = b.first + row0, high = row0 < b.n ? low + 16 * M - 1 : -1; /* this warp's positions */
    for (int tile = begin; tile < end; tile++) {
        int key0 = tile * KEYS;
        bool seen = key0 <= high && key0 + KEYS > low - a.window + 1;
        float s[M][KEYS / 8][4];
        cp_async_wait<0>(); /* K is there, and nobody reads V any more */
        __syncthreads();
        load_rows<D, KEYS>(vs, a.v + k_at + (int64_t)key0 * k_stride, k_stride, b.kn - key0);
        cp_async_commit();
        if (seen) product_rows<D, M, KEYS>(s, qs + row0 * LD, ks);
        cp_async_wait<0>();
        __syncthreads();
        if (tile + 1 < end)
            load_rows<D, KEYS>(ks, a.k + k_at + (int64_t)(key0 + KEYS) * k_stride, k_stride, b.kn - key0 - KEYS);
        cp_async_commit();
        if (!seen) continue;

        bool edge = key0 + KEYS - 1 > low || key0 <= high - a.window;
        cap_and_mask<M, KEYS>(s, edge, key0, low, a.squash, a.window);
        uint32_t w[M][KEYS / 16][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            float shrink0 = softmax_step<0, KEYS>(s[m], largest[m][0], sum[m][0], a.factor2);
            float shrink1 = softmax_step<1, KEYS>(s[m], largest[m][1], sum[m][1], a.factor2);
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                acc[m][i][0] *= shrink0, acc[m][i][1] *= shrink0;
                acc[m][i][2] *= shrink1, acc[m][i][3] *= shrink1;
            }
            pack_operand<KEYS>(w[m], s[m]);
        }
        __syncwarp(); /* keeps ptxas from reading V so early that registers run out */
        product_add<D, M, KEYS>(acc, w, vs);
    }
    __syncthreads(); /* the tiles' place serves store_rows */

#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            sum[m][e] += __shfl_xor_sync(0xffffffffu, sum[m][e], 1);
            sum[m][e] += __shfl_xor_sync(0xffffffffu, sum[m][e], 2);
            int row = row0 + m * 16 + e * 8 + lane / 4;
            if (a.lse && lane % 4 == 0 && row < b.n)
                a.lse[(int64_t)(b.q0 + row) * a.H + b.h] = largest[m][e] * a.factor + logf(sum[m][e]);
            sum[m][e] = 1 / sum[m][e];
        }
    store_rows<D, M>(a.o + (int64_t)(b.q0 + row0) * q_stride + b.h * D, q_stride, b.n - row0, 0, acc, sum,
                     (float *)smem + row0 * LD);
}

template <int D, int M, int KEYS> void launch(nb_dev *d, const attention<bf16> &a) {
    const int rows = M * 64, tiles = rows + 2 * KEYS; /* store_rows takes floats: twice the rows */
    const int smem = (tiles > 2 * rows ? tiles : 2 * rows) * ROW_SIZE<D> * (int)sizeof(bf16);
    cudaFuncSetAttribute(fwd_kernel<D, M, KEYS>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    LAUNCH((fwd_kernel<D, M, KEYS>), dim3((unsigned)(a.H * tiles_of(a.Tq, a.n_segs, rows))), dim3(MMA_THREADS), smem,
           gpu_stream(d), a);
}

/* Twice 16 queries a warp halve what is read from shared memory. Tiles such that registers suffice, and a block takes
 * at most 99 KB of shared memory, what the smallest cards have. */
const struct {
    int D;
    void (*launch)(nb_dev *d, const attention<bf16> &a);
} variants[] = {{64, launch<64, 2, 64>},
                {80, launch<80, 2, 64>},
                {96, launch<96, 2, 64>},
                {128, launch<128, 2, 32>},
                {256, launch<256, 1, 64>}};

bool on_tensor_cores(nb_dev *d, const attention<bf16> &a) {
    for (const auto &v : variants)
        if (v.D == a.D) return v.launch(d, a), true;
    return false;
}
bool on_tensor_cores(nb_dev *, const attention<float> &) { return false; }

/* A step of generation, where every segment has one query, has a kernel of its own; else the head size decides. So a
 * document takes the same kernel alone and in any pack, but for one of a single token: its o is v in each of them. */
template <class T> void forward(nb_dev *d, attention<T> a, nb_elem *o, float *lse) {
    a.o = (T *)o, a.lse = lse;
    if (a.Tq <= a.n_segs) NB_GPU(attention_decode)(d, a);
    else if (!on_tensor_cores(d, a)) NB_GPU(attention_simt_fwd)(d, a);
}
} // namespace

extern "C" nb_status NB_GPU(attention_fwd)(nb_dev *d, nb_elem *o, float *lse, const nb_elem *q, const nb_elem *k,
                                           const nb_elem *v, const nb_seg *segs, int64_t n_segs, int64_t Tq, int64_t Tk,
                                           int64_t H, int64_t KV, int64_t D, float scale, float cap, int64_t window) {
    attention_shape shape = {segs, n_segs, Tq, Tk, H, KV, D, scale, cap, window};
    if (Tq == 0) return NB_OK;
    if (d->elem == NB_BF16) forward(d, attention_of<bf16>(q, k, v, shape, {}), o, lse);
    else forward(d, attention_of<float>(q, k, v, shape, {}), o, lse);
    return gpu_launched(d, "attention_fwd");
}

extern "C" size_t NB_GPU(attention_ws)(const nb_dev *, int64_t Tq, int64_t, int64_t H, int64_t, int64_t D) {
    size_t decode = NB_GPU(attention_decode_ws)(Tq, H, D), bwd = sizeof(float4) * (size_t)(Tq * H);
    return decode > bwd ? decode : bwd;
}
