/* Element types of tensors and files, and the scalar conversions between them. */
#ifndef NB_CORE_DTYPE_H
#define NB_CORE_DTYPE_H

#include <stdint.h>
#include <string.h>

typedef enum nb_dtype {
    NB_F32, NB_BF16, NB_F16, NB_F64, NB_I64, NB_I32, NB_U8, NB_I8, NB_BOOL,
    NB_DTYPE_COUNT
} nb_dtype;

static inline int nb_dtype_size(nb_dtype dt) {
    static const uint8_t size[NB_DTYPE_COUNT] = {4, 2, 2, 8, 8, 4, 1, 1, 1};
    return size[dt];
}
/* "float32", "bfloat16", ...: the names of torch and of Hugging Face's config.json. */
static inline const char *nb_dtype_name(nb_dtype dt) {
    static const char *const name[NB_DTYPE_COUNT] = {"float32", "bfloat16", "float16", "float64", "int64",
                                                     "int32",   "uint8",    "int8",    "bool"};
    return name[dt];
}

static inline float nb_bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* Round to nearest even; NaN stays NaN. */
static inline uint16_t nb_f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
static inline float nb_round_bf16(float f) { return nb_bf16_to_f32(nb_f32_to_bf16(f)); }

static inline float nb_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 1023;
    uint32_t u;
    if (exp == 31) u = sign | 0x7f800000u | man << 13;
    else if (exp) u = sign | (exp + 112) << 23 | man << 13;
    else if (!man) u = sign;
    else { /* subnormal: man * 2^-24 */
        int shift = __builtin_clz(man) - 21;
        u = sign | (uint32_t)(113 - shift) << 23 | ((man << shift) & 1023) << 13;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* Round to nearest even; overflow becomes infinity. */
static inline uint16_t nb_f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return sign | 0x7e00;
    if (u >= 0x477ff000u) return sign | 0x7c00;
    if (u < 0x38800000u) { /* result is subnormal or zero */
        float magic = 0.5f, a;
        memcpy(&a, &u, 4);
        a += magic;
        uint32_t r;
        memcpy(&r, &a, 4);
        return (uint16_t)(sign | (r - 0x3f000000u));
    }
    return (uint16_t)(sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1)) >> 13));
}

#endif
