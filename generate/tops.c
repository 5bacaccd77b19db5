#include "generate/tops.h"

#include <stdlib.h>

#include "core/mem.h"

enum { MOST = 256 }; /* the kernel's limit: top-k is hardly larger, and top-p's share is rarely spread over more */

static size_t bytes_of(const nb_tops *t) { return (size_t)(t->rows * (1 + 2 * t->n)) * sizeof(float); }

nb_status nb_tops_open(nb_tops *t, nb_dev *dev, int64_t rows, int64_t vocab) {
    *t = (nb_tops){.dev = dev, .rows = rows, .n = vocab < MOST ? vocab : MOST};
    t->here = nb_calloc(1, bytes_of(t));
    return dev->be->alloc(dev, (void **)&t->there, bytes_of(t), "the most likely tokens");
}

void nb_tops_close(nb_tops *t) {
    if (t->there) t->dev->be->free(t->dev, t->there, bytes_of(t));
    free(t->here);
    *t = (nb_tops){0};
}

nb_status nb_tops_find(nb_tops *t, const float *logits, int64_t rows, int64_t vocab, float rate) {
    NB_ASSERT(rows <= t->rows);
    float *values = t->there + t->rows;
    int32_t *ids = (int32_t *)(values + t->rows * t->n);
    NB_TRY(t->dev->k->top_logits(t->dev, values, ids, t->there, logits, rows, vocab, t->n, rate));
    return t->dev->be->get(t->dev, t->here, t->there, bytes_of(t));
}

nb_top nb_tops_row(const nb_tops *t, int64_t row) {
    const float *values = t->here + t->rows;
    const int32_t *ids = (const int32_t *)(values + t->rows * t->n);
    return (nb_top){values + row * t->n, ids + row * t->n, t->n, t->here[row]};
}
