/* The table of simd.def for one instruction set, and the choice among those this processor has. */
#ifndef NB_KERNELS_CPU_SIMD_H
#define NB_KERNELS_CPU_SIMD_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/cpu/attention.h"

/* AdamW's numbers, computed once a step: p*shrink - rate*m/(sqrt(v)/root + eps). */
typedef struct nb_adamw_scalars {
    float shrink, rise1, beta2, rise2, rate, root, eps, g_scale;
} nb_adamw_scalars;

typedef struct nb_simd {
    const char *name; /* "base", "avx2", "avx512" */
#define SIMD(result, name, args) result(*name) args;
#include "kernels/cpu/simd.def"
#undef SIMD
} nb_simd;

/* The table in use: the widest this processor has, unless a test or a benchmark chose another. */
const nb_simd *nb_simd_get(void);
/* False if there is no such table here. Not to be called while a kernel runs. */
bool nb_simd_set(const char *name);
/* The name of table i = 0, 1, ..., narrowest first; NULL behind the last one that runs here. */
const char *nb_simd_name(int i);

#endif
