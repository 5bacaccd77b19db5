#include "model/transformer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/ops.h"
#include "core/mem.h"

static nb_tensor vector_leaf(const char *name, const float *data, int64_t n) {
    /* frozen: nothing writes through this pointer */
    return nb_leaf(name, (float *)(uintptr_t)data, NULL, 1, n, 0);
}

static nb_status rope_tables(nb_model *m) {
    const nb_rope_spec *r = &m->spec->rope;
    int64_t half = r->rot / 2;
    size_t bytes = (size_t)(m->positions * half) * sizeof(float);
    double *inv = nb_calloc((size_t)half, sizeof *inv);
    float *host = nb_malloc(bytes);
    nb_rope_inv_freq(r, inv);
    nb_status st = NB_OK;
    for (int which = 0; which < 2 && st == NB_OK; which++) {
        for (int64_t p = 0; p < m->positions; p++)
            for (int64_t j = 0; j < half; j++) {
                double angle = (double)p * inv[j];
                host[p * half + j] = (float)(which ? sin(angle) : cos(angle));
            }
        float **table = which ? &m->sin : &m->cos;
        st = m->dev->be->alloc(m->dev, (void **)table, bytes, "the RoPE tables");
        if (st == NB_OK) st = m->dev->be->put(m->dev, *table, host, bytes);
    }
    free(inv);
    free(host);
    return st;
}

static void link_linear(nb_linear *lin, const nb_base_linear *base, const nb_weight *w, const float *bias,
                        uint32_t site) {
    *lin = (nb_linear){.base = base, .w = w, .site = site};
    if (bias) lin->bias = vector_leaf("bias", bias, w->rows);
}

/* Every linear layer and norm with its weights on the device. */
static void link_weights(nb_model *m) {
    const nb_base *b = m->base;
    uint32_t site = 0;
    for (int64_t l = 0; l < m->spec->layers; l++) {
        const nb_resident_layer *r = &m->weights.layer[l];
        for (int s = 0; s < NB_SLOTS; s++)
            link_linear(&m->block[l].lin[s], &b->layer[l].lin[s], &r->w[s], r->bias[s], site++);
        for (int s = 0; s < NB_NORMS; s++) m->block[l].norm[s] = vector_leaf("norm", r->norm[s], m->spec->hidden);
    }
    link_linear(&m->head, &b->head, &m->weights.head, m->weights.head_bias, site);
    m->final_norm = vector_leaf("final norm", m->weights.final_norm, m->spec->hidden);
}

nb_status nb_model_open_shared(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions, nb_comm *comm) {
    nb_model *m = NB_NEW(nb_model);
    m->base = base;
    m->spec = &base->spec;
    m->dev = dev;
    m->positions = positions;
    m->block = nb_calloc((size_t)m->spec->layers, sizeof *m->block);
    nb_status st = nb_resident_open(&m->weights, base, dev, comm);
    if (st == NB_OK) {
        link_weights(m);
        st = rope_tables(m);
    }
    if (st != NB_OK) {
        nb_model_free(m);
        return st;
    }
    *out = m;
    return NB_OK;
}

nb_status nb_model_open(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions) {
    return nb_model_open_shared(out, base, dev, positions, NULL);
}

void nb_model_free(nb_model *m) {
    if (!m) return;
    size_t bytes = (size_t)(m->positions * (m->spec->rope.rot / 2)) * sizeof(float);
    if (m->cos) m->dev->be->free(m->dev, m->cos, bytes);
    if (m->sin) m->dev->be->free(m->dev, m->sin, bytes);
    nb_resident_close(&m->weights);
    free(m->block);
    free(m);
}

void nb_model_each_linear(nb_model *m, bool with_head, void (*fn)(nb_linear *, int64_t, void *), void *arg) {
    for (int64_t l = 0; l < m->spec->layers; l++)
        for (int s = 0; s < NB_SLOTS; s++)
            if (m->block[l].lin[s].base->w.rows) fn(&m->block[l].lin[s], l, arg);
    if (with_head) fn(&m->head, -1, arg);
}

nb_status nb_kv_cache_open(nb_kv_cache *c, const nb_model *m, int64_t rows) {
    int64_t L = m->spec->layers, width = m->spec->kv_heads * m->spec->head_dim;
    *c = (nb_kv_cache){.rows = rows, .dev = m->dev};
    size_t size = (size_t)nb_dtype_size(m->dev->elem);
    size_t one = ((size_t)(rows * width) * size + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN;
    c->bytes = 2 * one * (size_t)L;
    char *base;
    NB_TRY(m->dev->be->alloc(m->dev, (void **)&base, c->bytes, "the KV cache"));
    c->k = nb_calloc((size_t)(2 * L), sizeof *c->k);
    c->v = c->k + L;
    for (int64_t l = 0; l < L; l++) {
        c->k[l] = base + (size_t)(2 * l) * one;
        c->v[l] = base + (size_t)(2 * l + 1) * one;
    }
    return NB_OK;
}

void nb_kv_cache_close(nb_kv_cache *c) {
    if (c->k) c->dev->be->free(c->dev, c->k[0], c->bytes);
    free(c->k);
    *c = (nb_kv_cache){0};
}

/* ---- the graph ---- */

static void put_linear(nb_linear *lin, int i, nb_tensor **in, nb_linear_attr *a) {
    in[1 + 4 * i] = lin->weight;
    in[2 + 4 * i] = lin->bias_trained ? lin->bias_trained : lin->bias.data ? &lin->bias : NULL;
    in[3 + 4 * i] = lin->lora_A;
    in[4 + 4 * i] = lin->lora_B;
    a->slot[i] = (nb_linear_slot){lin->w, lin->scale, lin->dropout, lin->site};
}

/* out[i] = lin[i](x) for n layers over one input. */
static nb_status linear(nb_tape *t, nb_tensor *x, nb_linear *const *lin, int n, nb_tensor **out) {
    nb_tensor *in[13] = {x};
    nb_linear_attr a = {.n = n};
    for (int i = 0; i < n; i++) put_linear(lin[i], i, in, &a);
    return nb_apply(t, &nb_op_linear, in, 1 + 4 * n, &a, out);
}

static nb_status norm(nb_model *m, nb_tape *t, nb_tensor *x, nb_tensor *frozen, nb_tensor *trained, nb_tensor **out) {
    nb_tensor *in[2] = {x, trained ? trained : frozen};
    nb_rmsnorm_attr a = {m->spec->norm_eps, m->spec->norm_offset};
    return nb_apply(t, &nb_op_rmsnorm, in, 2, &a, out);
}

static nb_status add(nb_tape *t, nb_tensor *x1, nb_tensor *x2, nb_tensor **out) {
    nb_tensor *in[2] = {x1, x2};
    return nb_apply(t, &nb_op_add, in, 2, NULL, out);
}

static nb_status self_attention(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, int64_t l, nb_tensor *x,
                                nb_tensor **out) {
    const nb_spec *s = m->spec;
    nb_block *blk = &m->block[l];
    nb_linear *qkv[3] = {&blk->lin[NB_Q], &blk->lin[NB_K], &blk->lin[NB_V]}, *o[1] = {&blk->lin[NB_O]};
    nb_tensor *y[3], *rotated[2], *mixed;
    NB_TRY(linear(t, x, qkv, 3, y));
    nb_rope_attr rope = {m->cos, m->sin, b->pos, s->heads, s->kv_heads, s->head_dim, s->rope.rot};
    NB_TRY(nb_apply(t, &nb_op_rope, y, 2, &rope, rotated));
    nb_attention_attr attn = {.segs = b->segs, .n_segs = b->n_segs, .heads = s->heads, .kv_heads = s->kv_heads,
                              .head_dim = s->head_dim, .window = s->window, .scale = s->attn_scale,
                              .softcap = s->attn_softcap};
    attn.pairs = b->pairs;
    if (cache)
        attn.k_cache = cache->k[l], attn.v_cache = cache->v[l], attn.cache_rows = cache->rows, attn.kv_rows = b->kv_rows;
    nb_tensor *in[3] = {rotated[0], rotated[1], y[2]};
    NB_TRY(nb_apply(t, &nb_op_attention, in, 3, &attn, &mixed));
    return linear(t, mixed, o, 1, out);
}

static nb_status mlp(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **out) {
    nb_block *blk = &m->block[l];
    nb_linear *in[2] = {&blk->lin[NB_GATE], &blk->lin[NB_UP]}, *down[1] = {&blk->lin[NB_DOWN]};
    nb_tensor *y[2], *h;
    NB_TRY(linear(t, x, in, 2, y));
    nb_glu_attr a = {m->spec->act};
    NB_TRY(nb_apply(t, &nb_op_glu, y, 2, &a, &h));
    return linear(t, h, down, 1, out);
}

static nb_status hidden_states(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, nb_tensor **out) {
    nb_embedding_attr emb = {.w = &m->weights.embed, .ids = b->ids, .n = b->n, .scale = m->spec->embed_scale,
                             .row_ids = m->rows.ids_on_device, .n_rows = m->rows.n};
    nb_tensor *in[2] = {m->embed_trained, m->rows.n ? m->rows.embed : NULL}, *x, *h, *y;
    t->batch = b;
    NB_TRY(nb_apply(t, &nb_op_embedding, in, 2, &emb, &x));
    for (int64_t l = 0; l < m->spec->layers; l++) {
        nb_block *blk = &m->block[l];
        NB_TRY(norm(m, t, x, &blk->norm[NB_NORM1], blk->norm_trained[NB_NORM1], &h));
        NB_TRY(self_attention(m, t, b, cache, l, h, &y));
        NB_TRY(add(t, x, y, &x));
        NB_TRY(norm(m, t, x, &blk->norm[NB_NORM2], blk->norm_trained[NB_NORM2], &h));
        NB_TRY(mlp(m, t, l, h, &y));
        NB_TRY(add(t, x, y, &x));
    }
    return norm(m, t, x, &m->final_norm, m->final_norm_trained, out);
}

nb_status nb_model_loss(nb_model *m, nb_tape *t, const nb_batch *b, const nb_loss_rows *r, nb_graph *g) {
    *g = (nb_graph){0};
    NB_TRY(hidden_states(m, t, b, NULL, &g->hidden));
    nb_linear_xent_attr a = {.w = &m->weights.head, .rows = r->rows, .targets = r->targets, .n = r->n,
                             .softcap = m->spec->logit_softcap, .argmax = r->argmax, .row_ids = m->rows.ids_on_device,
                             .n_rows = m->rows.n};
    nb_tensor *in[3] = {g->hidden, m->head.weight, m->rows.n ? m->rows.head : NULL};
    return nb_apply(t, &nb_op_linear_xent, in, 3, &a, &g->loss);
}

nb_status nb_model_logits(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows,
                          int64_t n, nb_graph *g) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    int64_t C = m->spec->hidden, R = m->rows.n;
    *g = (nb_graph){0};
    NB_TRY(hidden_states(m, t, b, cache, &g->hidden));
    /* Only the rows asked for meet the head. */
    nb_elem *picked;
    NB_TRY(nb_scratch(t, &picked, n * C, e));
    NB_TRY(k->gather_rows(t->dev, picked, g->hidden->data, rows, n, C));
    nb_tensor x = nb_leaf("last hidden", NULL, NULL, 2, n, C), *in[5] = {&x};
    x.data = picked;
    x.dtype = e;
    x.buf = t->n_bufs - 1;
    nb_linear_attr a = {.n = 1, .f32_out = true};
    put_linear(&m->head, 0, in, &a);
    NB_TRY(nb_apply(t, &nb_op_linear, in, 5, &a, &g->logits));
    if (!R) return NB_OK;
    float *columns;
    NB_TRY(nb_scratch(t, &columns, n * R, NB_F32));
    NB_TRY(k->gemm(t->dev, nb_mat_of(columns, R, NB_F32), nb_mat_of(picked, C, e), nb_mat_t(m->rows.head->data, C, NB_F32),
                   n, R, C, 1, 0));
    return k->put_columns(t->dev, g->logits->data, columns, m->rows.ids_on_device, n, m->spec->vocab, R);
}

int nb_model_max_nodes(const nb_model *m) { return (int)(11 * m->spec->layers + 4); }
