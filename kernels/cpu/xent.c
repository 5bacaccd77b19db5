/* Softmax cross entropy over long rows of logits. */
#include <math.h>

#include "kernels/cpu/cpu.h"

static void xent_row(float *loss, float *lse, int32_t *argmax, float *x, int32_t target, int64_t V, bool grad, float cap) {
    float best = -INFINITY, sum = 0;
    int64_t arg = 0;
    NB_ASSERT(target >= 0 && target < V);
    for (int64_t v = 0; v < V; v++) {
        float z = cap > 0 ? cap * tanhf(x[v] / cap) : x[v];
        if (z > best) best = z, arg = v;
    }
    for (int64_t v = 0; v < V; v++) sum += expf((cap > 0 ? cap * tanhf(x[v] / cap) : x[v]) - best);
    float l = best + logf(sum);
    *loss = l - (cap > 0 ? cap * tanhf(x[target] / cap) : x[target]);
    if (lse) *lse = l;
    if (argmax) *argmax = (int32_t)arg;
    for (int64_t v = 0; grad && v < V; v++) {
        float t = cap > 0 ? tanhf(x[v] / cap) : 0, z = cap > 0 ? cap * t : x[v];
        x[v] = (expf(z - l) - (v == target)) * (1 - t * t);
    }
}

nb_status nb_cpu_xent(nb_dev *d, float *loss, float *lse, int32_t *argmax, float *logits, const int32_t *target, int64_t n,
                      int64_t V, bool grad, float cap) {
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        xent_row(loss + i, lse ? lse + i : NULL, argmax ? argmax + i : NULL, logits + i * V, target[i], V, grad, cap);
    return NB_OK;
}
