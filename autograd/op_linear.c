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
    for (int i = 0; i < a->n; i++) {
        nb_tensor *const *in = inputs(n, i), *w = in[NB_LINEAR_W], *A = in[NB_LINEAR_A];
        NB_TRY(nb_linear_check(&a->slot[i], in, x->d[0], x->d[1], i));
        nb_node_out(t, n, "linear", a->f32_out ? NB_F32 : t->dev->elem, 2, x->d[0], nb_linear_features(&a->slot[i], in));
        if (A && n->needs_grad) nb_node_save(t, n, "xa", t->dev->elem, 2, x->d[0], A->d[0]);
        if ((A && A->needs_grad) || (w && w->needs_grad)) n->keep_in |= 1;
    }
    return NB_OK;
}

/* Weight i over the input's rows; *saved counts those that have kept an xa. */
static nb_status rows_of(nb_tape *t, const nb_node *n, int i, int *saved, nb_linear_rows *r) {
    const nb_tensor *x = n->in[0], *A = inputs(n, i)[NB_LINEAR_A];
    *r = (nb_linear_rows){.slot = slot_of(n, i), .in = inputs(n, i), .x = x->data, .T = x->d[0], .C = x->d[1]};
    if (!A) return NB_OK;
    if (n->n_saved > *saved) r->xa = n->saved[(*saved)++]->data;
    else NB_TRY(nb_scratch(t, &r->xa, r->T * A->d[0], t->dev->elem));
    if (!nb_linear_drops(t, r->slot, r->in)) return NB_OK;
    r->sample = t->batch->sample, r->pos = t->batch->pos;
    return nb_scratch(t, &r->dropped, nb_tensor_size(x), t->dev->elem);
}

static nb_status forward(nb_tape *t, nb_node *n) {
    for (int i = 0, saved = 0; i < n->n_out; i++) {
        nb_linear_rows r;
        NB_TRY(rows_of(t, n, i, &saved, &r));
        NB_TRY(nb_linear_rows_fwd(t, &r, nb_mat_of(n->out[i]->data, n->out[i]->d[1], n->out[i]->dtype)));
    }
    return NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    nb_elem *dx = n->in[0]->needs_grad ? n->in[0]->grad : NULL;
    nb_linear_rows r[NB_LINEAR_MOST];
    for (int i = 0, saved = 0; i < n->n_out; i++) {
        NB_TRY(rows_of(t, n, i, &saved, &r[i]));
        if (r[i].xa) NB_TRY(nb_scratch(t, &r[i].dxa, r[i].T * r[i].in[NB_LINEAR_A]->d[0], t->dev->elem));
        r[i].dy = n->out[i]->grad;
        r[i].beta = n->beta + 1 + NB_LINEAR_INPUTS * i;
    }
    return nb_linear_rows_bwd(t, r, n->n_out, dx, n->beta[0]);
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
