#include "kernels/cpu/simd.h"

#include <string.h>

#include "core/cpu.h"

extern const nb_simd nb_simd_base, nb_simd_avx2, nb_simd_avx512;

static const nb_simd *chosen;

static const nb_simd *table(int i) {
    if (i == 0) return &nb_simd_base;
#if defined(__x86_64__)
    if (i == 1 && nb_cpu_get()->avx2_fma) return &nb_simd_avx2;
    if (i == 2 && nb_cpu_get()->avx2_fma && nb_cpu_get()->avx512) return &nb_simd_avx512;
#endif
    return NULL;
}

const char *nb_simd_name(int i) { return table(i) ? table(i)->name : NULL; }

const nb_simd *nb_simd_get(void) {
    for (int i = 0; !chosen; i++)
        if (!table(i + 1)) chosen = table(i);
    return chosen;
}

bool nb_simd_set(const char *name) {
    for (int i = 0; table(i); i++)
        if (!strcmp(table(i)->name, name)) {
            chosen = table(i);
            return true;
        }
    return false;
}
