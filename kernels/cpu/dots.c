#include "kernels/cpu/dots.h"

#include <omp.h>
#include <stdatomic.h>

#include "core/mem.h"

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }
static int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }

/* A row of x as it is packed, in bytes. */
static size_t row_bytes(int64_t K) { return (size_t)(ceil_div(K, NB_DOTS_PIECE) * NB_DOTS_PIECE) * sizeof(float); }

/* Columns of c that a thread begins with. Whoever has done its own helps the others: what memory and the machine's
 * other work leave to each thread differs from moment to moment. */
typedef struct share {
    _Alignas(NB_ALIGN) _Atomic int64_t next; /* of its strips, for one group of rows of x after the other */
    int64_t lo, hi, strips; /* columns; strips of them */
} share;

size_t nb_dots_ws(int64_t M, int64_t K) {
    return sizeof(share) + (size_t)min64(M, NB_DOTS_ROWS) * row_bytes(K + NB_MAX_TERMS * NB_DOTS_PIECE);
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

static share *share_of(const nb_product *p, int64_t K, int thread) {
    return (share *)((char *)p->ws + nb_dots_ws(p->M, K) * (size_t)thread);
}

static void share_out(const nb_product *p, int64_t K, int threads) {
    enum { UNIT = 16 }; /* columns: a line of c has one writer */
    const int64_t units = ceil_div(p->N, UNIT);
    for (int i = 0; i < threads; i++) {
        share *s = share_of(p, K, i);
        s->lo = units * i / threads * UNIT;
        s->hi = min64(units * (i + 1) / threads * UNIT, p->N);
        s->strips = ceil_div(s->hi - s->lo, NB_DOTS_STRIP);
        atomic_init(&s->next, 0);
    }
}

/* Rows m0 .. of x as each product wants them. */
static void pack(terms *all, char *x, int64_t m0, int rows) {
    for (struct term *t = all->t; t < all->t + all->n; t++) {
        t->x = x;
        t->how->pack(x, t->p->x + m0 * t->p->ldx, t->p->ldx, rows, t->p->K);
        x += (size_t)rows * row_bytes(t->p->K);
    }
}

static void work(const nb_product *p, terms mine, int id, int threads) {
    char *x = (char *)(share_of(p, mine.K, id) + 1);
    int64_t packed = -1;
    for (int i = 0; i < threads; i++) {
        share *s = share_of(p, mine.K, (id + i) % threads);
        const int64_t all = s->strips * ceil_div(p->M, NB_DOTS_ROWS);
        for (int64_t n; (n = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed)) < all;) {
            const int64_t m0 = n / s->strips * NB_DOTS_ROWS, n0 = s->lo + n % s->strips * NB_DOTS_STRIP;
            const int rows = (int)min64(NB_DOTS_ROWS, p->M - m0);
            if (packed != m0) pack(&mine, x, packed = m0, rows);
            strip(&mine, m0, rows, n0, (int)min64(NB_DOTS_STRIP, s->hi - n0));
        }
    }
}

bool nb_dots_run(nb_dots_choose *choose, const nb_product *p) {
    enum { FEW = 1 << 16 }; /* values that need no second thread */
    terms found;
    if (!collect(choose, p, &found)) return false;
    const int threads = p->M * p->N * found.K <= FEW ? 1 : p->threads;
    share_out(p, found.K, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    work(p, found, omp_get_thread_num(), threads);
    return true;
}
