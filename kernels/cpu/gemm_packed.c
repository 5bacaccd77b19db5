#include "kernels/cpu/gemm_packed.h"

#include <omp.h>

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }
static int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }

/* One thread's scratch, each part a multiple of 256 bytes. */
typedef struct layout {
    size_t spare, y, x, all;
} layout;

static layout scratch_of(const nb_packed_isa *isa, int64_t M, int64_t K) {
    int64_t steps = min64(NB_PACKED_STEPS, ceil_div(K, isa->group)), rows = min64(NB_PACKED_ROWS, M);
    layout l = {.spare = NB_PACKED_SPARE * sizeof(float), .y = (size_t)(NB_PACKED_STEPS * isa->nr) * 4};
    l.x = (size_t)(rows * steps * 4 + 255) / 256 * 256;
    size_t thin = (size_t)(min64(NB_PACKED_THIN, M) * ceil_div(K, isa->group) * 4 + 255) / 256 * 256;
    if (thin > l.x) l.x = thin;
    l.all = l.spare + l.y + l.x;
    return l;
}

size_t nb_packed_ws(const nb_packed_isa *isa, int64_t M, int64_t N, int64_t K, int threads) {
    (void)N;
    return scratch_of(isa, M, K).all * (size_t)threads;
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
static void pack_panels(const nb_packed_isa *isa, const nb_product *p, uint32_t *x, int64_t m0, int64_t rows,
                        int64_t k0, int64_t kc) {
    const int64_t steps = ceil_div(kc, isa->group), part = p->tx ? NB_PACKED_ACROSS : kc;
    for (int64_t k = 0; k < kc; k += part)
        for (int64_t i = 0; i < rows; i += isa->mr) {
            const int64_t mr = min64(isa->mr, rows - i);
            isa->pack_x(x + i * steps + k / isa->group * mr, p, m0 + i, (int)mr, k0 + k, min64(part, kc - k));
        }
}

/* c[rows m0.., columns of panels `cols`] = alpha x y + beta c for the block k0 of k. */
static void run_block(const nb_packed_isa *isa, const nb_product *p, char *ws, int64_t m0, int64_t rows, range cols,
                      int64_t k0, int64_t kc) {
    const layout l = scratch_of(isa, p->M, p->K);
    float *spare = (float *)ws;
    uint32_t *y = (uint32_t *)(ws + l.spare), *x = (uint32_t *)(ws + l.spare + l.y);
    const int64_t steps = ceil_div(kc, isa->group);
    const float beta = k0 == 0 ? p->beta : 1;
    pack_panels(isa, p, x, m0, rows, k0, kc);
    for (int64_t j = cols.lo; j < cols.hi; j++) {
        const int64_t n0 = j * isa->nr;
        const int n_cols = (int)min64(isa->nr, p->N - n0), vectors = n_cols > isa->vec ? 2 : 1;
        isa->pack_y(y, p, n0, n_cols, k0, kc, spare);
        for (int64_t i = 0; i < rows; i += isa->mr) {
            nb_tile *tile = isa->tiles[(vectors - 1) * isa->mr + min64(isa->mr, rows - i) - 1];
            tile(steps, x + i * steps, y, p->c + (m0 + i) * p->ldc + n0, p->ldc, n_cols, p->alpha, beta);
        }
    }
}

/* Columns are the outer loop, so that each row of the weight is read from end to end. */
static void run_thin(const nb_packed_isa *isa, const nb_product *p, nb_thin *thin) {
    const int64_t block = (int64_t)NB_PACKED_STEPS * isa->group;
#pragma omp parallel num_threads(p->threads)
    {
        const int id = omp_get_thread_num();
        const layout l = scratch_of(isa, p->M, p->K);
        const range cols = share(ceil_div(p->N, isa->vec), id, p->threads);
        uint32_t *x = (uint32_t *)((char *)p->ws + l.all * (size_t)id + l.spare + l.y);
        for (int64_t k0 = 0; k0 < p->K && cols.lo < cols.hi; k0 += block)
            isa->pack_x(x + k0 / isa->group * p->M, p, 0, (int)p->M, k0, min64(block, p->K - k0));
        for (int64_t j = cols.lo; j < cols.hi; j++)
            for (int64_t n0 = j * isa->vec, k0 = 0; k0 == 0 || k0 < p->K; k0 += block)
                thin(p, x + k0 / isa->group * p->M, n0, (int)min64(isa->vec, p->N - n0), k0, min64(block, p->K - k0),
                     k0 == 0 ? p->beta : 1);
    }
}

void nb_packed_run(const nb_packed_isa *isa, const nb_product *p) {
    nb_thin *thin = isa->thin && p->M <= NB_PACKED_THIN ? isa->thin(p) : NULL;
    if (thin) {
        run_thin(isa, p, thin);
        return;
    }
    const int64_t row_panels = ceil_div(p->M, isa->mr), col_panels = ceil_div(p->N, isa->nr);
    const int64_t block = (int64_t)NB_PACKED_STEPS * isa->group;
    const grid g = choose_grid(p->threads, row_panels, col_panels);
#pragma omp parallel num_threads(p->threads)
    {
        const int id = omp_get_thread_num();
        const range r = share(row_panels, id / g.cols, g.rows), cols = share(col_panels, id % g.cols, g.cols);
        const int64_t end = min64(r.hi * isa->mr, p->M);
        char *ws = (char *)p->ws + scratch_of(isa, p->M, p->K).all * (size_t)id;
        for (int64_t m0 = r.lo * isa->mr; m0 < end; m0 += NB_PACKED_ROWS)
            for (int64_t k0 = 0; k0 == 0 || k0 < p->K; k0 += block)
                run_block(isa, p, ws, m0, min64(NB_PACKED_ROWS, end - m0), cols, k0, min64(block, p->K - k0));
    }
}
