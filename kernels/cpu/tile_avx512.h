/* The innermost loop, for the file that includes this with NB_TARGET (its function attribute) and NB_STEP(sum, x, y),
 * which adds the products of one step of a row, broadcast, and of 16 columns to 16 sums. Makes
 * `static nb_tile *const tiles[24]`: 1 or 2 vectors by 1 to 12 rows, each with all its sums in registers. */
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

NB_INLINE NB_TARGET void tile(int mr, int nv, int64_t steps, const uint32_t *restrict x, const uint32_t *restrict y,
                              float *restrict c, int64_t ldc, int n_cols, float alpha, float beta) {
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
            __m512i row = _mm512_set1_epi32((int)x[k * mr + i]);
            NB_UNROLL
            for (int j = 0; j < nv; j++) sum[i][j] = NB_STEP(sum[i][j], row, column[j]);
        }
    }
    NB_UNROLL
    for (int i = 0; i < mr; i++)
        NB_UNROLL
        for (int j = 0; j < nv; j++) store_sums(c + i * ldc + j * VEC, n_cols - j * VEC, sum[i][j], alpha, beta);
}

#define NB_TILE(mr, nv)                                                                                                \
    NB_TARGET static void tile_##mr##_##nv(int64_t steps, const uint32_t *x, const uint32_t *y, float *c, int64_t ldc, \
                                           int n_cols, float alpha, float beta) {                                      \
        tile(mr, nv, steps, x, y, c, ldc, n_cols, alpha, beta);                                                        \
    }
#define NB_TILES(nv)                                                                                                   \
    NB_TILE(1, nv)                                                                                                     \
    NB_TILE(2, nv) NB_TILE(3, nv) NB_TILE(4, nv) NB_TILE(5, nv) NB_TILE(6, nv) NB_TILE(7, nv) NB_TILE(8, nv)           \
        NB_TILE(9, nv) NB_TILE(10, nv) NB_TILE(11, nv) NB_TILE(12, nv)
NB_TILES(1)
NB_TILES(2)

static nb_tile *const tiles[2 * MR] = {
    tile_1_1, tile_2_1,  tile_3_1,  tile_4_1,  tile_5_1, tile_6_1,  tile_7_1,  tile_8_1,
    tile_9_1, tile_10_1, tile_11_1, tile_12_1, tile_1_2, tile_2_2,  tile_3_2,  tile_4_2,
    tile_5_2, tile_6_2,  tile_7_2,  tile_8_2,  tile_9_2, tile_10_2, tile_11_2, tile_12_2,
};
