/* The cpu backend's kernels: one nb_cpu_<row> for each row of kernels.def, which documents them. */
#ifndef NB_KERNELS_CPU_CPU_H
#define NB_KERNELS_CPU_CPU_H

#include "kernels/backend.h"

#define KERNEL(name, args) nb_status nb_cpu_##name args;
#include "kernels/kernels.def"
#undef KERNEL

/* Elements up to which a row stays on the thread it is called from: waking the others would take longer. Generating one
 * token is a few hundred such rows. */
enum { NB_FEW = 8192 };

/* Bytes a product takes from d->ws, in the variant in use. */
size_t nb_cpu_gemm_ws(const nb_dev *d, int64_t M, int64_t N, int64_t K);
/* The same of a sum of products. */
size_t nb_cpu_terms_ws(const nb_dev *d, const nb_term *terms, int n, int64_t M, int64_t N);
/* Bytes attention_fwd and attention_bwd take from d->ws for Tq query rows and Tk key rows. */
size_t nb_cpu_attention_ws(const nb_dev *d, int64_t Tq, int64_t Tk, int64_t H, int64_t KV, int64_t D);

#endif
