/* The 8-bit state of AdamW (Dettmers et al., "8-bit optimizers via block-wise quantization", 2021): blocks of 256
 * elements share the scale absmax, and a byte names one of 256 levels in [-1, 1] of "dynamic" spacing: decades from
 * 1e-7 to 1, each with twice the levels of the one below, evenly spread over it. m has a sign, v has none:
 *
 *   without sign   level 0 = 0;      1 .. 254 positive; 255 = 1    (2 levels from 1e-7 on, ..., 128 from 0.1 on)
 *   with sign      level 127 = 0;  128 .. 254 positive; 255 = 1    (1 level, ..., 64), and 0 .. 126 their negatives
 *
 * Shared by the cpu backend and the kernels, so that both read and write the same bytes. */
#ifndef NB_KERNELS_STATE8_H
#define NB_KERNELS_STATE8_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define NB_STATE8 static __host__ __device__ __forceinline__
#else
#define NB_STATE8 static inline
#endif

enum { NB_STATE8_BLOCK = 256 };

/* Decade d = 0..6 begins at 10^(d-7) and has n = 2^d (with sign) or 2^(d+1) levels; level i is in the middle of the i-th
 * of n equal steps: (0.1 + 0.9 (i + 1/2) / n) 10^(d-6) = (2n + 18i + 9) / (2n 10^(7-d)). Both numbers are exact in f32,
 * so the quotient is correctly rounded, and the same, everywhere. */
NB_STATE8 float nb_state8_level(int byte, bool with_sign) {
    bool negative = with_sign && byte < 127;
    int j = !with_sign ? byte + 1 : negative ? 127 - byte : byte - 127, n = 1, decade = with_sign ? 0 : -1;
    if (byte == 255) return 1;
    if (j == (with_sign ? 0 : 1)) return 0;
    while (2 * n <= j) n *= 2, decade++;
    float below = (float)(2 * n);
    for (int d = decade; d < 7; d++) below *= 10;
    float level = (float)(2 * n + 18 * (j - n) + 9) / below;
    return negative ? -level : level;
}

/* middle[k] lies between levels k and k + 1. */
NB_STATE8 float nb_state8_middle(int byte, bool with_sign) {
    return (nb_state8_level(byte, with_sign) + nb_state8_level(byte + 1, with_sign)) * 0.5f;
}

/* The byte of the level nearest to x in [-1, 1]; of two as near, the one nearer to 0. The step of its decade that |x| lies
 * in is worked out, rounding and the seams between decades may put it one beside, and the middles tell: two reads of
 * shared memory where a search would take eight. */
NB_STATE8 int nb_state8_nearest(const float *middle, float x, bool with_sign) {
    const float a = fabsf(x);
    float in_decade = a;
    int n = with_sign ? 64 : 128; /* levels of the decade */
    for (int k = 0; k < 6; k++) {
        bool below = in_decade < 0.1f;
        in_decade = below ? in_decade * 10 : in_decade;
        n = below ? n / 2 : n;
    }
    float step = (in_decade - 0.1f) * (1 / 0.9f) * (float)n, last = (float)(n - 1);
    step = step > 0 ? step : 0; /* so is NaN */
    int byte = n + (int)(step < last ? step : last) + (with_sign ? 127 : -1);
    byte += a > middle[byte];
    byte -= a <= middle[byte - 1];
    if (!with_sign || x >= 0) return byte;
    return byte < 255 ? 254 - byte : 0; /* there is no level -1 */
}

/* Bytes of new m and v. v > 0 keeps its smallest level: were it 0 while m is not, the next update would be m / eps. */
NB_STATE8 int nb_state8_put_m(const float *middle, float m, float absmax) {
    return nb_state8_nearest(middle, absmax > 0 ? m / absmax : 0, true);
}
NB_STATE8 int nb_state8_put_v(const float *middle, float v, float absmax) {
    int byte = nb_state8_nearest(middle, absmax > 0 ? v / absmax : 0, false);
    return byte == 0 && v > 0 ? 1 : byte;
}

#endif
