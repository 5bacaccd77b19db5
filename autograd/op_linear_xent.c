/* The output head and the loss in one: per-token negative log-likelihood without ever holding [tokens, vocabulary]
 * logits. Rows that are not trained are never multiplied. With a frozen head d loss/d x is made while the logits are
 * at hand (as Liger-Kernel and torchtune do), unscaled, and scaled in backward. */
#include "autograd/ops.h"

enum { X, WEIGHT, ROWS, BIAS, LORA_A, LORA_B };

/* Rows of logits made at a time: as many elements as the device wants, at least enough for an efficient product, since the
 * head is packed anew for them. On the cpu 264 rows are 1.17 times as fast as 144; all 512 of a step gain 4 % more, for
 * twice the memory. */
static int64_t chunk_rows(const nb_tape *t, int64_t vocab, int64_t n) {
    int64_t c = t->dev->be->logits_chunk / vocab / 48 * 48;
    if (c > 1008) c = 1008;
    if (c < 264) c = 264;
    return c < n ? c : n;
}

static int64_t vocab_of(const nb_node *n) {
    return n->in[WEIGHT] ? n->in[WEIGHT]->d[0] : NB_ATTR(n, nb_linear_xent_attr)->w->rows;
}

/* Anything of the head, so that backward needs x and the logits again. */
static bool head_trained(const nb_node *n) {
    bool trained = false;
    for (int i = WEIGHT; i < n->n_in; i++) trained |= n->in[i] && n->in[i]->needs_grad;
    return trained;
}

static bool drops(const nb_tape *t, const nb_node *n) {
    return n->in[LORA_A] && t->training && NB_ATTR(n, nb_linear_xent_attr)->dropout > 0;
}

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_tensor *x = n->in[X], *w = n->in[WEIGHT], *rows = n->in[ROWS], *A = n->in[LORA_A], *B = n->in[LORA_B];
    int64_t cols = w ? w->d[1] : a->w->cols;
    if (x->d[1] != cols || a->n < 1 || (n->in[BIAS] && n->in[BIAS]->d[0] != vocab_of(n)) ||
        (rows && (rows->d[0] != a->n_rows || rows->d[1] != cols)))
        return nb_fail(NB_ESHAPE, "x [%lld,%lld], head [%lld,%lld], %lld targets", (long long)x->d[0],
                       (long long)x->d[1], (long long)vocab_of(n), (long long)cols, (long long)a->n);
    if (!A != !B || (A && (A->d[1] != cols || B->d[0] != vocab_of(n) || A->d[0] != B->d[1])))
        return nb_fail(NB_ESHAPE, "the adapter does not fit a head [%lld,%lld]", (long long)vocab_of(n),
                       (long long)cols);
    nb_node_out(t, n, "loss", NB_F32, 1, a->n, 0);
    if (!n->needs_grad) return NB_OK;
    if (head_trained(n) || drops(t, n)) n->keep_in |= 1u << X;
    else nb_node_save(t, n, "unscaled dx", t->dev->elem, 2, a->n, cols);
    return NB_OK;
}

/* What a round works on, each with room for `rows` of them. Taken once, not in every round: how many rounds there are
 * depends on the batch, and the buffers of a run must be those of the plan, one for one. */
typedef struct room {
    int64_t rows;
    float *logits;      /* [rows, V] */
    nb_elem *dlogits;   /* [rows, V]; in the logits' place where elements are F32 */
    nb_elem *xg;        /* [rows, C] the rows of x */
    float *put;         /* [rows, n_rows] logits of replaced rows */
    nb_elem *taken;     /* [rows, n_rows] their gradients */
    nb_elem *dropped;   /* [T, C] the adapter's input where there is dropout */
    nb_elem *xd, *xa;   /* [rows, C] its rows (xg without dropout), [rows, R] times A^T */
    nb_elem *dxa, *dxd; /* [rows, R], [rows, C] gradients of those; dxd with dropout only */
    nb_elem *ddropped;  /* [T, C] the gradient of `dropped` */
} room;

/* y = x with the adapter's mask (+ y). */
static nb_status drop(nb_tape *t, const nb_node *n, nb_elem *y, const nb_elem *x, float beta) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    return t->dev->k->dropout(t->dev, y, x, t->batch->sample, t->batch->pos, n->in[X]->d[0], n->in[X]->d[1], a->dropout,
                              t->seed, t->step, a->site, beta);
}

static nb_status take_adapter_room(nb_tape *t, const nb_node *n, bool grad, room *r) {
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[X];
    int64_t C = x->d[1], R = n->in[LORA_A]->d[0];
    r->xd = r->xg;
    NB_TRY(nb_scratch(t, &r->xa, r->rows * R, e));
    if (grad) NB_TRY(nb_scratch(t, &r->dxa, r->rows * R, e));
    if (!drops(t, n)) return NB_OK;
    NB_TRY(nb_scratch(t, &r->dropped, nb_tensor_size(x), e));
    NB_TRY(nb_scratch(t, &r->xd, r->rows * C, e));
    NB_TRY(drop(t, n, r->dropped, x->data, 0));
    if (!grad) return NB_OK;
    NB_TRY(nb_scratch(t, &r->dxd, r->rows * C, e));
    NB_TRY(nb_scratch(t, &r->ddropped, nb_tensor_size(x), e));
    return t->dev->k->fill(t->dev, r->ddropped, e, 0, nb_tensor_size(x));
}

static nb_status take_room(nb_tape *t, const nb_node *n, bool grad, room *r) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_dtype e = t->dev->elem;
    int64_t V = vocab_of(n), step = chunk_rows(t, V, a->n);
    *r = (room){.rows = step};
    NB_TRY(nb_scratch(t, &r->logits, step * V, NB_F32));
    r->dlogits = r->logits;
    if (grad && e != NB_F32) NB_TRY(nb_scratch(t, &r->dlogits, step * V, e));
    NB_TRY(nb_scratch(t, &r->xg, step * n->in[X]->d[1], e));
    if (n->in[LORA_A]) NB_TRY(take_adapter_room(t, n, grad, r));
    if (!n->in[ROWS]) return NB_OK;
    NB_TRY(nb_scratch(t, &r->put, step * a->n_rows, NB_F32));
    r->taken = r->put;
    return grad && e != NB_F32 ? nb_scratch(t, &r->taken, step * a->n_rows, e) : NB_OK;
}

/* logits[m,V] += scale * (drop(x) A^T) B^T of rows first..first+m. */
static nb_status add_adapter(nb_tape *t, nb_node *n, const room *r, int64_t first, int64_t m) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *A = n->in[LORA_A], *B = n->in[LORA_B];
    const nb_dtype e = t->dev->elem;
    int64_t C = A->d[1], R = A->d[0], V = B->d[0];
    if (r->dropped) NB_TRY(k->gather_rows(t->dev, r->xd, r->dropped, a->rows + first, m, C));
    nb_mat xa = nb_mat_of(r->xa, R, e), logits = nb_mat_of(r->logits, V, NB_F32);
    NB_TRY(k->gemm(t->dev, xa, nb_mat_of(r->xd, C, e), nb_mat_t(A->data, C, NB_F32), m, R, C, 1, 0));
    return k->gemm(t->dev, logits, xa, nb_mat_t(B->data, R, NB_F32), m, V, R, a->scale, 1);
}

/* logits[m,V] of rows first..first+m, with replaced columns put in. */
static nb_status make_logits(nb_tape *t, nb_node *n, const room *r, int64_t first, int64_t m) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *w = n->in[WEIGHT], *rows = n->in[ROWS], *bias = n->in[BIAS];
    int64_t C = n->in[X]->d[1], V = vocab_of(n);
    nb_mat logits = nb_mat_of(r->logits, V, NB_F32), x = nb_mat_of(r->xg, C, t->dev->elem);
    NB_TRY(k->gather_rows(t->dev, r->xg, n->in[X]->data, a->rows + first, m, C));
    if (w) NB_TRY(k->gemm(t->dev, logits, x, nb_mat_t(w->data, C, NB_F32), m, V, C, 1, 0));
    else NB_TRY(k->weight_fwd(t->dev, logits, r->xg, a->w, m, 0));
    if (n->in[LORA_A]) NB_TRY(add_adapter(t, n, r, first, m));
    if (bias) NB_TRY(k->bias_fwd(t->dev, r->logits, NB_F32, bias->data, m, V));
    if (!rows) return NB_OK;
    NB_TRY(k->gemm(t->dev, nb_mat_of(r->put, a->n_rows, NB_F32), x, nb_mat_t(rows->data, C, NB_F32), m, a->n_rows, C, 1,
                   0));
    return k->put_columns(t->dev, r->logits, r->put, a->row_ids, m, V, a->n_rows);
}

/* dx[m,C] += what comes through the adapter, or with dropout ddropped does; and gradients of A and B. */
static nb_status through_adapter(nb_tape *t, nb_node *n, nb_elem *dx, const room *r, int64_t first, int64_t m) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *A = n->in[LORA_A], *B = n->in[LORA_B];
    const nb_dtype e = t->dev->elem;
    int64_t C = A->d[1], R = A->d[0], V = B->d[0];
    nb_mat dxa = nb_mat_of(r->dxa, R, e), a_mat = nb_mat_of(A->data, C, NB_F32);
    NB_TRY(k->gemm(t->dev, dxa, nb_mat_of(r->dlogits, V, e), nb_mat_of(B->data, R, NB_F32), m, R, V, a->scale, 0));
    if (B->needs_grad)
        NB_TRY(k->gemm(t->dev, nb_mat_of(B->grad, R, NB_F32), nb_mat_t(r->dlogits, V, e), nb_mat_of(r->xa, R, e), V, R,
                       m, a->scale, first ? 1 : n->beta[LORA_B]));
    if (A->needs_grad)
        NB_TRY(k->gemm(t->dev, nb_mat_of(A->grad, C, NB_F32), nb_mat_t(r->dxa, R, e), nb_mat_of(r->xd, C, e), R, C, m,
                       1, first ? 1 : n->beta[LORA_A]));
    if (!r->dropped) return k->gemm(t->dev, nb_mat_of(dx, C, e), dxa, a_mat, m, C, R, 1, 1);
    NB_TRY(k->gemm(t->dev, nb_mat_of(r->dxd, C, e), dxa, a_mat, m, C, R, 1, 0));
    return k->scatter_rows(t->dev, r->ddropped, r->dxd, a->rows + first, NULL, m, C, 0);
}

/* dx[m,C] = dlogits W of rows first..first+m (replaced columns through their own rows), and gradients of what is
 * trained: those of the first rows as n->beta says, the others added. */
static nb_status through_head(nb_tape *t, nb_node *n, nb_elem *dx, const room *r, int64_t first, int64_t m) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *w = n->in[WEIGHT], *rows = n->in[ROWS], *bias = n->in[BIAS];
    const nb_dtype e = t->dev->elem;
    int64_t C = n->in[X]->d[1], V = vocab_of(n), R = a->n_rows;
    nb_mat x = nb_mat_of(r->xg, C, e), to = nb_mat_of(dx, C, e);
    if (rows) NB_TRY(k->take_columns(t->dev, r->taken, r->dlogits, a->row_ids, m, V, R));
    if (w) NB_TRY(k->gemm(t->dev, to, nb_mat_of(r->dlogits, V, e), nb_mat_of(w->data, C, NB_F32), m, C, V, 1, 0));
    else NB_TRY(k->weight_bwd(t->dev, dx, r->dlogits, a->w, m, 0));
    if (n->in[LORA_A]) NB_TRY(through_adapter(t, n, dx, r, first, m));
    if (bias && bias->needs_grad)
        NB_TRY(k->bias_bwd(t->dev, bias->grad, r->dlogits, m, V, first ? 1 : n->beta[BIAS]));
    if (w && w->needs_grad)
        NB_TRY(k->gemm(t->dev, nb_mat_of(w->grad, C, NB_F32), nb_mat_t(r->dlogits, V, e), x, V, C, m, 1,
                       first ? 1 : n->beta[WEIGHT]));
    if (!rows) return NB_OK;
    NB_TRY(k->gemm(t->dev, to, nb_mat_of(r->taken, R, e), nb_mat_of(rows->data, C, NB_F32), m, C, R, 1, 1));
    if (!rows->needs_grad) return NB_OK;
    return k->gemm(t->dev, nb_mat_of(rows->grad, C, NB_F32), nb_mat_t(r->taken, R, e), x, R, C, m, 1,
                   first ? 1 : n->beta[ROWS]);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    int64_t C = n->in[X]->d[1], V = vocab_of(n);
    nb_elem *dx = n->n_saved ? n->saved[0]->data : NULL;
    float *loss = n->out[0]->data;
    room r;
    NB_TRY(take_room(t, n, dx != NULL, &r));
    for (int64_t i = 0; i < a->n; i += r.rows) {
        int64_t m = a->n - i < r.rows ? a->n - i : r.rows;
        NB_TRY(make_logits(t, n, &r, i, m));
        NB_TRY(t->dev->k->xent(t->dev, loss + i, NULL, a->argmax ? a->argmax + i : NULL, dx ? r.dlogits : NULL,
                               r.logits, a->targets + i, m, V, a->softcap));
        if (dx) NB_TRY(through_head(t, n, nb_elem_at(dx, i * C, t->dev->elem), &r, i, m));
    }
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_linear_xent_attr *a = NB_ATTR(n, nb_linear_xent_attr);
    const nb_kernels *k = t->dev->k;
    nb_tensor *x = n->in[X];
    int64_t C = x->d[1], V = vocab_of(n);
    const float *dloss = n->out[0]->grad;
    if (x->needs_grad && n->beta[X] == 0) NB_TRY(k->fill(t->dev, x->grad, x->dtype, 0, nb_tensor_size(x)));
    if (n->n_saved) return k->scatter_rows(t->dev, x->grad, n->saved[0]->data, a->rows, dloss, a->n, C, 1);
    nb_elem *dx;
    float *loss;
    room r;
    NB_TRY(take_room(t, n, true, &r));
    NB_TRY(nb_scratch(t, &dx, r.rows * C, t->dev->elem));
    NB_TRY(nb_scratch(t, &loss, r.rows, NB_F32));
    for (int64_t i = 0; i < a->n; i += r.rows) {
        int64_t m = a->n - i < r.rows ? a->n - i : r.rows;
        NB_TRY(make_logits(t, n, &r, i, m));
        NB_TRY(k->xent(t->dev, loss, NULL, NULL, r.dlogits, r.logits, a->targets + i, m, V, a->softcap));
        NB_TRY(k->scale_rows(t->dev, r.dlogits, r.dlogits, dloss + i, m, V, 0));
        NB_TRY(through_head(t, n, dx, &r, i, m));
        if (x->needs_grad) NB_TRY(k->scatter_rows(t->dev, x->grad, dx, a->rows + i, NULL, m, C, 1));
    }
    return r.ddropped && x->needs_grad ? drop(t, n, x->grad, r.ddropped, 1) : NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double m = (double)NB_ATTR(n, nb_linear_xent_attr)->n, C = (double)n->in[X]->d[1], V = (double)vocab_of(n);
    double R = n->in[LORA_A] ? (double)n->in[LORA_A]->d[0] : 0;
    return (nb_cost){(n->n_saved ? 4 : 2) * m * (V * C + R * (V + C)), 4 * m * (C + V) + 4 * V * C + 4 * R * (V + C)};
}

static const int32_t rows_some[5] = {0, 2, 3, 5, 6}, targets_some[5] = {1, 10, 0, 4, 4}, replaced[2] = {4, 7};
static const nb_linear_xent_attr some = {.rows = rows_some, .targets = targets_some, .n = 5};
static const nb_linear_xent_attr capped = {.rows = rows_some, .targets = targets_some, .n = 5, .softcap = 1.5f};
static const nb_linear_xent_attr extra = {
    .rows = rows_some, .targets = targets_some, .n = 5, .row_ids = replaced, .n_rows = 2};
static const nb_linear_xent_attr adapted = {.rows = rows_some, .targets = targets_some, .n = 5, .scale = 1.5f};
static const nb_linear_xent_attr dropped = {
    .rows = rows_some, .targets = targets_some, .n = 5, .scale = 2, .dropout = 0.3f, .site = 9};
static const nb_case cases[] = {
    {"some rows", {{7, 6}, {11, 6}, {0}}, &some, NB_OK},
    {"wide", {{7, 40}, {300, 40}, {0}}, &some, NB_OK},
    {"softcap", {{7, 6}, {11, 6}, {0}}, &capped, NB_OK},
    {"replaced rows", {{7, 6}, {11, 6}, {2, 6}}, &extra, NB_OK},
    {"bias", {{7, 6}, {11, 6}, {0}, {11}}, &some, NB_OK},
    {"adapter", {{7, 6}, {11, 6}, {0}, {0}, {3, 6}, {11, 3}}, &adapted, NB_OK},
    {"adapter on a frozen head", {{7, 6}, {11, 6}, {0}, {11}, {3, 6}, {11, 3}}, &adapted, NB_OK,
     1u << WEIGHT | 1u << BIAS},
    {"adapter with dropout", {{7, 40}, {300, 40}, {0}, {0}, {4, 40}, {300, 4}}, &dropped, NB_OK},
    {"columns differ", {{7, 6}, {11, 5}, {0}}, &some, NB_ESHAPE},
    {"half an adapter", {{7, 6}, {11, 6}, {0}, {0}, {3, 6}}, &adapted, NB_ESHAPE},
};

const nb_op nb_op_linear_xent = {"linear_xent", sizeof(nb_linear_xent_attr), shape, forward, backward, cost, cases,
                                 NB_LEN(cases)};
