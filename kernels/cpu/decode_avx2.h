/* nb_weight_decode with AVX2 (decode_avx2.c). */
#ifndef NB_KERNELS_CPU_DECODE_AVX2_H
#define NB_KERNELS_CPU_DECODE_AVX2_H

#include "kernels/weight.h"

void nb_weight_decode_avx2(float *out, int64_t ld, const nb_weight *w, int64_t row0, int64_t n_rows, int64_t col0,
                           int64_t n_cols);

#endif
