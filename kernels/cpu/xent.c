/* Softmax cross entropy over long rows of logits. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

nb_status nb_cpu_xent(nb_dev *d, float *loss, float *lse, int32_t *argmax, float *logits, const int32_t *target,
                      int64_t n, int64_t V, bool grad, float cap) {
    (void)d;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        NB_ASSERT(target[i] >= 0 && target[i] < V);
        v->xent(loss + i, lse ? lse + i : NULL, argmax ? argmax + i : NULL, logits + i * V, target[i], V, grad, cap);
    }
    return NB_OK;
}
