/* The output head and the loss in one: per-token negative log-likelihood without ever holding [tokens, vocabulary]
 * logits. Rows that are not trained are never multiplied. With a frozen head d loss/d x is made while the logits are
 * at hand (as Liger-Kernel and torchtune do), unscaled, and scaled in backward. */
#include "autograd/ops.h"

/* Rows of logits made at a time: about 16 MiB of them, at least enough for an efficient product. */
static int64_t chunk_rows(int64_t vocab, int64_t n) {
    int64_t c = (4 << 20) / vocab;
    if (c > 1024) c = 1024;
    if (c < 48) c = 48;
    return c < n ? c : n;
}

static int64_t vocab_of(const nb_node *n) {
    return n->in[1] ? n->in[1]->d[0] : NB_ATTR(n, nb_linear_xent_attr)->w->rows;
}
static bool head_trained(const nb_node *n) { return n->in[1] && n->in[1]->needs_grad; }

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_tensor *x = n->in[0], *w = n->in[1], *rows = n->in[2];
    int64_t cols = w ? w->d[1] : a->w->cols;
    if (x->d[1] != cols || a->n < 1 || (rows && (rows->d[0] != a->n_rows || rows->d[1] != cols)))
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], head [%lld,%lld], %lld targets", (long long)x->d[0],
                       (long long)x->d[1], (long long)vocab_of(n), (long long)cols, (long long)a->n);
    nb_node_out(t, n, "loss", 1, a->n, 0);
    if (!n->needs_grad) return NB_OK;
    if (head_trained(n) || (rows && rows->needs_grad)) n->keep_in |= 1;
    else nb_node_save(t, n, "unscaled dx", 2, a->n, cols);
    return NB_OK;
}

/* Scratch for the columns of replaced rows. Taken once, not in every round: how many rounds there are depends on the
 * batch, and the buffers of a run must be those of the plan, one for one. */
static nb_status column_scratch(nb_tape *t, const nb_node *n, int64_t step, float **out) {
    *out = NULL;
    return n->in[2] ? nb_scratch(t, out, step * NB_ATTR(n, nb_linear_xent_attr)->n_rows) : NB_OK;
}

/* logits[m,V] of rows first..first+m, with replaced columns put in; xg[m,C] receives the rows of x. */
static nb_status make_logits(nb_tape *t, nb_node *n, float *logits, float *xg, float *columns, int64_t first,
                             int64_t m) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *w = n->in[1], *rows = n->in[2];
    int64_t C = n->in[0]->d[1], V = vocab_of(n);
    NB_TRY(k->gather_rows(t->dev, xg, n->in[0]->data, a->rows + first, m, C));
    if (w) NB_TRY(k->gemm(t->dev, logits, V, xg, C, false, w->data, C, true, m, V, C, 1, 0));
    else NB_TRY(k->weight_fwd(t->dev, logits, xg, a->w, m, 0));
    if (!rows) return NB_OK;
    NB_TRY(k->gemm(t->dev, columns, a->n_rows, xg, C, false, rows->data, C, true, m, a->n_rows, C, 1, 0));
    return k->put_columns(t->dev, logits, columns, a->row_ids, m, V, a->n_rows);
}

/* dx[m,C] = dlogits W (replaced columns through their own rows), and gradients of W and rows where trained. */
static nb_status through_head(nb_tape *t, nb_node *n, float *dx, float *dlogits, const float *xg, float *columns,
                              int64_t m, float beta_w, float beta_rows) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *w = n->in[1], *rows = n->in[2];
    int64_t C = n->in[0]->d[1], V = vocab_of(n);
    if (rows) NB_TRY(k->take_columns(t->dev, columns, dlogits, a->row_ids, m, V, a->n_rows));
    if (w) NB_TRY(k->gemm(t->dev, dx, C, dlogits, V, false, w->data, C, false, m, C, V, 1, 0));
    else NB_TRY(k->weight_bwd(t->dev, dx, dlogits, a->w, m, 0));
    if (head_trained(n)) NB_TRY(k->gemm(t->dev, w->grad, C, dlogits, V, true, xg, C, false, V, C, m, 1, beta_w));
    if (!rows) return NB_OK;
    NB_TRY(k->gemm(t->dev, dx, C, columns, a->n_rows, false, rows->data, C, false, m, C, a->n_rows, 1, 1));
    if (!rows->needs_grad) return NB_OK;
    return k->gemm(t->dev, rows->grad, C, columns, a->n_rows, true, xg, C, false, a->n_rows, C, m, 1, beta_rows);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    int64_t C = n->in[0]->d[1], V = vocab_of(n), step = chunk_rows(V, a->n);
    float *logits, *xg, *columns, *dx = n->n_saved ? n->saved[0]->data : NULL;
    NB_TRY(nb_scratch(t, &logits, step * V));
    NB_TRY(nb_scratch(t, &xg, step * C));
    NB_TRY(column_scratch(t, n, step, &columns));
    for (int64_t i = 0; i < a->n; i += step) {
        int64_t m = a->n - i < step ? a->n - i : step;
        NB_TRY(make_logits(t, n, logits, xg, columns, i, m));
        NB_TRY(t->dev->k->xent(t->dev, n->out[0]->data + i, NULL, a->argmax ? a->argmax + i : NULL, logits,
                               a->targets + i, m, V, dx != NULL, a->softcap));
        if (dx) NB_TRY(through_head(t, n, dx + i * C, logits, xg, columns, m, 0, 0));
    }
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    nb_tensor *x = n->in[0];
    int64_t C = x->d[1], V = vocab_of(n), step = chunk_rows(V, a->n);
    const float *dloss = n->out[0]->grad;
    if (x->needs_grad && n->beta[0] == 0) NB_TRY(k->fill(t->dev, x->grad, 0, nb_tensor_size(x)));
    if (n->n_saved) return k->scatter_rows(t->dev, x->grad, n->saved[0]->data, a->rows, dloss, a->n, C, 1);
    float *logits, *xg, *columns, *dx, *loss;
    NB_TRY(nb_scratch(t, &logits, step * V));
    NB_TRY(nb_scratch(t, &xg, step * C));
    NB_TRY(nb_scratch(t, &dx, step * C));
    NB_TRY(nb_scratch(t, &loss, step));
    NB_TRY(column_scratch(t, n, step, &columns));
    for (int64_t i = 0; i < a->n; i += step) {
        int64_t m = a->n - i < step ? a->n - i : step;
        NB_TRY(make_logits(t, n, logits, xg, columns, i, m));
        NB_TRY(k->xent(t->dev, loss, NULL, NULL, logits, a->targets + i, m, V, true, a->softcap));
        NB_TRY(k->scale_rows(t->dev, logits, logits, dloss + i, m, V, 0));
        NB_TRY(through_head(t, n, dx, logits, xg, columns, m, i ? 1 : n->beta[1], i ? 1 : n->beta[2]));
        if (x->needs_grad) NB_TRY(k->scatter_rows(t->dev, x->grad, dx, a->rows + i, NULL, m, C, 1));
    }
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double m = (double)NB_ATTR(n, nb_linear_xent_attr)->n, C = (double)n->in[0]->d[1], V = (double)vocab_of(n);
    return (nb_cost){(n->n_saved ? 4 : 2) * m * V * C, 4 * m * (C + V) + 4 * V * C};
}

static const int32_t rows_some[5] = {0, 2, 3, 5, 6}, targets_some[5] = {1, 10, 0, 4, 4}, replaced[2] = {4, 7};
static const nb_linear_xent_attr some = {.rows = rows_some, .targets = targets_some, .n = 5};
static const nb_linear_xent_attr capped = {.rows = rows_some, .targets = targets_some, .n = 5, .softcap = 1.5f};
static const nb_linear_xent_attr extra = {
    .rows = rows_some, .targets = targets_some, .n = 5, .row_ids = replaced, .n_rows = 2};
static const nb_case cases[] = {
    {"some rows", {{7, 6}, {11, 6}, {0}}, &some, NB_OK},
    {"wide", {{7, 40}, {300, 40}, {0}}, &some, NB_OK},
    {"softcap", {{7, 6}, {11, 6}, {0}}, &capped, NB_OK},
    {"replaced rows", {{7, 6}, {11, 6}, {2, 6}}, &extra, NB_OK},
    {"columns differ", {{7, 6}, {11, 5}, {0}}, &some, NB_ESHAPE},
};

const nb_op nb_op_linear_xent = {"linear_xent", sizeof(nb_linear_xent_attr), shape, forward, backward, cost, cases,
                                 NB_LEN(cases)};
