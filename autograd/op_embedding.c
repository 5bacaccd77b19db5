/* x[t] = W[ids[t]] * scale; some rows of a frozen W may be replaced by trained ones (added tokens). */
#include "autograd/ops.h"

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[0], *rows = n->in[1];
    int64_t C = w ? w->d[1] : a->w->cols;
    if (rows && (rows->d[0] != a->n_rows || rows->d[1] != C))
        return nb_fail(NB_ESHAPE, "replaced rows [%lld,%lld]: want [%lld,%lld]", (long long)rows->d[0],
                       (long long)rows->d[1], (long long)a->n_rows, (long long)C);
    if (rows && w && w->needs_grad)
        return nb_fail(NB_EUNSUPPORTED, "rows replace rows of a frozen embedding; this one is trained whole");
    nb_node_out(t, n, "embedding", t->dev->elem, 2, a->n, C);
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[0], *rows = n->in[1];
    nb_weight trained = {0};
    if (w) trained = (nb_weight){.format = NB_FMT_F32, .rows = w->d[0], .cols = w->d[1], .data = w->data};
    NB_TRY(t->dev->k->embedding_fwd(t->dev, n->out[0]->data, w ? &trained : a->w, a->ids, a->n, a->scale));
    if (!rows) return NB_OK;
    return t->dev->k->replace_rows_fwd(t->dev, n->out[0]->data, rows->data, a->ids, a->n, a->row_ids, a->n_rows,
                                       n->out[0]->d[1], a->scale);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[0], *rows = n->in[1], *y = n->out[0];
    if (w && w->needs_grad)
        NB_TRY(t->dev->k->embedding_bwd(t->dev, w->grad, y->grad, a->ids, a->n, w->d[0], w->d[1], a->scale,
                                        n->beta[0]));
    if (rows && rows->needs_grad)
        NB_TRY(t->dev->k->replace_rows_bwd(t->dev, rows->grad, y->grad, a->ids, a->n, a->row_ids, a->n_rows, y->d[1],
                                           a->scale, n->beta[1]));
    return NB_OK;
}

static nb_cost cost(const nb_node *n) { return (nb_cost){0, 8.0 * (double)nb_tensor_size(n->out[0])}; }

static const int32_t ids[9] = {3, 0, 10, 3, 3, 7, 10, 1, 2}, replaced[2] = {3, 7};
static const nb_embedding_attr plain = {.ids = ids, .n = 9, .scale = 1}, scaled = {.ids = ids, .n = 9, .scale = 4.5f};
static const nb_embedding_attr some = {.ids = ids, .n = 9, .scale = 1, .row_ids = replaced, .n_rows = 2};
static const nb_case cases[] = {
    {"plain", {{11, 6}, {0}}, &plain, NB_OK},
    {"scaled", {{11, 33}, {0}}, &scaled, NB_OK},
    {"replaced rows", {{11, 6}, {2, 6}}, &some, NB_OK, 1},
    {"replaced rows of a trained weight", {{11, 6}, {2, 6}}, &some, NB_EUNSUPPORTED},
    {"too few replaced rows", {{11, 6}, {1, 6}}, &some, NB_ESHAPE, 1},
};

const nb_op nb_op_embedding = {"embedding", sizeof(nb_embedding_attr), shape, forward, backward, cost, cases,
                               NB_LEN(cases)};
