/* Products in f32 with AVX-512: tiles of 12 x 32. A step is one f32. With bf16 operands they are rounded while
 * they are packed. */
#include "kernels/cpu/gemm.h"
#if defined(__x86_64__)
#include "core/cpu.h"
#include "kernels/cpu/dots.h"

#define NB_TARGET NB_AVX512
#define NB_STEP(sum, x, y) _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), sum)
#include "kernels/cpu/tile_avx512.h"

NB_TILE_TABLE(tiles, 0);

/* Rows that lie along k: out[k][width] = src[r][k], 16 x 16 at a time. */
NB_AVX512 static void pack_rows(uint32_t *out, int width, const float *src, int64_t ld, int rows, int64_t kc,
                                bool bf16) {
    for (int g = 0; g < width; g += 16)
        for (int64_t k = 0; k < kc; k += 16) {
            __m512i v[16];
            __mmask16 in = nb_first16(kc - k), lanes = nb_first16(width - g);
            for (int i = 0; i < 16; i++) {
                __m512 f = g + i < rows ? _mm512_maskz_loadu_ps(in, src + (g + i) * ld + k) : _mm512_setzero_ps();
                v[i] = _mm512_castps_si512(bf16 ? nb_round_bf16_ps(f) : f);
            }
            nb_transpose16(v);
            for (int i = 0; i < 16 && k + i < kc; i++) _mm512_mask_storeu_epi32(out + (k + i) * width + g, lanes, v[i]);
        }
}

/* Rows that lie across k: out[k][width] = src[k][c]. */
NB_AVX512 static void pack_cols(uint32_t *out, int width, const float *src, int64_t ld, int cols, int64_t kc,
                                bool bf16) {
    for (int64_t k = 0; k < kc; k++)
        for (int g = 0; g < width; g += 16) {
            __m512 f = _mm512_maskz_loadu_ps(nb_first16(cols - g), src + k * ld + g);
            if (bf16) f = nb_round_bf16_ps(f);
            _mm512_mask_storeu_ps(out + k * width + g, nb_first16(width - g), f);
        }
}

static void pack_x(uint32_t *out, const nb_product *p, int64_t m0, int mr, int64_t k0, int64_t kc) {
    if (p->tx) pack_cols(out, mr, p->x + k0 * p->ldx + m0, p->ldx, mr, kc, p->bf16);
    else pack_rows(out, mr, p->x + m0 * p->ldx + k0, p->ldx, mr, kc, p->bf16);
}

static void pack_y(uint32_t *out, const nb_product *p, int64_t n0, int n_cols, int64_t k0, int64_t kc, float *spare) {
    const nb_weight *w = p->y;
    const int width = n_cols > VEC ? NR : VEC;
    const float *dense = w->data;
    if (w->format == NB_FMT_F32) {
        if (p->ty) pack_rows(out, width, dense + n0 * w->cols + k0, w->cols, n_cols, kc, p->bf16);
        else pack_cols(out, width, dense + k0 * w->cols + n0, w->cols, n_cols, kc, p->bf16);
        return;
    }
    for (int64_t k = 0; k < kc; k += NB_PACKED_SPARE / NR) {
        int64_t n = kc - k < NB_PACKED_SPARE / NR ? kc - k : NB_PACKED_SPARE / NR;
        if (p->ty) {
            nb_weight_decode_avx512(spare, n, w, n0, n_cols, k0 + k, n);
            pack_rows(out + k * width, width, spare, n, n_cols, n, p->bf16);
        } else {
            nb_weight_decode_avx512(spare, NR, w, k0 + k, n, n0, n_cols);
            pack_cols(out + k * width, width, spare, NR, n_cols, n, p->bf16);
        }
    }
}

static const nb_packed_isa isa = {
    .group = 1, .mr = MR, .nr = NR, .vec = VEC, .pack_x = pack_x, .pack_y = pack_y, .tiles = tiles};

static bool supported(nb_dtype compute) { return (compute == NB_F32 || compute == NB_BF16) && nb_cpu_get()->avx512; }
static size_t scratch(int64_t M, int64_t N, int64_t K, int threads) {
    const size_t packed = nb_packed_ws(&isa, M, N, K, threads), dots = nb_dots_ws(M, K) * (size_t)threads;
    return packed > dots ? packed : dots;
}

static void run(const nb_product *p) {
    if (!p->dots || p->bf16 || !nb_dots_run(nb_dots_avx512, p)) nb_packed_run(&isa, p);
}

const nb_gemm_impl nb_gemm_avx512 = {"avx512", supported, scratch, true, run};
#else
typedef int nb_not_x86;
#endif
