/* Products of bf16 operands with f32 sums by AVX512-BF16: tiles of 12 x 32. A step is a pair of bf16 that follow each
 * other along k, the lower one first. vdpbf16ps takes subnormal operands as zero. */
#include "kernels/cpu/gemm.h"
#if defined(__x86_64__)
#include "core/cpu.h"
#include "kernels/cpu/dots.h"

#include "kernels/cpu/tile_avx512bf16.h"

NB_TILE_TABLE(tiles, 0);

enum {
    AHEAD = 512,    /* bytes of a row to ask memory for in advance */
    ROWS_AHEAD = 32 /* rows, where a panel takes a few bytes of each */
};

/* Bytes from a place in one of 16 rows to the one that is read AHEAD bytes later: behind the end of the row, 16 rows
 * on. */
NB_INLINE int64_t ahead(int64_t at, int64_t row_bytes) {
    return at + AHEAD < row_bytes ? AHEAD : AHEAD + 15 * row_bytes;
}

/* bf16 weights n0.. along k. Rows behind the last stand in for nothing: their columns of c are not stored. */
NB_TARGET static void rows_bf16(uint32_t *out, int width, const nb_weight *w, int64_t n0, int rows, int64_t k0,
                                int64_t kc) {
    const uint16_t *data = (const uint16_t *)w->data + n0 * w->cols + k0;
    for (int64_t k = 0; k < kc; k += 32) {
        __m512i v[16];
        const __mmask32 in = nb_first32(kc - k);
        const int64_t next = ahead((k0 + k) * 2, w->cols * 2);
        for (int i = 0; i < 16; i++) {
            const uint16_t *row = data + (i < rows ? i : rows - 1) * w->cols + k;
            v[i] = _mm512_maskz_loadu_epi16(in, row);
            _mm_prefetch((const char *)row + next, _MM_HINT_T0);
        }
        nb_transpose16(v);
        if (kc - k >= 32)
            NB_UNROLL
            for (int i = 0; i < 16; i++) _mm512_store_si512(out + (k / 2 + i) * width, v[i]);
        else
            for (int64_t i = 0; i < (kc - k + 1) / 2; i++) _mm512_store_si512(out + (k / 2 + i) * width, v[i]);
    }
}

/* scale[b][i] = scale of block b, from the one that holds element `first` on, of 16 rows; of at most 16 blocks. */
NB_TARGET static void nf4_scales(__m512 scale[16], const nb_weight *w, int64_t first, int rows, int blocks) {
    const nb_nf4 *q = &w->nf4;
    if (blocks > 16) blocks = 16;
    const __mmask16 in = nb_first16(blocks);
    __m512i v[16];
    for (int i = 0; i < 16; i++) {
        const int64_t b = (first + (i < rows ? i : rows - 1) * w->cols) / 64;
        if (q->absmax) v[i] = _mm512_maskz_loadu_epi32(in, q->absmax + b);
        else if (b / 256 == (b + blocks - 1) / 256 && q->nested_blocksize == 256) {
            __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(in, q->absmax_u8 + b));
            __m512 s = _mm512_i32gather_ps(code, q->nested_code, 4);
            s = _mm512_add_ps(_mm512_mul_ps(s, _mm512_set1_ps(q->nested_absmax[b / 256])),
                              _mm512_set1_ps(q->nested_offset));
            v[i] = _mm512_castps_si512(s);
        } else {
            float s[16] = {0};
            for (int j = 0; j < blocks; j++) s[j] = nb_nf4_absmax(q, b + j);
            v[i] = _mm512_loadu_si512(s);
        }
    }
    nb_transpose16(v);
    for (int i = 0; i < 16; i++) scale[i] = _mm512_castsi512_ps(v[i]);
}

/* NF4 along k, when rows are whole blocks of 64: 64 bytes of each of 16 rows (128 values) are transposed as 32-bit
 * words, so that word w of a vector holds values 8w..8w+7 of 16 rows, one row a lane; a lane's 4-bit index picks its
 * level, its block's scale multiplies it, and the two values of a byte become a step. */
NB_TARGET static void rows_nf4(uint32_t *out, int width, const nb_weight *w, int64_t n0, int rows, int64_t k0,
                               int64_t kc) {
    const __m512 level = _mm512_loadu_ps(w->nf4.code);
    const uint8_t *data = (const uint8_t *)w->data + (n0 * w->cols + k0) / 2;
    __m512 scale[16];
    for (int64_t k = 0; k < kc; k += 128) {
        __m512i v[16];
        if (k % 1024 == 0) nf4_scales(scale, w, n0 * w->cols + k0 + k, rows, (int)((kc - k) / 64));
        const int64_t bytes = (kc - k) / 2 < 64 ? (kc - k) / 2 : 64, next = ahead((k0 + k) / 2, w->cols / 2);
        for (int i = 0; i < 16; i++) {
            const uint8_t *row = data + ((i < rows ? i : rows - 1) * w->cols + k) / 2;
            v[i] = _mm512_maskz_loadu_epi8(bytes < 64 ? 0xffffffffu : ~0ull, row);
            _mm_prefetch((const char *)row + next, _MM_HINT_T0);
        }
        nb_transpose16(v);
        for (int word = 0; word < bytes / 4; word++) {
            const __m512 s = scale[k / 64 % 16 + word / 8];
            NB_UNROLL
            for (int b = 0; b < 4; b++) {
                __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(v[word], 8 * b), level), s);
                __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(v[word], 8 * b + 4), level), s);
                _mm512_store_si512(out + (k / 2 + 4 * word + b) * width,
                                   interleave_halves((__m512i)_mm512_cvtne2ps_pbh(odd, even)));
            }
        }
    }
}

/* Four signed levels a lane, their rows' scales: value b of each as f32. */
NB_INLINE NB_TARGET __m512 level_value(__m512i four, int b, __m512 scale, __m512 minus) {
    __m512i level = _mm512_srai_epi32(_mm512_slli_epi32(four, 24 - 8 * b), 24);
    return _mm512_sub_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(level), scale), minus);
}

/* GGUF's blocks along k, 256 values of 16 rows at a time. */
NB_TARGET static void rows_blocks(uint32_t *out, int width, const nb_weight *w, int64_t n0, int rows, int64_t k0,
                                  int64_t kc) {
    nb_gathered g;
    for (int64_t k = 0; k < kc; k += 256) {
        const int words = kc - k < 256 ? (int)(kc - k) / 4 : 64;
        nb_blocks_gather_avx512(&g, w, n0, rows, k0 + k, words / 8);
        for (int word = 0; word < words; word++) {
            const __m512i four = g.level[word / 16][word % 16];
            const __m512 scale = g.scale[g.fine ? word / 4 : word / 8];
            const __m512 minus = g.fine ? _mm512_setzero_ps() : g.scale[8 + word / 8];
            NB_UNROLL
            for (int b = 0; b < 4; b += 2) {
                __m512 even = level_value(four, b, scale, minus), odd = level_value(four, b + 1, scale, minus);
                _mm512_store_si512(out + (k / 2 + 2 * word + b / 2) * width,
                                   interleave_halves((__m512i)_mm512_cvtne2ps_pbh(odd, even)));
            }
        }
    }
}

typedef void nb_rows(uint32_t *out, int width, const nb_weight *w, int64_t n0, int rows, int64_t k0, int64_t kc);

/* One panel, 16 rows of y at a time. */
static void pack_by_16(nb_rows *rows, uint32_t *out, int width, const nb_weight *w, int64_t n0, int n, int64_t k0,
                       int64_t kc) {
    for (int g = 0; g < width; g += VEC) rows(out + g, width, w, n0 + g, n - g, k0, kc);
}

/* Stores two rows of up to 32 bf16, interleaved, as one step of `width` columns. */
NB_INLINE NB_TARGET void store_pair(uint32_t *out, int width, __m512i first, __m512i second) {
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    static const uint16_t high[32] = {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                      24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    _mm512_store_si512(out, _mm512_permutex2var_epi16(first, _mm512_loadu_si512(low), second));
    if (width > VEC) _mm512_store_si512(out + VEC, _mm512_permutex2var_epi16(first, _mm512_loadu_si512(high), second));
}

NB_TARGET static void pack_cols_bf16(uint32_t *out, int width, const nb_weight *w, int64_t n0, int cols, int64_t k0,
                                     int64_t kc) {
    const __mmask32 in = nb_first32(cols);
    for (int64_t k = 0; k < kc; k += 2) {
        const uint16_t *row = (const uint16_t *)w->data + (k0 + k) * w->cols + n0;
        store_pair(out + k / 2 * width, width, _mm512_maskz_loadu_epi16(in, row),
                   _mm512_maskz_loadu_epi16(k + 1 < kc ? in : 0, row + w->cols));
    }
}

/* 32 NF4 values of one block: its 16 scaled levels, rounded to bf16 and doubled, are looked up by 16-bit lanes of which
 * 5 bits of index count. */
NB_INLINE NB_TARGET __m512i nf4_run32(const nb_weight *w, int64_t e) {
    __m512 level = _mm512_mul_ps(_mm512_loadu_ps(w->nf4.code), _mm512_set1_ps(nb_nf4_absmax(&w->nf4, e / 64)));
    __m512i table = (__m512i)_mm512_cvtne2ps_pbh(level, level);
    __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)((const uint8_t *)w->data + e / 2)));
    return _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi32(byte, 4), _mm512_slli_epi32(byte, 16)), table);
}

NB_TARGET static void pack_cols_nf4(uint32_t *out, const nb_weight *w, int64_t n0, int64_t k0, int64_t kc) {
    for (int64_t k = 0; k < kc; k += 2) {
        const int64_t e = (k0 + k) * w->cols + n0;
        const char *later = (const char *)w->data + (e + ROWS_AHEAD * w->cols) / 2;
        _mm_prefetch(later, _MM_HINT_T0);
        _mm_prefetch(later + w->cols / 2, _MM_HINT_T0);
        store_pair(out + k / 2 * NR, NR, nf4_run32(w, e),
                   k + 1 < kc ? nf4_run32(w, e + w->cols) : _mm512_setzero_si512());
    }
}

static void pack_x(uint32_t *out, const nb_product *p, int64_t m0, int mr, int64_t k0, int64_t kc) {
    if (p->tx) pack_cols(out, mr, p->x + k0 * p->ldx + m0, p->ldx, mr, kc);
    else pack_rows(out, mr, p->x + m0 * p->ldx + k0, p->ldx, mr, kc);
}

/* A row is whole blocks, and rounding to the weight's dtype and then to bf16 is one rounding. */
static bool plain_nf4(const nb_weight *w) {
    return w->format == NB_FMT_NF4 && w->nf4.blocksize == 64 && w->cols % 64 == 0 && w->nf4.dtype != NB_F16;
}

static void pack_y_any(uint32_t *out, int width, const nb_product *p, int64_t n0, int n_cols, int64_t k0, int64_t kc,
                       float *spare) {
    const int64_t chunk = NB_PACKED_SPARE / NR;
    for (int64_t k = 0; k < kc; k += chunk) {
        int64_t n = kc - k < chunk ? kc - k : chunk;
        if (p->ty) {
            nb_weight_decode_avx512(spare, n, p->y, n0, n_cols, k0 + k, n);
            pack_rows(out + k / 2 * width, width, spare, n, n_cols, n);
        } else {
            nb_weight_decode_avx512(spare, NR, p->y, k0 + k, n, n0, n_cols);
            pack_cols(out + k / 2 * width, width, spare, NR, n_cols, n);
        }
    }
}

static void pack_y(uint32_t *out, const nb_product *p, int64_t n0, int n_cols, int64_t k0, int64_t kc, float *spare) {
    const nb_weight *w = p->y;
    const int width = n_cols > VEC ? NR : VEC;
    const float *dense = w->data;
    if (w->format == NB_FMT_F32 && p->ty) pack_rows(out, width, dense + n0 * w->cols + k0, w->cols, n_cols, kc);
    else if (w->format == NB_FMT_F32) pack_cols(out, width, dense + k0 * w->cols + n0, w->cols, n_cols, kc);
    else if (w->format == NB_FMT_BF16 && p->ty) pack_by_16(rows_bf16, out, width, w, n0, n_cols, k0, kc);
    else if (w->format == NB_FMT_BF16) pack_cols_bf16(out, width, w, n0, n_cols, k0, kc);
    else if (plain_nf4(w) && p->ty) pack_by_16(rows_nf4, out, width, w, n0, n_cols, k0, kc);
    else if (plain_nf4(w)) pack_cols_nf4(out, w, n0, k0, kc);
    else if (w->format > NB_FMT_NF4 && p->ty) pack_by_16(rows_blocks, out, width, w, n0, n_cols, k0, kc);
    else pack_y_any(out, width, p, n0, n_cols, k0, kc, spare);
}

static const nb_packed_isa isa = {.group = 2, .mr = MR, .nr = NR, .vec = VEC, .pack_x = pack_x, .pack_y = pack_y,
                                  .tiles = tiles};

static bool supported(nb_dtype compute) { return compute == NB_BF16 && nb_cpu_get()->avx512_bf16; }
static size_t scratch(int64_t M, int64_t N, int64_t K, int threads) {
    const size_t packed = nb_packed_ws(&isa, M, N, K, threads), dots = nb_dots_ws(M, K) * (size_t)threads;
    return packed > dots ? packed : dots;
}

static void run(const nb_product *p) {
    if (!p->dots || !nb_dots_run(nb_dots_avx512bf16, p)) nb_packed_run(&isa, p);
}

const nb_gemm_impl nb_gemm_avx512bf16 = {"avx512bf16", supported, scratch, true, run};
#else
typedef int nb_not_x86;
#endif
