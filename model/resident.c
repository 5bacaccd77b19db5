#include "model/resident.h"

#include <stdlib.h>

#include "core/mem.h"

/* Walks over everything that is copied: first only to count, then to place each piece in the block. */
typedef struct walk {
    nb_dev *dev; /* NULL: count */
    char *block;
    size_t at;
    nb_status st;
} walk;

/* Copies `bytes` from *p and lets *p point at the copy. */
static void piece(walk *k, const void **p, size_t bytes) {
    if (!*p || !bytes) return;
    if (k->dev && k->st == NB_OK) {
        k->st = k->dev->be->put(k->dev, k->block + k->at, *p, bytes);
        *p = k->block + k->at;
    }
    k->at += (bytes + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN;
}

static void floats(walk *k, const float **p, int64_t n) {
    const void *q = *p;
    piece(k, &q, (size_t)n * sizeof(float));
    *p = q;
}

static void weight(walk *k, nb_weight *w) {
    int64_t n = w->rows * w->cols;
    if (!n) return;
    if (w->format != NB_FMT_NF4) {
        piece(k, &w->data, (size_t)nb_weight_bytes(w));
        return;
    }
    nb_nf4 *q = &w->nf4;
    int64_t blocks = (n + q->blocksize - 1) / q->blocksize;
    piece(k, &w->data, (size_t)((n + 1) / 2));
    floats(k, &q->code, 16);
    floats(k, &q->absmax, blocks);
    if (!q->absmax_u8) return;
    const void *u8 = q->absmax_u8;
    piece(k, &u8, (size_t)blocks);
    q->absmax_u8 = u8;
    floats(k, &q->nested_absmax, (blocks + q->nested_blocksize - 1) / q->nested_blocksize);
    floats(k, &q->nested_code, 256);
}

static void everything(walk *k, nb_resident *r, const nb_spec *s) {
    weight(k, &r->embed);
    if (s->tied) r->head = r->embed;
    else weight(k, &r->head);
    floats(k, &r->head_bias, r->head.rows);
    floats(k, &r->final_norm, s->hidden);
    for (int64_t l = 0; l < s->layers; l++) {
        nb_resident_layer *layer = &r->layer[l];
        for (int i = 0; i < NB_SLOTS; i++) weight(k, &layer->w[i]), floats(k, &layer->bias[i], layer->w[i].rows);
        for (int i = 0; i < NB_NORMS; i++) floats(k, &layer->norm[i], s->hidden);
    }
}

/* The base's own descriptors. */
static void borrow(nb_resident *r, const nb_base *b) {
    *r = (nb_resident){.embed = b->embed, .head = b->head.w, .head_bias = b->head.bias, .final_norm = b->final_norm};
    r->layer = nb_calloc((size_t)b->spec.layers, sizeof *r->layer);
    for (int64_t l = 0; l < b->spec.layers; l++) {
        for (int i = 0; i < NB_SLOTS; i++)
            r->layer[l].w[i] = b->layer[l].lin[i].w, r->layer[l].bias[i] = b->layer[l].lin[i].bias;
        for (int i = 0; i < NB_NORMS; i++) r->layer[l].norm[i] = b->layer[l].norm[i];
    }
}

size_t nb_resident_bytes(const nb_base *base) {
    nb_resident r;
    walk k = {0};
    borrow(&r, base);
    everything(&k, &r, &base->spec);
    free(r.layer);
    return k.at;
}

nb_status nb_resident_open(nb_resident *r, const nb_base *base, nb_dev *dev) {
    borrow(r, base);
    r->dev = dev;
    if (dev->be->host_memory) return NB_OK;
    size_t bytes = nb_resident_bytes(base);
    nb_status st = dev->be->alloc(dev, (void **)&r->block, bytes, "the base's weights");
    walk k = {.dev = dev, .block = r->block, .st = st};
    if (st == NB_OK) {
        r->bytes = bytes;
        everything(&k, r, &base->spec);
    }
    if (k.st != NB_OK) nb_resident_close(r);
    return k.st;
}

void nb_resident_close(nb_resident *r) {
    if (r->block) r->dev->be->free(r->dev, r->block, r->bytes);
    free(r->layer);
    *r = (nb_resident){0};
}
