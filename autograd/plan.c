#include "autograd/plan.h"

#include <stdlib.h>

#include "core/mem.h"

static const nb_plan_buf *sorting;

static int larger_first(const void *x, const void *y) {
    const nb_plan_buf *p = sorting + *(const int32_t *)x, *q = sorting + *(const int32_t *)y;
    if (p->bytes != q->bytes) return p->bytes < q->bytes ? 1 : -1;
    return p->first != q->first ? (p->first < q->first ? -1 : 1) : (p < q ? -1 : p > q);
}

static int by_offset(const void *x, const void *y) {
    const nb_plan_buf *p = sorting + *(const int32_t *)x, *q = sorting + *(const int32_t *)y;
    return p->offset < q->offset ? -1 : p->offset > q->offset;
}

void nb_plan_place(nb_plan *p) {
    int32_t *order = nb_calloc((size_t)p->n, sizeof *order), *alive = nb_calloc((size_t)p->n, sizeof *alive);
    for (int32_t i = 0; i < p->n; i++) order[i] = i;
    sorting = p->bufs;
    qsort(order, (size_t)p->n, sizeof *order, larger_first);
    p->peak = 0;
    for (int32_t k = 0; k < p->n; k++) {
        nb_plan_buf *b = &p->bufs[order[k]];
        int32_t n = 0;
        for (int32_t j = 0; j < k; j++) {
            const nb_plan_buf *o = &p->bufs[order[j]];
            if (o->first <= b->last && b->first <= o->last) alive[n++] = order[j];
        }
        qsort(alive, (size_t)n, sizeof *alive, by_offset);
        size_t at = 0;
        for (int32_t j = 0; j < n; j++) {
            const nb_plan_buf *o = &p->bufs[alive[j]];
            if (o->offset >= at + b->bytes) break;
            if (o->offset + o->bytes > at) at = o->offset + o->bytes;
        }
        b->offset = at;
        if (at + b->bytes > p->peak) p->peak = at + b->bytes;
    }
    free(order);
    free(alive);
}

void nb_plan_free(nb_plan *p) {
    free(p->bufs);
    *p = (nb_plan){0};
}
