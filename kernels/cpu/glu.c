/* Gated activations: y = act(gate) * up. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { PART = 8192 }; /* elements of a task */

nb_status nb_cpu_glu_fwd(nb_dev *d, nb_elem *y_, const nb_elem *gate_, const nb_elem *up_, int64_t n, nb_act act) {
    float *y = y_;
    const float *gate = gate_, *up = up_;
    (void)d;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static) if (n > NB_FEW)
    for (int64_t i = 0; i < n; i += PART)
        v->glu_fwd(y + i, gate + i, up ? up + i : NULL, n - i < PART ? n - i : PART, act);
    return NB_OK;
}

nb_status nb_cpu_glu_bwd(nb_dev *d, nb_elem *dgate_, float beta_gate, nb_elem *dup_, float beta_up, const nb_elem *dy_,
                         const nb_elem *gate_, const nb_elem *up_, int64_t n, nb_act act) {
    float *dgate = dgate_, *dup = dup_;
    const float *dy = dy_, *gate = gate_, *up = up_;
    (void)d;
    const nb_simd *v = nb_simd_get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += PART)
        v->glu_bwd(dgate ? dgate + i : NULL, beta_gate, dup ? dup + i : NULL, beta_up, dy + i, gate + i, up ? up + i : NULL,
                   n - i < PART ? n - i : PART, act);
    return NB_OK;
}
