/* The loops around a register-tiled kernel, shared by all instruction sets (after Goto & van de Geijn, "Anatomy of
 * high-performance matrix multiplication", 2008). Both operands are repacked so that the innermost loop reads
 * memory in order. A *step* is 4 bytes of one row or column: one f32, or two bf16 that follow each other along k:
 *
 *      x panel  [steps][mr]   rows m0 .. m0+mr-1         y panel  [steps][nr]   columns n0 .. n0+nr-1
 *
 * The last x panel has fewer rows and is packed as narrow as it is; y panels are filled up to whole vectors.
 * Every element of c is summed in the same order whatever the sizes of x and the number of threads: along k in
 * blocks of at most NB_PACKED_STEPS steps. A *group* is as many blocks that follow each other as fit into NB_PACKED_GROUP
 * steps, of one product or of several that are added up (nb_product.next) with the same alpha: an adapter's few steps ride
 * on the last block of its base. It is summed from zero and then added to c. Steps that generate may be summed in another
 * order, which does not depend on those sizes either: kernels/cpu/dots.h.
 *
 * Threads form a grid over c, and those that share rows take its panels of columns one by one, so that none waits for a
 * slower one. Each packs what it needs by itself: packing some panels twice costs less than waiting for one another. */
#ifndef NB_KERNELS_CPU_GEMM_PACKED_H
#define NB_KERNELS_CPU_GEMM_PACKED_H

#include "kernels/cpu/gemm.h"

enum {
    NB_PACKED_STEPS = 1024, /* reading and writing c costs 3 % of this many, and twice as much of 512 */
    NB_PACKED_GROUP = NB_PACKED_STEPS + 64, /* room for adapters behind a block */
    NB_PACKED_ACROSS = 32, /* of an x that lies across k: values of k packed at a time, whole steps */
    NB_PACKED_X = NB_PACKED_GROUP * 516, /* steps of x a thread packs at a time (2.2 MiB): 512 rows of a whole group */
    NB_PACKED_SPARE = 32 * 128, /* floats of scratch a pack_y may decode into */
};

/* c[mr, n_cols] = alpha * (x panel)(y panel) + beta * c, for a fixed mr and number of column vectors. */
typedef void nb_tile(int64_t steps, const uint32_t *x, const uint32_t *y, float *c, int64_t ldc, int n_cols,
                     float alpha, float beta);

/* k0 .. k0+kc-1 of a product of the chain; `at`: its first step among the group's. */
typedef struct nb_packed_block {
    const nb_product *p;
    int64_t k0, kc, at;
} nb_packed_block;

typedef struct nb_packed_group {
    nb_packed_block b[16];
    int n;
    int64_t steps, first; /* of the group; before it, in the whole chain */
    float alpha, beta;
} nb_packed_group;

typedef struct nb_packed_isa {
    int group;    /* values of k in a step: 1 f32 or 2 bf16 */
    int mr, nr, vec; /* rows and columns of the largest tile; columns of a vector (nr is two) */
    void (*pack_x)(uint32_t *out, const nb_product *p, int64_t m0, int mr, int64_t k0, int64_t kc);
    void (*pack_y)(uint32_t *out, const nb_product *p, int64_t n0, int nr, int64_t k0, int64_t kc, float *spare);
    nb_tile *const *tiles; /* [2][mr]: tiles[(vectors-1)*mr + rows-1] */
} nb_packed_isa;

size_t nb_packed_ws(const nb_packed_isa *isa, int64_t M, int64_t N, int64_t K, int threads);
void nb_packed_run(const nb_packed_isa *isa, const nb_product *p);

#endif
