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

static bool uses_rope(const nb_spec *s, int which) {
    for (int64_t l = 0; l < s->layers; l++)
        if (s->layer[l].rope == which) return true;
    return false;
}

static size_t rope_bytes(const nb_model *m, int which) {
    return (size_t)(m->positions * (m->spec->rope[which].rot / 2)) * sizeof(float);
}

size_t nb_model_table_bytes(const nb_model *m) {
    size_t bytes = 0;
    for (int i = 0; i < 2; i++)
        if (uses_rope(m->spec, i)) bytes += 2 * rope_bytes(m, i);
    return bytes;
}

/* cos and sin of one set of frequencies, at every position. */
static nb_status rope_table(nb_model *m, int which, int64_t length) {
    const nb_rope_spec *r = &m->spec->rope[which];
    int64_t half = r->rot / 2;
    size_t bytes = rope_bytes(m, which);
    double *inv = nb_calloc((size_t)half, sizeof *inv);
    float *host = nb_malloc(bytes);
    nb_rope_inv_freq(r, length, inv);
    nb_status st = NB_OK;
    for (int part = 0; part < 2 && st == NB_OK; part++) {
        for (int64_t p = 0; p < m->positions; p++)
            for (int64_t j = 0; j < half; j++) {
                double angle = (double)p * inv[j];
                host[p * half + j] = (float)((part ? sin(angle) : cos(angle)) * r->attention);
            }
        float **table = part ? &m->rope[which].sin : &m->rope[which].cos;
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
        for (int s = 0; s < nb_spec_slots(m->spec); s++)
            link_linear(&m->block[l].lin[s], &b->layer[l].lin[s], &r->w[s], r->bias[s], r->w[s].rows ? site++ : 0);
        for (int s = 0; s < NB_NORMS; s++) {
            m->block[l].norm[s] = vector_leaf("norm", r->norm[s], nb_spec_norm_size(m->spec, s));
            m->block[l].norm_bias[s] = vector_leaf("norm bias", r->norm_bias[s], nb_spec_norm_size(m->spec, s));
        }
    }
    link_linear(&m->head, &b->head, &m->weights.head, m->weights.head_bias, site);
    m->final_norm = vector_leaf("final norm", m->weights.final_norm, m->spec->hidden);
    m->final_norm_bias = vector_leaf("final norm bias", m->weights.final_norm_bias, m->spec->hidden);
}

static void make_room(nb_model *m) {
    int64_t L = m->spec->layers, E = m->spec->experts, slots = nb_spec_slots(m->spec);
    m->block = nb_calloc((size_t)L, sizeof *m->block);
    nb_linear *lin = nb_calloc((size_t)(L * slots), sizeof *lin);
    nb_linear_slot *experts = nb_calloc((size_t)(L * 3 * E) + 1, sizeof *experts);
    m->sparse_offsets = nb_calloc((size_t)L, sizeof *m->sparse_offsets);
    m->aux_coef = m->spec->aux_coef;
    int32_t *offsets = nb_calloc((size_t)(L * (E + 1)), sizeof *offsets);
    for (int64_t l = 0; l < L; l++) {
        m->block[l].lin = lin + l * slots;
        m->block[l].experts = experts + l * 3 * E;
        m->block[l].offsets = offsets + l * (E + 1);
        if (m->spec->layer[l].sparse) m->sparse_offsets[m->n_sparse++] = m->block[l].offsets;
    }
}

nb_status nb_model_open_shared(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions, int64_t length,
                               nb_comm *comm) {
    if (base->spec.learned_positions && positions > base->spec.context)
        return nb_fail(NB_EINPUT, "%s: sequences of %lld tokens do not fit: %s has learned a vector for each of its "
                       "%lld positions (n_positions) and has none beyond; set sequence_len to at most that", base->dir,
                       (long long)positions, base->spec.architecture, (long long)base->spec.context);
    nb_model *m = NB_NEW(nb_model);
    m->base = base;
    m->spec = &base->spec;
    m->dev = dev;
    m->positions = positions;
    make_room(m);
    nb_status st = nb_resident_open(&m->weights, base, dev, comm);
    if (st == NB_OK) {
        link_weights(m);
        for (int i = 0; i < 2 && st == NB_OK; i++)
            if (uses_rope(m->spec, i)) st = rope_table(m, i, length);
    }
    if (st != NB_OK) {
        nb_model_free(m);
        return st;
    }
    *out = m;
    return NB_OK;
}

nb_status nb_model_open(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions, int64_t length) {
    return nb_model_open_shared(out, base, dev, positions, length, NULL);
}

void nb_model_free(nb_model *m) {
    if (!m) return;
    for (int i = 0; i < 2; i++) {
        if (m->rope[i].cos) m->dev->be->free(m->dev, m->rope[i].cos, rope_bytes(m, i));
        if (m->rope[i].sin) m->dev->be->free(m->dev, m->rope[i].sin, rope_bytes(m, i));
    }
    nb_resident_close(&m->weights);
    free(m->block[0].lin);
    free(m->block[0].experts);
    free(m->block[0].offsets);
    free(m->sparse_offsets);
    free(m->block);
    free(m);
}

void nb_model_each_linear(nb_model *m, bool with_head, void (*fn)(nb_linear *, int64_t, void *), void *arg) {
    for (int64_t l = 0; l < m->spec->layers; l++)
        for (int s = 0; s < nb_spec_slots(m->spec); s++)
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

static nb_tensor *bias_of(nb_linear *lin) {
    return lin->bias_trained ? lin->bias_trained : lin->bias.data ? &lin->bias : NULL;
}

static void put_linear(nb_linear *lin, int i, nb_tensor **in, nb_linear_attr *a) {
    in[1 + 4 * i] = lin->weight;
    in[2 + 4 * i] = lin->magnitude ? NULL : bias_of(lin);
    in[3 + 4 * i] = lin->lora_A;
    in[4 + 4 * i] = lin->lora_B;
    a->slot[i] = (nb_linear_slot){lin->w, lin->scale, lin->dropout, lin->site};
}

/* *y, made without the bias, becomes what DoRA makes of it (and rest, where the layer has dropout). */
static nb_status put_magnitude(nb_tape *t, nb_linear *lin, nb_tensor *rest, nb_tensor **y) {
    nb_tensor *in[4] = {*y, rest, lin->magnitude, bias_of(lin)};
    nb_dora_attr a = {lin->w, lin->squares, lin->lora_A->data, lin->lora_B->data, lin->lora_A->d[0], lin->scale};
    return nb_apply(t, &nb_op_dora, in, 4, &a, y);
}

/* With dropout the magnitudes concern the dropped input only, as in PEFT:
 * y = W (x - xd) + bias + m / norm * (W + s B A) xd, xd = drop(x). */
static nb_status dropped_dora(nb_tape *t, nb_tensor *x, nb_linear *lin, nb_tensor **out) {
    nb_dropout_attr d = {lin->dropout, lin->site};
    nb_linear_attr a = {.n = 1, .slot = {{lin->w, lin->scale, 0, 0}}};
    nb_tensor *with[5] = {NULL, lin->weight, NULL, lin->lora_A, lin->lora_B}, *base[5] = {NULL, lin->weight};
    nb_tensor *parts[2], *rest;
    NB_TRY(nb_apply(t, &nb_op_dropout, &x, 1, &d, parts));
    with[0] = parts[0], base[0] = parts[1];
    NB_TRY(nb_apply(t, &nb_op_linear, with, 5, &a, out));
    NB_TRY(nb_apply(t, &nb_op_linear, base, 5, &a, &rest));
    return put_magnitude(t, lin, rest, out);
}

/* out[i] = lin[i](x) for n layers over one input. */
static nb_status linear(nb_tape *t, nb_tensor *x, nb_linear *const *lin, int n, nb_tensor **out) {
    nb_tensor *in[13] = {x}, *together[3];
    nb_linear_attr a = {0};
    bool apart[3];
    for (int i = 0; i < n; i++) {
        apart[i] = lin[i]->magnitude && lin[i]->dropout > 0 && t->training;
        if (apart[i]) NB_TRY(dropped_dora(t, x, lin[i], &out[i]));
        else put_linear(lin[i], a.n++, in, &a);
    }
    if (a.n) NB_TRY(nb_apply(t, &nb_op_linear, in, 1 + 4 * a.n, &a, together));
    for (int i = 0, k = 0; i < n; i++) {
        if (apart[i]) continue;
        out[i] = together[k++];
        if (lin[i]->magnitude) NB_TRY(put_magnitude(t, lin[i], NULL, &out[i]));
    }
    return NB_OK;
}

/* The projection at the end of attention or MLP. The backward pass wants x A^T of it, and y itself only where something
 * behind it does (a norm, DoRA, the sum in the middle of a block): the others are kept at every level, which costs
 * nothing but x A^T. */
static nb_status project_out(nb_model *m, nb_tape *t, int64_t l, nb_slot slot, nb_tensor *x, nb_tensor **out) {
    nb_linear *lin = &m->block[l].lin[slot];
    int first = t->n_nodes;
    bool last = m->spec->parallel || (slot == NB_DOWN && !m->block[l].norm[NB_POST_NORM2].data);
    NB_TRY(linear(t, x, &lin, 1, out));
    nb_tape_keep(t, first, last && !lin->magnitude ? NB_LEVEL_FULL : NB_LEVEL_SMART);
    return NB_OK;
}

static nb_status norm(nb_model *m, nb_tape *t, nb_tensor *x, nb_tensor *weight, nb_tensor *bias, nb_tensor **out) {
    nb_tensor *in[3] = {x, weight, bias->data ? bias : NULL};
    nb_rmsnorm_attr rms = {m->spec->norm_eps, m->spec->norm_offset};
    nb_layernorm_attr layer = {m->spec->norm_eps};
    if (m->spec->norm_kind == NB_NORM_LAYER) return nb_apply(t, &nb_op_layernorm, in, 3, &layer, out);
    return nb_apply(t, &nb_op_rmsnorm, in, 2, &rms, out);
}

/* A norm of a block, where the family has it; else out is x. */
static nb_status block_norm(nb_model *m, nb_tape *t, int64_t l, nb_norm_slot slot, nb_tensor *x, nb_tensor **out) {
    nb_block *b = &m->block[l];
    nb_tensor *weight = b->norm_trained[slot] ? b->norm_trained[slot] : &b->norm[slot];
    nb_tensor *bias = b->norm_bias_trained[slot] ? b->norm_bias_trained[slot] : &b->norm_bias[slot];
    *out = x;
    return b->norm[slot].data ? norm(m, t, x, weight, bias, out) : NB_OK;
}

static nb_status add(nb_tape *t, nb_tensor *x1, nb_tensor *x2, nb_tensor **out) {
    nb_tensor *in[2] = {x1, x2};
    return nb_apply(t, &nb_op_add, in, 2, NULL, out);
}

/* q, k, v of a block: three layers over one input, or the parts of one. */
static nb_status project_qkv(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **qkv) {
    const nb_spec *s = m->spec;
    nb_block *b = &m->block[l];
    if (!b->lin[NB_QKV].w->rows) {
        nb_linear *separate[3] = {&b->lin[NB_Q], &b->lin[NB_K], &b->lin[NB_V]};
        return linear(t, x, separate, 3, qkv);
    }
    nb_linear *fused[1] = {&b->lin[NB_QKV]};
    nb_tensor *y;
    NB_TRY(linear(t, x, fused, 1, &y));
    nb_split_attr a = {3, {s->heads * s->head_dim, s->kv_heads * s->head_dim, s->kv_heads * s->head_dim},
                       s->qkv_in_turns ? s->heads : 1};
    return nb_apply(t, &nb_op_split, &y, 1, &a, qkv);
}

static nb_status self_attention(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, int64_t l, nb_tensor *x,
                                nb_tensor **out) {
    const nb_spec *s = m->spec;
    const nb_layer_spec *layer = &s->layer[l];
    nb_tensor *y[3], *mixed;
    NB_TRY(project_qkv(m, t, l, x, y));
    NB_TRY(block_norm(m, t, l, NB_Q_NORM, y[0], &y[0]));
    NB_TRY(block_norm(m, t, l, NB_K_NORM, y[1], &y[1]));
    nb_clamp_attr clip = {s->clip_qkv}; /* OLMoE has norms before it, OLMo none */
    for (int i = 0; i < 3 && clip.limit > 0; i++) NB_TRY(nb_apply(t, &nb_op_clamp, &y[i], 1, &clip, &y[i]));
    if (layer->rope >= 0) {
        const struct nb_rope_table *table = &m->rope[layer->rope];
        nb_rope_attr rope = {table->cos, table->sin, b->pos, s->heads, s->kv_heads, s->head_dim,
                             s->rope[layer->rope].rot};
        NB_TRY(nb_apply(t, &nb_op_rope, y, 2, &rope, y));
    }
    nb_attention_attr attn = {.segs = b->segs, .n_segs = b->n_segs, .heads = s->heads, .kv_heads = s->kv_heads,
                              .head_dim = s->head_dim, .window = layer->window,
                              .scale = s->attn_scale / (s->scale_by_layer ? (float)(l + 1) : 1),
                              .softcap = s->attn_softcap, .pairs = b->pairs};
    if (cache)
        attn.k_cache = cache->k[l], attn.v_cache = cache->v[l], attn.cache_rows = cache->rows, attn.kv_rows = b->kv_rows;
    NB_TRY(nb_apply(t, &nb_op_attention, y, 3, &attn, &mixed));
    return project_out(m, t, l, NB_O, mixed, out);
}

/* gate and up likewise; or y[0] alone, for an MLP without gate. */
static nb_status project_gate_up(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **y) {
    nb_block *b = &m->block[l];
    if (m->spec->plain_mlp) {
        nb_linear *up[1] = {&b->lin[NB_UP]};
        y[1] = NULL;
        return linear(t, x, up, 1, y);
    }
    if (!b->lin[NB_GATE_UP].w->rows) {
        nb_linear *separate[2] = {&b->lin[NB_GATE], &b->lin[NB_UP]};
        return linear(t, x, separate, 2, y);
    }
    nb_linear *fused[1] = {&b->lin[NB_GATE_UP]};
    nb_tensor *both;
    NB_TRY(linear(t, x, fused, 1, &both));
    nb_split_attr a = {2, {m->spec->mlp_hidden, m->spec->mlp_hidden}};
    return nb_apply(t, &nb_op_split, &both, 1, &a, y);
}

static nb_status mlp(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **out) {
    nb_tensor *y[2], *h;
    NB_TRY(project_gate_up(m, t, l, x, y));
    nb_glu_attr a = {m->spec->act};
    NB_TRY(nb_apply(t, &nb_op_glu, y, 2, &a, &h));
    return project_out(m, t, l, NB_DOWN, h, out);
}

/* Does the load-balancing loss count? In training alone. */
static bool balances(const nb_model *m, const nb_tape *t) { return t->grad && m->n_sparse && m->aux_coef > 0; }

/* y[0..n) = the experts' layers from `which` on over their rows: as nb_experts_attr has it. */
static nb_status experts(nb_model *m, nb_tape *t, int64_t l, nb_slot which, int n, nb_tensor *x, nb_tensor *const *routed,
                         nb_tensor *weights, nb_tensor **y) {
    nb_block *b = &m->block[l];
    int64_t E = m->spec->experts, first = (which - NB_GATE) * E;
    int n_in = 4 + 4 * n * (int)E;
    nb_tensor **in = nb_calloc((size_t)n_in, sizeof *in);
    in[0] = x, in[1] = routed[1], in[2] = routed[2], in[3] = weights;
    for (int64_t i = 0; i < n * E; i++) {
        nb_linear *lin = &b->lin[NB_SLOTS + first + i];
        in[4 + 4 * i] = lin->weight;
        in[6 + 4 * i] = lin->lora_A;
        in[7 + 4 * i] = lin->lora_B;
        b->experts[first + i] = (nb_linear_slot){lin->w, lin->scale, lin->dropout, lin->site};
    }
    nb_experts_attr a = {n, E, m->spec->top_k, b->experts + first, b->offsets};
    nb_status st = nb_apply(t, &nb_op_experts, in, n_in, &a, y);
    free(in);
    return st;
}

/* The sum over a token's experts of weight * expert(x), and the shared expert's part. */
static nb_status mixture(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **out) {
    const nb_spec *s = m->spec;
    nb_block *b = &m->block[l];
    nb_linear *router[1] = {&b->lin[NB_ROUTER]}, *share[1] = {&b->lin[NB_SHARE]};
    nb_tensor *logits, *routed[4], *y[2], *h;
    NB_TRY(linear(t, x, router, 1, &logits));
    nb_route_attr route = {s->top_k, s->renorm_topk, balances(m, t), b->offsets};
    NB_TRY(nb_apply(t, &nb_op_route, &logits, 1, &route, routed));
    m->block[l].share = route.share ? routed[3] : NULL;
    NB_TRY(experts(m, t, l, NB_GATE, 2, x, routed, NULL, y));
    nb_glu_attr glu = {s->act};
    NB_TRY(nb_apply(t, &nb_op_glu, y, 2, &glu, &h));
    NB_TRY(experts(m, t, l, NB_DOWN, 1, h, routed, routed[0], out));
    if (!s->shared_hidden) return NB_OK;
    NB_TRY(mlp(m, t, l, x, &y[0]));
    NB_TRY(linear(t, x, share, 1, &y[1]));
    NB_TRY(nb_apply(t, &nb_op_gate_rows, y, 2, NULL, &h));
    return add(t, *out, h, out);
}

static nb_status feed_forward(nb_model *m, nb_tape *t, int64_t l, nb_tensor *x, nb_tensor **out) {
    return (m->spec->layer[l].sparse ? mixture : mlp)(m, t, l, x, out);
}

/* x + attention(norm1(x)) + mlp(norm2(x)); with one norm, both read it. */
static nb_status parallel_block(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, int64_t l,
                                nb_tensor **x) {
    nb_tensor *h, *h2, *mixed, *y;
    NB_TRY(block_norm(m, t, l, NB_NORM1, *x, &h));
    NB_TRY(self_attention(m, t, b, cache, l, h, &mixed));
    h2 = h;
    if (m->block[l].norm[NB_NORM2].data) NB_TRY(block_norm(m, t, l, NB_NORM2, *x, &h2));
    NB_TRY(feed_forward(m, t, l, h2, &y));
    NB_TRY(add(t, mixed, y, &y));
    return add(t, *x, y, x);
}

static nb_status block(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, int64_t l, nb_tensor **x) {
    nb_tensor *h, *y;
    if (m->spec->parallel) return parallel_block(m, t, b, cache, l, x);
    NB_TRY(block_norm(m, t, l, NB_NORM1, *x, &h));
    NB_TRY(self_attention(m, t, b, cache, l, h, &y));
    NB_TRY(block_norm(m, t, l, NB_POST_NORM1, y, &y));
    NB_TRY(add(t, *x, y, x));
    NB_TRY(block_norm(m, t, l, NB_NORM2, *x, &h));
    NB_TRY(feed_forward(m, t, l, h, &y));
    NB_TRY(block_norm(m, t, l, NB_POST_NORM2, y, &y));
    return add(t, *x, y, x);
}

/* Vectors of the tokens, and those of their positions where these are learned. */
static nb_status embed(nb_model *m, nb_tape *t, const nb_batch *b, nb_tensor **x) {
    nb_embedding_attr emb = {.w = &m->weights.embed, .ids = b->ids, .n = b->n, .scale = m->spec->embed_scale,
                             .lora_scale = m->embed_lora.scale, .row_ids = m->rows.ids_on_device, .n_rows = m->rows.n};
    nb_embedding_attr pos = {.w = &m->weights.positions, .ids = b->pos, .n = b->n, .scale = 1};
    nb_tensor *in[4] = {m->embed_trained, m->rows.n ? m->rows.embed : NULL, m->embed_lora.A, m->embed_lora.B};
    nb_tensor *of_pos[4] = {m->positions_trained}, *p;
    NB_TRY(nb_apply(t, &nb_op_embedding, in, 4, &emb, x));
    if (!m->spec->learned_positions) return NB_OK;
    NB_TRY(nb_apply(t, &nb_op_embedding, of_pos, 4, &pos, &p));
    return add(t, *x, p, x);
}

static nb_status hidden_states(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, nb_tensor **out) {
    nb_tensor *x, *weight = m->final_norm_trained ? m->final_norm_trained : &m->final_norm;
    t->batch = b;
    NB_TRY(embed(m, t, b, &x));
    for (int64_t l = 0; l < m->spec->layers; l++) {
        nb_tape_layer(t, l);
        NB_TRY(block(m, t, b, cache, l, &x));
        nb_tape_keep(t, t->n_nodes - 1, NB_LEVEL_FULL);
    }
    nb_tape_layer(t, -1);
    return norm(m, t, x, weight, m->final_norm_bias_trained ? m->final_norm_bias_trained : &m->final_norm_bias, out);
}

/* Adds the load-balancing loss of this batch to each of its losses. */
static nb_status balance(nb_model *m, nb_tape *t, const nb_batch *b, nb_tensor **losses) {
    nb_tensor **in = nb_calloc((size_t)m->spec->layers + 1, sizeof *in);
    int n = 0;
    in[n++] = *losses;
    for (int64_t l = 0; l < m->spec->layers; l++) {
        if (!m->spec->layer[l].sparse) continue;
        in[n++] = m->block[l].share;
    }
    nb_balance_attr a = {m->aux_coef, m->spec->experts, b->n, m->sparse_offsets};
    nb_status st = nb_apply(t, &nb_op_balance, in, n, &a, losses);
    free(in);
    return st;
}

nb_status nb_model_loss(nb_model *m, nb_tape *t, const nb_batch *b, const nb_loss_rows *r, nb_graph *g) {
    *g = (nb_graph){0};
    NB_TRY(hidden_states(m, t, b, NULL, &g->hidden));
    nb_linear_xent_attr a = {.w = &m->weights.head, .rows = r->rows, .targets = r->targets, .n = r->n,
                             .softcap = m->spec->logit_softcap, .argmax = r->argmax, .row_ids = m->rows.ids_on_device,
                             .n_rows = m->rows.n, .scale = m->head.scale, .dropout = m->head.dropout,
                             .site = m->head.site};
    nb_tensor *in[6] = {g->hidden, m->head.weight, m->rows.n ? m->rows.head : NULL, bias_of(&m->head), m->head.lora_A,
                        m->head.lora_B};
    NB_TRY(nb_apply(t, &nb_op_linear_xent, in, 6, &a, &g->loss));
    g->objective = g->loss;
    return balances(m, t) ? balance(m, t, b, &g->objective) : NB_OK;
}

/* Logits of tokens whose rows are trained, over those of the frozen head. */
static nb_status put_token_columns(nb_model *m, nb_tape *t, const nb_elem *hidden, int64_t n, float *logits) {
    const nb_kernels *k = t->dev->k;
    int64_t C = m->spec->hidden, R = m->rows.n;
    float *columns;
    NB_TRY(nb_scratch(t, &columns, n * R, NB_F32));
    NB_TRY(k->gemm(t->dev, nb_mat_of(columns, R, NB_F32), nb_mat_of(hidden, C, t->dev->elem),
                   nb_mat_t(m->rows.head->data, C, NB_F32), n, R, C, 1, 0));
    return k->put_columns(t->dev, logits, columns, m->rows.ids_on_device, n, m->spec->vocab, R);
}

nb_status nb_model_logits(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows,
                          int64_t n, nb_graph *g) {
    const nb_kernels *k = t->dev->k;
    const nb_dtype e = t->dev->elem;
    int64_t C = m->spec->hidden;
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
    if (m->rows.n) NB_TRY(put_token_columns(m, t, picked, n, g->logits->data));
    return m->spec->logit_softcap > 0 ? k->softcap(t->dev, g->logits->data, n * m->spec->vocab, m->spec->logit_softcap)
                                      : NB_OK;
}

int nb_model_max_nodes(const nb_model *m) { return (int)(48 * m->spec->layers + 6); }
