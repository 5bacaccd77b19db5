#include "kernels/cpu/gemm_packed.h"

#include <omp.h>
#include <stdatomic.h>

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }
static int64_t max64(int64_t p, int64_t q) { return p > q ? p : q; }
static int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }

/* One thread's scratch, each part a multiple of 256 bytes, and the rows of x that it has room for. */
typedef struct layout {
    size_t spare, y, x, mine, all;
    int64_t rows;
} layout;

static layout scratch_of(const nb_packed_isa *isa, int64_t M, int64_t N, int64_t K) {
    const int64_t steps = max64(1, min64(NB_PACKED_GROUP, ceil_div(K, isa->group)));
    layout l = {.spare = NB_PACKED_SPARE * sizeof(float), .y = (size_t)(NB_PACKED_GROUP * isa->nr) * 4};
    l.rows = NB_PACKED_X / steps / isa->mr * isa->mr;
    l.x = (size_t)(min64(NB_PACKED_X, M * steps) * 4 + 255) / 256 * 256;
    l.mine = (size_t)(ceil_div(N, isa->nr) * 4 + 255) / 256 * 256;
    l.all = l.spare + l.y + l.x + l.mine;
    return l;
}

size_t nb_packed_ws(const nb_packed_isa *isa, int64_t M, int64_t N, int64_t K, int threads) {
    return scratch_of(isa, M, N, K).all * (size_t)threads;
}

/* K of the whole chain, each part of whole steps. */
static int64_t whole_k(const nb_packed_isa *isa, const nb_product *p) {
    int64_t k = 0;
    for (; p; p = p->next) k += ceil_div(p->K, isa->group) * isa->group;
    return k;
}

/* The group behind `g` (which begins as {.beta = p->beta}); *p and *k0 move on. The first has a block even when K is 0. */
static bool next_group(const nb_packed_isa *isa, nb_packed_group *g, const nb_product **p, int64_t *k0) {
    if (g->n) g->beta = 1;
    g->first += g->steps;
    g->n = 0, g->steps = 0;
    while (*p && g->n < NB_LEN(g->b)) {
        const int64_t kc = min64((int64_t)NB_PACKED_STEPS * isa->group, (*p)->K - *k0), steps = ceil_div(kc, isa->group);
        if (g->steps + steps > NB_PACKED_GROUP || (g->n && (*p)->alpha != g->alpha)) break;
        g->alpha = (*p)->alpha;
        g->b[g->n++] = (nb_packed_block){*p, *k0, kc, g->steps};
        g->steps += steps;
        *k0 += kc;
        if (*k0 >= (*p)->K) *p = (*p)->next, *k0 = 0;
    }
    return g->n > 0;
}

typedef struct grid {
    int rows, cols; /* threads along M and N */
} grid;

/* The division with the shortest longest share. Unit: the product of one tile; packing a panel of y takes about one
 * (two fifths for x), whoever else packs it too. */
static grid choose_grid(int threads, int64_t row_panels, int64_t col_panels) {
    grid best = {1, threads};
    double best_cost = 1e300;
    for (int cols = threads; cols >= 1; cols--) {
        if (threads % cols) continue;
        double r = (double)ceil_div(row_panels, threads / cols), c = (double)ceil_div(col_panels, cols);
        double cost = r * c + 0.4 * r + c;
        if (cost < best_cost) best_cost = cost, best = (grid){threads / cols, cols};
    }
    return best;
}

/* Panels lo..hi-1. */
typedef struct range {
    int64_t lo, hi;
} range;

static range share(int64_t panels, int id, int parts) {
    return (range){panels * id / parts, panels * (id + 1) / parts};
}

/* x panels of these rows. An x that lies across k is packed a few of its rows at a time: a line of one serves several
 * panels, and with rows pages apart it would not stay in the cache until the next panel wants it. */
static void pack_panels(const nb_packed_isa *isa, const nb_packed_group *g, const nb_packed_block *b, uint32_t *x,
                        int64_t m0, int64_t rows) {
    const int64_t part = b->p->tx ? NB_PACKED_ACROSS : b->kc;
    for (int64_t k = 0; k < b->kc; k += part)
        for (int64_t i = 0; i < rows; i += isa->mr) {
            const int64_t mr = min64(isa->mr, rows - i);
            isa->pack_x(x + i * g->steps + (b->at + k / isa->group) * mr, b->p, m0 + i, (int)mr, b->k0 + k,
                        min64(part, b->kc - k));
        }
}

/* Panels of columns: threads that share rows take the next one that nobody has, so that a slower one, or one whose core
 * has other work, takes fewer. Later groups add to what the first has stored: a thread keeps its panels for them. */
typedef struct columns {
    _Atomic int64_t *next; /* shared */
    int64_t panels, n;
    int32_t *mine; /* n of them so far */
} columns;

/* The i-th panel of this thread; -1: there is none. */
static int64_t take(columns *cols, int64_t i, bool first) {
    if (!first || i < cols->n) return i < cols->n ? cols->mine[i] : -1;
    const int64_t j = atomic_fetch_add_explicit(cols->next, 1, memory_order_relaxed);
    if (j >= cols->panels) return -1;
    cols->mine[cols->n++] = (int32_t)j;
    return j;
}

/* c[rows m0.., this thread's columns] = alpha * the sum of a group + beta c. */
static void run_group(const nb_packed_isa *isa, const nb_product *p, const nb_packed_group *g, layout l, char *ws,
                      int64_t m0, int64_t rows, columns *cols, bool first) {
    float *spare = (float *)ws;
    uint32_t *y = (uint32_t *)(ws + l.spare), *x = (uint32_t *)(ws + l.spare + l.y);
    for (int k = 0; k < g->n; k++) pack_panels(isa, g, &g->b[k], x, m0, rows);
    for (int64_t n = 0, j; (j = take(cols, n, first)) >= 0; n++) {
        const int64_t n0 = j * isa->nr;
        const int n_cols = (int)min64(isa->nr, p->N - n0), vectors = n_cols > isa->vec ? 2 : 1;
        for (const nb_packed_block *b = g->b; b < g->b + g->n; b++)
            isa->pack_y(y + b->at * vectors * isa->vec, b->p, n0, n_cols, b->k0, b->kc, spare);
        for (int64_t i = 0; i < rows; i += isa->mr) {
            nb_tile *tile = isa->tiles[(vectors - 1) * isa->mr + min64(isa->mr, rows - i) - 1];
            tile(g->steps, x + i * g->steps, y, p->c + (m0 + i) * p->ldc + n0, p->ldc, n_cols, g->alpha, g->beta);
        }
    }
}

void nb_packed_run(const nb_packed_isa *isa, const nb_product *p) {
    const int64_t row_panels = ceil_div(p->M, isa->mr), col_panels = ceil_div(p->N, isa->nr);
    const layout l = scratch_of(isa, p->M, p->N, whole_k(isa, p));
    const grid g = choose_grid(p->threads, row_panels, col_panels);
    _Atomic int64_t next[g.rows];
    for (int i = 0; i < g.rows; i++) atomic_init(&next[i], 0);
#pragma omp parallel num_threads(p->threads)
    {
        const int id = omp_get_thread_num();
        const range r = share(row_panels, id / g.cols, g.rows);
        const int64_t end = min64(r.hi * isa->mr, p->M);
        char *ws = (char *)p->ws + l.all * (size_t)id;
        columns cols = {.next = &next[id / g.cols], .panels = col_panels, .mine = (int32_t *)(ws + l.all - l.mine)};
        bool first = true;
        for (int64_t m0 = r.lo * isa->mr; m0 < end; m0 += l.rows) {
            nb_packed_group now = {.beta = p->beta};
            const nb_product *at = p;
            for (int64_t k0 = 0; next_group(isa, &now, &at, &k0); first = false)
                run_group(isa, p, &now, l, ws, m0, min64(l.rows, end - m0), &cols, first);
        }
    }
}
