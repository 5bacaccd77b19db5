/* Flash-style attention (Dao et al. 2022) over one block of queries, whose vectors run along the queries:
 * scores are held transposed, [keys, lanes], so that the softmax of a query is a column: no sum across lanes, and
 * keys and values are read where they lie, one number at a time, broadcast. A lane is a (query, head) pair;
 * heads that share keys share a block. Included by simd_rows.h. */
#ifndef NB_KERNELS_CPU_SIMD_ATTENTION_H
#define NB_KERNELS_CPU_SIMD_ATTENTION_H

#include <stdbool.h>

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

NB_INLINE void tile_column(const int vectors, float *c, int64_t ldc, const float *x, int64_t sm, int64_t sk,
                           const float *b, int64_t ldb, int64_t M, int64_t K, bool add) {
    int64_t m = 0;
    for (; m + TILE_ROWS <= M; m += TILE_ROWS)
        tile(TILE_ROWS, vectors, c + m * ldc, ldc, x + m * sm, sm, sk, b, ldb, K, add);
    for (; m < M; m++) tile(1, vectors, c + m * ldc, ldc, x + m * sm, sm, sk, b, ldb, K, add);
}

/* c[M,N] = x b (+ c), N a multiple of NB_VW. */
static void product(float *c, int64_t ldc, const float *x, int64_t sm, int64_t sk, const float *b, int64_t ldb,
                    int64_t M, int64_t N, int64_t K, bool add) {
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

/* v + beta * (what y holds); beta 0 does not read it. */
NB_INLINE void put(float *y, vf v, float beta, int64_t n) {
    v_store_n(y, beta != 0 ? v + v_set(beta) * v_load_n(y, n) : v, n);
}

/* out[D, NB_LANES] = transposed rows x[lane] * scale; lanes from n to N are zero. */
static void pack_transposed(float *out, const float *const x[], int64_t n, int64_t N, int64_t D, float scale) {
    for (int64_t l = 0; l < N; l += NB_VW)
        for (int64_t d = 0; d < D; d += NB_VW) {
            vf r[NB_VW];
            for (int i = 0; i < NB_VW; i++) r[i] = l + i < n ? v_load_n(x[l + i] + d, D - d) : v_set(0);
            v_transpose(r);
            for (int i = 0; i < NB_VW && d + i < D; i++) v_store(out + (d + i) * NB_LANES + l, r[i] * v_set(scale));
        }
}

/* The way back: y[lane][D] = x[D, lane] * scale[lane] + beta * y[lane], n lanes. */
static void unpack_transposed(float *const y[], float beta, const float *x, const float *scale, int64_t n, int64_t D) {
    for (int64_t l = 0; l < n; l += NB_VW)
        for (int64_t d = 0; d < D; d += NB_VW) {
            vf r[NB_VW], k = v_load(scale + l);
            for (int i = 0; i < NB_VW; i++) r[i] = d + i < D ? v_load(x + (d + i) * NB_LANES + l) * k : v_set(0);
            v_transpose(r);
            for (int i = 0; i < NB_VW && l + i < n; i++) put(y[l + i] + d, r[i], beta, D - d);
        }
}

/* out[N, Dp] = rows x[lane], padded with zeros to Dp columns and N rows. */
static void pack_rows(float *out, const float *const x[], int64_t n, int64_t N, int64_t D, int64_t Dp) {
    for (int64_t l = 0; l < N; l++) {
        if (l < n) memcpy(out + l * Dp, x[l], sizeof(float) * (size_t)D);
        int64_t d = l < n ? D : 0;
        memset(out + l * Dp + d, 0, sizeof(float) * (size_t)(Dp - d));
    }
}

/* (token, head) that each lane of the queries i0.. of a block stands for, counted as rows of D. */
NB_INLINE void lane_places(int64_t place[], const nb_attention *a, const nb_attention_block *b, int64_t i0, int64_t n) {
    for (int64_t l = 0; l < n; l++) place[l] = (b->seg->q0 + i0 + l / b->g) * a->H + b->h0 + l % b->g;
}
NB_INLINE void lane_rows(const float *rows[], const float *x, const int64_t place[], int64_t n, int64_t D) {
    for (int64_t l = 0; l < n; l++) rows[l] = x + place[l] * D;
}
NB_INLINE void lane_outputs(float *rows[], float *x, const int64_t place[], int64_t n, int64_t D) {
    for (int64_t l = 0; l < n; l++) rows[l] = x + place[l] * D;
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

/* A block of keys: j0..j0+M-1 against lanes from..N-1, those before it seeing none of them. */
typedef struct keys {
    int64_t j0, M, from;
    bool mask; /* some lane does not see some key */
} keys;

/* The block after `b`, or with M 0 the first. Where the causal edge runs through the lanes, blocks are short, and the
 * lanes that see nothing are left out. */
static bool next_keys(keys *b, const sight *s, int64_t g) {
    enum { SHORT = 16 };
    b->j0 = b->M ? b->j0 + b->M : s->first;
    if (b->j0 >= s->end) return false;
    int64_t whole = b->j0 / NB_KEYS * NB_KEYS + NB_KEYS, part = b->j0 / SHORT * SHORT + SHORT;
    b->M = smaller(smaller(whole <= s->all_hi ? whole : part, s->end), b->j0 + NB_KEYS) - b->j0;
    b->from = b->j0 < s->all_hi ? 0 : (b->j0 - s->all_hi + 1) * g / NB_VW * NB_VW;
    b->mask = b->j0 < s->all_lo || b->j0 + b->M > s->all_hi;
    return true;
}

/* Minus infinity where lane l does not see key j. */
NB_INLINE vf masked(vf score, const sight *s, int64_t j, int64_t l) {
    vi at = (int32_t)j - (vi){0}, lo, hi;
    memcpy(&lo, s->lo + l, sizeof lo);
    memcpy(&hi, s->hi + l, sizeof hi);
    return v_select((at >= lo) & (at < hi), score, v_set(-INFINITY));
}

/* Column l of a block of (scaled) scores becomes softmax numerators with a running maximum; top and sum are the lane's
 * state, and the answer is the factor by which what was accumulated before must shrink. */
NB_INLINE vf softmax_column(float *p, int64_t l, const keys *b, const nb_attention *a, const sight *s, float *top,
                            float *sum) {
    vf before = v_load(top + l), best = before, part = v_set(0);
    for (int64_t j = 0; j < b->M; j++) {
        float *at = p + j * NB_LANES + l;
        vf x = v_load(at);
        if (a->cap > 0) x = v_set(a->cap) * v_tanh(x * v_set(1 / a->cap));
        if (b->mask) x = masked(x, s, b->j0 + j, l);
        if (b->mask || a->cap > 0) v_store(at, x);
        best = v_max(x, best);
    }
    for (int64_t j = 0; j < b->M; j++) {
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

/* Outputs of the lanes from their sums [D, lanes], numerators' sums and maxima. */
static void finish_lanes(const nb_attention *a, const int64_t place[], const float *sum_o, float *sum, const float *top,
                         int64_t n) {
    float *rows[NB_LANES];
    for (int64_t l = 0; a->lse && l < n; l++) a->lse[place[l]] = top[l] + logf(sum[l]);
    for (int64_t l = 0; l < whole_vectors(n); l++) sum[l] = 1 / sum[l];
    lane_outputs(rows, a->o, place, n, a->D);
    unpack_transposed(rows, 0, sum_o, sum, n, a->D);
}

static void rows_attention_fwd(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const int64_t D = a->D, row = a->KV * D, n = b->n * b->g, N = whole_vectors(n);
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *qt = scratch, *sum_o = qt + NB_LANES * D, *p = sum_o + NB_LANES * D;
    float *top = p + NB_KEYS * NB_LANES, *sum = top + NB_LANES;
    const float *rows[NB_LANES] = {0};
    int64_t place[NB_LANES];
    sight s;
    sight_of(&s, a, b, b->i0, b->n);
    lane_places(place, a, b, b->i0, n);
    lane_rows(rows, a->q, place, n, D);
    pack_transposed(qt, rows, n, N, D, a->scale);
    for (int64_t l = 0; l < N; l++) top[l] = -3e38f, sum[l] = 0;
    for (int64_t d = 0; d < D; d++) memset(sum_o + d * NB_LANES, 0, sizeof(float) * (size_t)N);
    for (keys t = {0}; next_keys(&t, &s, b->g);) {
        int64_t f = t.from;
        product(p + f, NB_LANES, k + t.j0 * row, row, 1, qt + f, NB_LANES, t.M, N - f, D, false);
        for (int64_t l = f; l < N; l += NB_VW) {
            vf keep = softmax_column(p, l, &t, a, &s, top, sum);
            for (int64_t d = 0; d < D; d++) v_store(sum_o + d * NB_LANES + l, keep * v_load(sum_o + d * NB_LANES + l));
        }
        product(sum_o + f, NB_LANES, v + t.j0 * row, 1, row, p + f, NB_LANES, D, N - f, t.M, true);
    }
    finish_lanes(a, place, sum_o, sum, top, n);
}

/* p[M] = q . k[j] * scale for M keys. */
NB_INLINE void few_scores(float *p, const float *q, const float *k, int64_t row, int64_t M, int64_t D, float scale) {
    for (int64_t j = 0; j < M; j += NB_VW) {
        vf dot[NB_VW];
        const float *key[NB_VW];
        for (int i = 0; i < NB_VW; i++) {
            dot[i] = v_set(0);
            key[i] = k + smaller(j + i, M - 1) * row; /* beyond the last key: the last key again, not stored */
        }
        int64_t d = 0;
        for (; d + NB_VW <= D; d += NB_VW) {
            vf part = v_load(q + d);
            for (int i = 0; i < NB_VW; i++) dot[i] = v_fma(part, v_load(key[i] + d), dot[i]);
        }
        if (d < D) {
            vf part = v_load_n(q + d, D - d);
            for (int i = 0; i < NB_VW; i++) dot[i] = v_fma(part, v_load_n(key[i] + d, D - d), dot[i]);
        }
        v_store_n(p + j, v_sums(dot) * v_set(scale), M - j);
    }
}

/* o[D] = o * keep + sum over keys of p[j] v[j]. */
NB_INLINE void few_values(float *o, float keep, const float *p, const float *v, int64_t row, int64_t M, int64_t D) {
    int64_t d = 0;
    for (; d + 4 * NB_VW <= D; d += 4 * NB_VW) {
        vf sum[4];
        for (int i = 0; i < 4; i++) sum[i] = v_set(keep) * v_load(o + d + i * NB_VW);
        for (int64_t j = 0; j < M; j++)
            for (int i = 0; i < 4; i++) sum[i] = v_fma(v_set(p[j]), v_load(v + j * row + d + i * NB_VW), sum[i]);
        for (int i = 0; i < 4; i++) v_store(o + d + i * NB_VW, sum[i]);
    }
    for (; d < D; d += NB_VW) {
        vf sum = v_set(keep) * v_load_n(o + d, D - d);
        for (int64_t j = 0; j < M; j++) sum = v_fma(v_set(p[j]), v_load_n(v + j * row + d, D - d), sum);
        v_store_n(o + d, sum, D - d);
    }
}

/* Asks memory for n rows of D numbers. */
NB_INLINE void ask_rows(const float *x, int64_t row, int64_t n, int64_t D) {
    enum { LINE = 64 / sizeof(float) };
    for (int64_t j = 0; j < n; j++)
        for (int64_t d = 0; d < D; d += LINE) __builtin_prefetch(x + j * row + d);
}

/* Few queries (decoding): vectors run along the head's channels, since there are too few lanes. Keys are walked in
 * blocks, all lanes over each, so that each key is fetched from memory once. */
static void rows_attention_few(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const int64_t D = a->D, row = a->KV * D, n = b->n * b->g;
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *sum_o = scratch, *kb = sum_o + NB_LANES * D, *vb = kb + NB_KEYS * D, p[NB_KEYS], top[NB_LANES],
          sum[NB_LANES];
    int64_t place[NB_LANES];
    sight s;
    sight_of(&s, a, b, b->i0, b->n);
    lane_places(place, a, b, b->i0, n);
    memset(sum_o, 0, sizeof(float) * (size_t)(n * D));
    for (int64_t l = 0; l < n; l++) top[l] = -3e38f, sum[l] = 0;
    for (int64_t j0 = s.first / NB_KEYS * NB_KEYS; j0 < s.end; j0 += NB_KEYS) {
        /* Rows of one head lie far apart, at distances that share few cache sets: several lanes read a copy. */
        const float *kj = n > 1 ? kb : k + j0 * row, *vj = n > 1 ? vb : v + j0 * row;
        int64_t count = smaller(NB_KEYS, s.end - j0), ld = n > 1 ? D : row;
        /* Other heads' rows lie between one row and the next, which no processor's own prefetching is made for. */
        ask_rows(vj, row, n > 1 ? 0 : count, D);
        ask_rows(k + (j0 + NB_KEYS) * row, row, smaller(NB_KEYS, s.end - j0 - NB_KEYS), D);
        for (int64_t j = 0; n > 1 && j < count; j++) {
            memcpy(kb + j * D, k + (j0 + j) * row, sizeof(float) * (size_t)D);
            memcpy(vb + j * D, v + (j0 + j) * row, sizeof(float) * (size_t)D);
        }
        for (int64_t l = 0; l < n; l++) {
            int64_t from = j0 < s.lo[l] ? s.lo[l] : j0, M = smaller(j0 + NB_KEYS, s.hi[l]) - from;
            if (M <= 0) continue;
            few_scores(p, a->q + place[l] * D, kj + (from - j0) * ld, ld, M, D, a->scale);
            vf best = v_set(top[l]), part = v_set(0), keep;
            for (int64_t j = 0; j < M; j += NB_VW) {
                vf x = v_load_n(p + j, M - j);
                if (a->cap > 0) x = v_set(a->cap) * v_tanh(x * v_set(1 / a->cap));
                v_store_n(p + j, x, M - j);
            }
            for (int64_t j = M; j % NB_VW; j++) p[j] = -INFINITY; /* NB_KEYS is a whole number of vectors */
            for (int64_t j = 0; j < M; j += NB_VW) best = v_max(v_load(p + j), best);
            best = v_set(v_top(best));
            for (int64_t j = 0; j < M; j += NB_VW) {
                vf e = v_exp(v_load(p + j) - best);
                v_store(p + j, e);
                part += e;
            }
            keep = v_exp(v_set(top[l]) - best);
            top[l] = best[0];
            sum[l] = sum[l] * keep[0] + v_sum(part);
            few_values(sum_o + l * D, keep[0], p, vj + (from - j0) * ld, ld, M, D);
        }
    }
    for (int64_t l = 0; l < n; l++) {
        for (int64_t d = 0; d < D; d++) a->o[place[l] * D + d] = sum_o[l * D + d] / sum[l];
        if (a->lse) a->lse[place[l]] = top[l] + logf(sum[l]);
    }
}

/* P and dS of one block of keys from their scores p and dP, both [M, NB_LANES], in place. */
NB_INLINE void score_gradients(float *p, float *ds, const keys *b, int64_t N, const nb_attention *a, const sight *s,
                               const float *lse, const float *delta) {
    for (int64_t l = b->from; l < N; l += NB_VW) {
        vf z = v_load(lse + l), shift = v_load(delta + l);
        for (int64_t j = 0; j < b->M; j++) {
            vf x = v_load(p + j * NB_LANES + l), slope = v_set(a->scale);
            if (a->cap > 0) {
                vf t = v_tanh(x * v_set(1 / a->cap));
                slope = slope * (v_set(1) - t * t), x = v_set(a->cap) * t;
            }
            if (b->mask) x = masked(x, s, b->j0 + j, l);
            vf e = v_exp(x - z);
            v_store(p + j * NB_LANES + l, e);
            v_store(ds + j * NB_LANES + l, e * (v_load(ds + j * NB_LANES + l) - shift) * slope);
        }
    }
}

/* lse and delta = sum over channels of dO * O of each lane; 0 for lanes without a query. */
static void lane_statistics(float *lse, float *delta, const nb_attention *a, const int64_t place[], int64_t n,
                            int64_t N) {
    for (int64_t l = 0; l < N; l++) {
        vf sum = v_set(0);
        const float *d_o = l < n ? a->d_o + place[l] * a->D : NULL, *o = l < n ? a->o_in + place[l] * a->D : NULL;
        for (int64_t d = 0; l < n && d < a->D; d += NB_VW)
            sum = v_fma(v_load_n(d_o + d, a->D - d), v_load_n(o + d, a->D - d), sum);
        delta[l] = v_sum(sum);
        lse[l] = l < n ? a->lse_in[place[l]] : 0;
    }
}

/* The gradients of one block of queries i0.. . */
static void query_block_bwd(const nb_attention *a, const nb_attention_block *b, int64_t i0, int64_t n_queries,
                            float *scratch) {
    const int64_t D = a->D, Dp = a->Dp, row = a->KV * D, n = n_queries * b->g, N = whole_vectors(n);
    const float *k = a->k + (b->seg->k0 * a->KV + b->kv) * D, *v = a->v + (b->seg->k0 * a->KV + b->kv) * D;
    float *qt = scratch, *dot = qt + NB_LANES * D, *dqt = dot + NB_LANES * D, *qr = dqt + NB_LANES * D;
    float *dor = qr + NB_LANES * Dp, *p = dor + NB_LANES * Dp, *ds = p + NB_KEYS * NB_LANES;
    float *lse = ds + NB_KEYS * NB_LANES, *delta = lse + NB_LANES, *ones = delta + NB_LANES;
    const float *rows[NB_LANES] = {0};
    float *dq[NB_LANES];
    int64_t place[NB_LANES];
    sight s;
    sight_of(&s, a, b, i0, n_queries);
    lane_places(place, a, b, i0, n);
    lane_rows(rows, a->q, place, n, D);
    pack_transposed(qt, rows, n, N, D, a->scale);
    pack_rows(qr, rows, n, N, D, Dp);
    lane_rows(rows, a->d_o, place, n, D);
    pack_transposed(dot, rows, n, N, D, 1);
    pack_rows(dor, rows, n, N, D, Dp);
    lane_statistics(lse, delta, a, place, n, N);
    for (int64_t d = 0; d < D; d++) memset(dqt + d * NB_LANES, 0, sizeof(float) * (size_t)N);
    for (keys t = {0}; next_keys(&t, &s, b->g);) {
        int64_t f = t.from;
        product(p + f, NB_LANES, k + t.j0 * row, row, 1, qt + f, NB_LANES, t.M, N - f, D, false);
        product(ds + f, NB_LANES, v + t.j0 * row, row, 1, dot + f, NB_LANES, t.M, N - f, D, false);
        score_gradients(p, ds, &t, N, a, &s, lse, delta);
        if (b->dv) product(b->dv + t.j0 * Dp, Dp, p + f, NB_LANES, 1, dor + f * Dp, Dp, t.M, Dp, n - f, true);
        if (b->dk) product(b->dk + t.j0 * Dp, Dp, ds + f, NB_LANES, 1, qr + f * Dp, Dp, t.M, Dp, n - f, true);
        if (a->dq) product(dqt + f, NB_LANES, k + t.j0 * row, 1, row, ds + f, NB_LANES, D, N - f, t.M, true);
    }
    if (!a->dq) return;
    for (int64_t l = 0; l < NB_LANES; l++) ones[l] = 1;
    lane_outputs(dq, a->dq, place, n, D);
    unpack_transposed(dq, a->beta_q, dqt, ones, n, D);
}

static void rows_attention_bwd(const nb_attention *a, const nb_attention_block *b, float *scratch) {
    const nb_seg *s = b->seg;
    if (b->dk) memset(b->dk, 0, sizeof(float) * (size_t)(s->kn * a->Dp));
    if (b->dv) memset(b->dv, 0, sizeof(float) * (size_t)(s->kn * a->Dp));
    int64_t step = NB_LANES / b->g;
    for (int64_t i0 = 0; i0 < s->qn; i0 += step) query_block_bwd(a, b, i0, smaller(step, s->qn - i0), scratch);
}

#endif
