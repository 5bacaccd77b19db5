/* What the attention kernels share. They are flash attention (Dao et al., 2022; Dao, 2023): a block keeps one tile of
 * rows of one kind (queries or keys) and walks along tiles of the other kind: scores exist for two tiles at a time.
 *
 * Tiles never cross the border of a segment, and both kinds are counted from the segment's own start: what a document
 * gives depends on nothing but itself. Alone or packed, at any place and among any neighbours, its numbers are equal to
 * the last bit. For the same reason no sum is shared out by how much work there is elsewhere.
 *
 * attention.cu         the forward row, and its kernel for tensor cores
 * attention_bwd.cu     the backward row, and its kernels for tensor cores
 * attention_simt.cu    both in f32 arithmetic: for f32 elements, and for head sizes the others do not have
 * attention_decode.cu  forward for one query a segment: generation */
#pragma once
#include "kernels/cuda/vec.h"

enum { ATTENTION_MAX_D = 256 };
static const float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

template <class T> struct attention {
    const nb_seg *segs;
    int n_segs, H, KV, D;
    int64_t Tq, Tk;
    /* A score is factor * (squash > 0 ? tanh(q.k * squash) : q.k): with a cap, squash is scale / cap and factor the
     * cap; without, factor is scale. */
    float scale, squash, factor, factor2; /* factor2 = factor * LOG2E */
    int window; /* unlimited: beyond any position */
    const T *q, *k, *v;
    T *o;       /* of the forward pass: outputs */
    float *lse;
    const T *d_o; /* of the backward pass */
    const float4 *stats; /* [H, Tq]: log2(e) * lse, sum of do * o, 0, 0 */
    T *dq, *dk, *dv;
    float beta_q, beta_k, beta_v;
};

struct attention_shape { /* the arguments that both rows have */
    const nb_seg *segs;
    int64_t n_segs, Tq, Tk, H, KV, D;
    float scale, cap;
    int64_t window;
};
struct attention_grads {
    const nb_elem *d_o;
    nb_elem *dq, *dk, *dv;
    float beta_q, beta_k, beta_v;
};
template <class T>
static inline attention<T> attention_of(const nb_elem *q, const nb_elem *k, const nb_elem *v, const attention_shape &s,
                                        const attention_grads &g) {
    NB_ASSERT(s.D <= ATTENTION_MAX_D && s.H % s.KV == 0 && s.scale > 0);
    attention<T> a = {};
    a.segs = s.segs, a.n_segs = (int)s.n_segs, a.Tq = s.Tq, a.Tk = s.Tk;
    a.H = (int)s.H, a.KV = (int)s.KV, a.D = (int)s.D;
    a.scale = s.scale, a.squash = s.cap > 0 ? s.scale / s.cap : 0, a.factor = s.cap > 0 ? s.cap : s.scale;
    a.factor2 = a.factor * LOG2E;
    a.window = s.window > 0 && s.window < 1 << 30 ? (int)s.window : 1 << 30;
    a.q = (const T *)q, a.k = (const T *)k, a.v = (const T *)v;
    a.d_o = (const T *)g.d_o, a.dq = (T *)g.dq, a.dk = (T *)g.dk, a.dv = (T *)g.dv;
    a.beta_q = g.beta_q, a.beta_k = g.beta_k, a.beta_v = g.beta_v;
    return a;
}

/* The other files' kernels. */
void NB_GPU(attention_simt_fwd)(nb_dev *d, const attention<bf16> &a);
void NB_GPU(attention_simt_fwd)(nb_dev *d, const attention<float> &a);
void NB_GPU(attention_simt_bwd)(nb_dev *d, const attention<bf16> &a);
void NB_GPU(attention_simt_bwd)(nb_dev *d, const attention<float> &a);
/* For Tq segments of one query each. */
void NB_GPU(attention_decode)(nb_dev *d, const attention<bf16> &a);
void NB_GPU(attention_decode)(nb_dev *d, const attention<float> &a);
size_t NB_GPU(attention_decode_ws)(int64_t Tq, int64_t H, int64_t D);

/* The tiles of `size` rows that the segments' n rows are cut into, at most: each segment has one that may be short. */
static inline int64_t tiles_of(int64_t n, int64_t n_segs, int64_t size) { return (n + n_segs * (size - 1)) / size; }

struct seg_tile {
    int q0, qn, k0, kn; /* its segment */
    int row;            /* first row, counted from the segment's first */
};
/* Tile number n of all segments' tiles of queries (or keys), if there is one. Called by whole warps. */
static __device__ __forceinline__ bool find_tile(seg_tile &t, const nb_seg *segs, int n_segs, int n, int size,
                                                 bool of_keys) {
    int lane = threadIdx.x & 31;
    for (int base = 0; base < n_segs; base += 32) {
        int rows = base + lane >= n_segs ? 0 : of_keys ? segs[base + lane].kn : segs[base + lane].qn;
        int tiles = (rows + size - 1) / size, upto = tiles;
        for (int by = 1; by < 32; by *= 2) {
            int before = __shfl_up_sync(0xffffffffu, upto, by);
            if (lane >= by) upto += before;
        }
        unsigned beyond = __ballot_sync(0xffffffffu, upto > n);
        if (beyond) {
            int at = __ffs((int)beyond) - 1;
            const nb_seg *s = segs + base + at;
            t.row = (n - __shfl_sync(0xffffffffu, upto - tiles, at)) * size;
            t.q0 = s->q0, t.qn = s->qn, t.k0 = s->k0, t.kn = s->kn;
            return true;
        }
        n -= __shfl_sync(0xffffffffu, upto, 31);
    }
    return false;
}

/* A tile of queries of one head. Positions count from the first key of the segment, rows from the batch's first. */
struct query_tile {
    int h, kv;       /* its head, and the one of keys and values */
    int n;           /* queries, at positions first .. last */
    int first, last;
    int q0, k0;      /* row of the first query; of the segment's first key */
    int kn;          /* keys of the segment */
};
/* Blocks are numbered head by head for each tile; the last tiles, which see most keys, come first. */
template <class T>
static __device__ __forceinline__ bool find_queries(query_tile &b, const attention<T> &a, int size) {
    seg_tile t;
    b.h = blockIdx.x % a.H, b.kv = b.h / (a.H / a.KV);
    if (!find_tile(t, a.segs, a.n_segs, gridDim.x / a.H - 1 - blockIdx.x / a.H, size, false)) return false;
    b.n = min(t.qn - t.row, size), b.first = t.kn - t.qn + t.row, b.last = b.first + b.n - 1;
    b.q0 = t.q0 + t.row, b.k0 = t.k0, b.kn = t.kn;
    return true;
}

/* Eight elements from x on as f32, zeros after the first n. wide: there are 8 or none, at a multiple of 16 bytes. */
template <class T> static __device__ __forceinline__ void load8(float (&f)[8], const T *x, int n, bool wide) {
    if (wide && n > 0) load(f, x);
    else
#pragma unroll
        for (int i = 0; i < 8; i++) f[i] = i < n ? to_f32(x[i]) : 0;
}

static __device__ __forceinline__ float warp_sum(float x) {
    for (int by = 16; by; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
    return x;
}
static __device__ __forceinline__ float warp_max(float x) {
    for (int by = 16; by; by /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, by));
    return x;
}
