#include "model/shared.h"

#include <stdlib.h>

#include "core/mem.h"
#include "model/pieces.h"

/* Pointers of a weight at home count from here, an address like any other, until its layer is somewhere. */
static char *const nowhere = (char *)(uintptr_t)NB_ALIGN;

static bool is_ours(const nb_shared *s, int64_t l) { return l % s->comm->size == s->comm->rank; }

/* The layer is here, or on its way in the order of the stream. All ranks know what the slots of all others hold. */
static nb_status bring(nb_shared *s, nb_shared_layer *layer) {
    if (layer->slot >= 0 || s->asleep) return NB_OK;
    for (int64_t l = 0; l < s->layers; l++)
        if (s->layer[l].slot == s->next) s->layer[l].slot = -1;
    layer->slot = s->next;
    s->next ^= 1;
    return nb_comm_broadcast_device(s->comm, layer->own ? layer->own : s->slot[layer->slot], layer->bytes,
                                    (int)((layer - s->layer) % s->comm->size));
}

static nb_status acquire(nb_home *home, nb_weight *w) {
    nb_shared_layer *layer = (nb_shared_layer *)home;
    NB_TRY(bring(layer->shared, layer));
    if (layer->shared->asleep) return NB_OK;
    nb_pieces_rebase(w, (layer->own ? layer->own : layer->shared->slot[layer->slot]) - nowhere);
    return NB_OK;
}

static nb_status make_room(nb_shared *s, nb_weight *w, int slots) {
    for (int64_t l = 0; l < s->layers; l++) {
        nb_pieces k = {0};
        for (int i = 0; i < slots; i++) nb_pieces_weight(&k, &w[l * slots + i]);
        s->layer[l] = (nb_shared_layer){.home = {acquire}, .shared = s, .bytes = k.at, .slot = -1};
        if (is_ours(s, l)) s->block_bytes += k.at;
        if (k.at > s->slot_bytes) s->slot_bytes = k.at;
    }
    for (int i = 0; i < 2; i++)
        NB_TRY(s->dev->be->alloc(s->dev, (void **)&s->slot[i], s->slot_bytes, "layers of the base that come by"));
    if (!s->block_bytes) return NB_OK; /* more ranks than layers */
    return s->dev->be->alloc(s->dev, (void **)&s->block, s->block_bytes, "our layers of the base");
}

nb_status nb_shared_open(nb_shared **out, nb_weight *w, int64_t layers, int slots, nb_dev *dev, nb_comm *comm) {
    nb_shared *s = *out = NB_NEW(nb_shared);
    *s = (nb_shared){.comm = comm, .dev = dev, .layers = layers};
    s->layer = nb_calloc((size_t)layers, sizeof *s->layer);
    NB_TRY(make_room(s, w, slots));
    size_t at = 0;
    for (int64_t l = 0; l < layers; l++) {
        if (is_ours(s, l)) s->layer[l].own = s->block + at, at += s->layer[l].bytes;
        nb_pieces k = {.dev = dev, .to = s->layer[l].own, .address = nowhere};
        for (int i = 0; i < slots; i++) {
            nb_pieces_weight(&k, &w[l * slots + i]);
            w[l * slots + i].home = &s->layer[l].home;
        }
        NB_TRY(k.st);
    }
    return NB_OK;
}

void nb_shared_close(nb_shared *s) {
    if (!s) return;
    for (int i = 0; i < 2; i++)
        if (s->slot[i]) s->dev->be->free(s->dev, s->slot[i], s->slot_bytes);
    if (s->block) s->dev->be->free(s->dev, s->block, s->block_bytes);
    free(s->layer);
    free(s);
}

size_t nb_shared_bytes(const nb_shared *s) { return s->block_bytes + 2 * s->slot_bytes; }
