/* Softmax cross entropy over long rows of logits. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

nb_status nb_cpu_xent(nb_dev *d, float *loss, float *lse, int32_t *argmax, nb_elem *dlogits_, float *logits,
                      const int32_t *target, int64_t n, int64_t V, float cap) {
    (void)d;
    float *dlogits = dlogits_;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        NB_ASSERT(target[i] >= 0 && target[i] < V);
        float *row = logits + i * V;
        v->xent(loss + i, lse ? lse + i : NULL, argmax ? argmax + i : NULL, row, target[i], V, dlogits != NULL, cap);
        if (dlogits && dlogits != logits) memcpy(dlogits + i * V, row, (size_t)V * sizeof *row);
    }
    return NB_OK;
}

nb_status nb_cpu_softcap(nb_dev *d, float *x, int64_t n, float cap) {
    (void)d;
    enum { PART = 4096 };
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += PART) {
        int64_t m = n - i < PART ? n - i : PART;
        for (int64_t j = i; j < i + m; j++) x[j] /= cap;
        v->tanh(x + i, x + i, m);
        for (int64_t j = i; j < i + m; j++) x[j] *= cap;
    }
    return NB_OK;
}
