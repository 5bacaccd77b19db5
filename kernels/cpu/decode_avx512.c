/* Panels of any weight format in f32, 16 values at a time. */
#if defined(__x86_64__)
#include "kernels/cpu/avx512.h"

/* Elements first.. of the flattened matrix, n of them. */
typedef void decode_run(float *out, const nb_weight *w, int64_t first, int64_t n);

NB_AVX512 static void decode_f32(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const float *p = (const float *)w->data + first;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = nb_first16(n - i);
        _mm512_mask_storeu_ps(out + i, m, _mm512_maskz_loadu_ps(m, p + i));
    }
}

NB_AVX512 static void decode_bf16(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint16_t *p = (const uint16_t *)w->data + first;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = nb_first16(n - i);
        __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p + i));
        _mm512_mask_storeu_ps(out + i, m, _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)));
    }
}

NB_AVX512 static void decode_f16(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint16_t *p = (const uint16_t *)w->data + first;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = nb_first16(n - i);
        _mm512_mask_storeu_ps(out + i, m, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p + i)));
    }
}

NB_AVX512 static __m512 levels(const nb_nf4 *q, float absmax) {
    __m512 v = _mm512_mul_ps(_mm512_loadu_ps(q->code), _mm512_set1_ps(absmax));
    if (q->dtype == NB_BF16) return nb_round_bf16_ps(v);
    if (q->dtype == NB_F16) return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    return v;
}

/* A block's 16 levels fit one register, so that a value is one lane of a permutation. */
NB_AVX512 static void decode_nf4(float *out, const nb_weight *w, int64_t first, int64_t n) {
    const uint8_t *bytes = w->data;
    const nb_nf4 *q = &w->nf4;
    for (int64_t e = first, end = first + n; e < end;) {
        int64_t block = e / q->blocksize, stop = (block + 1) * q->blocksize;
        if (stop > end) stop = end;
        __m512 level = levels(q, nb_nf4_absmax(q, block));
        /* An odd first element is the second one of its byte: start at the byte and drop a lane. */
        int64_t skip = e & 1;
        for (int64_t i = e - skip; i < stop; i += 16) {
            __m128i b = _mm_maskz_loadu_epi8(nb_first16((stop - i + 1) / 2) & 0xff, bytes + i / 2);
            __m512i nibbles =
                _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_srli_epi16(b, 4), b)); /* 4 bits of index count */
            __mmask16 m = nb_first16(stop - i);
            if (i < e) m &= 0xfffe;
            _mm512_mask_storeu_ps(out + (i - first), m, _mm512_permutexvar_ps(nibbles, level));
        }
        e = stop;
    }
}

void nb_weight_decode_avx512(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                             int64_t n_cols) {
    static decode_run *const run[NB_FMT_COUNT] = {
        [NB_FMT_F32] = decode_f32, [NB_FMT_BF16] = decode_bf16, [NB_FMT_F16] = decode_f16, [NB_FMT_NF4] = decode_nf4,
    };
    decode_run *decode = run[w->format] ? run[w->format] : nb_blocks_decode_avx512;
    for (int64_t r = 0; r < n_rows; r++) decode(out + r * ld, w, (row0 + r) * w->cols + col0, n_cols);
}
#else
typedef int nb_not_x86; /* a file may not be empty */
#endif
