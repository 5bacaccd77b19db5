/* What the AVX-512 kernels share: transposes, rounding, panels from f32 rows. Included only by their files. */
#ifndef NB_KERNELS_CPU_AVX512_H
#define NB_KERNELS_CPU_AVX512_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/avx2.h"

/* These files are compiled for any x86-64 processor; only the functions so marked use AVX-512, and run only where
 * nb_cpu_get() found it. */
#define NB_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define NB_AVX512BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

/* Mask of the first n of 16 or 32 lanes; n may be larger or negative. */
NB_INLINE uint16_t nb_first16(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (uint16_t)((1u << n) - 1); }
NB_INLINE uint32_t nb_first32(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1; }

/* Transposes a 16 x 16 matrix of 32-bit lanes. */
NB_INLINE NB_AVX512 void nb_transpose16(__m512i v[16]) {
    __m512i t[16];
    NB_UNROLL
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    NB_UNROLL
    for (int i = 0; i < 4; i++) {
        v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    NB_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    NB_UNROLL
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Rounds to bf16 and back, to nearest even, without bf16 instructions; NaN stays NaN. */
NB_INLINE NB_AVX512 __m512 nb_round_bf16_ps(__m512 f) {
    __m512i u = _mm512_castps_si512(f), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000)));
}

/* nb_weight_decode with AVX-512 (decode_avx512.c). */
void nb_weight_decode_avx512(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                             int64_t n_cols);

/* Formats of blocks (blocks_avx512.c). Values first.. of the flattened matrix, n of them: */
void nb_blocks_decode_avx512(float *out, const nb_weight *w, int64_t first, int64_t n);
/* 256 values, or units * 32 of them, of 16 rows from value k on, a multiple of 256. Word i of lane r of level[c] holds
 * the levels of values 64c + 4i .. 64c + 4i + 3 of row r as signed bytes; lane r of scale[] belongs to row r: one scale
 * for every 16 values (fine), or one for every 32 and, from scale[8] on, what is subtracted. Rows behind `rows` repeat
 * the last one, units that are not there repeat the first. */
typedef struct nb_gathered {
    __m512i level[4][16];
    __m512 scale[16];
    bool fine;
} nb_gathered;
void nb_blocks_gather_avx512(nb_gathered *to, const nb_weight *w, int64_t row0, int rows, int64_t k, int units);
/* 256 values, or units * 32 of them, of one row from byte `b` on: levels in order, scales as in a lane of nb_gathered. */
typedef struct nb_blocks_run {
    __m512i level[4];
    float scale[16];
} nb_blocks_run;
typedef void nb_blocks_reader(nb_blocks_run *to, const uint8_t *b, int units);
nb_blocks_reader *nb_blocks_reader_avx512(nb_format f);

#endif
