/* Panels of GGUF's formats of blocks in f32 with AVX2; the other formats by their plain decoders. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "kernels/cpu/decode_avx2.h"
#include "kernels/cpu/levels.h"

#define AVX2 __attribute__((target("avx2")))

static inline __attribute__((always_inline)) AVX2 void store8(float *to, __m128i level, __m256 scale, __m256 minus) {
    __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(level));
    _mm256_storeu_ps(to, _mm256_sub_ps(_mm256_mul_ps(v, scale), minus));
}

/* Values first.. of the flattened matrix, n of them. A group that is wanted in part is copied from the whole. */
#define DECODER(F, f, size, bytes)                                                                                   \
    AVX2 static void decode_##f(float *out, const nb_weight *w, int64_t first, int64_t n) {                          \
        for (int64_t e = first, end = first + n; e < end;) {                                                         \
            const uint8_t *b = (const uint8_t *)w->data + e / size * bytes;                                          \
            const int g = (int)(e % size) / 16, at = (int)(e % 16);                                                  \
            const int64_t some = end - e < 16 - at ? end - e : 16 - at;                                              \
            const nb_block_scale s = nb_##f##_scale(b, g);                                                           \
            const __m256 scale = _mm256_set1_ps(s.scale), minus = _mm256_set1_ps(s.minus);                           \
            const __m128i level = nb_##f##_levels(b, g);                                                             \
            float part[16], *to = some < 16 ? part : out;                                                            \
            store8(to, level, scale, minus);                                                                         \
            store8(to + 8, _mm_unpackhi_epi64(level, level), scale, minus);                                          \
            if (to == part) memcpy(out, part + at, (size_t)some * sizeof *out);                                      \
            out += some, e += some;                                                                                  \
        }                                                                                                            \
    }
NB_BLOCK_FORMATS(DECODER)
#undef DECODER

void nb_weight_decode_avx2(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                           int64_t n_cols) {
    static void (*const run[NB_FMT_COUNT])(float *, const nb_weight *, int64_t, int64_t) = {
#define ROW(F, f, size, bytes) [NB_FMT_##F] = decode_##f,
        NB_BLOCK_FORMATS(ROW)
#undef ROW
    };
    if (!run[w->format]) nb_weight_decode(out, ld, w, row0, n_rows, col0, n_cols);
    else
        for (int64_t r = 0; r < n_rows; r++) run[w->format](out + r * ld, w, (row0 + r) * w->cols + col0, n_cols);
}
#else
typedef int nb_not_x86;
#endif
