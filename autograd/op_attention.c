/* Causal attention over segments, flash style (Dao et al., 2022): only the log-sum-exp of each row is kept. */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_attention_attr *a = NB_ATTR(n, nb_attention_attr);
    const nb_tensor *q = n->in[0], *k = n->in[1], *v = n->in[2];
    int64_t T = q->d[0], kv = a->kv_heads * a->head_dim;
    if (q->d[1] != a->heads * a->head_dim || k->d[1] != kv || v->d[1] != kv || k->d[0] != T || v->d[0] != T)
        return nb_fail(NB_ESHAPE,
                       "q [%lld,%lld], k [%lld,%lld], v [%lld,%lld]: want widths %lld and %lld and equal rows",
                       (long long)T, (long long)q->d[1], (long long)k->d[0], (long long)k->d[1], (long long)v->d[0],
                       (long long)v->d[1], (long long)(a->heads * a->head_dim), (long long)kv);
    if (a->heads % a->kv_heads)
        return nb_fail(NB_ESHAPE, "%lld heads do not divide into %lld groups", (long long)a->heads,
                       (long long)a->kv_heads);
    if (a->k_cache && n->needs_grad) return nb_fail(NB_EUNSUPPORTED, "no gradient through a KV cache");
    nb_node_out(t, n, "attention", t->dev->elem, 2, T, q->d[1]);
    if (n->needs_grad) nb_node_save(t, n, "lse", NB_F32, 2, T, a->heads);
    n->keep_in = 7;
    n->keep_out = 1;
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_attention_attr *a = NB_ATTR(n, nb_attention_attr);
    const nb_kernels *k = t->dev->k;
    const nb_elem *keys = n->in[1]->data, *values = n->in[2]->data;
    int64_t Tq = n->in[0]->d[0], Tk = a->k_cache ? a->cache_rows : Tq;
    if (a->k_cache) {
        int64_t kv = a->kv_heads * a->head_dim;
        NB_TRY(k->scatter_rows(t->dev, a->k_cache, keys, a->kv_rows, NULL, Tq, kv, 0));
        NB_TRY(k->scatter_rows(t->dev, a->v_cache, values, a->kv_rows, NULL, Tq, kv, 0));
        keys = a->k_cache;
        values = a->v_cache;
    }
    return k->attention_fwd(t->dev, n->out[0]->data, n->n_saved ? n->saved[0]->data : NULL, n->in[0]->data, keys,
                            values, a->segs, a->n_segs, Tq, Tk, a->heads, a->kv_heads, a->head_dim, a->scale,
                            a->softcap, a->window);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_attention_attr *a = NB_ATTR(n, nb_attention_attr);
    nb_elem *g[3];
    int64_t T = n->in[0]->d[0];
    for (int i = 0; i < 3; i++) g[i] = n->in[i]->needs_grad ? n->in[i]->grad : NULL;
    return t->dev->k->attention_bwd(t->dev, g[0], n->beta[0], g[1], n->beta[1], g[2], n->beta[2], n->out[0]->grad,
                                    n->in[0]->data, n->in[1]->data, n->in[2]->data, n->out[0]->data, n->saved[0]->data,
                                    a->segs, a->n_segs, T, T, a->heads, a->kv_heads, a->head_dim, a->scale, a->softcap,
                                    a->window);
}

static nb_cost cost(const nb_node *n) {
    const nb_attention_attr *a = NB_ATTR(n, nb_attention_attr);
    double width = (double)(a->heads * a->head_dim);
    return (nb_cost){4 * a->pairs * width, 16.0 * (double)n->in[0]->d[0] * width};
}

static const nb_seg one[] = {{0, 5, 0, 5}}, three[] = {{0, 4, 0, 4}, {4, 1, 4, 1}, {5, 9, 5, 9}},
                    tall[] = {{0, 150, 0, 150}};
static const nb_attention_attr plain = {
    .segs = one, .n_segs = 1, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 0.5f};
static const nb_attention_attr grouped = {
    .segs = three, .n_segs = 3, .heads = 4, .kv_heads = 2, .head_dim = 8, .scale = 0.35f};
static const nb_attention_attr windowed = {
    .segs = three, .n_segs = 3, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 3, .scale = 0.25f};
static const nb_attention_attr capped = {
    .segs = three, .n_segs = 3, .heads = 2, .kv_heads = 2, .head_dim = 6, .scale = 0.4f, .softcap = 2.0f};
static const nb_attention_attr tiles = {
    .segs = tall, .n_segs = 1, .heads = 3, .kv_heads = 1, .head_dim = 20, .scale = 0.22f};
static const nb_case cases[] = {
    {"plain", {{5, 8}, {5, 8}, {5, 8}}, &plain, NB_OK},
    {"grouped, segments", {{14, 32}, {14, 16}, {14, 16}}, &grouped, NB_OK},
    {"window", {{14, 32}, {14, 16}, {14, 16}}, &windowed, NB_OK},
    {"softcap", {{14, 12}, {14, 12}, {14, 12}}, &capped, NB_OK},
    {"several tiles", {{150, 60}, {150, 20}, {150, 20}}, &tiles, NB_OK},
    {"wrong width", {{5, 8}, {5, 8}, {5, 4}}, &plain, NB_ESHAPE},
};

const nb_op nb_op_attention = {"attention", sizeof(nb_attention_attr), shape, forward, backward, cost, cases,
                               NB_LEN(cases)};
