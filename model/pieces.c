#include "model/pieces.h"

#include "core/mem.h"

/* Copies `bytes` from *p and lets *p point at the copy. */
static void piece(nb_pieces *k, const void **p, size_t bytes) {
    if (!*p || !bytes) return;
    if (k->dev && k->st == NB_OK) {
        if (k->to) k->st = k->dev->be->put(k->dev, k->to + k->at, *p, bytes);
        *p = (const void *)((uintptr_t)k->address + k->at);
    }
    k->at += (bytes + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN;
}

void nb_pieces_floats(nb_pieces *k, const float **p, int64_t n) {
    const void *q = *p;
    piece(k, &q, (size_t)n * sizeof(float));
    *p = q;
}

void nb_pieces_weight(nb_pieces *k, nb_weight *w) {
    int64_t n = w->rows * w->cols;
    if (!n) return;
    if (w->format != NB_FMT_NF4) {
        piece(k, &w->data, (size_t)nb_weight_bytes(w));
        return;
    }
    nb_nf4 *q = &w->nf4;
    int64_t blocks = (n + q->blocksize - 1) / q->blocksize;
    piece(k, &w->data, (size_t)((n + 1) / 2));
    nb_pieces_floats(k, &q->code, 16);
    nb_pieces_floats(k, &q->absmax, blocks);
    if (!q->absmax_u8) return;
    const void *u8 = q->absmax_u8;
    piece(k, &u8, (size_t)blocks);
    q->absmax_u8 = u8;
    nb_pieces_floats(k, &q->nested_absmax, (blocks + q->nested_blocksize - 1) / q->nested_blocksize);
    nb_pieces_floats(k, &q->nested_code, 256);
}

static const void *moved(const void *p, ptrdiff_t by) {
    return p ? (const void *)((uintptr_t)p + (uintptr_t)by) : NULL;
}

void nb_pieces_rebase(nb_weight *w, ptrdiff_t by) {
    nb_nf4 *q = &w->nf4;
    w->data = moved(w->data, by);
    q->code = moved(q->code, by), q->absmax = moved(q->absmax, by);
    q->absmax_u8 = moved(q->absmax_u8, by);
    q->nested_absmax = moved(q->nested_absmax, by), q->nested_code = moved(q->nested_code, by);
}
