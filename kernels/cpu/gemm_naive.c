/* The definition of a product: one sum per element, in order of k. */
#include "kernels/cpu/gemm.h"

static bool supported(nb_dtype compute) { return compute == NB_F32 || compute == NB_BF16; }

static size_t scratch(int64_t M, int64_t N, int64_t K, int threads) {
    (void)M, (void)N, (void)K, (void)threads;
    return 0;
}

static float y_at(const nb_product *p, int64_t k, int64_t n) {
    float v;
    nb_weight_decode(&v, 1, p->y, p->ty ? n : k, 1, p->ty ? k : n, 1);
    return p->bf16 ? nb_round_bf16(v) : v;
}

static float x_at(const nb_product *p, int64_t m, int64_t k) {
    float v = p->tx ? p->x[k * p->ldx + m] : p->x[m * p->ldx + k];
    return p->bf16 ? nb_round_bf16(v) : v;
}

static void run(const nb_product *p) {
#pragma omp parallel for num_threads(p->threads) collapse(2) schedule(static)
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            float sum = 0;
            for (int64_t k = 0; k < p->K; k++) sum += x_at(p, m, k) * y_at(p, k, n);
            float *c = p->c + m * p->ldc + n;
            *c = p->alpha * sum + (p->beta != 0 ? p->beta * *c : 0);
        }
}

const nb_gemm_impl nb_gemm_naive = {"naive", supported, scratch, false, run};
