#include "model/resident.h"

#include <stdlib.h>

#include "core/mem.h"
#include "model/pieces.h"

/* Everything that is copied; what is shared out is copied elsewhere. */
static void everything(nb_pieces *k, nb_resident *r, const nb_spec *s) {
    const bool same = r->head.data == r->embed.data; /* tied, and not quantized */
    nb_pieces_weight(k, &r->embed);
    nb_pieces_weight(k, &r->positions);
    if (same) r->head = r->embed;
    else nb_pieces_weight(k, &r->head);
    nb_pieces_floats(k, &r->head_bias, r->head.rows);
    nb_pieces_floats(k, &r->final_norm, s->hidden);
    nb_pieces_floats(k, &r->final_norm_bias, s->hidden);
    for (int64_t l = 0; l < s->layers; l++) {
        nb_resident_layer *layer = &r->layer[l];
        for (int i = 0; i < nb_spec_slots(s); i++) {
            if (!layer->w[i].home) nb_pieces_weight(k, &layer->w[i]);
            nb_pieces_floats(k, &layer->bias[i], layer->w[i].rows);
        }
        for (int i = 0; i < NB_NORMS; i++) {
            nb_pieces_floats(k, &layer->norm[i], nb_spec_norm_size(s, i));
            nb_pieces_floats(k, &layer->norm_bias[i], nb_spec_norm_size(s, i));
        }
    }
}

/* The base's own descriptors. */
static void borrow(nb_resident *r, const nb_base *b) {
    *r = (nb_resident){.embed = b->embed, .positions = b->positions, .head = b->head.w, .head_bias = b->head.bias,
                        .final_norm = b->final_norm, .final_norm_bias = b->final_norm_bias};
    int64_t L = b->spec.layers, slots = nb_spec_slots(&b->spec);
    r->layer = nb_calloc((size_t)L, sizeof *r->layer);
    r->w = nb_calloc((size_t)(L * slots), sizeof *r->w);
    r->bias = nb_calloc((size_t)(L * slots), sizeof *r->bias);
    for (int64_t l = 0; l < L; l++) {
        r->layer[l].w = r->w + l * slots;
        r->layer[l].bias = r->bias + l * slots;
        for (int i = 0; i < slots; i++)
            r->layer[l].w[i] = b->layer[l].lin[i].w, r->layer[l].bias[i] = b->layer[l].lin[i].bias;
        for (int i = 0; i < NB_NORMS; i++)
            r->layer[l].norm[i] = b->layer[l].norm[i], r->layer[l].norm_bias[i] = b->layer[l].norm_bias[i];
    }
}

static void free_descriptors(nb_resident *r) {
    free(r->w);
    free(r->bias);
    free(r->layer);
}

size_t nb_resident_bytes(const nb_base *base) {
    nb_resident r;
    nb_pieces k = {0};
    borrow(&r, base);
    everything(&k, &r, &base->spec);
    free_descriptors(&r);
    return k.at;
}

/* The linear layers go to the ranks of `comm`. */
static nb_status share_out(nb_resident *r, const nb_spec *s, nb_comm *comm) {
    return nb_shared_open(&r->shared, r->w, s->layers, nb_spec_slots(s), r->dev, comm);
}

static nb_status copy_all(nb_resident *r, const nb_base *base) {
    const nb_spec *s = &base->spec;
    nb_pieces count = {0}, k = {.dev = r->dev};
    nb_resident look = *r; /* counting moves no pointer */
    everything(&count, &look, s);
    NB_TRY(r->dev->be->alloc(r->dev, (void **)&r->block, count.at, "the base's weights"));
    r->bytes = count.at;
    k.to = k.address = r->block;
    everything(&k, r, s);
    return k.st;
}

nb_status nb_resident_open(nb_resident *r, const nb_base *base, nb_dev *dev, nb_comm *comm) {
    borrow(r, base);
    r->dev = dev;
    nb_status st = comm && comm->size > 1 ? share_out(r, &base->spec, comm) : NB_OK;
    if (st == NB_OK && !dev->be->host_memory) st = copy_all(r, base);
    if (st != NB_OK) nb_resident_close(r);
    return st;
}

size_t nb_resident_held(const nb_resident *r, const nb_base *base) {
    size_t bytes = r->dev->be->host_memory ? (size_t)nb_base_bytes(base, false) : r->bytes;
    if (!r->shared) return bytes;
    if (r->dev->be->host_memory)
        for (int64_t l = 0; l < base->spec.layers; l++)
            for (int i = 0; i < nb_spec_slots(&base->spec); i++)
                bytes -= (size_t)nb_weight_bytes(&base->layer[l].lin[i].w);
    return bytes + nb_shared_bytes(r->shared);
}

void nb_resident_close(nb_resident *r) {
    if (r->block) r->dev->be->free(r->dev, r->block, r->bytes);
    nb_shared_close(r->shared);
    free_descriptors(r);
    *r = (nb_resident){0};
}
