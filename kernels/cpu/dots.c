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
    size_t ws; /* bytes of scratch a thread */
} terms;

static bool collect(nb_dots_choose *choose, const nb_product *p, terms *all) {
    const int64_t M = p->M;
    int64_t K = 0;
    all->n = 0;
    for (; p; p = p->next) {
        if (p->tx || !p->ty || all->n == NB_MAX_TERMS) return false;
        all->t[all->n++] = (struct term){p, choose(p->y), NULL};
        K += p->K;
    }
    all->ws = nb_dots_ws(M, K);
    return true;
}

/* c[rows of x from m0, columns n0 .. n0 + cols - 1] */
static void columns(const terms *all, int64_t m0, int rows, int64_t n0, int cols) {
    const nb_product *p = all->t[0].p;
    float sum[NB_DOTS_ROWS][NB_DOTS_COLS];
    for (const struct term *t = all->t; t < all->t + all->n; t++) {
        const float beta = t->p->beta;
        t->how->dot[rows - 1](sum, t->p, n0, cols, t->x);
        for (int i = 0; i < rows; i++) {
            float *c = p->c + (m0 + i) * p->ldc + n0;
            for (int j = 0; j < cols; j++) c[j] = t->p->alpha * sum[i][j] + (beta != 0 ? beta * c[j] : 0);
        }
    }
}

bool nb_dots_run(nb_dots_choose *choose, const nb_product *p) {
    enum { UNIT = 16 }; /* columns: a line of c has one writer */
    const int64_t units = ceil_div(p->N, UNIT);
    terms found;
    if (!collect(choose, p, &found)) return false;
#pragma omp parallel num_threads(p->threads)
    {
        const int id = omp_get_thread_num();
        const int64_t lo = units * id / p->threads * UNIT, hi = min64(units * (id + 1) / p->threads * UNIT, p->N);
        terms mine = found;
        for (int64_t m0 = 0; m0 < p->M && lo < hi; m0 += NB_DOTS_ROWS) {
            const int rows = (int)min64(NB_DOTS_ROWS, p->M - m0);
            char *x = (char *)p->ws + mine.ws * (size_t)id;
            for (struct term *t = mine.t; t < mine.t + mine.n; t++) {
                t->x = x;
                t->how->pack(x, t->p->x + m0 * t->p->ldx, t->p->ldx, rows, t->p->K);
                x += (size_t)rows * row_bytes(t->p->K);
            }
            int64_t n = lo;
            for (; n + NB_DOTS_COLS <= hi; n += NB_DOTS_COLS) columns(&mine, m0, rows, n, NB_DOTS_COLS);
            for (; n < hi; n++) columns(&mine, m0, rows, n, 1);
        }
    }
    return true;
}
