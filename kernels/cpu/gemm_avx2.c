/* Products in f32 with AVX2 and FMA: tiles of 6 x 16. A step is one f32. bf16 operands are rounded while they are
 * packed. */
#include "kernels/cpu/gemm.h"
#if defined(__x86_64__)
#include "core/cpu.h"
#include "kernels/cpu/dots.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/gemm_packed.h"

enum { MR = 6, NR = 16, VEC = 8, CHUNK = NB_PACKED_SPARE / NR };

/* Lanes below n, of 8. */
NB_INLINE NB_AVX2 __m256i first8(int64_t n) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8 ? 8 : n < 0 ? 0 : (int)n), lane);
}

/* Stores the first n lanes of v. Masked stores are slow on many processors: only where they must be. */
NB_INLINE NB_AVX2 void store8(float *to, int64_t n, __m256 v) {
    if (n >= 8) _mm256_storeu_ps(to, v);
    else _mm256_maskstore_ps(to, first8(n), v);
}

/* c[n_cols] = alpha * sum + beta * c */
NB_INLINE NB_AVX2 void store_sums(float *c, int n_cols, __m256 sum, float alpha, float beta) {
    __m256i m = first8(n_cols);
    __m256 v = _mm256_mul_ps(_mm256_set1_ps(alpha), sum);
    if (beta != 0) v = _mm256_add_ps(v, _mm256_mul_ps(_mm256_set1_ps(beta), _mm256_maskload_ps(c, m)));
    store8(c, n_cols, v);
}

NB_INLINE NB_AVX2 void tile(int mr, int nv, int64_t steps, const float *restrict x, const float *restrict y,
                      float *restrict c, int64_t ldc, int n_cols, float alpha, float beta) {
    __m256 sum[MR][2];
    NB_UNROLL
    for (int i = 0; i < mr; i++)
        NB_UNROLL
        for (int j = 0; j < nv; j++) sum[i][j] = _mm256_setzero_ps();
    for (int64_t k = 0; k < steps; k++) {
        __m256 column[2];
        NB_UNROLL
        for (int j = 0; j < nv; j++) column[j] = _mm256_load_ps(y + (k * nv + j) * VEC);
        NB_UNROLL
        for (int i = 0; i < mr; i++) {
            __m256 row = _mm256_broadcast_ss(x + k * mr + i);
            NB_UNROLL
            for (int j = 0; j < nv; j++) sum[i][j] = _mm256_fmadd_ps(row, column[j], sum[i][j]);
        }
    }
    NB_UNROLL
    for (int i = 0; i < mr; i++)
        NB_UNROLL
        for (int j = 0; j < nv; j++) store_sums(c + i * ldc + j * VEC, n_cols - j * VEC, sum[i][j], alpha, beta);
}

#define TILE(mr, nv)                                                                                                  \
    NB_AVX2 static void tile_##mr##_##nv(int64_t steps, const uint32_t *x, const uint32_t *y, float *c, int64_t ldc,     \
                                      int n_cols, float alpha, float beta) {                                          \
        tile(mr, nv, steps, (const float *)x, (const float *)y, c, ldc, n_cols, alpha, beta);                         \
    }
TILE(1, 1)
TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)

    static nb_tile *const tiles[2 * MR] = {
        tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1,
        tile_1_2, tile_2_2, tile_3_2, tile_4_2, tile_5_2, tile_6_2,
};

NB_INLINE NB_AVX2 void transpose8(__m256 v[8]) {
    __m256 t[8];
    NB_UNROLL
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    NB_UNROLL
    for (int i = 0; i < 2; i++) {
        v[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        v[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        v[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        v[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    NB_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
    }
    NB_UNROLL
    for (int i = 0; i < 8; i++) v[i] = t[i];
}

/* Lanes g.. of step k of a panel. In a panel narrower than a vector the spare lanes fall on the steps behind, which
 * are stored later; only at the end of the panel they must be kept off. */
NB_INLINE NB_AVX2 void store_step(float *out, int width, int g, int64_t k, int64_t kc, __m256 v) {
    float *to = out + k * width + g;
    store8(to, width >= 8 || k * width + 8 <= kc * width ? 8 : width, v);
}

/* Rows that lie along k: out[k][width] = src[r][k], 8 x 8 at a time. */
NB_AVX2 static void pack_rows(float *out, int width, const float *src, int64_t ld, int rows, int64_t kc, bool bf16) {
    for (int g = 0; g < width; g += 8)
        for (int64_t k = 0; k < kc; k += 8) {
            __m256 v[8];
            const __m256i in = first8(kc - k);
            for (int i = 0; i < 8; i++) {
                v[i] = g + i < rows ? _mm256_maskload_ps(src + (g + i) * ld + k, in) : _mm256_setzero_ps();
                if (bf16) v[i] = nb_round_bf16_avx2(v[i]);
            }
            transpose8(v);
            for (int i = 0; i < 8 && k + i < kc; i++) store_step(out, width, g, k + i, kc, v[i]);
        }
}

/* Rows that lie across k: out[k][width] = src[k][c]. */
NB_AVX2 static void pack_cols(float *out, int width, const float *src, int64_t ld, int cols, int64_t kc, bool bf16) {
    for (int g = 0; g < width; g += 8) {
        const __m256i in = first8(cols - g);
        for (int64_t k = 0; k < kc; k++) {
            __m256 v = _mm256_maskload_ps(src + k * ld + g, in);
            store_step(out, width, g, k, kc, bf16 ? nb_round_bf16_avx2(v) : v);
        }
    }
}

static void pack_x(uint32_t *out, const nb_product *p, int64_t m0, int mr, int64_t k0, int64_t kc) {
    if (p->tx) pack_cols((float *)out, mr, p->x + k0 * p->ldx + m0, p->ldx, mr, kc, p->bf16);
    else pack_rows((float *)out, mr, p->x + m0 * p->ldx + k0, p->ldx, mr, kc, p->bf16);
}

static void pack_y(uint32_t *out, const nb_product *p, int64_t n0, int n_cols, int64_t k0, int64_t kc, float *spare) {
    const nb_weight *w = p->y;
    const int width = n_cols > VEC ? NR : VEC;
    const float *dense = w->data;
    float *to = (float *)out;
    if (w->format == NB_FMT_F32) {
        if (p->ty) pack_rows(to, width, dense + n0 * w->cols + k0, w->cols, n_cols, kc, p->bf16);
        else pack_cols(to, width, dense + k0 * w->cols + n0, w->cols, n_cols, kc, p->bf16);
        return;
    }
    for (int64_t k = 0; k < kc; k += CHUNK) {
        int64_t n = kc - k < CHUNK ? kc - k : CHUNK;
        if (p->ty) {
            nb_weight_decode_avx2(spare, n, w, n0, n_cols, k0 + k, n);
            pack_rows(to + k * width, width, spare, n, n_cols, n, p->bf16);
        } else {
            nb_weight_decode_avx2(spare, NR, w, k0 + k, n, n0, n_cols);
            pack_cols(to + k * width, width, spare, NR, n_cols, n, p->bf16);
        }
    }
}

static const nb_packed_isa isa = {
    .group = 1, .mr = MR, .nr = NR, .vec = VEC, .pack_x = pack_x, .pack_y = pack_y, .tiles = tiles};

static bool supported(nb_dtype compute) {
    return (compute == NB_F32 || compute == NB_BF16) && nb_cpu_get()->avx2_fma;
}
static size_t scratch(int64_t M, int64_t N, int64_t K, int threads) {
    const size_t packed = nb_packed_ws(&isa, M, N, K, threads), dots = nb_dots_ws(M, K) * (size_t)threads;
    return packed > dots ? packed : dots;
}

static void run(const nb_product *p) {
    if (!p->dots || p->bf16 || !nb_dots_run(nb_dots_avx2, p)) nb_packed_run(&isa, p);
}

const nb_gemm_impl nb_gemm_avx2 = {"avx2", supported, scratch, true, run};
#else
typedef int nb_not_x86;
#endif
