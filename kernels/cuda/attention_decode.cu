/* Attention, forward, for one query a segment against a cache (generation), after "flash-decoding" (Dao et al., 2023).
 * One query reads all its keys once: what counts is how many blocks read at the same time. The keys of a query are cut
 * into at most SPLITS parts, by how many it sees and nothing else, so that a sequence's numbers are the same in every
 * batch. A block has one part and query heads that share a key/value head; a second kernel joins the parts in order. */
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

/* A head's row in shared memory: 8 floats a lane, the first four of all lanes before the last four, so that lanes
 * reading four at a time read a line. Returns where element c is. */
__device__ __forceinline__ int place(int c, int lanes) { return (c / 4 % 2 * lanes + c / 8) * 4 + c % 4; }

/* Floats of a part: a head's output times its total, the largest score, and the total, of exp(score - largest). */
__device__ __host__ constexpr int part_size(int D) { return D + 2; }

/* A lane's place: elements c .. c+7 (those below D) of keys key, key + by, ... of each tile. */
struct place_of {
    int lanes, by, c, left, key;
    bool wide;
};
__device__ __forceinline__ place_of place_in(int D) {
    int lane = threadIdx.x & 31, lanes = lanes_of(D), c = lane % lanes * 8;
    place_of p = {lanes, 32 / lanes, c, D - c, (int)threadIdx.x / 32 * WARP_KEYS + lane / lanes, D % 8 == 0};
    return p;
}

/* AHEAD keys' 8 elements of this lane from a key on; zeros from `end` on. */
template <class T>
__device__ __forceinline__ void load_keys(float (&x)[AHEAD][8], const T *rows, int64_t stride, int key, int end,
                                          const place_of &p) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        bool there = key + u * p.by < end && p.left > 0;
        load8(x[u], rows + (there ? (key + u * p.by) * stride + p.c : 0), there ? p.left : 0, p.wide);
    }
}

/* scores[g] of a tile's keys from key0 on with the heads' queries q. */
template <class T>
__device__ __forceinline__ void score_tile(float (*scores)[KEYS], const attention<T> &a, const float *q, int heads,
                                           const T *k, int64_t stride, int key0, int end, const place_of &p) {
    for (int i = 0; i < WARP_KEYS; i += AHEAD * p.by) {
        float x[AHEAD][8];
        load_keys(x, k, stride, key0 + p.key + i, end, p);
        for (int g = 0; g < heads; g++) {
            const float4 *at = (const float4 *)q + g * 2 * p.lanes + p.c / 8, lo = at[0], hi = at[p.lanes];
            const float y[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                float s = 0;
                int key = p.key + i + u * p.by;
#pragma unroll
                for (int e = 0; e < 8; e++) s += y[e] * x[u][e];
                for (int o = p.lanes / 2; o; o /= 2) s += __shfl_xor_sync(0xffffffffu, s, o);
                s = (a.squash > 0 ? tanhf(s * a.squash) : s) * a.factor;
                if (p.c == 0) scores[g][key] = key0 + key < end ? s : -INFINITY;
            }
        }
    }
}

/* The softmax of a tile's scores, a warp taking heads warp, warp + WARPS, ...: they become weights relative to the
 * largest score so far, and shrink[g] what earlier sums are scaled by. */
__device__ __forceinline__ void softmax_tile(float (*scores)[KEYS], float *shrink, float *largest, float *total,
                                             int heads) {
    static_assert(KEYS == 64, "two a lane");
    int lane = threadIdx.x & 31;
    for (int g = threadIdx.x / 32; g < heads; g += WARPS) {
        float x = scores[g][lane], y = scores[g][lane + 32];
        float top = fmaxf(largest[g], warp_max(fmaxf(x, y)));
        x = expf(x - top), y = expf(y - top);
        float sum = warp_sum(x + y), old = expf(largest[g] - top);
        scores[g][lane] = x, scores[g][lane + 32] = y;
        __syncwarp();
        if (lane == 0) shrink[g] = old, total[g] = total[g] * old + sum, largest[g] = top;
    }
}

/* sum[g] = sum[g] * shrink[g] + this lane's share of the weighted values of a tile. */
template <class T>
__device__ __forceinline__ void add_values(float (&sum)[HEADS][8], const float (*weights)[KEYS], const float *shrink,
                                           int heads, const T *v, int64_t stride, int key0, int end,
                                           const place_of &p) {
#pragma unroll
    for (int g = 0; g < HEADS; g++)
        if (g < heads)
#pragma unroll
            for (int e = 0; e < 8; e++) sum[g][e] *= shrink[g];
    for (int i = 0; i < WARP_KEYS; i += AHEAD * p.by) {
        float x[AHEAD][8];
        load_keys(x, v, stride, key0 + p.key + i, end, p);
#pragma unroll
        for (int g = 0; g < HEADS; g++)
            if (g < heads)
#pragma unroll
                for (int u = 0; u < AHEAD; u++) {
                    float w = weights[g][p.key + i + u * p.by];
#pragma unroll
                    for (int e = 0; e < 8; e++) sum[g][e] += w * x[u][e];
                }
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) part_kernel(attention<T> a, float *parts, int row0) {
    SHARED_DYN(float, smem); /* the heads' queries; in the end, what warps add up */
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
    const place_of p = place_in(D);
    const int ld = p.lanes * 8;
    for (int i = threadIdx.x; i < heads * ld; i += THREADS) {
        int g = i / ld, e = i % ld;
        smem[g * ld + place(e, p.lanes)] = e < D ? to_f32(a.q[((int64_t)row * a.H + h0 + g) * D + e]) : 0;
    }
    if (threadIdx.x < HEADS) largest[threadIdx.x] = -INFINITY, total[threadIdx.x] = 0;
    __syncthreads();

    const int64_t stride = (int64_t)a.KV * D, at = see.k0 * stride + kv * D;
    float sum[HEADS][8] = {};
    for (int key0 = begin; key0 < end; key0 += KEYS) {
        score_tile(scores, a, smem, heads, a.k + at, stride, key0, end, p);
        __syncthreads();
        softmax_tile(scores, shrink, largest, total, heads);
        __syncthreads();
        add_values(sum, scores, shrink, heads, a.v + at, stride, key0, end, p);
        __syncthreads();
    }

    /* Keys of a warp, then warps. */
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
#pragma unroll
    for (int g = 0; g < HEADS; g++)
        if (g < heads) {
            float *y = sum[g];
            for (int o = p.lanes; o < 32; o *= 2)
#pragma unroll
                for (int e = 0; e < 8; e++) y[e] += __shfl_xor_sync(0xffffffffu, y[e], o);
            float4 *to = (float4 *)(smem + (warp * heads + g) * ld) + lane;
            if (lane >= p.lanes) continue;
            to[0] = make_float4(y[0], y[1], y[2], y[3]), to[p.lanes] = make_float4(y[4], y[5], y[6], y[7]);
        }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * D; i += THREADS) {
        int g = i / D, e = i % D;
        float *part = parts + (((int64_t)local * a.H + h0 + g) * SPLITS + split) * part_size(D), y = 0;
        for (int w = 0; w < WARPS; w++) y += smem[(w * heads + g) * ld + place(e, p.lanes)];
        part[e] = y;
        if (e == 0) part[D] = largest[g], part[D + 1] = total[g];
    }
}

/* o and lse of a query and head from its parts. */
template <class T>
__global__ void __launch_bounds__(THREADS) join_kernel(attention<T> a, const float *parts, int row0) {
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
