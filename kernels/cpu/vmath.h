/* Vectors of NB_VW floats in the compiler's vector extension, and exp and tanh on them. A file that
 * includes this may set NB_VW (4, 8 or 16) after enabling AVX2+FMA or AVX-512 by pragma (simd_avx2.c,
 * simd_avx512.c); by default it is portable C of 4 lanes, which every processor that matters has. */
#ifndef NB_KERNELS_CPU_VMATH_H
#define NB_KERNELS_CPU_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef NB_VW
#define NB_VW 4
#endif
#if NB_VW > 4
#include <immintrin.h>
#endif

#define NB_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(NB_VW * 4)));
typedef int32_t vi __attribute__((vector_size(NB_VW * 4)));
typedef uint32_t vu __attribute__((vector_size(NB_VW * 4)));
typedef float vf_anywhere __attribute__((vector_size(NB_VW * 4), aligned(4), may_alias));

NB_INLINE vf v_set(float x) { return x - (vf){0}; }
NB_INLINE vf v_load(const float *p) { return *(const vf_anywhere *)p; }
NB_INLINE void v_store(float *p, vf x) { *(vf_anywhere *)p = x; }

/* The first n of NB_VW lanes; the others load as 0 and are not stored. */
NB_INLINE vf v_load_n(const float *p, int64_t n) {
    if (n >= NB_VW) return v_load(p);
#if NB_VW == 16
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf x = {0};
    memcpy(&x, p, sizeof(float) * (size_t)n);
    return x;
#endif
}
NB_INLINE void v_store_n(float *p, vf x, int64_t n) {
    if (n >= NB_VW) v_store(p, x);
#if NB_VW == 16
    else _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#else
    else memcpy(p, &x, sizeof(float) * (size_t)n);
#endif
}

/* mask ? x : y, where mask is the result of a comparison. */
NB_INLINE vf v_select(vi mask, vf x, vf y) { return (vf)((mask & (vi)x) | (~mask & (vi)y)); }

/* x*y + z, rounded once where the processor does that. v_max and v_min answer y when one is a NaN. */
#if NB_VW == 16
NB_INLINE vf v_fma(vf x, vf y, vf z) { return (vf)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z); }
NB_INLINE vf v_max(vf x, vf y) { return (vf)_mm512_max_ps((__m512)x, (__m512)y); }
NB_INLINE vf v_min(vf x, vf y) { return (vf)_mm512_min_ps((__m512)x, (__m512)y); }
#elif NB_VW == 8
NB_INLINE vf v_fma(vf x, vf y, vf z) { return (vf)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z); }
NB_INLINE vf v_max(vf x, vf y) { return (vf)_mm256_max_ps((__m256)x, (__m256)y); }
NB_INLINE vf v_min(vf x, vf y) { return (vf)_mm256_min_ps((__m256)x, (__m256)y); }
#else
NB_INLINE vf v_fma(vf x, vf y, vf z) { return x * y + z; }
NB_INLINE vf v_max(vf x, vf y) { return v_select(x > y, x, y); }
NB_INLINE vf v_min(vf x, vf y) { return v_select(x < y, x, y); }
#endif

/* Sum and maximum of the lanes, halving: the same order always. */
NB_INLINE float v_sum(vf x) {
    float t[NB_VW];
    memcpy(t, &x, sizeof t);
    for (int h = NB_VW / 2; h; h /= 2)
        for (int i = 0; i < h; i++) t[i] += t[i + h];
    return t[0];
}
NB_INLINE float v_top(vf x) {
    float t[NB_VW];
    memcpy(t, &x, sizeof t);
    for (int h = NB_VW / 2; h; h /= 2)
        for (int i = 0; i < h; i++) t[i] = t[i] > t[i + h] ? t[i] : t[i + h];
    return t[0];
}

/* Transposes a square of NB_VW vectors: blocks of h change places for h = NB_VW/2 ... 1. */
#if defined(__clang__)
#define V_PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define V_PICK(x, y, ...) __builtin_shuffle(x, y, (vi){__VA_ARGS__})
#endif
#define V_LOW(lane, h) ((lane) & (h) ? NB_VW + (lane) - (h) : (lane))
#define V_HIGH(lane, h) ((lane) & (h) ? NB_VW + (lane) : (lane) + (h))
#define V_4(f, i, h) f(i, h), f(i + 1, h), f(i + 2, h), f(i + 3, h)
#if NB_VW == 16
#define V_LANES(f, h) V_4(f, 0, h), V_4(f, 4, h), V_4(f, 8, h), V_4(f, 12, h)
#elif NB_VW == 8
#define V_LANES(f, h) V_4(f, 0, h), V_4(f, 4, h)
#else
#define V_LANES(f, h) V_4(f, 0, h)
#endif
#define V_SWAP(r, h)                                    \
    for (int i_ = 0; i_ < NB_VW; i_++)                  \
        if (!(i_ & (h))) {                              \
            vf x_ = (r)[i_], y_ = (r)[i_ + (h)];        \
            (r)[i_] = V_PICK(x_, y_, V_LANES(V_LOW, h)); \
            (r)[i_ + (h)] = V_PICK(x_, y_, V_LANES(V_HIGH, h)); \
        }
NB_INLINE void v_transpose(vf r[NB_VW]) {
#if NB_VW > 8
    V_SWAP(r, 8)
#endif
#if NB_VW > 4
    V_SWAP(r, 4)
#endif
    V_SWAP(r, 2)
    V_SWAP(r, 1)
}
/* Lane i of the answer is the sum of the lanes of r[i]; r is spoilt. */
NB_INLINE vf v_sums(vf r[NB_VW]) {
    v_transpose(r);
    for (int h = NB_VW / 2; h; h /= 2)
        for (int i = 0; i < h; i++) r[i] += r[i + h];
    return r[0];
}

/* exp(x) within 2 units in the last place where the result is a normal number: x = n ln2 + r with |r| <= ln2/2, and
 * exp(r) = 1 + r + r^2 P(r), P a least-maximum fit (relative error of the whole 8e-9). Adding 1.5*2^23 rounds
 * n to an integer that then stands in the low bits. 0 below -87.33 (a few more numbers with AVX-512),
 * infinity above 88.73, NaN of NaN. */
NB_INLINE vf v_exp(vf x) {
    const vf shift = v_set(12582912.0f);
#if NB_VW == 16
    x = v_min(v_set(89.0f), v_max(v_set(-105.0f), x));
#endif
    vf t = v_fma(x, v_set(1.44269504f), shift), n = t - shift;
    vf r = v_fma(n, v_set(2.12194440e-4f), v_fma(n, v_set(-0.693359375f), x));
    vf p = v_fma(r, v_set(0.0013941214f), v_set(0.008363235f));
    p = v_fma(p, r, v_set(0.041666374f));
    p = v_fma(p, r, v_set(0.16666576f));
    p = v_fma(p, r, v_set(0.5f));
    vf y = v_fma(r * r, p, r) + v_set(1.0f);
#if NB_VW == 16
    return (vf)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    y = (vf)((vu)y + ((vu)t << 23)); /* unsigned: may wrap where the answer is replaced below */
    y = v_select(x < v_set(-87.33f), v_set(0), v_select(x > v_set(88.72283f), v_set(INFINITY), y));
    return v_select(x == x, y, x);
#endif
}

NB_INLINE vf v_sigmoid(vf x) { return v_set(1) / (v_set(1) + v_exp(-x)); }

/* tanh(x): x + x^3 P(x^2) near 0, where 1 - 2/(exp(2x)+1) would cancel. */
NB_INLINE vf v_tanh(vf x) {
    vf z = x * x, size = v_max(x, -x);
    vf p = v_fma(z, v_set(-0.006283665f), v_set(0.021121453f));
    p = v_fma(p, z, v_set(-0.053876318f));
    p = v_fma(p, z, v_set(0.13332933f));
    p = v_fma(p, z, v_set(-0.3333333f));
    vf large = v_set(1) - v_set(2) / (v_exp(size + size) + v_set(1));
    large = v_select(x < v_set(0), -large, large);
    return v_select(size < v_set(0.6f), v_fma(x * z, p, x), large);
}

#endif
