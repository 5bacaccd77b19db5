/* Where the buffers of a tape live. A run on the null device records every buffer's size and the first and
 * last event that touches it (NB_MEM_PLAN); nb_plan_place then gives each an offset so that buffers alive at the
 * same time never overlap; real runs repeat the same sequence inside one block of plan.peak bytes (NB_MEM_ARENA),
 * with sizes at most those planned. NB_MEM_DIRECT gives every buffer a block of its own between red zones, for
 * tests of single operations. */
#ifndef NB_AUTOGRAD_PLAN_H
#define NB_AUTOGRAD_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct nb_plan_buf {
    size_t bytes, offset;
    int32_t first, last; /* events */
} nb_plan_buf;

typedef struct nb_plan {
    nb_plan_buf *bufs;
    int32_t n, cap;
    size_t peak;   /* bytes of the block, after nb_plan_place */
    size_t ws;     /* device scratch the same run needs */
} nb_plan;

/* Greedy by size: largest first, each at the lowest offset free during its whole life. */
void nb_plan_place(nb_plan *p);
void nb_plan_free(nb_plan *p);

typedef enum nb_mem_mode { NB_MEM_PLAN, NB_MEM_ARENA, NB_MEM_DIRECT } nb_mem_mode;

#endif
