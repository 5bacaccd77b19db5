/* The auxiliary loss that keeps a mixture's experts in use. How many tokens an expert got has no gradient; its mean
 * probability has. The counts of all layers are on the host (op_route.c), so that only products of small vectors are left:
 * aux = coef * E / layers * sum over layers of (f . share of the layer), f the mean over layers of the share of tokens. */
#include <stdlib.h>

#include "autograd/ops.h"
#include "core/mem.h"

static int64_t layers_of(const nb_node *n) { return n->n_in - 1; }

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_balance_attr *a = NB_ATTR(n, nb_balance_attr);
    for (int i = 1; i < n->n_in; i++)
        if (n->in[i]->d[0] != a->experts)
            return nb_fail(NB_ESHAPE, "shares of %lld and %lld experts", (long long)n->in[i]->d[0],
                           (long long)a->experts);
    nb_node_out(t, n, "balanced", NB_F32, 1, n->in[0]->d[0], 0);
    if (n->needs_grad) nb_node_save(t, n, "factors", NB_F32, 1, a->experts, 0);
    return NB_OK;
}

/* factors[E] = coef * E / layers * f */
static nb_status put_factors(nb_tape *t, const nb_node *n, float *factors) {
    const nb_balance_attr *a = NB_ATTR(n, nb_balance_attr);
    float *host = nb_calloc((size_t)a->experts, sizeof *host);
    double L = (double)layers_of(n), by = a->coef * (double)a->experts / L / (L * (double)a->tokens);
    for (int64_t e = 0; e < a->experts && t->mode != NB_MEM_PLAN; e++) {
        int64_t count = 0;
        for (int64_t l = 0; l < layers_of(n); l++) count += a->offsets[l][e + 1] - a->offsets[l][e];
        host[e] = (float)(by * (double)count);
    }
    nb_status st = t->dev->be->put(t->dev, factors, host, (size_t)a->experts * sizeof *host);
    free(host);
    return st;
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_balance_attr *a = NB_ATTR(n, nb_balance_attr);
    const nb_tensor *losses = n->in[0];
    int64_t E = a->experts;
    float *factors, *aux;
    if (n->n_saved) factors = n->saved[0]->data;
    else NB_TRY(nb_scratch(t, &factors, E, NB_F32));
    NB_TRY(nb_scratch(t, &aux, 1, NB_F32));
    NB_TRY(put_factors(t, n, factors));
    for (int i = 1; i < n->n_in; i++)
        NB_TRY(t->dev->k->gemm(t->dev, nb_mat_of(aux, 1, NB_F32), nb_mat_of(n->in[i]->data, E, NB_F32),
                               nb_mat_of(factors, 1, NB_F32), 1, 1, E, 1, i > 1 ? 1 : 0));
    NB_TRY(t->dev->be->copy(t->dev, n->out[0]->data, losses->data, (size_t)losses->d[0] * sizeof(float)));
    return t->dev->k->bias_fwd(t->dev, n->out[0]->data, NB_F32, aux, losses->d[0], 1);
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_kernels *k = t->dev->k;
    const nb_balance_attr *a = NB_ATTR(n, nb_balance_attr);
    const nb_tensor *losses = n->in[0];
    const float *dy = n->out[0]->grad;
    int64_t count = losses->d[0], E = a->experts;
    float *ones, *sum;
    NB_TRY(nb_scratch(t, &ones, count, NB_F32));
    NB_TRY(nb_scratch(t, &sum, 1, NB_F32));
    NB_TRY(k->fill(t->dev, ones, NB_F32, 1, count));
    if (losses->needs_grad && n->beta[0] == 0)
        NB_TRY(t->dev->be->copy(t->dev, losses->grad, dy, (size_t)count * sizeof *dy));
    else if (losses->needs_grad)
        NB_TRY(k->gemm(t->dev, nb_mat_of(losses->grad, 1, NB_F32), nb_mat_of(dy, 1, NB_F32), nb_mat_of(ones, 1, NB_F32),
                       count, 1, 1, 1, n->beta[0]));
    NB_TRY(k->gemm(t->dev, nb_mat_of(sum, 1, NB_F32), nb_mat_of(dy, count, NB_F32), nb_mat_of(ones, 1, NB_F32), 1, 1,
                   count, 1, 0));
    for (int i = 1; i < n->n_in; i++)
        if (n->in[i]->needs_grad)
            NB_TRY(k->gemm(t->dev, nb_mat_of(n->in[i]->grad, E, NB_F32), nb_mat_of(sum, 1, NB_F32),
                           nb_mat_of(n->saved[0]->data, E, NB_F32), 1, E, 1, 1, n->beta[i]));
    return NB_OK;
}

static nb_cost cost(const nb_node *n) {
    double size = (double)(layers_of(n) * NB_ATTR(n, nb_balance_attr)->experts);
    return (nb_cost){2 * size, 4 * size};
}

static const int32_t some[5] = {0, 3, 4, 9, 10}, others[5] = {0, 0, 5, 6, 10}, *const both[2] = {some, others};
static const nb_balance_attr four = {.coef = 0.5f, .experts = 4, .tokens = 5, .offsets = both};
static const nb_case cases[] = {
    {"two layers", {{6, 0}, {4, 0}, {4, 0}}, &four, NB_OK},
    {"one layer", {{3, 0}, {4, 0}}, &four, NB_OK},
    {"other experts", {{6, 0}, {5, 0}}, &four, NB_ESHAPE},
};

const nb_op nb_op_balance = {"balance", sizeof(nb_balance_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
