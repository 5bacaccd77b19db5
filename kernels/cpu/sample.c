/* The most likely tokens of rows of logits. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

nb_status nb_cpu_top_logits(nb_dev *d, float *values, int32_t *ids, float *mass, const float *logits, int64_t n,
                            int64_t V, int64_t K, float rate) {
    (void)d;
    NB_ASSERT(K >= 1 && K <= 256 && K <= V);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *x = logits + i * V;
        float *value = values + i * K;
        int32_t *id = ids + i * K;
        int64_t found = 0;
        bool whole = true;
        for (int64_t v = 0; v < V; v++) { /* insertion: nearly every logit of a long row stops at the comparison */
            if (isnan(x[v])) whole = false;
            if (found == K && !(x[v] > value[K - 1])) continue;
            int64_t at = found < K ? found++ : K - 1;
            for (; at > 0 && x[v] > value[at - 1]; at--) value[at] = value[at - 1], id[at] = id[at - 1];
            value[at] = x[v], id[at] = (int32_t)v;
        }
        double sum = 0;
        for (int64_t v = 0; v < V; v++) sum += exp((double)((x[v] - value[0]) * rate));
        mass[i] = whole ? (float)sum : NAN;
    }
    return NB_OK;
}
