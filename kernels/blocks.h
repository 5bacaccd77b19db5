/* GGUF's formats of blocks (ggml's block_q4_0 and so on): how a value is read, written once for the processor and for
 * kernels. All of them are groups of 16 values with
 *
 *      value = scale * level - minus          two roundings, levels are whole numbers
 *
 * in blocks of 32 or 256 values of one row; a group's number g counts from the start of its block. d and m are f16 at
 * even addresses; "|" separates fields, "lo" and "hi" are the nibbles of a byte.
 *
 *   Q4_0   d | 16 bytes: values 0..15 lo, 16..31 hi                          d * (nibble - 8)
 *   Q4_1   d | m | 16 bytes as Q4_0                                          d * nibble + m
 *   Q5_0   d | 32 bits: bit 4 of value i is bit i | 16 bytes as Q4_0         d * (5 bits - 16)
 *   Q5_1   d | m | 32 bits and 16 bytes as Q5_0                              d * 5 bits + m
 *   Q8_0   d | 32 signed bytes                                               d * byte
 *   Q4_K   d | m | 12 bytes: 8 scales and minima of 6 bits | 128 bytes:      (d * scale) * nibble - m * minimum
 *          4 times 32 bytes, lo for one group of 32 values, hi for the next
 *   Q5_K   d | m | 12 bytes as Q4_K | 32 bytes: bit 4 of the 32 values of group i is bit i | 128 bytes as Q4_K
 *   Q6_K   128 bytes: lower nibbles | 64 bytes: upper 2 bits | 16 signed scales | d       (d * scale) * (6 bits - 32)
 *          each half of 128 values: 64 bytes, lo of the first and second 32, then their hi; 32 bytes of four pairs */
#ifndef NB_KERNELS_BLOCKS_H
#define NB_KERNELS_BLOCKS_H

#include <stdint.h>

#include "core/dtype.h"

/* Name of the format and of its functions, values and bytes of a block. */
#define NB_BLOCK_FORMATS(X)                                                                                          \
    X(Q4_0, q4_0, 32, 18) X(Q4_1, q4_1, 32, 20) X(Q5_0, q5_0, 32, 22) X(Q5_1, q5_1, 32, 24) X(Q8_0, q8_0, 32, 34)    \
    X(Q4_K, q4_k, 256, 144) X(Q5_K, q5_k, 256, 176) X(Q6_K, q6_k, 256, 210)
enum { NB_BLOCK_GROUP = 16 };

#if defined(NB_BLOCK_FN) /* with a target of its own, and nb_block_f16 */
#define NB_BLOCK_MUL(x, y) ((x) * (y))
#define NB_BLOCK_SUB(x, y) ((x) - (y))
#elif defined(__CUDACC__) || defined(NB_EMU)
#define NB_BLOCK_FN static __device__ __forceinline__
#define NB_BLOCK_MUL(x, y) __fmul_rn(x, y)
#define NB_BLOCK_SUB(x, y) __fsub_rn(x, y)
NB_BLOCK_FN float nb_block_f16(const uint8_t *p) { return __half2float(*(const __half *)p); }
#else
#define NB_BLOCK_FN static inline __attribute__((always_inline))
#define NB_BLOCK_MUL(x, y) ((x) * (y))
#define NB_BLOCK_SUB(x, y) ((x) - (y))
NB_BLOCK_FN float nb_block_f16(const uint8_t *p) { return nb_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }
#endif

typedef struct nb_block_scale {
    float scale, minus;
} nb_block_scale;

NB_BLOCK_FN nb_block_scale nb_block_scale_of(float scale, float minus) {
    nb_block_scale s = {scale, minus};
    return s;
}
NB_BLOCK_FN float nb_block_value(nb_block_scale s, int level) {
    return NB_BLOCK_SUB(NB_BLOCK_MUL(s.scale, (float)level), s.minus);
}

/* nb_FORMAT_scale(block, g) is group g's; nb_FORMAT_level(block, g, j), j < 16, the level of its value j. */
NB_BLOCK_FN nb_block_scale nb_q4_0_scale(const uint8_t *b, int g) {
    (void)g;
    return nb_block_scale_of(nb_block_f16(b), 0);
}
NB_BLOCK_FN int nb_q4_0_level(const uint8_t *b, int g, int j) { return (b[2 + j] >> 4 * g & 15) - 8; }

NB_BLOCK_FN nb_block_scale nb_q4_1_scale(const uint8_t *b, int g) {
    (void)g;
    return nb_block_scale_of(nb_block_f16(b), -nb_block_f16(b + 2));
}
NB_BLOCK_FN int nb_q4_1_level(const uint8_t *b, int g, int j) { return b[4 + j] >> 4 * g & 15; }

/* Nibbles at `low`, their fifth bits at `high`. */
NB_BLOCK_FN int nb_block_five(const uint8_t *low, const uint8_t *high, int g, int j) {
    const unsigned bits = high[2 * g] | (unsigned)high[2 * g + 1] << 8;
    return (low[j] >> 4 * g & 15) | (int)(bits >> j & 1) << 4;
}
NB_BLOCK_FN nb_block_scale nb_q5_0_scale(const uint8_t *b, int g) { return nb_q4_0_scale(b, g); }
NB_BLOCK_FN int nb_q5_0_level(const uint8_t *b, int g, int j) { return nb_block_five(b + 6, b + 2, g, j) - 16; }
NB_BLOCK_FN nb_block_scale nb_q5_1_scale(const uint8_t *b, int g) { return nb_q4_1_scale(b, g); }
NB_BLOCK_FN int nb_q5_1_level(const uint8_t *b, int g, int j) { return nb_block_five(b + 8, b + 4, g, j); }

NB_BLOCK_FN nb_block_scale nb_q8_0_scale(const uint8_t *b, int g) { return nb_q4_0_scale(b, g); }
NB_BLOCK_FN int nb_q8_0_level(const uint8_t *b, int g, int j) { return (int8_t)b[2 + 16 * g + j]; }

/* Scales and minima of 6 bits: of the first four pairs as they are, of the others in nibbles and spare bits:
 *      bytes 0..3   scale 0..3, and bits 5..4 of scale 4..7 above
 *      bytes 4..7   minimum 0..3, and bits 5..4 of minimum 4..7 above
 *      bytes 8..11  bits 3..0 of scale 4..7, of minimum 4..7 above */
NB_BLOCK_FN nb_block_scale nb_q4_k_scale(const uint8_t *b, int g) {
    const uint8_t *s = b + 4;
    const int i = g / 2, scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4,
              minimum = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    return nb_block_scale_of(NB_BLOCK_MUL(nb_block_f16(b), (float)scale),
                             NB_BLOCK_MUL(nb_block_f16(b + 2), (float)minimum));
}
NB_BLOCK_FN int nb_q4_k_level(const uint8_t *b, int g, int j) {
    return b[16 + g / 4 * 32 + g % 2 * 16 + j] >> g / 2 % 2 * 4 & 15;
}

NB_BLOCK_FN nb_block_scale nb_q5_k_scale(const uint8_t *b, int g) { return nb_q4_k_scale(b, g); }
NB_BLOCK_FN int nb_q5_k_level(const uint8_t *b, int g, int j) {
    return nb_q4_k_level(b + 32, g, j) | (b[16 + g % 2 * 16 + j] >> g / 2 & 1) << 4;
}

NB_BLOCK_FN nb_block_scale nb_q6_k_scale(const uint8_t *b, int g) {
    return nb_block_scale_of(NB_BLOCK_MUL(nb_block_f16(b + 208), (float)(int8_t)b[192 + g]), 0);
}
NB_BLOCK_FN int nb_q6_k_level(const uint8_t *b, int g, int j) {
    const int part = g / 8, quarter = g / 2 % 4, at = g % 2 * 16 + j;
    const int low = b[64 * part + quarter % 2 * 32 + at] >> quarter / 2 * 4 & 15;
    return (low | (b[128 + 32 * part + at] >> 2 * quarter & 3) << 4) - 32;
}

/* Defines NAME(out, w, first, n): values first..first+n-1 of the flattened matrix of a weight in format f. */
#define NB_BLOCK_DECODER(NAME, f, size, bytes)                                                                       \
    static void NAME(float *out, const nb_weight *w, int64_t first, int64_t n) {                                     \
        for (int64_t e = first, end = first + n; e < end;) {                                                         \
            const uint8_t *block = (const uint8_t *)w->data + e / size * bytes;                                      \
            const int g = (int)(e % size) / NB_BLOCK_GROUP;                                                          \
            const nb_block_scale s = nb_##f##_scale(block, g);                                                       \
            int j = (int)(e % NB_BLOCK_GROUP);                                                                       \
            for (; j < NB_BLOCK_GROUP && e < end; j++, e++) *out++ = nb_block_value(s, nb_##f##_level(block, g, j)); \
        }                                                                                                            \
    }

#endif
