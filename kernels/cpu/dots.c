#include "kernels/cpu/dots.h"

#include <omp.h>

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }
static int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }

/* A row of x as it is packed, in bytes. */
static size_t row_bytes(int64_t K) { return (size_t)(ceil_div(K, NB_DOTS_PIECE) * NB_DOTS_PIECE) * sizeof(float); }

size_t nb_dots_ws(int64_t M, int64_t K) {
    return (size_t)min64(M, NB_DOTS_ROWS) * row_bytes(K + NB_MAX_TERMS * NB_DOTS_PIECE);
}

/* The products of a chain, each with its packed rows of x. */
typedef struct terms {
    struct term {
        const nb_product *p;
        const nb_dots *how;
        char *x;
    } t[NB_MAX_TERMS];
    int n;
    int64_t K; /* of all */
} terms;

static bool collect(nb_dots_choose *choose, const nb_product *p, terms *all) {
    all->n = 0, all->K = 0;
    for (; p; p = p->next) {
        if (p->tx || !p->ty || all->n == NB_MAX_TERMS) return false;
        all->t[all->n++] = (struct term){p, choose(p->y), NULL};
        all->K += p->K;
    }
    return true;
}

/* c[rows of x from m0, columns n0 .. n0 + n - 1] */
static void strip(const terms *all, int64_t m0, int rows, int64_t n0, int n) {
    const nb_product *p = all->t[0].p;
    float sum[NB_DOTS_ROWS][NB_DOTS_STRIP];
    for (const struct term *t = all->t; t < all->t + all->n; t++) {
        const float alpha = t->p->alpha, beta = t->p->beta;
        t->how->dot[rows - 1](sum, t->p, n0, n, t->x);
        for (int i = 0; i < rows; i++) {
            float *c = p->c + (m0 + i) * p->ldc + n0;
            if (beta == 0)
                for (int j = 0; j < n; j++) c[j] = alpha * sum[i][j];
            else
                for (int j = 0; j < n; j++) c[j] = alpha * sum[i][j] + beta * c[j];
        }
    }
}

bool nb_dots_run(nb_dots_choose *choose, const nb_product *p) {
    enum { UNIT = 16, FEW = 1 << 16 }; /* columns: a line of c has one writer; values that need no second thread */
    const int64_t units = ceil_div(p->N, UNIT);
    terms found;
    if (!collect(choose, p, &found)) return false;
    const size_t ws = nb_dots_ws(p->M, found.K); /* of a thread */
    const int threads = units == 1 || p->M * p->N * found.K <= FEW ? 1 : p->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int id = omp_get_thread_num();
        const int64_t lo = units * id / threads * UNIT, hi = min64(units * (id + 1) / threads * UNIT, p->N);
        terms mine = found;
        for (int64_t m0 = 0; m0 < p->M && lo < hi; m0 += NB_DOTS_ROWS) {
            const int rows = (int)min64(NB_DOTS_ROWS, p->M - m0);
            char *x = (char *)p->ws + ws * (size_t)id;
            for (struct term *t = mine.t; t < mine.t + mine.n; t++) {
                t->x = x;
                t->how->pack(x, t->p->x + m0 * t->p->ldx, t->p->ldx, rows, t->p->K);
                x += (size_t)rows * row_bytes(t->p->K);
            }
            for (int64_t n = lo; n < hi; n += NB_DOTS_STRIP)
                strip(&mine, m0, rows, n, (int)min64(NB_DOTS_STRIP, hi - n));
        }
    }
    return true;
}
