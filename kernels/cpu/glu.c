/* Gated activations: y = act(gate) * up. */
#include <math.h>

#include "kernels/cpu/cpu.h"

/* act(x) and its derivative. */
static float act_value(nb_act act, float x, float *slope) {
    switch (act) {
    case NB_ACT_SILU: {
        float s = 1 / (1 + expf(-x));
        *slope = s * (1 + x * (1 - s));
        return x * s;
    }
    case NB_ACT_GELU_TANH: {
        float k = 0.7978845608f, t = tanhf(k * (x + 0.044715f * x * x * x));
        *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * k * (1 + 3 * 0.044715f * x * x);
        return 0.5f * x * (1 + t);
    }
    case NB_ACT_GELU_ERF: {
        float cdf = 0.5f * (1 + erff(x * 0.7071067812f));
        *slope = cdf + x * 0.3989422804f * expf(-0.5f * x * x);
        return x * cdf;
    }
    case NB_ACT_RELU: *slope = x > 0; return x > 0 ? x : 0;
    }
    NB_ASSERT(!"known activation");
    return 0;
}

nb_status nb_cpu_glu_fwd(nb_dev *d, float *y, const float *gate, const float *up, int64_t n, nb_act act) {
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float slope;
        y[i] = act_value(act, gate[i], &slope) * up[i];
    }
    return NB_OK;
}

nb_status nb_cpu_glu_bwd(nb_dev *d, float *dgate, float beta_gate, float *dup, float beta_up, const float *dy,
                         const float *gate, const float *up, int64_t n, nb_act act) {
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float slope, v = act_value(act, gate[i], &slope), g = dy[i] * up[i] * slope, u = dy[i] * v;
        if (dgate) dgate[i] = beta_gate != 0 ? g + beta_gate * dgate[i] : g;
        if (dup) dup[i] = beta_up != 0 ? u + beta_up * dup[i] : u;
    }
    return NB_OK;
}
