/* Products by OpenBLAS, for processors without a kernel of our own. OpenBLAS runs single-threaded inside our
 * pool: two pools stall each other. Its choice of kernel depends on the sizes it is given, so every call has the
 * same height, MB rows filled up with zeros, and widths that depend on N alone: a row's result then depends
 * neither on how many rows there are nor on the number of threads. */
#include <cblas.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/gemm.h"

enum { MB = 64, NB = 192, KB = 512 };
typedef struct scratch { float x[MB * KB], y[KB * NB], c[MB * NB]; } scratch;

static bool supported(nb_dtype compute) { return compute == NB_F32 || compute == NB_BF16; }

static size_t scratch_bytes(int64_t M, int64_t N, int64_t K, int threads) {
    (void)M, (void)N, (void)K;
    return sizeof(scratch) * (size_t)threads;
}

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }

static void round_bf16(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = nb_round_bf16(x[i]);
}

/* s->x[MB, KB] = rows m0.. and columns k0.. of x, zeros outside. */
static void gather_x(scratch *s, const nb_product *p, int64_t m0, int64_t mb, int64_t k0, int64_t kb) {
    for (int64_t m = 0; m < MB; m++) {
        float *row = s->x + m * KB;
        if (m >= mb) memset(row, 0, (size_t)kb * sizeof *row);
        else if (p->tx)
            for (int64_t k = 0; k < kb; k++) row[k] = p->x[(k0 + k) * p->ldx + m0 + m];
        else memcpy(row, p->x + (m0 + m) * p->ldx + k0, (size_t)kb * sizeof *row);
        if (p->bf16) round_bf16(row, kb);
    }
}

/* c[m0..,n0..] (+)= alpha * s->c. The first block of k applies beta. */
static void scatter_c(const scratch *s, const nb_product *p, int64_t m0, int64_t mb, int64_t n0, int64_t nb,
                      bool first) {
    float beta = first ? p->beta : 1;
    for (int64_t m = 0; m < mb; m++) {
        float *c = p->c + (m0 + m) * p->ldc + n0;
        const float *sum = s->c + m * NB;
        if (beta == 0) for (int64_t n = 0; n < nb; n++) c[n] = p->alpha * sum[n];
        else for (int64_t n = 0; n < nb; n++) c[n] = p->alpha * sum[n] + beta * c[n];
    }
}

/* All of K for columns n0.. and rows m_lo..m_hi. */
static void run_panel(const nb_product *p, scratch *s, int64_t n0, int64_t nb, int64_t m_lo, int64_t m_hi) {
    for (int64_t k0 = 0; k0 < p->K; k0 += KB) {
        int64_t kb = min64(KB, p->K - k0), ldy = p->ty ? KB : NB;
        if (p->ty) nb_weight_decode(s->y, ldy, p->y, n0, nb, k0, kb);
        else nb_weight_decode(s->y, ldy, p->y, k0, kb, n0, nb);
        if (p->bf16)
            for (int64_t r = 0; r < (p->ty ? nb : kb); r++) round_bf16(s->y + r * ldy, p->ty ? kb : nb);
        for (int64_t m0 = m_lo; m0 < m_hi; m0 += MB) {
            int64_t mb = min64(MB, m_hi - m0);
            gather_x(s, p, m0, mb, k0, kb);
            cblas_sgemm(CblasRowMajor, CblasNoTrans, p->ty ? CblasTrans : CblasNoTrans, MB, (int)nb, (int)kb, 1, s->x,
                        KB, s->y, (int)ldy, 0, s->c, NB);
            scatter_c(s, p, m0, mb, n0, nb, k0 == 0);
        }
    }
    if (p->K == 0) {
        memset(s->c, 0, sizeof s->c);
        for (int64_t m0 = m_lo; m0 < m_hi; m0 += MB) scatter_c(s, p, m0, min64(MB, m_hi - m0), n0, nb, true);
    }
}

static void run(const nb_product *p) {
    /* Columns are dealt out first; when there are too few panels for the threads, rows are cut as well. */
    int64_t panels = (p->N + NB - 1) / NB, blocks = (p->M + MB - 1) / MB;
    int64_t cuts = min64(blocks, panels >= 2 * p->threads ? 1 : (2 * p->threads + panels - 1) / panels);
    scratch *all = p->ws;
#pragma omp parallel num_threads(p->threads)
    {
        scratch *s = all + omp_get_thread_num();
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < panels * cuts; job++) {
            int64_t n0 = job / cuts * NB, cut = job % cuts;
            run_panel(p, s, n0, min64(NB, p->N - n0), blocks * cut / cuts * MB,
                      min64(p->M, blocks * (cut + 1) / cuts * MB));
        }
    }
}

const nb_gemm_impl nb_gemm_openblas = {"openblas", supported, scratch_bytes, false, run};
