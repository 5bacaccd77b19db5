/* Attention, forward, for one query a segment against a cache (generation), after "flash-decoding" (Dao et al., 2023). One
 * query reads all its keys once: what counts is how many blocks read at the same time. The keys of a query are cut into at
 * most SPLITS parts, by how many it sees and nothing else, so that a sequence's numbers are the same in every batch. A
 * block has one part and the query heads that share a key/value head; a second kernel puts the parts together in order. */
#include "kernels/cuda/attention.h"

namespace {
enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    SPLITS = 32,
    HEADS = 8,        /* query heads a block takes at most */
    WARP_KEYS = 16,   /* keys of a warp in a tile */
    KEYS = WARPS * WARP_KEYS,
    AHEAD = 4,        /* loads on their way at the same time */
    ROWS_AT_ONCE = 16 /* queries of a launch: what bounds the scratch */
};

/* What query `row` sees: keys first..first+n-1 of the segment that begins at row k0, and keys in each of its parts. */
struct sight {
    int k0, first, n, part;
};
template <class T> __device__ __forceinline__ sight sight_of(const attention<T> &a, int row) {
    int low = 0, high = a.n_segs; /* the last segment with q0 <= row */
    while (high - low > 1) {
        int mid = (low + high) / 2;
        if (a.segs[mid].q0 <= row) low = mid;
        else high = mid;
    }
    const nb_seg s = a.segs[low];
    int pos = s.kn - s.qn + row - s.q0;
    sight v = {s.k0, max(pos - a.window + 1, 0), 0, 0};
    v.n = pos + 1 - v.first;
    v.part = ((v.n + SPLITS - 1) / SPLITS + KEYS - 1) / KEYS * KEYS;
    return v;
}

/* Lanes that share a key, each with 8 of its elements: a power of two. */
__device__ __host__ inline int lanes_of(int D) { return D <= 64 ? 8 : D <= 128 ? 16 : 32; }

/* A head's row in shared memory: 8 floats a lane, the first four of all lanes before the last four, so that lanes reading
 * four at a time read a line. Returns where element c is. */
__device__ __forceinline__ int place(int c, int lanes) { return (c / 4 % 2 * lanes + c / 8) * 4 + c % 4; }

/* AHEAD keys' 8 elements of this lane: keys `by` apart from the first, zeros from `end` on. */
template <class T>
__device__ __forceinline__ void load_keys(float (&x)[AHEAD][8], const T *p, int key, int by, int end, int64_t stride,
                                          int left, bool wide) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        bool there = key + u * by < end;
        load8(x[u], p + (there ? (key + u * by) * stride : 0), there ? left : 0, wide);
    }
}

/* Floats of a part: a head's unnormalized output, the largest score, the sum of exp(score - largest). */
__device__ __host__ constexpr int part_size(int D) { return D + 2; }

/* The softmax of a tile's scores, a warp taking heads warp, warp + WARPS, ...: they become weights relative to the largest
 * score so far, and shrink[g] what earlier sums are scaled by. */
__device__ __forceinline__ void softmax_tile(float (*scores)[KEYS], float *shrink, float *largest, float *total, int heads) {
    int lane = threadIdx.x & 31;
    for (int i = 0, g = threadIdx.x / 32; g < heads; i++, g += WARPS) {
        float x = scores[g][lane], y = scores[g][lane + 32];
        float top = fmaxf(largest[g], warp_max(fmaxf(x, y)));
        x = expf(x - top), y = expf(y - top);
        float sum = warp_sum(x + y), old = expf(largest[g] - top);
        scores[g][lane] = x, scores[g][lane + 32] = y;
        __syncwarp();
        if (lane == 0) shrink[g] = old, total[g] = total[g] * old + sum, largest[g] = top;
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) part_kernel(attention<T> a, float *parts, int row0) {
    SHARED_DYN(float, smem);
    SHARED(float, scores, [HEADS][KEYS]);
    SHARED(float, shrink, [HEADS]);
    SHARED(float, largest, [HEADS]);
    SHARED(float, total, [HEADS]);
    const int D = a.D, group = a.H / a.KV, bundles = (group + HEADS - 1) / HEADS;
    int id = blockIdx.x, split = id % SPLITS, bundle = id / SPLITS % bundles, kv = id / SPLITS / bundles % a.KV;
    int local = id / SPLITS / bundles / a.KV, row = row0 + local;
    const sight see = sight_of(a, row);
    int begin = see.first + split * see.part, end = min(begin + see.part, see.first + see.n);
    if (begin >= end) return;
    int h0 = kv * group + bundle * HEADS, heads = min(group - bundle * HEADS, (int)HEADS);
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, lanes = lanes_of(D), by = 32 / lanes, ld = lanes * 8;
    for (int i = threadIdx.x; i < heads * ld; i += THREADS) { /* q; in the end, what warps add up */
        int g = i / ld, e = i % ld;
        smem[g * ld + place(e, lanes)] = e < D ? to_f32(a.q[((int64_t)row * a.H + h0 + g) * D + e]) : 0;
    }
    if (threadIdx.x < HEADS) largest[threadIdx.x] = -INFINITY, total[threadIdx.x] = 0;
    __syncthreads();

    const int c = lane % lanes * 8, left = D - c, mine = warp * WARP_KEYS + lane / lanes; /* this lane's first key */
    const bool wide = D % 8 == 0;
    const int64_t stride = (int64_t)a.KV * D;
    const T *k = a.k + see.k0 * stride + kv * D + (left > 0 ? c : 0), *v = a.v + see.k0 * stride + kv * D + (left > 0 ? c : 0);
    float sum[HEADS][8] = {}, x[AHEAD][8];
    for (int key0 = begin; key0 < end; key0 += KEYS) {
        for (int i = 0; i < WARP_KEYS; i += AHEAD * by) {
            load_keys(x, k, key0 + mine + i, by, end, stride, left, wide);
            for (int g = 0; g < heads; g++) {
                const float4 *q8 = (const float4 *)(smem + g * ld) + lane % lanes, qa = q8[0], qb = q8[lanes];
                const float q[8] = {qa.x, qa.y, qa.z, qa.w, qb.x, qb.y, qb.z, qb.w};
#pragma unroll
                for (int u = 0; u < AHEAD; u++) {
                    float s = 0;
#pragma unroll
                    for (int e = 0; e < 8; e++) s += q[e] * x[u][e];
                    for (int o = lanes / 2; o; o /= 2) s += __shfl_xor_sync(0xffffffffu, s, o);
                    int at = mine + i + u * by;
                    s = (a.squash > 0 ? tanhf(s * a.squash) : s) * a.factor;
                    if (c == 0) scores[g][at] = key0 + at < end ? s : -INFINITY;
                }
            }
        }
        __syncthreads();
        softmax_tile(scores, shrink, largest, total, heads);
        __syncthreads();
#pragma unroll
        for (int g = 0; g < HEADS; g++)
            if (g < heads)
#pragma unroll
                for (int e = 0; e < 8; e++) sum[g][e] *= shrink[g];
        for (int i = 0; i < WARP_KEYS; i += AHEAD * by) {
            load_keys(x, v, key0 + mine + i, by, end, stride, left, wide);
#pragma unroll
            for (int g = 0; g < HEADS; g++)
                if (g < heads)
#pragma unroll
                    for (int u = 0; u < AHEAD; u++) {
                        float p = scores[g][mine + i + u * by];
#pragma unroll
                        for (int e = 0; e < 8; e++) sum[g][e] += p * x[u][e];
                    }
        }
        __syncthreads();
    }

    /* Keys of a warp, then warps. */
#pragma unroll
    for (int g = 0; g < HEADS; g++)
        if (g < heads) {
            float *y = sum[g];
            for (int o = lanes; o < 32; o *= 2)
#pragma unroll
                for (int e = 0; e < 8; e++) y[e] += __shfl_xor_sync(0xffffffffu, y[e], o);
            float4 *to = (float4 *)(smem + (warp * heads + g) * ld) + lane;
            if (lane < lanes) to[0] = make_float4(y[0], y[1], y[2], y[3]), to[lanes] = make_float4(y[4], y[5], y[6], y[7]);
        }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * D; i += THREADS) {
        int g = i / D, e = i % D;
        float *part = parts + (((int64_t)local * a.H + h0 + g) * SPLITS + split) * part_size(D), y = 0;
        for (int w = 0; w < WARPS; w++) y += smem[(w * heads + g) * ld + place(e, lanes)];
        part[e] = y;
        if (e == 0) part[D] = largest[g], part[D + 1] = total[g];
    }
}

/* o and lse of a query and head from its parts. */
template <class T> __global__ void __launch_bounds__(THREADS) join_kernel(attention<T> a, const float *parts, int row0) {
    const int D = a.D, h = blockIdx.x % a.H, local = blockIdx.x / a.H, row = row0 + local;
    const sight see = sight_of(a, row);
    const float *mine = parts + ((int64_t)local * a.H + h) * SPLITS * part_size(D);
    int n = (see.n + see.part - 1) / see.part;
    float top = -INFINITY, total = 0;
    for (int i = 0; i < n; i++) top = fmaxf(top, mine[i * part_size(D) + D]);
    for (int i = 0; i < n; i++) total += mine[i * part_size(D) + D + 1] * expf(mine[i * part_size(D) + D] - top);
    for (int c = threadIdx.x; c < D; c += THREADS) {
        float y = 0;
        for (int i = 0; i < n; i++) y += mine[i * part_size(D) + c] * expf(mine[i * part_size(D) + D] - top);
        from_f32(a.o[((int64_t)row * a.H + h) * D + c], y / total);
    }
    if (a.lse && threadIdx.x == 0) a.lse[(int64_t)row * a.H + h] = top + logf(total);
}

template <class T> void decode(nb_dev *d, const attention<T> &a) {
    const int group = a.H / a.KV, bundles = (group + HEADS - 1) / HEADS, heads = group < HEADS ? group : (int)HEADS;
    const int smem = WARPS * heads * lanes_of(a.D) * 8 * (int)sizeof(float);
    float *parts = (float *)gpu_ws(d, NB_GPU(attention_decode_ws)(a.Tq, a.H, a.D));
    for (int64_t row = 0; row < a.Tq; row += ROWS_AT_ONCE) {
        const int rows = (int)(a.Tq - row < ROWS_AT_ONCE ? a.Tq - row : (int64_t)ROWS_AT_ONCE);
        LAUNCH(part_kernel<T>, dim3((unsigned)(rows * a.KV * bundles * SPLITS)), dim3(THREADS), smem, gpu_stream(d), a,
               parts, (int)row);
        LAUNCH(join_kernel<T>, dim3((unsigned)(rows * a.H)), dim3(THREADS), 0, gpu_stream(d), a, parts, (int)row);
    }
}
} // namespace

void NB_GPU(attention_decode)(nb_dev *d, const attention<bf16> &a) { decode(d, a); }
void NB_GPU(attention_decode)(nb_dev *d, const attention<float> &a) { decode(d, a); }

size_t NB_GPU(attention_decode_ws)(int64_t Tq, int64_t H, int64_t D) {
    const int64_t rows = Tq < ROWS_AT_ONCE ? Tq : (int64_t)ROWS_AT_ONCE;
    return sizeof(float) * (size_t)(rows * H * SPLITS * part_size((int)D));
}
