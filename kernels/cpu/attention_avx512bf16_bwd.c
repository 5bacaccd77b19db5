/* The gradients of attention_avx512bf16.c. With P the probabilities and dS = P * (dO V^T - sum of dO * O),
 *
 *      dQ = scale dS K     dK = scale dS^T Q     dV = P^T dO
 *
 * Where lanes are what is summed over (dK, dV), P and dS are stored key by key, lanes in pairs, as the rounding leaves
 * them: rows that a tile reads as x. For dQ, dS stands in pairs of keys, as numerators do in the forward pass.
 *
 * A segment's lanes of a key/value head are shared out to parts, each a task that has sums of dK and dV of its own;
 * they are added up in order at the end. */
#include "kernels/cpu/attention.h"
#if defined(__x86_64__)
#include "kernels/cpu/attention_avx512bf16.h"

enum {
    PANELS = 4,                     /* panels of lanes that dK and dV take at once: */
    PAIRS = PANELS * LANES / 2,     /* 64 steps, beside which loading and storing sums is little */
    TASKS = 16                      /* about as many for a segment, whatever the number of heads */
};

NB_TILE_TABLE(tiles, 0);
NB_TILE_TABLE(row_tiles, PAIRS);

static int64_t parts_of(int64_t KV) { return (TASKS + KV - 1) / KV; }
static int64_t padded(int64_t D) { return rounded_up(D, VEC); }

/* A part's sums for keys, of which those before `written` hold something. */
typedef struct key_sums {
    float *rows; /* [kn][padded(D)]; NULL: not wanted */
    int64_t written;
} key_sums;

/* Up to PANELS panels of lanes, and one block of keys. */
typedef struct block {
    uint32_t *q, *d_o;         /* PANELS of [D/2][LANES] */
    uint32_t *q_rows, *d_rows; /* pairs of lanes: panels of NR channels [PAIRS][NR] */
    uint32_t *p_rows, *ds_rows; /* [KEYS][PAIRS] */
    uint32_t *ds;              /* [KEYS/2][LANES] */
    float *dq;                 /* PANELS of [D][LANES] */
    float *s, *dp;             /* [KEYS][LANES] */
    float *lse, *delta;        /* [PANELS * LANES] */
    lanes l[PANELS];
    keys b[PANELS];
    int64_t n, panels;
    key_sums dk, dv;
} block;

/* Words of each part of a thread's scratch, and the pointers when there is a scratch. */
static int64_t lay_out(block *w, uint32_t *at, int64_t D) {
    const int64_t steps = (D + 1) / 2, L = PANELS * LANES;
    const struct part {
        void *pointer;
        int64_t words;
    } parts[] = {
        {&w->q, L * steps},          {&w->d_o, L * steps},          {&w->q_rows, PAIRS * padded(D)},
        {&w->d_rows, PAIRS * padded(D)}, {&w->p_rows, KEYS * PAIRS}, {&w->ds_rows, KEYS * PAIRS},
        {&w->ds, KEYS / 2 * LANES},  {&w->dq, L * D},               {&w->s, KEYS * LANES},
        {&w->dp, KEYS * LANES},                  {&w->lse, L},                  {&w->delta, L},
    };
    int64_t words = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        uint32_t *p = at ? at + words : NULL;
        memcpy(parts[i].pointer, &p, sizeof p);
        words += rounded_up(parts[i].words, VEC);
    }
    return words;
}

size_t nb_attention_bf16_scratch(int64_t D) {
    block w;
    return sizeof(uint32_t) * (size_t)lay_out(&w, NULL, D);
}
size_t nb_attention_bf16_shared(int64_t Tk, int64_t KV, int64_t D) {
    const int64_t operands = 2 * ((D + 1) / 2) + D, sums = 2 * parts_of(KV) * padded(D);
    return sizeof(float) * (size_t)(KV * Tk * (operands + sums));
}

/* The lanes' rows of x in pairs of lanes: out[PAIRS][NR] for every NR channels. */
NB_TARGET static void pack_lane_pairs(uint32_t *out, const float *x, const block *w, int64_t D) {
    for (int64_t i = 0; i < w->n; i += 2) {
        const int64_t *place = w->l[i / LANES].place + i % LANES;
        const float *first = x + place[0] * D, *second = x + place[1] * D;
        for (int64_t c = 0; c < padded(D); c += VEC) {
            const int64_t width = D - c / NR * NR > VEC ? NR : VEC;
            const __mmask16 in = nb_first16(D - c);
            pack_pair(out + c / NR * NR * PAIRS + i / 2 * width + c % NR, 0xffff, _mm512_maskz_loadu_ps(in, first + c),
                      _mm512_maskz_loadu_ps(i + 1 < w->n ? in : 0, second + c));
        }
    }
}

/* sum[i] = the sum of lanes of v[i]; v is spoilt. */
NB_INLINE NB_TARGET __m512 sums_of_16(__m512i v[16]) {
    nb_transpose16(v);
    __m512 sum = _mm512_castsi512_ps(v[0]);
    for (int i = 1; i < 16; i++) sum = _mm512_add_ps(sum, _mm512_castsi512_ps(v[i]));
    return sum;
}

/* lse as an exponent of 2, and delta = sum over channels of dO * O, with dO rounded as in dP. */
NB_TARGET static void lane_statistics(block *w, const nb_attention *a) {
    for (int64_t i = 0; i < w->panels * LANES; i += VEC) {
        const int64_t *place = w->l[i / LANES].place + i % LANES;
        __m512i sum[VEC];
        for (int r = 0; r < VEC; r++) {
            const float *d_o = a->d_o + place[r] * a->D, *o = a->o_in + place[r] * a->D;
            __m512 part = _mm512_setzero_ps();
            for (int64_t d = 0; d < a->D; d += VEC) {
                const __mmask16 in = nb_first16(a->D - d);
                const __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, d_o + d));
                const __m512 x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
                part = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(in, o + d), part);
            }
            sum[r] = _mm512_castps_si512(part);
            w->lse[i + r] = a->lse_in[place[r]] * log2_e;
        }
        _mm512_storeu_ps(w->delta + i, sums_of_16(sum));
    }
}

/* dS of scores s and dP of 16 lanes, and p. */
NB_INLINE NB_TARGET __m512 score_gradient(__m512 *p, __m512 s, __m512 dp, __m512 lse, __m512 delta, float cap) {
    *p = exp_2(_mm512_sub_ps(s, lse));
    __m512 ds = _mm512_mul_ps(*p, _mm512_sub_ps(dp, delta));
    if (cap > 0) { /* the cap's slope is 1 - tanh^2; where a lane does not see the key, p is 0 */
        const __m512 edge = _mm512_set1_ps(-cap * log2_e), t = _mm512_div_ps(_mm512_max_ps(s, edge), edge);
        ds = _mm512_fnmadd_ps(_mm512_mul_ps(ds, t), t, ds);
    }
    return ds;
}

NB_INLINE NB_TARGET void store_halves(uint32_t *low, uint32_t *high, __m512i v) {
    _mm256_storeu_si256((__m256i *)low, _mm512_castsi512_si256(v));
    _mm256_storeu_si256((__m256i *)high, _mm512_extracti64x4_epi64(v, 1));
}

/* P and dS of panel i and its keys, rounded, in all the orders that products want. */
NB_TARGET static void round_gradients(block *w, int64_t i, float cap) {
    const keys *b = &w->b[i];
    for (int g = 0; g < LANES; g += VEC) {
        const __m512 lse = _mm512_loadu_ps(w->lse + i * LANES + g), delta = _mm512_loadu_ps(w->delta + i * LANES + g);
        for (int64_t j = b->from; j < b->to; j += 2) {
            const float *s = w->s + j * LANES + g, *dp = w->dp + j * LANES + g;
            const int64_t at = j * PAIRS + (i * LANES + g) / 2;
            __m512 p0, p1;
            __m512 ds0 = score_gradient(&p0, _mm512_loadu_ps(s), _mm512_loadu_ps(dp), lse, delta, cap);
            __m512 ds1 = score_gradient(&p1, _mm512_loadu_ps(s + LANES), _mm512_loadu_ps(dp + LANES), lse, delta, cap);
            const __m512i ds = (__m512i)_mm512_cvtne2ps_pbh(ds1, ds0);
            store_halves(w->p_rows + at, w->p_rows + at + PAIRS, (__m512i)_mm512_cvtne2ps_pbh(p1, p0));
            store_halves(w->ds_rows + at, w->ds_rows + at + PAIRS, ds);
            _mm512_storeu_si512(w->ds + j / 2 * LANES + g, interleave_halves(ds));
        }
    }
}

/* Scores of panel i, their gradients, and dQ's share of a block of keys; false where it sees none of them. */
static bool panel_gradients(block *w, int64_t i, const nb_attention *a, const packed *x, const nb_seg *s, int64_t kv,
                            int64_t j0) {
    const int64_t D = a->D, steps = x->steps, at = i * LANES * steps;
    const lanes *l = &w->l[i];
    keys *b = &w->b[i];
    *b = keys_of(l, s, j0);
    if (b->from >= b->to) return false;
    times_lanes(tiles, w->s, b->from, b->to, along(x->k, x, s, kv) + j0 * steps, steps, 0, w->q + at, steps,
                score_factor(a), 0);
    times_lanes(tiles, w->dp, b->from, b->to, along(x->v, x, s, kv) + j0 * steps, steps, 0, w->d_o + at, steps, 1, 0);
    if (b->to % 2) memset(w->dp + b->to * LANES, 0, sizeof(float) * LANES);
    if (b->mask || a->cap > 0) edit_scores(w->s, b, l, a->cap);
    round_gradients(w, i, a->cap);
    if (a->dq)
        times_lanes(tiles, w->dq + i * LANES * D, 0, D, across(x->k_across, x, s, kv, D), (s->kn + 1) / 2,
                    (j0 + b->from) / 2, w->ds + b->from / 2 * LANES, (b->end - b->from) / 2, 1,
                    j0 / KEYS > l->begin / KEYS ? 1 : 0);
    return true;
}

/* out[keys of the block][D] += alpha * rows y, over the lanes that see some key of a tile. From one block of lanes to
 * the next keys leave in front and join behind: a tile is set once and added to from then on. */
static void add_keys(key_sums *out, const block *w, const uint32_t *rows, const uint32_t *y, float alpha, int64_t j0,
                     int64_t D) {
    for (int64_t j = 0; out->rows && j < KEYS; j += MR) {
        int64_t first = 0, end = w->panels;
        while (first < end && w->b[first].to <= j) first++;
        while (end > first && w->b[end - 1].from > j) end--;
        if (first == end) continue;
        const int64_t n = smaller(MR, w->b[first].to - j), pair = first * LANES / 2;
        const int64_t steps = smaller(end * LANES / 2, (w->n + 1) / 2) - pair;
        const float beta = j0 + j < out->written ? 1 : 0;
        for (int64_t c = 0; c < D; c += NR) {
            const int columns = (int)smaller(NR, D - c), vectors = columns > VEC ? 2 : 1;
            row_tiles[(vectors - 1) * MR + n - 1](steps, rows + j * PAIRS + pair, y + c * PAIRS + pair * vectors * VEC,
                                                  out->rows + (j0 + j) * padded(D) + c, padded(D), columns, alpha,
                                                  beta);
        }
        out->written = larger(out->written, j0 + j + n);
    }
}

/* What lanes first.. give, up to PANELS panels of them. */
static void backward_lanes(block *w, const nb_attention *a, const packed *x, const nb_seg *s, int64_t kv,
                           int64_t first) {
    const int64_t D = a->D;
    const float *const next[] = {a->q, a->d_o, a->o_in};
    w->n = smaller(PANELS * LANES, s->qn * (a->H / a->KV) - first);
    w->panels = (w->n + LANES - 1) / LANES;
    for (int64_t i = 0; i < w->panels; i++) {
        lanes_of(&w->l[i], a, s, kv, first + i * LANES);
        pack_lanes(w->q + i * LANES * x->steps, a->q, &w->l[i], D);
        pack_lanes(w->d_o + i * LANES * x->steps, a->d_o, &w->l[i], D);
    }
    pack_lane_pairs(w->q_rows, a->q, w, D);
    pack_lane_pairs(w->d_rows, a->d_o, w, D);
    lane_statistics(w, a);
    const int64_t first_block = w->l[0].begin / KEYS;
    const int64_t blocks = (w->l[w->panels - 1].end + KEYS - 1) / KEYS - first_block;
    for (int64_t n = 0; n < blocks; n++) {
        const int64_t j0 = (first_block + n) * KEYS;
        bool seen = false;
        fetch_lanes(a->dq, a, s, kv, first, PANELS, n, blocks);
        for (int i = 0; i < 3; i++) fetch_lanes(next[i], a, s, kv, first + PANELS * LANES, PANELS, n, blocks);
        for (int64_t i = 0; i < w->panels; i++) seen |= panel_gradients(w, i, a, x, s, kv, j0);
        if (!seen) continue;
        add_keys(&w->dv, w, w->p_rows, w->d_rows, 1, j0, D);
        add_keys(&w->dk, w, w->ds_rows, w->q_rows, a->scale, j0, D);
    }
    float scale[LANES];
    for (int i = 0; i < LANES; i++) scale[i] = a->scale;
    for (int64_t i = 0; a->dq && i < w->panels; i++)
        scatter_lanes(a->dq, a->beta_q, scale, w->dq + i * LANES * D, &w->l[i], D);
}

/* A part's lanes, and the keys that they see. */
typedef struct part {
    int64_t first, end, begin_key, end_key;
} part;

static part part_of(const nb_attention *a, const nb_seg *s, int64_t i, int64_t parts) {
    const int64_t G = a->H / a->KV, all = s->qn * G, blocks = (all + PANELS * LANES - 1) / (PANELS * LANES);
    part p = {.first = blocks * i / parts * PANELS * LANES,
              .end = smaller(all, blocks * (i + 1) / parts * PANELS * LANES)};
    const int64_t shift = s->kn - s->qn + 1;
    if (p.first >= p.end) return p; /* no keys */
    p.end_key = (p.end - 1) / G + shift;
    if (a->window > 0) p.begin_key = larger(0, p.first / G + shift - a->window);
    return p;
}

/* Sums of dk and dv: [KV][parts][Tk][padded(D)] each. */
static float *sums_of(float *sums, const nb_attention *a, const nb_seg *s, int64_t kv, int64_t i, int64_t Tk) {
    return sums + ((kv * parts_of(a->KV) + i) * Tk + s->k0) * padded(a->D);
}

static void backward_part(const nb_attention *a, const packed *x, const nb_seg *s, int64_t kv, int64_t i, float *dk,
                          float *dv, void *scratch) {
    const part p = part_of(a, s, i, parts_of(a->KV));
    block w;
    lay_out(&w, scratch, a->D);
    w.dk = (key_sums){.rows = dk ? sums_of(dk, a, s, kv, i, x->rows) : NULL};
    w.dv = (key_sums){.rows = dv ? sums_of(dv, a, s, kv, i, x->rows) : NULL};
    for (int64_t first = p.first; first < p.end; first += PANELS * LANES) backward_lanes(&w, a, x, s, kv, first);
}

/* out[keys of s][KV][D] = the parts' sums, in order, + beta * what is there. */
NB_TARGET static void add_parts(float *out, float beta, float *sums, const nb_attention *a, const nb_seg *s,
                                int64_t Tk) {
    const int64_t parts = parts_of(a->KV), D = a->D;
    part p[TASKS];
    for (int64_t i = 0; i < parts; i++) p[i] = part_of(a, s, i, parts);
#pragma omp for schedule(static) nowait
    for (int64_t n = 0; n < s->kn * a->KV; n++) {
        const int64_t j = n / a->KV, kv = n % a->KV;
        for (int64_t c = 0; c < D; c += VEC) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t i = 0; i < parts; i++)
                if (j >= p[i].begin_key && j < p[i].end_key)
                    sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums_of(sums, a, s, kv, i, Tk) + j * padded(D) + c));
            store_sums(out + ((s->k0 + j) * a->KV + kv) * D + c, (int)smaller(VEC, D - c), sum, 1, beta);
        }
    }
}

void nb_attention_bf16_bwd(const nb_attention *a, float *dk, float beta_k, float *dv, float beta_v, const nb_seg *segs,
                           int64_t n_segs, int64_t Tk, void *shared, void *scratch) {
    const int64_t parts = parts_of(a->KV), D = a->D, tasks = n_segs * a->KV;
    packed x = {.rows = Tk, .steps = (D + 1) / 2, .k = shared};
    x.v = x.k + a->KV * Tk * x.steps, x.k_across = x.v + a->KV * Tk * x.steps;
    float *sum_k = (float *)(x.k_across + a->KV * Tk * D), *sum_v = sum_k + a->KV * parts * Tk * padded(D);
    for (int64_t b = 0; b < n_segs; b++) pack_segment(a, &x, segs + b);
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < tasks * parts; n++) { /* the parts with most keys first */
        const nb_seg *s = segs + n % tasks / a->KV;
        backward_part(a, &x, s, n % a->KV, parts - 1 - n / tasks, dk ? sum_k : NULL, dv ? sum_v : NULL, scratch);
    }
    for (int64_t b = 0; b < n_segs; b++) {
        if (dk) add_parts(dk, beta_k, sum_k, a, segs + b, Tk);
        if (dv) add_parts(dv, beta_v, sum_v, a, segs + b, Tk);
    }
}
#else
typedef int nb_not_x86;
#endif
