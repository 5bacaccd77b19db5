/* Values to GGUF's types. What is stored in formats of blocks (kernels/blocks.h) is searched for: every group of 16 or 32
 * values is a line, value = d level - m, fitted by least squares and rounding in turns from several slopes; where d and
 * m are themselves stored in few bits, the codes beside the nearest ones are tried too. The sum of squared errors is
 * what counts, each value alike. Q8_0 is llama.cpp's: the largest value becomes 127, halves are rounded away from 0. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/gguf.h"

enum { GROUP = 32, SUPER = 256, ROUNDS = 2 };

static void put16(uint8_t *out, uint16_t v) { out[0] = (uint8_t)v, out[1] = (uint8_t)(v >> 8); }
static float f16(float v) { return nb_f16_to_f32(nb_f32_to_f16(v)); }

/* ---- one group ---- */

/* value = d level - m, levels lo..hi */
typedef struct line {
    float d, m;
} line;

typedef struct levels {
    float lo, hi;
    bool offset, positive; /* is there an m; is it never below 0 */
} levels;

/* level[n] of x[n]: the nearest one, halves to even, of NaN the lowest. Returns the sum of squared errors. */
static float levels_of(float *level, const float *x, int n, line l, const levels *k) {
    const float inverse = fabsf(l.d) > 1e-30f ? 1 / l.d : 0, magic = 0x1.8p23f; /* rounds what is below 2^22 */
    float sum[8] = {0}, total = 0;
    for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) {
            float v = (x[i + j] + l.m) * inverse;
            v = v > k->lo ? v : k->lo;
            v = v < k->hi ? v : k->hi;
            v = (v + magic) - magic;
            const float error = x[i + j] - (l.d * v - l.m);
            level[i + j] = v;
            sum[j] += error * error;
        }
    for (int j = 0; j < 8; j++) total += sum[j];
    return total;
}

/* The line through (level, x) with the least squared error; *l as it is where levels do not tell. */
static void fit_line(line *l, const float *x, const float *level, int n, const levels *k) {
    float q[8] = {0}, qq[8] = {0}, y[8] = {0}, qy[8] = {0};
    double Q = 0, QQ = 0, Y = 0, QY = 0;
    for (int i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++) {
            const float u = level[i + j], v = x[i + j];
            q[j] += u, qq[j] += u * u, y[j] += v, qy[j] += u * v;
        }
    for (int j = 0; j < 8; j++) Q += q[j], QQ += qq[j], Y += y[j], QY += qy[j];
    const double det = n * QQ - Q * Q;
    if (k->offset && det > 0 && !(k->positive && QQ * Y - Q * QY > 0)) {
        l->d = (float)((n * QY - Q * Y) / det);
        l->m = (float)((Q * QY - QQ * Y) / det);
    } else if (QQ > 0) {
        l->d = (float)(QY / QQ);
        if (k->offset && det > 0) l->m = 0;
    }
}

/* Keeps *best unless the line `l`, fitted and rounded in turns, is better. */
static void try_line(line *best, float *least, const float *x, int n, line l, const levels *k) {
    float level[GROUP];
    for (int i = 0; i <= ROUNDS; i++) {
        const float error = levels_of(level, x, n, l, k);
        if (error < *least) *least = error, *best = l;
        if (i < ROUNDS) fit_line(&l, x, level, n, k);
    }
}

static line best_line(const float *x, int n, const levels *k) {
    float low = x[0], high = x[0], least = INFINITY;
    line best = {0, 0};
    for (int i = 1; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    if (k->offset) {
        if (k->positive && low > 0) low = 0;
        if (!(high > low)) return (line){0, -low};
        for (float more = -0.9f; more < 1; more += 0.3f)
            try_line(&best, &least, x, n, (line){(high - low) / (k->hi + more), -low}, k);
        return best;
    }
    const float most = -low > high ? low : high;
    if (!(fabsf(most) > 0)) return best;
    for (float more = -0.9f; more < 1; more += 0.6f) { /* the extreme value at either end */
        try_line(&best, &least, x, n, (line){most / (k->lo + more), 0}, k);
        try_line(&best, &least, x, n, (line){most / (k->hi + more), 0}, k);
    }
    return best;
}

/* ---- blocks of 256: codes for the lines of their groups ---- */

typedef struct super {
    levels k;
    int n, code_lo, code_hi; /* values of a group; codes of d. Codes of m: 0 .. code_hi, if there is one */
} super;

typedef struct coded {
    float d, m;              /* as f16 has them: group g is d code[g], m minimum[g] */
    int code[16], minimum[16];
    float level[SUPER];
} coded;

static int nearest(float v, int lo, int hi) { return !(v > (float)lo) ? lo : v >= (float)hi ? hi : (int)rintf(v); }

/* The best codes of group g around those nearest to its line. */
static float choose_codes(coded *c, int g, const float *x, line want, const super *s) {
    const int code = nearest(c->d != 0 ? want.d / c->d : 0, s->code_lo, s->code_hi);
    const int minimum = nearest(c->m > 0 ? want.m / c->m : 0, 0, s->k.offset ? s->code_hi : 0);
    float least = INFINITY, level[GROUP];
    for (int i = code - 1; i <= code + 1; i++)
        for (int j = minimum - 1; j <= minimum + 1; j++) {
            if (i < s->code_lo || i > s->code_hi || j < 0 || j > (s->k.offset ? s->code_hi : 0)) continue;
            const float error = levels_of(level, x, s->n, (line){c->d * (float)i, c->m * (float)j}, &s->k);
            if (!(error < least)) continue;
            least = error, c->code[g] = i, c->minimum[g] = j;
            memcpy(c->level + g * s->n, level, (size_t)s->n * sizeof *level);
        }
    return least;
}

static void encode_super(coded *c, const float *x, const super *s) {
    const int groups = SUPER / s->n;
    line l[16];
    float d = 0, m = 0;
    for (int g = 0; g < groups; g++) {
        l[g] = best_line(x + g * s->n, s->n, &s->k);
        if (fabsf(l[g].d) > fabsf(d)) d = l[g].d;
        if (l[g].m > m) m = l[g].m;
    }
    memset(c, 0, sizeof *c);
    c->d = f16(d / (float)(s->code_lo < 0 ? s->code_lo : s->code_hi));
    c->m = f16(m / (float)s->code_hi);
    for (int g = 0; g < groups; g++) choose_codes(c, g, x + g * s->n, l[g], s);
}

/* ---- formats ---- */

static const levels four = {-8, 7, false, false}, five = {-16, 15, false, false}, five_up = {0, 31, true, false};
static const super four_k = {{0, 15, true, true}, 32, 0, 63}, five_k = {{0, 31, true, true}, 32, 0, 63},
                   six_k = {{-32, 31, false, false}, 16, -128, 127};

/* f16 scale (and offset) and levels of a block of 32. */
static void encode_32(uint8_t *b, float *level, const float *x, const levels *k) {
    line l = best_line(x, GROUP, k);
    put16(b, nb_f32_to_f16(l.d));
    if (k->offset) put16(b + 2, nb_f32_to_f16(-l.m));
    l = (line){f16(l.d), -f16(-l.m)};
    levels_of(level, x, GROUP, l, k);
}

static void encode_q4_0(uint8_t *b, const float *x) {
    float level[GROUP];
    encode_32(b, level, x, &four);
    for (int i = 0; i < 16; i++) b[2 + i] = (uint8_t)(((int)level[i] + 8) | ((int)level[16 + i] + 8) << 4);
}

/* Levels 0..31: nibbles, and their fifth bits. */
static void put_five(uint8_t *low, uint8_t *high, const float *level, int add) {
    memset(high, 0, 4);
    for (int i = 0; i < 16; i++) low[i] = 0;
    for (int i = 0; i < GROUP; i++) {
        const int v = (int)level[i] + add;
        low[i % 16] |= (uint8_t)((v & 15) << i / 16 * 4);
        high[i / 8] |= (uint8_t)(v >> 4 << i % 8);
    }
}

static void encode_q5_0(uint8_t *b, const float *x) {
    float level[GROUP];
    encode_32(b, level, x, &five);
    put_five(b + 6, b + 2, level, 16);
}

static void encode_q5_1(uint8_t *b, const float *x) {
    float level[GROUP];
    encode_32(b, level, x, &five_up);
    put_five(b + 8, b + 4, level, 0);
}

static void encode_q8_0(uint8_t *b, const float *x) {
    float max = 0;
    for (int i = 0; i < GROUP; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    float d = max / 127, inverse = d > 0 ? 1 / d : 0;
    put16(b, nb_f32_to_f16(d));
    for (int i = 0; i < GROUP; i++) {
        const float v = roundf(x[i] * inverse);
        b[2 + i] = (uint8_t)(int8_t)(!(v > -127) ? -127 : v < 127 ? v : 127); /* not a number: the lowest */
    }
}

/* d, m, codes and nibbles, the part that Q4_K and Q5_K share. */
static void put_k(uint8_t *b, uint8_t *nibbles, const coded *c) {
    put16(b, nb_f32_to_f16(c->d));
    put16(b + 2, nb_f32_to_f16(c->m));
    for (int g = 0; g < 4; g++) {
        b[4 + g] = (uint8_t)(c->code[g] | c->code[g + 4] >> 4 << 6);
        b[8 + g] = (uint8_t)(c->minimum[g] | c->minimum[g + 4] >> 4 << 6);
        b[12 + g] = (uint8_t)((c->code[g + 4] & 15) | (c->minimum[g + 4] & 15) << 4);
    }
    for (int i = 0; i < SUPER / 2; i++) {
        const float *pair = c->level + i / 32 * 64 + i % 32;
        nibbles[i] = (uint8_t)(((int)pair[0] & 15) | ((int)pair[32] & 15) << 4);
    }
}

static void encode_q4_k(uint8_t *b, const float *x) {
    coded c;
    encode_super(&c, x, &four_k);
    put_k(b, b + 16, &c);
}

static void encode_q5_k(uint8_t *b, const float *x) {
    coded c;
    encode_super(&c, x, &five_k);
    put_k(b, b + 48, &c);
    memset(b + 16, 0, 32);
    for (int i = 0; i < SUPER; i++) b[16 + i % 32] |= (uint8_t)((int)c.level[i] >> 4 << i / 32);
}

static void encode_q6_k(uint8_t *b, const float *x) {
    coded c;
    encode_super(&c, x, &six_k);
    memset(b, 0, 192);
    for (int i = 0; i < SUPER; i++) {
        const int v = (int)c.level[i] + 32, part = i / 128, quarter = i / 32 % 4, at = i % 32;
        b[64 * part + quarter % 2 * 32 + at] |= (uint8_t)((v & 15) << quarter / 2 * 4);
        b[128 + 32 * part + at] |= (uint8_t)(v >> 4 << 2 * quarter);
    }
    for (int g = 0; g < 16; g++) b[192 + g] = (uint8_t)c.code[g];
    put16(b + 208, nb_f32_to_f16(c.d));
}

typedef void encoder(uint8_t *block, const float *x);
static encoder *const encoders[NB_FMT_COUNT] = {
    [NB_FMT_Q4_0] = encode_q4_0, [NB_FMT_Q5_0] = encode_q5_0, [NB_FMT_Q5_1] = encode_q5_1, [NB_FMT_Q8_0] = encode_q8_0,
    [NB_FMT_Q4_K] = encode_q4_k, [NB_FMT_Q5_K] = encode_q5_k, [NB_FMT_Q6_K] = encode_q6_k,
};

bool nb_gguf_type_written(nb_gguf_type t) {
    return nb_gguf_type_format(t) <= NB_FMT_F16 || encoders[nb_gguf_type_format(t)];
}

void nb_gguf_encode(nb_gguf_type t, void *out, const float *x, int64_t n) {
    const nb_format f = nb_gguf_type_format(t);
    uint8_t *p = out;
    NB_ASSERT(nb_gguf_type_written(t) && n % nb_format_block(f) == 0);
    if (t == NB_GGUF_F32) {
        memcpy(out, x, (size_t)n * sizeof *x);
    } else if (f <= NB_FMT_F16) {
        for (int64_t i = 0; i < n; i++) put16(p + 2 * i, t == NB_GGUF_F16 ? nb_f32_to_f16(x[i]) : nb_f32_to_bf16(x[i]));
    } else {
        const int64_t values = nb_format_block(f), bytes = nb_format_bytes(f, values);
#pragma omp parallel for schedule(static)
        for (int64_t b = 0; b < n / values; b++) encoders[f](p + b * bytes, x + b * values);
    }
}
