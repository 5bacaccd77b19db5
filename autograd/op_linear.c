/* Several linear layers over one input, each with its optional low-rank adapter: autograd/linear_rows.h. Weights are frozen
 * (any format) or trained (f32). */
#include "autograd/linear_rows.h"

static nb_tensor *const *inputs(const nb_node *n, int slot) { return n->in + 1 + NB_LINEAR_INPUTS * slot; }
static const nb_linear_slot *slot_of(const nb_node *n, int i) { return &NB_ATTR(n, nb_linear_attr)->slot[i]; }

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_linear_attr *a = NB_ATTR(n, nb_linear_attr);
    const nb_tensor *x = n->in[0];
    NB_ASSERT(a->n >= 1 && a->n <= 3 && n->n_in == 1 + NB_LINEAR_INPUTS * a->n);
    NB_ASSERT(!a->f32_out || !n->needs_grad || t->dev->elem == NB_F32);
    int64_t ranks = 0;
    for (int i = 0; i < a->n; i++) {
        nb_tensor *const *in = inputs(n, i), *w = in[NB_LINEAR_W], *A = in[NB_LINEAR_A];
        NB_TRY(nb_linear_check(&a->slot[i], in, x->d[0], x->d[1], i));
        nb_node_out(t, n, "linear", a->f32_out ? NB_F32 : t->dev->elem, 2, x->d[0], nb_linear_features(&a->slot[i], in));
        if (A) ranks += A->d[0];
        if ((A && A->needs_grad) || (w && w->needs_grad)) n->keep_in |= 1;
    }
    if (ranks && n->needs_grad) nb_node_save(t, n, "xa", t->dev->elem, 2, x->d[0], ranks);
    return NB_OK;
}

/* The weights over the input's rows; xa, of all side by side, is a saved tensor or scratch. */
static nb_status all_rows(nb_tape *t, const nb_node *n, bool backward, nb_linear_rows r[NB_LINEAR_MOST]) {
    const nb_tensor *x = n->in[0];
    const nb_dtype e = t->dev->elem;
    int64_t ranks = 0, at = 0;
    nb_elem *xa = NULL, *dxa = NULL, *dropped = NULL;
    bool drops = false;
    for (int i = 0; i < n->n_out; i++) {
        const nb_tensor *A = inputs(n, i)[NB_LINEAR_A];
        if (A) ranks += A->d[0];
        drops |= nb_linear_drops(t, slot_of(n, i), inputs(n, i));
    }
    if (n->n_saved) xa = n->saved[0]->data;
    else if (ranks) NB_TRY(nb_scratch(t, &xa, x->d[0] * ranks, e));
    if (ranks && backward) NB_TRY(nb_scratch(t, &dxa, x->d[0] * ranks, e));
    if (drops) NB_TRY(nb_scratch(t, &dropped, nb_tensor_size(x), e));
    for (int i = 0; i < n->n_out; i++) {
        const nb_tensor *A = inputs(n, i)[NB_LINEAR_A];
        r[i] = (nb_linear_rows){.slot = slot_of(n, i), .in = inputs(n, i), .x = x->data, .T = x->d[0], .C = x->d[1],
                                .ld_xa = ranks, .dropped = dropped};
        if (drops) r[i].sample = t->batch->sample, r[i].pos = t->batch->pos;
        if (!A) continue;
        r[i].xa = nb_elem_at(xa, at, e);
        if (backward) r[i].dxa = nb_elem_at(dxa, at, e);
        at += A->d[0];
    }
    return NB_OK;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    nb_linear_rows r[NB_LINEAR_MOST];
    NB_TRY(all_rows(t, n, false, r));
    NB_TRY(nb_linear_rows_xa(t, r, n->n_out));
    for (int i = 0; i < n->n_out; i++)
        NB_TRY(nb_linear_rows_fwd(t, &r[i], nb_mat_of(n->out[i]->data, n->out[i]->d[1], n->out[i]->dtype)));
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    nb_linear_rows r[NB_LINEAR_MOST];
    NB_TRY(all_rows(t, n, true, r));
    for (int i = 0; i < n->n_out; i++) {
        r[i].dy = n->out[i]->grad;
        r[i].beta = n->beta + 1 + NB_LINEAR_INPUTS * i;
    }
    return nb_linear_rows_bwd(t, r, n->n_out, n->in[0]->needs_grad ? n->in[0]->grad : NULL, n->beta[0]);
}

static nb_cost cost(const nb_node *n) {
    double T = (double)n->in[0]->d[0], C = (double)n->in[0]->d[1];
    nb_cost c = {0, 4 * T * C};
    for (int i = 0; i < n->n_out; i++) {
        nb_tensor *const *in = inputs(n, i);
        const nb_weight *w = slot_of(n, i)->w;
        double N = (double)nb_linear_features(slot_of(n, i), in), R = in[NB_LINEAR_A] ? (double)in[NB_LINEAR_A]->d[0] : 0;
        c.flops += nb_linear_flops(slot_of(n, i), in, T, C);
        c.bytes += 4 * T * N + (w ? (double)nb_weight_bytes(w) : 4 * N * C) + 4 * R * (N + C);
    }
    return c;
}

static const nb_linear_attr one = {1, {{NULL, 2.0f, 0, 1}}}, two = {2, {{NULL, 2.0f, 0, 1}, {NULL, 0.5f, 0, 2}}};
static const nb_linear_attr dropped = {1, {{NULL, 1.5f, 0.3f, 7}}};
static const nb_case cases[] = {
    {"weight", {{5, 7}, {4, 7}, {0}, {0}, {0}}, &one, NB_OK},
    {"bias", {{5, 7}, {4, 7}, {4}, {0}, {0}}, &one, NB_OK},
    {"adapter", {{9, 33}, {17, 33}, {0}, {3, 33}, {17, 3}}, &one, NB_OK},
    {"two weights, one adapter", {{9, 16}, {12, 16}, {12}, {4, 16}, {12, 4}, {7, 16}, {0}, {0}, {0}}, &two, NB_OK},
    {"two adapters", {{6, 40}, {24, 40}, {0}, {2, 40}, {24, 2}, {9, 40}, {0}, {5, 40}, {9, 5}}, &two, NB_OK},
    {"dropout", {{11, 24}, {8, 24}, {0}, {4, 24}, {8, 4}}, &dropped, NB_OK},
    {"columns differ", {{5, 7}, {4, 8}, {0}, {0}, {0}}, &one, NB_ESHAPE},
    {"half an adapter", {{5, 7}, {4, 7}, {0}, {2, 7}, {0}}, &one, NB_ESHAPE},
    {"ranks differ", {{5, 7}, {4, 7}, {0}, {2, 7}, {4, 3}}, &one, NB_ESHAPE},
};

const nb_op nb_op_linear = {"linear", sizeof(nb_linear_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
