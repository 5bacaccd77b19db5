#include "kernels/cpu/gemm_packed.h"

#include <omp.h>

static int64_t min64(int64_t p, int64_t q) { return p < q ? p : q; }
static int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
static size_t spare_bytes(void) { return aligned(NB_PACKED_SPARE * sizeof(float)); }
static size_t y_bytes(const nb_packed_isa *isa) { return aligned((size_t)NB_PACKED_STEPS * (size_t)isa->nr * 4); }

/* All threads' y panels first, then the shared rows of x. */
size_t nb_packed_ws(const nb_packed_isa *isa, int64_t M, int64_t N, int64_t K, int threads) {
    (void)N;
    int64_t steps = min64(NB_PACKED_STEPS, ceil_div(K, isa->group));
    return (spare_bytes() + y_bytes(isa)) * (size_t)threads + aligned((size_t)(min64(NB_PACKED_ROWS, M) * steps) * 4);
}

/* Threads form a grid over c: `cols` of them share the column panels, the others the row panels. Who shares columns
 * packs less of y twice, so rows are cut only when that shortens the longest thread's work. */
typedef struct grid { int rows, cols; } grid;

static grid choose_grid(int threads, int64_t row_panels, int64_t col_panels) {
    const int pack = 1; /* packing a panel of y costs about one row panel's product */
    grid best = {1, threads};
    int64_t best_cost = INT64_MAX;
    for (int cols = threads; cols >= 1; cols--) {
        if (threads % cols) continue;
        int64_t cost = ceil_div(col_panels, cols) * (ceil_div(row_panels, threads / cols) + pack);
        if (cost < best_cost) best_cost = cost, best = (grid){threads / cols, cols};
    }
    return best;
}

/* The part of c that rows m0.. and this block of k add, as far as it is this thread's. */
static void run_block(const nb_packed_isa *isa, const nb_product *p, const uint32_t *x, uint32_t *y, float *spare, int64_t m0,
                      int64_t rows, int64_t k0, int64_t kc, grid g) {
    int id = omp_get_thread_num(), row_id = id / g.cols, col_id = id % g.cols;
    int64_t steps = ceil_div(kc, isa->group), row_panels = ceil_div(rows, isa->mr), col_panels = ceil_div(p->N, isa->nr);
    int64_t i_lo = row_panels * row_id / g.rows, i_hi = row_panels * (row_id + 1) / g.rows;
    if (i_lo == i_hi) return;
    for (int64_t j = col_panels * col_id / g.cols; j < col_panels * (col_id + 1) / g.cols; j++) {
        int n_cols = (int)min64(isa->nr, p->N - j * isa->nr), vectors = n_cols > isa->vec ? 2 : 1;
        isa->pack_y(y, p, j * isa->nr, n_cols, k0, kc, spare);
        for (int64_t i = i_lo; i < i_hi; i++) {
            int mr = (int)min64(isa->mr, rows - i * isa->mr);
            isa->tiles[(vectors - 1) * isa->mr + mr - 1](steps, x + i * isa->mr * steps, y,
                                                         p->c + (m0 + i * isa->mr) * p->ldc + j * isa->nr, p->ldc, n_cols,
                                                         p->alpha, k0 == 0 ? p->beta : 1);
        }
    }
}

void nb_packed_run(const nb_packed_isa *isa, const nb_product *p) {
    const int64_t block = (int64_t)NB_PACKED_STEPS * isa->group;
    char *ws = p->ws;
    uint32_t *x = (uint32_t *)(ws + (spare_bytes() + y_bytes(isa)) * (size_t)p->threads);
    grid g = choose_grid(p->threads, ceil_div(min64(NB_PACKED_ROWS, p->M), isa->mr), ceil_div(p->N, isa->nr));
#pragma omp parallel num_threads(p->threads)
    {
        int id = omp_get_thread_num();
        float *spare = (float *)(ws + (spare_bytes() + y_bytes(isa)) * (size_t)id);
        uint32_t *y = (uint32_t *)((char *)spare + spare_bytes());
        for (int64_t m0 = 0; m0 < p->M; m0 += NB_PACKED_ROWS) {
            int64_t rows = min64(NB_PACKED_ROWS, p->M - m0), panels = ceil_div(rows, isa->mr);
            for (int64_t k0 = 0; k0 == 0 || k0 < p->K; k0 += block) {
                int64_t kc = min64(block, p->K - k0), steps = ceil_div(kc, isa->group);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < panels; i++)
                    isa->pack_x(x + i * isa->mr * steps, p, m0 + i * isa->mr, (int)min64(isa->mr, rows - i * isa->mr), k0, kc);
                run_block(isa, p, x, y, spare, m0, rows, k0, kc, g);
#pragma omp barrier
            }
        }
    }
}
