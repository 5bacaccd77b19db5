/* x[t] = W[ids[t]] * scale; some rows of a frozen W may be replaced by trained ones (added tokens), or W may have a
 * low-rank adapter, whose rows of A are looked up like those of W. */
#include "autograd/ops.h"

enum { WEIGHT, ROWS, LORA_A, LORA_B };

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[WEIGHT], *rows = n->in[ROWS], *A = n->in[LORA_A], *B = n->in[LORA_B];
    int64_t V = w ? w->d[0] : a->w->rows, C = w ? w->d[1] : a->w->cols;
    if (!A != !B || (A && (A->d[0] != V || B->d[0] != C || A->d[1] != B->d[1])))
        return nb_fail(NB_ESHAPE, "the adapter does not fit an embedding [%lld,%lld]", (long long)V, (long long)C);
    if (rows && (rows->d[0] != a->n_rows || rows->d[1] != C))
        return nb_fail(NB_ESHAPE, "replaced rows [%lld,%lld]: want [%lld,%lld]", (long long)rows->d[0],
                       (long long)rows->d[1], (long long)a->n_rows, (long long)C);
    if (rows && w && w->needs_grad)
        return nb_fail(NB_EUNSUPPORTED, "rows replace rows of a frozen embedding; this one is trained whole");
    nb_node_out(t, n, "embedding", t->dev->elem, 2, a->n, C);
    return NB_OK;
}

static nb_weight weight_over(const nb_tensor *w) {
    return (nb_weight){.format = NB_FMT_F32, .rows = w->d[0], .cols = w->d[1], .data = w->data};
}

/* xa[T,R] = A[ids]. */
static nb_status look_up_adapter(nb_tape *t, const nb_node *n, nb_elem **xa) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    nb_weight A = weight_over(n->in[LORA_A]);
    NB_TRY(nb_scratch(t, xa, a->n * A.cols, t->dev->elem));
    return t->dev->k->embedding_fwd(t->dev, *xa, &A, a->ids, a->n, 1);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[WEIGHT], *rows = n->in[ROWS], *B = n->in[LORA_B];
    const nb_dtype e = t->dev->elem;
    nb_elem *y = n->out[0]->data, *xa;
    int64_t C = n->out[0]->d[1];
    nb_weight trained = {0};
    if (w) trained = weight_over(w);
    NB_TRY(t->dev->k->embedding_fwd(t->dev, y, w ? &trained : a->w, a->ids, a->n, a->scale));
    if (B) {
        NB_TRY(look_up_adapter(t, n, &xa));
        int64_t R = B->d[1];
        NB_TRY(t->dev->k->gemm(t->dev, nb_mat_of(y, C, e), nb_mat_of(xa, R, e), nb_mat_t(B->data, R, NB_F32), a->n, C, R,
                               a->lora_scale * a->scale, 1));
    }
    if (!rows) return NB_OK;
    return t->dev->k->replace_rows_fwd(t->dev, y, rows->data, a->ids, a->n, a->row_ids, a->n_rows, C, a->scale);
}

static nb_status adapter_backward(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *A = n->in[LORA_A], *B = n->in[LORA_B];
    const nb_dtype e = t->dev->elem;
    int64_t T = a->n, C = B->d[0], R = B->d[1];
    const nb_elem *dy = n->out[0]->grad;
    float scale = a->lora_scale * a->scale;
    nb_elem *xa, *dxa;
    if (B->needs_grad) {
        NB_TRY(look_up_adapter(t, n, &xa));
        NB_TRY(k->gemm(t->dev, nb_mat_of(B->grad, R, NB_F32), nb_mat_t(dy, C, e), nb_mat_of(xa, R, e), C, R, T, scale,
                       n->beta[LORA_B]));
    }
    if (!A->needs_grad) return NB_OK;
    NB_TRY(nb_scratch(t, &dxa, T * R, e));
    NB_TRY(k->gemm(t->dev, nb_mat_of(dxa, R, e), nb_mat_of(dy, C, e), nb_mat_of(B->data, R, NB_F32), T, R, C, scale,
                   0));
    return k->embedding_bwd(t->dev, A->grad, dxa, a->ids, T, A->d[0], R, 1, n->beta[LORA_A]);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_embedding_attr *a = NB_ATTR(n, nb_embedding_attr);
    const nb_tensor *w = n->in[WEIGHT], *rows = n->in[ROWS], *y = n->out[0];
    if (w && w->needs_grad)
        NB_TRY(t->dev->k->embedding_bwd(t->dev, w->grad, y->grad, a->ids, a->n, w->d[0], w->d[1], a->scale,
                                        n->beta[WEIGHT]));
    if (rows && rows->needs_grad)
        NB_TRY(t->dev->k->replace_rows_bwd(t->dev, rows->grad, y->grad, a->ids, a->n, a->row_ids, a->n_rows, y->d[1],
                                           a->scale, n->beta[ROWS]));
    return n->in[LORA_A] ? adapter_backward(t, n) : NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double size = (double)nb_tensor_size(n->out[0]), R = n->in[LORA_A] ? (double)n->in[LORA_A]->d[1] : 0;
    return (nb_cost){2 * R * size, 8 * size};
}

static const int32_t ids[9] = {3, 0, 10, 3, 3, 7, 10, 1, 2}, replaced[2] = {3, 7};
static const nb_embedding_attr plain = {.ids = ids, .n = 9, .scale = 1}, scaled = {.ids = ids, .n = 9, .scale = 4.5f};
static const nb_embedding_attr some = {.ids = ids, .n = 9, .scale = 1, .row_ids = replaced, .n_rows = 2};
static const nb_embedding_attr adapted = {.ids = ids, .n = 9, .scale = 4.5f, .lora_scale = 0.5f};
static const nb_case cases[] = {
    {"plain", {{11, 6}, {0}}, &plain, NB_OK},
    {"scaled", {{11, 33}, {0}}, &scaled, NB_OK},
    {"replaced rows", {{11, 6}, {2, 6}}, &some, NB_OK, 1},
    {"adapter", {{11, 6}, {0}, {11, 3}, {6, 3}}, &adapted, NB_OK, 1u << WEIGHT},
    {"adapter of a trained weight", {{11, 33}, {0}, {11, 2}, {33, 2}}, &adapted, NB_OK},
    {"an adapter not transposed", {{11, 6}, {0}, {3, 11}, {6, 3}}, &adapted, NB_ESHAPE},
    {"replaced rows of a trained weight", {{11, 6}, {2, 6}}, &some, NB_EUNSUPPORTED},
    {"too few replaced rows", {{11, 6}, {1, 6}}, &some, NB_ESHAPE, 1},
};

const nb_op nb_op_embedding = {"embedding", sizeof(nb_embedding_attr), shape, forward, backward, cost, cases,
                               NB_LEN(cases)};
