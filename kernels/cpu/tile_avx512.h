/* The innermost loop, for the file that includes this with NB_TARGET (its function attribute) and NB_STEP(sum, x, y),
 * which adds the products of one step of a row, broadcast, and of 16 columns to 16 sums. NB_TILE_TABLE(name, ld) makes
 * `static nb_tile *const name[24]`: 1 or 2 vectors by 1 to 12 rows, each with all its sums in registers. Their x is a
 * panel [steps][rows], or where ld is not 0, rows of ld steps. */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/gemm_packed.h"

enum { MR = 12, NR = 32, VEC = 16 };

/* c[n_cols] = alpha * sum + beta * c */
NB_INLINE NB_TARGET void store_sums(float *c, int n_cols, __m512 sum, float alpha, float beta) {
    __m512 v = _mm512_mul_ps(_mm512_set1_ps(alpha), sum);
    if (n_cols >= VEC) { /* whole vectors go without a mask */
        if (beta != 0) v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_set1_ps(beta), _mm512_loadu_ps(c)));
        _mm512_storeu_ps(c, v);
        return;
    }
    __mmask16 m = nb_first16(n_cols);
    if (beta != 0) v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_set1_ps(beta), _mm512_maskz_loadu_ps(m, c)));
    _mm512_mask_storeu_ps(c, m, v);
}

NB_INLINE NB_TARGET void tile(int mr, int nv, int ld, int64_t steps, const uint32_t *restrict x,
                              const uint32_t *restrict y, float *restrict c, int64_t ldc, int n_cols, float alpha,
                              float beta) {
    __m512 sum[MR][2];
    NB_UNROLL
    for (int i = 0; i < mr; i++)
        NB_UNROLL
        for (int j = 0; j < nv; j++) sum[i][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++) {
        __m512i column[2];
        NB_UNROLL
        for (int j = 0; j < nv; j++) column[j] = _mm512_load_si512(y + (k * nv + j) * VEC);
        NB_UNROLL
        for (int i = 0; i < mr; i++) {
            __m512i row = _mm512_set1_epi32((int)x[ld ? i * ld + k : k * mr + i]);
            NB_UNROLL
            for (int j = 0; j < nv; j++) sum[i][j] = NB_STEP(sum[i][j], row, column[j]);
        }
    }
    NB_UNROLL
    for (int i = 0; i < mr; i++)
        NB_UNROLL
        for (int j = 0; j < nv; j++) store_sums(c + i * ldc + j * VEC, n_cols - j * VEC, sum[i][j], alpha, beta);
}

#define NB_TILE(name, mr, nv, ld)                                                                                      \
    NB_TARGET static void name##_##mr##_##nv(int64_t steps, const uint32_t *x, const uint32_t *y, float *c,            \
                                             int64_t ldc, int n_cols, float alpha, float beta) {                       \
        tile(mr, nv, ld, steps, x, y, c, ldc, n_cols, alpha, beta);                                                    \
    }
#define NB_TILES(name, nv, ld)                                                                                         \
    NB_TILE(name, 1, nv, ld)                                                                                           \
    NB_TILE(name, 2, nv, ld) NB_TILE(name, 3, nv, ld) NB_TILE(name, 4, nv, ld) NB_TILE(name, 5, nv, ld)                \
    NB_TILE(name, 6, nv, ld) NB_TILE(name, 7, nv, ld) NB_TILE(name, 8, nv, ld) NB_TILE(name, 9, nv, ld)                \
    NB_TILE(name, 10, nv, ld) NB_TILE(name, 11, nv, ld) NB_TILE(name, 12, nv, ld)
#define NB_TILE_NAMES(name, nv)                                                                                        \
    name##_1_##nv, name##_2_##nv, name##_3_##nv, name##_4_##nv, name##_5_##nv, name##_6_##nv, name##_7_##nv,           \
        name##_8_##nv, name##_9_##nv, name##_10_##nv, name##_11_##nv, name##_12_##nv
#define NB_TILE_TABLE(name, ld)                                                                                        \
    NB_TILES(name, 1, ld)                                                                                              \
    NB_TILES(name, 2, ld) static nb_tile *const name[2 * MR] = {NB_TILE_NAMES(name, 1), NB_TILE_NAMES(name, 2)}
