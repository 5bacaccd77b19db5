/* Flash-style attention (Dao et al. 2022) over one block of queries, whose vectors run along the queries:
 * scores are held transposed, [keys, lanes], so that the softmax of a query is a column: no sum across lanes, and
 * keys and values are read where they lie, one number at a time, broadcast. A lane is a (query, head) pair;
 * heads that share keys share a block. Included by simd_rows.h. */
#ifndef NB_KERNELS_CPU_SIMD_ATTENTION_H
#define NB_KERNELS_CPU_SIMD_ATTENTION_H

#include "kernels/cpu/attention.h"
#include "kernels/cpu/vmath.h"

#ifndef NB_TILE_VECTORS
#define NB_TILE_VECTORS 2 /* vectors a register tile is wide */
#endif
enum { TILE_ROWS = 4 };

/* c[rows, vectors*NB_VW] = sum over k of x(row, k) * b[k, :] (+ c if `add`), x(row, k) = x[row*sm + k*sk]. */
NB_INLINE void tile(const int rows, const int vectors, float *c, int64_t ldc, const float *x, int64_t sm, int64_t sk,
                    const float *b, int64_t ldb, int64_t K, bool add) {
    vf sum[TILE_ROWS][NB_TILE_VECTORS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) sum[i][j] = add ? v_load(c + i * ldc + j * NB_VW) : v_set(0);
    for (int64_t k = 0; k < K; k++) {
        vf row[NB_TILE_VECTORS];
        for (int j = 0; j < vectors; j++) row[j] = v_load(b + k * ldb + j * NB_VW);
        for (int i = 0; i < rows; i++) {
            vf xi = v_set(x[i * sm + k * sk]);
            for (int j = 0; j < vectors; j++) sum[i][j] = v_fma(xi, row[j], sum[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) v_store(c + i * ldc + j * NB_VW, sum[i][j]);
}

NB_INLINE void tile_column(const int vectors, float *c, int64_t ldc, const float *x, int64_t sm, int64_t sk, const float *b,
                           int64_t ldb, int64_t M, int64_t K, bool add) {
    int64_t m = 0;
    for (; m + TILE_ROWS <= M; m += TILE_ROWS)
        tile(TILE_ROWS, vectors, c + m * ldc, ldc, x + m * sm, sm, sk, b, ldb, K, add);
    for (; m < M; m++) tile(1, vectors, c + m * ldc, ldc, x + m * sm, sm, sk, b, ldb, K, add);
}

/* c[M,N] = x b (+ c), N a multiple of NB_VW. */
static void product(float *c, int64_t ldc, const float *x, int64_t sm, int64_t sk, const float *b, int64_t ldb, int64_t M,
                    int64_t N, int64_t K, bool add) {
    int64_t n = 0;
    for (; n + NB_TILE_VECTORS * NB_VW <= N; n += NB_TILE_VECTORS * NB_VW)
        tile_column(NB_TILE_VECTORS, c + n, ldc, x, sm, sk, b + n, ldb, M, K, add);
    switch ((N - n) / NB_VW) {
    case 1: tile_column(1, c + n, ldc, x, sm, sk, b + n, ldb, M, K, add); break;
#if NB_TILE_VECTORS > 2
    case 2: tile_column(2, c + n, ldc, x, sm, sk, b + n, ldb, M, K, add); break;
    case 3: tile_column(3, c + n, ldc, x, sm, sk, b + n, ldb, M, K, add); break;
#endif
    default: break;
    }
}

/* out[D, NB_LANES] = transposed rows x[lane] * scale; lanes from n to N are zero. */
static void pack_transposed(float *out, const float *const x[], int64_t n, int64_t N, int64_t D, float scale) {
    for (int64_t d = 0; d < D; d++)
        for (int64_t l = n; l < N; l++) out[d * NB_LANES + l] = 0;
    for (int64_t l = 0; l < n; l++)
        for (int64_t d = 0; d < D; d++) out[d * NB_LANES + l] = x[l][d] * scale;
}

/* out[N, Dp] = rows x[lane], padded with zeros to Dp columns and N rows. */
static void pack_rows(float *out, const float *const x[], int64_t n, int64_t N, int64_t D, int64_t Dp) {
    for (int64_t l = 0; l < N; l++) {
        if (l < n) memcpy(out + l * Dp, x[l], sizeof(float) * (size_t)D);
        int64_t d = l < n ? D : 0;
        memset(out + l * Dp + d, 0, sizeof(float) * (size_t)(Dp - d));
    }
}

/* Rows of x [tokens, H, D] that the lanes of queries i0.. of a block stand for. */
NB_INLINE void lane_rows(const float *rows[], const float *x, const nb_attention *a, const nb_attention_block *b, int64_t i0,
                         int64_t n) {
    for (int64_t l = 0; l < n; l++) rows[l] = x + ((b->seg->q0 + i0 + l / b->g) * a->H + b->h0 + l % b->g) * a->D;
}

NB_INLINE int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
NB_INLINE int64_t whole_vectors(int64_t n) { return (n + NB_VW - 1) / NB_VW * NB_VW; }

/* What the lanes see: keys lo[lane] <= key < hi[lane]; keys first..end are seen by any; all lanes see keys
 * all_lo <= key < all_hi. Lanes without a query see what the last query sees. */
typedef struct sight {
    int32_t lo[NB_LANES], hi[NB_LANES];
    int64_t first, end, all_lo, all_hi;
} sight;

static void sight_of(sight *s, const nb_attention *a, const nb_attention_block *b, int64_t i0, int64_t n_queries) {
    int64_t shift = b->seg->kn - b->seg->qn + 1;
    for (int64_t l = 0; l < NB_LANES; l++) {
        int64_t hi = i0 + smaller(l / b->g, n_queries - 1) + shift;
        s->hi[l] = (int32_t)hi;
        s->lo[l] = (int32_t)(a->window > 0 && hi > a->window ? hi - a->window : 0);
    }
    s->first = s->lo[0], s->all_hi = s->hi[0];
    s->end = s->hi[NB_LANES - 1], s->all_lo = s->lo[NB_LANES - 1];
}

/* Scores (already scaled) of keys j0.. in p[M, NB_LANES] capped, and masked to -infinity. */
NB_INLINE vf masked(vf score, const sight *s, int64_t j, int64_t l) {
    vi at = (int32_t)j - (vi){0}, lo, hi;
    memcpy(&lo, s->lo + l, sizeof lo);
    memcpy(&hi, s->hi + l, sizeof hi);
    return v_select((at >= lo) & (at < hi), score, v_set(-INFINITY));
}

/* Column l of a block of scores: softmax numerators with a running maximum; top and sum are the lane's state, and the
 * answer is the factor by which what was accumulated before must shrink. */
NB_INLINE vf softmax_column(float *p, int64_t l, int64_t j0, int64_t M, const nb_attention *a, const sight *s, bool mask,
                            float *top, float *sum) {
    vf before = v_load(top + l), best = before, part = v_set(0);
    for (int64_t j = 0; j < M; j++) {
        float *at = p + j * NB_LANES + l;
        vf x = v_load(at);
        if (a->cap > 0) x = v_set(a->cap) * v_tanh(x * v_set(1 / a->cap));
        if (mask) x = masked(x, s, j0 + j, l);
        if (mask || a->cap > 0) v_store(at, x);
        best = v_max(x, best);
    }
    for (int64_t j = 0; j < M; j++) {
        float *at = p + j * NB_LANES + l;
        vf e = v_exp(v_load(at) - best);
        v_store(at, e);
        part += e;
    }
    vf keep = v_exp(before - best);
    v_store(top + l, best);
    v_store(sum + l, v_load(sum + l) * keep + part);
    return keep;
}

static void rows_attention_fwd(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const int64_t D = a->D, row = a->KV * D, n = b->n * b->g, N = whole_vectors(n);
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *qt = scratch, *sum_o = qt + NB_LANES * D, *p = sum_o + NB_LANES * D;
    float *top = p + NB_KEYS * NB_LANES, *sum = top + NB_LANES;
    const float *rows[NB_LANES];
    sight s;
    sight_of(&s, a, b, b->i0, b->n);
    lane_rows(rows, a->q, a, b, b->i0, n);
    pack_transposed(qt, rows, n, N, D, a->scale);
    for (int64_t l = 0; l < N; l++) top[l] = -3e38f, sum[l] = 0;
    for (int64_t d = 0; d < D; d++) memset(sum_o + d * NB_LANES, 0, sizeof(float) * (size_t)N);
    for (int64_t j0 = s.first / NB_KEYS * NB_KEYS; j0 < s.end; j0 += NB_KEYS) {
        int64_t M = smaller(NB_KEYS, s.end - j0);
        bool mask = j0 < s.all_lo || j0 + M > s.all_hi;
        product(p, NB_LANES, k + j0 * row, row, 1, qt, NB_LANES, M, N, D, false);
        for (int64_t l = 0; l < N; l += NB_VW) {
            vf keep = softmax_column(p, l, j0, M, a, &s, mask, top, sum);
            for (int64_t d = 0; d < D; d++) v_store(sum_o + d * NB_LANES + l, keep * v_load(sum_o + d * NB_LANES + l));
        }
        product(sum_o, NB_LANES, v + j0 * row, 1, row, p, NB_LANES, D, N, M, true);
    }
    for (int64_t l = 0; l < n; l++) {
        int64_t at = (b->seg->q0 + b->i0 + l / b->g) * a->H + b->h0 + l % b->g;
        float inv = 1 / sum[l], *o = a->o + at * D;
        for (int64_t d = 0; d < D; d++) o[d] = sum_o[d * NB_LANES + l] * inv;
        if (a->lse) a->lse[at] = top[l] + logf(sum[l]);
    }
}

/* Few queries (decoding): vectors run along the head's channels, since there are too few lanes. Keys are walked in blocks, all
 * lanes over each, so that each key is fetched from memory once. */
static void rows_attention_few(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const int64_t D = a->D, row = a->KV * D, n = b->n * b->g;
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *sum_o = scratch, *p = sum_o + NB_LANES * D, top[NB_LANES], sum[NB_LANES];
    const float *q[NB_LANES];
    sight s;
    sight_of(&s, a, b, b->i0, b->n);
    lane_rows(q, a->q, a, b, b->i0, n);
    memset(sum_o, 0, sizeof(float) * (size_t)(n * D));
    for (int64_t l = 0; l < n; l++) top[l] = -3e38f, sum[l] = 0;
    for (int64_t j0 = s.first / NB_KEYS * NB_KEYS; j0 < s.end; j0 += NB_KEYS)
        for (int64_t l = 0; l < n; l++) {
            int64_t from = j0 < s.lo[l] ? s.lo[l] : j0, M = smaller(NB_KEYS, s.hi[l] - j0) - (from - j0);
            const float *kj = k + from * row, *vj = v + from * row;
            float *o = sum_o + l * D, best = top[l];
            if (M <= 0) continue;
            for (int64_t j = 0; j < M; j++) {
                vf dot = v_set(0), dot2 = v_set(0);
                for (int64_t d = 0; d < D; d += 2 * NB_VW) {
                    dot = v_fma(v_load_n(q[l] + d, D - d), v_load_n(kj + j * row + d, D - d), dot);
                    if (d + NB_VW < D)
                        dot2 = v_fma(v_load_n(q[l] + d + NB_VW, D - d - NB_VW),
                                     v_load_n(kj + j * row + d + NB_VW, D - d - NB_VW), dot2);
                }
                p[j] = v_sum(dot + dot2) * a->scale;
            }
            for (int64_t j = 0; j < M; j += NB_VW) {
                vf x = v_load_n(p + j, M - j);
                if (a->cap > 0) v_store_n(p + j, v_set(a->cap) * v_tanh(x * v_set(1 / a->cap)), M - j);
            }
            for (int64_t j = 0; j < M; j++) best = p[j] > best ? p[j] : best;
            float keep, change = top[l] - best, part = 0;
            v_store_n(&keep, v_exp(v_set(change)), 1);
            for (int64_t j = 0; j < M; j += NB_VW) v_store_n(p + j, v_exp(v_load_n(p + j, M - j) - v_set(best)), M - j);
            for (int64_t j = 0; j < M; j++) part += p[j];
            top[l] = best;
            sum[l] = sum[l] * keep + part;
            for (int64_t d = 0; d < D; d += NB_VW) {
                vf out = v_set(keep) * v_load_n(o + d, D - d), out2 = v_set(0);
                int64_t j = 0;
                for (; j + 2 <= M; j += 2) {
                    out = v_fma(v_set(p[j]), v_load_n(vj + j * row + d, D - d), out);
                    out2 = v_fma(v_set(p[j + 1]), v_load_n(vj + (j + 1) * row + d, D - d), out2);
                }
                if (j < M) out = v_fma(v_set(p[j]), v_load_n(vj + j * row + d, D - d), out);
                v_store_n(o + d, out + out2, D - d);
            }
        }
    for (int64_t l = 0; l < n; l++) {
        int64_t at = q[l] - a->q;
        for (int64_t d = 0; d < D; d++) a->o[at + d] = sum_o[l * D + d] / sum[l];
        if (a->lse) a->lse[at / D] = top[l] + logf(sum[l]);
    }
}

/* P and dS of one block of keys from their scores p and dP, both [M, NB_LANES], in place. */
NB_INLINE void score_gradients(float *p, float *ds, int64_t j0, int64_t M, int64_t N, const nb_attention *a, const sight *s,
                               bool mask, const float *lse, const float *delta) {
    for (int64_t l = 0; l < N; l += NB_VW) {
        vf z = v_load(lse + l), shift = v_load(delta + l);
        for (int64_t j = 0; j < M; j++) {
            vf x = v_load(p + j * NB_LANES + l), slope = v_set(a->scale);
            if (a->cap > 0) {
                vf t = v_tanh(x * v_set(1 / a->cap));
                slope = slope * (v_set(1) - t * t), x = v_set(a->cap) * t;
            }
            if (mask) x = masked(x, s, j0 + j, l);
            vf e = v_exp(x - z);
            v_store(p + j * NB_LANES + l, e);
            v_store(ds + j * NB_LANES + l, e * (v_load(ds + j * NB_LANES + l) - shift) * slope);
        }
    }
}

/* The gradients of one block of queries i0.. . */
static void query_block_bwd(const nb_attention *a, const nb_attention_block *b, int64_t i0, int64_t n_queries, float *scratch) {
    const int64_t D = a->D, Dp = a->Dp, row = a->KV * D, n = n_queries * b->g, N = whole_vectors(n);
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *qt = scratch, *dot = qt + NB_LANES * D, *dqt = dot + NB_LANES * D, *qr = dqt + NB_LANES * D;
    float *dor = qr + NB_LANES * Dp, *p = dor + NB_LANES * Dp, *ds = p + NB_KEYS * NB_LANES;
    float *lse = ds + NB_KEYS * NB_LANES, *delta = lse + NB_LANES;
    const float *rows[NB_LANES], *o_rows[NB_LANES];
    sight s;
    sight_of(&s, a, b, i0, n_queries);
    lane_rows(rows, a->q, a, b, i0, n);
    pack_transposed(qt, rows, n, N, D, a->scale);
    pack_rows(qr, rows, n, N, D, Dp);
    lane_rows(o_rows, a->o_in, a, b, i0, n);
    lane_rows(rows, a->d_o, a, b, i0, n);
    pack_transposed(dot, rows, n, N, D, 1);
    pack_rows(dor, rows, n, N, D, Dp);
    for (int64_t l = 0; l < N; l++) {
        lse[l] = l < n ? a->lse_in[(rows[l] - a->d_o) / D] : 0;
        vf sum = v_set(0);
        for (int64_t d = 0; l < n && d < D; d += NB_VW) sum = v_fma(v_load_n(rows[l] + d, D - d), v_load_n(o_rows[l] + d, D - d), sum);
        delta[l] = v_sum(sum);
    }
    for (int64_t d = 0; d < D; d++) memset(dqt + d * NB_LANES, 0, sizeof(float) * (size_t)N);
    for (int64_t j0 = s.first / NB_KEYS * NB_KEYS; j0 < s.end; j0 += NB_KEYS) {
        int64_t M = smaller(NB_KEYS, s.end - j0);
        bool mask = j0 < s.all_lo || j0 + M > s.all_hi;
        product(p, NB_LANES, k + j0 * row, row, 1, qt, NB_LANES, M, N, D, false);
        product(ds, NB_LANES, v + j0 * row, row, 1, dot, NB_LANES, M, N, D, false);
        score_gradients(p, ds, j0, M, N, a, &s, mask, lse, delta);
        if (b->dv) product(b->dv + j0 * Dp, Dp, p, NB_LANES, 1, dor, Dp, M, Dp, n, true);
        if (b->dk) product(b->dk + j0 * Dp, Dp, ds, NB_LANES, 1, qr, Dp, M, Dp, n, true);
        if (a->dq) product(dqt, NB_LANES, k + j0 * row, 1, row, ds, NB_LANES, D, N, M, true);
    }
    for (int64_t l = 0; a->dq && l < n; l++) {
        float *dq = a->dq + (rows[l] - a->d_o);
        for (int64_t d = 0; d < D; d++) dq[d] = a->beta_q != 0 ? dqt[d * NB_LANES + l] + a->beta_q * dq[d] : dqt[d * NB_LANES + l];
    }
}

static void rows_attention_bwd(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const nb_seg *s = b->seg;
    if (b->dk) memset(b->dk, 0, sizeof(float) * (size_t)(s->kn * a->Dp));
    if (b->dv) memset(b->dv, 0, sizeof(float) * (size_t)(s->kn * a->Dp));
    int64_t step = NB_LANES / b->g;
    for (int64_t i0 = 0; i0 < s->qn; i0 += step) query_block_bwd(a, b, i0, smaller(step, s->qn - i0), scratch);
}

#endif
