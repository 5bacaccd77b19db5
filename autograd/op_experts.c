/* Linear layers of a mixture's experts. Rows stand expert by expert (op_route.c), so each expert's product is over a slice;
 * which slice the host knows. Buffers have room for all rows, and are taken once: how many rows an expert has differs from
 * batch to batch, but no buffer does.
 *
 * The weight of a row multiplies the expert's input, not its result: the same but for rounding, as the layer has no bias,
 * and its gradient then needs no result to be kept. */
#include "autograd/linear_rows.h"

enum { X, TOKENS, PLACES, WEIGHTS, FIRST };

static nb_tensor *const *inputs(const nb_node *n, int64_t i) { return n->in + FIRST + NB_LINEAR_INPUTS * i; }
static int64_t rows_of(const nb_node *n) { return n->in[TOKENS]->d[0]; }

static nb_status shape(nb_tape *t, nb_node *n) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_tensor *x = n->in[X];
    int64_t rows = rows_of(n), T = rows / a->k, E = a->experts;
    NB_ASSERT(a->n >= 1 && a->n <= 2 && n->n_in == FIRST + NB_LINEAR_INPUTS * a->n * E);
    if (x->d[0] != (n->in[WEIGHTS] ? rows : T) || rows % a->k || (n->in[WEIGHTS] && a->n != 1))
        return nb_fail(NB_ESHAPE, "x [%lld,%lld] for %lld rows, %lld a token", (long long)x->d[0], (long long)x->d[1],
                       (long long)rows, (long long)a->k);
    for (int64_t i = 0; i < a->n * E; i++) {
        int64_t N = nb_linear_features(&a->slot[i], inputs(n, i));
        NB_TRY(nb_linear_check(&a->slot[i], inputs(n, i), x->d[0], x->d[1], (int)i));
        if (i % E) {
            if (N == n->out[i / E]->d[1]) continue;
            return nb_fail(NB_ESHAPE, "experts of %lld and %lld rows", (long long)n->out[i / E]->d[1], (long long)N);
        }
        nb_node_out(t, n, "experts", t->dev->elem, 2, n->in[WEIGHTS] ? T : rows, N);
    }
    n->keep_in = 1 << X | 1 << TOKENS | 1 << PLACES | 1 << WEIGHTS;
    return NB_OK;
}

/* What the experts of one weight work in: adapters' ranks and dropout may differ from expert to expert. */
typedef struct room {
    nb_elem *x; /* [rows, C] the experts' input */
    nb_elem *xa, *dxa, *dropped;
    int64_t R; /* the largest rank */
    const uint32_t *sample; /* [rows] with dropout */
    const int32_t *pos;
} room;

/* Dropout's counters of the rows' tokens. */
static nb_status words_of_rows(nb_tape *t, const nb_node *n, const void *words, const void **out) {
    void *to;
    NB_TRY(nb_scratch(t, &to, rows_of(n), NB_I32));
    *out = to;
    return t->dev->k->gather_words(t->dev, to, words, n->in[TOKENS]->data, rows_of(n));
}

static nb_status take_room(nb_tape *t, const nb_node *n, bool backward, room *r) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[X];
    int64_t rows = rows_of(n), C = x->d[1];
    bool drops = false;
    *r = (room){0};
    for (int64_t i = 0; i < a->n * a->experts; i++) {
        const nb_tensor *A = inputs(n, i)[NB_LINEAR_A];
        if (A && A->d[0] > r->R) r->R = A->d[0];
        drops |= nb_linear_drops(t, &a->slot[i], inputs(n, i));
    }
    NB_TRY(nb_scratch(t, &r->x, rows * C, e));
    if (n->in[WEIGHTS]) NB_TRY(t->dev->k->scale_rows(t->dev, r->x, x->data, n->in[WEIGHTS]->data, rows, C, 0));
    else NB_TRY(t->dev->k->gather_rows(t->dev, r->x, x->data, n->in[TOKENS]->data, rows, C));
    if (!r->R) return NB_OK;
    NB_TRY(nb_scratch(t, &r->xa, rows * r->R, e));
    if (backward) NB_TRY(nb_scratch(t, &r->dxa, rows * r->R, e));
    if (!drops) return NB_OK;
    NB_TRY(nb_scratch(t, &r->dropped, rows * C, e));
    NB_TRY(words_of_rows(t, n, t->batch->sample, (const void **)&r->sample));
    return words_of_rows(t, n, t->batch->pos, (const void **)&r->pos);
}

/* Element i of a buffer that may not be there. */
static nb_elem *at_elem(nb_elem *p, int64_t i, nb_dtype e) { return p ? nb_elem_at(p, i, e) : NULL; }

/* Expert i % E's rows of weight i / E. A plan is made for the most that can come: every token. */
static nb_linear_rows slice(const nb_tape *t, const nb_node *n, const room *r, int64_t i, int64_t *first) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_dtype e = t->dev->elem;
    int64_t expert = i % a->experts, C = n->in[X]->d[1];
    bool plan = t->mode == NB_MEM_PLAN;
    int64_t at = plan ? 0 : a->offsets[expert], end = plan ? rows_of(n) / a->k : a->offsets[expert + 1];
    NB_ASSERT(at >= 0 && at <= end && end <= rows_of(n));
    *first = at;
    return (nb_linear_rows){.slot = &a->slot[i], .in = inputs(n, i), .x = nb_elem_at(r->x, at * C, e), .T = end - at,
                            .C = C, .sample = r->sample ? r->sample + at : NULL, .pos = r->pos ? r->pos + at : NULL,
                            .dropped = at_elem(r->dropped, at * C, e), .xa = at_elem(r->xa, at * r->R, e),
                            .dxa = at_elem(r->dxa, at * r->R, e), .ld_xa = r->R};
}

static nb_status forward(nb_tape *t, nb_node *n) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_dtype e = t->dev->elem;
    int64_t rows = rows_of(n);
    nb_elem *y = NULL;
    room r;
    NB_TRY(take_room(t, n, false, &r));
    if (n->in[WEIGHTS]) NB_TRY(nb_scratch(t, &y, rows * n->out[0]->d[1], e));
    for (int64_t i = 0; i < a->n * a->experts; i++) {
        const nb_tensor *out = n->out[i / a->experts];
        int64_t at, N = out->d[1];
        nb_linear_rows s = slice(t, n, &r, i, &at);
        if (!s.T) continue;
        NB_TRY(nb_linear_rows_xa(t, &s, 1));
        NB_TRY(nb_linear_rows_fwd(t, &s, nb_mat_of(nb_elem_at(y ? y : out->data, at * N, e), N, e)));
    }
    if (!y) return NB_OK;
    return t->dev->k->sum_rows(t->dev, n->out[0]->data, y, n->in[PLACES]->data, rows / a->k, a->k, n->out[0]->d[1], 0);
}

/* dx, and dweights, from the gradient dr of the rows' inputs. */
static nb_status to_input(nb_tape *t, nb_node *n, const nb_elem *dr) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_kernels *k = t->dev->k;
    const nb_tensor *x = n->in[X], *weights = n->in[WEIGHTS];
    int64_t rows = rows_of(n), C = x->d[1];
    if (!weights)
        return k->sum_rows(t->dev, x->grad, dr, n->in[PLACES]->data, rows / a->k, a->k, C, n->beta[X]);
    if (weights->needs_grad) NB_TRY(k->row_dots(t->dev, weights->grad, dr, x->data, rows, C, n->beta[WEIGHTS]));
    return x->needs_grad ? k->scale_rows(t->dev, x->grad, dr, weights->data, rows, C, n->beta[X]) : NB_OK;
}

static nb_status backward(nb_tape *t, nb_node *n) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    const nb_dtype e = t->dev->elem;
    const nb_tensor *x = n->in[X], *weights = n->in[WEIGHTS];
    int64_t rows = rows_of(n), C = x->d[1];
    nb_elem *dr = NULL, *dy = NULL;
    room r;
    NB_TRY(take_room(t, n, true, &r));
    if (x->needs_grad || (weights && weights->needs_grad)) NB_TRY(nb_scratch(t, &dr, rows * C, e));
    if (weights) {
        NB_TRY(nb_scratch(t, &dy, rows * n->out[0]->d[1], e));
        NB_TRY(t->dev->k->gather_rows(t->dev, dy, n->out[0]->grad, n->in[TOKENS]->data, rows, n->out[0]->d[1]));
    }
    for (int64_t i = 0; i < a->n * a->experts; i++) {
        const nb_tensor *out = n->out[i / a->experts];
        int64_t at, N = out->d[1];
        nb_linear_rows s = slice(t, n, &r, i, &at);
        if (s.T) NB_TRY(nb_linear_rows_xa(t, &s, 1));
        s.dy = nb_elem_at(dy ? dy : out->grad, at * N, e);
        s.beta = n->beta + FIRST + NB_LINEAR_INPUTS * i;
        NB_TRY(nb_linear_rows_bwd(t, &s, 1, at_elem(dr, at * C, e), i < a->experts ? 0 : 1));
    }
    return dr ? to_input(t, n, dr) : NB_OK;
}

/* Of rows spread evenly: the numbers are those of any other spread but for the adapters' ranks. */
static nb_cost cost(const nb_node *n) {
    const nb_experts_attr *a = NB_ATTR(n, nb_experts_attr);
    double rows = (double)rows_of(n), C = (double)n->in[X]->d[1];
    nb_cost c = {0, 4 * rows * C};
    for (int64_t i = 0; i < a->n * a->experts; i++) {
        double N = (double)nb_linear_features(&a->slot[i], inputs(n, i));
        c.flops += nb_linear_flops(&a->slot[i], inputs(n, i), rows / (double)a->experts, C);
        c.bytes += a->slot[i].w ? (double)nb_weight_bytes(a->slot[i].w) : 4 * N * C;
    }
    return c;
}

/* 4 tokens, 2 of 3 experts each; in the other cases the second expert gets none. */
static const int32_t tokens[8] = {0, 1, 3, 0, 2, 1, 2, 3}, places[8] = {0, 3, 5, 1, 4, 6, 2, 7}, offsets[4] = {0, 3, 5, 8},
                     rest_tokens[8] = {0, 1, 2, 3, 0, 1, 2, 3}, rest_places[8] = {4, 0, 1, 5, 2, 6, 3, 7},
                     rest_offsets[4] = {0, 4, 4, 8};
static const int32_t *const all_ints[4] = {NULL, tokens, places}, *const rest_ints[4] = {NULL, rest_tokens, rest_places};
static const nb_linear_slot slots[6] = {{NULL, 2, 0, 1}, {NULL, 0.5f, 0, 2}, {NULL, 1.5f, 0, 3},
                                        {NULL, 1, 0, 4}, {NULL, 0.5f, 0, 5}, {NULL, 2, 0, 6}},
                            dropping[3] = {{NULL, 2, 0.3f, 1}, {NULL, 0.5f, 0, 2}, {NULL, 1.5f, 0.4f, 3}};
static const nb_experts_attr two = {2, 3, 2, slots, offsets}, one = {1, 3, 2, slots, rest_offsets},
                             dropped = {1, 3, 2, dropping, offsets};
#define PLAIN(N, C) {N, C}, {0}, {0}, {0}
#define ADAPTED(N, C, R) {N, C}, {0}, {R, C}, {N, R}
static const nb_case cases[] = {
    {"of tokens", {{4, 6}, {8}, {8}, {0}, PLAIN(5, 6), ADAPTED(5, 6, 2), ADAPTED(5, 6, 3), ADAPTED(7, 6, 4), PLAIN(7, 6),
                   PLAIN(7, 6)}, &two, NB_OK, .ints = all_ints},
    {"summed", {{8, 5}, {8}, {8}, {8}, ADAPTED(9, 5, 2), ADAPTED(9, 5, 3), PLAIN(9, 5)}, &one, NB_OK, .ints = rest_ints},
    {"one without rows", {{4, 6}, {8}, {8}, {0}, ADAPTED(5, 6, 2), ADAPTED(5, 6, 2), ADAPTED(5, 6, 2)}, &one, NB_OK,
     .ints = rest_ints},
    {"dropout", {{4, 6}, {8}, {8}, {0}, ADAPTED(5, 6, 2), ADAPTED(5, 6, 3), ADAPTED(5, 6, 2)}, &dropped, NB_OK,
     .ints = all_ints},
    {"dropout, summed", {{8, 6}, {8}, {8}, {8}, ADAPTED(5, 6, 2), ADAPTED(5, 6, 3), ADAPTED(5, 6, 2)}, &dropped, NB_OK,
     .ints = all_ints},
    {"rows differ", {{4, 6}, {8}, {8}, {0}, PLAIN(5, 6), PLAIN(4, 6), PLAIN(5, 6)}, &one, NB_ESHAPE, .ints = rest_ints},
    {"too few tokens", {{3, 6}, {8}, {8}, {0}, PLAIN(5, 6), PLAIN(5, 6), PLAIN(5, 6)}, &one, NB_ESHAPE,
     .ints = rest_ints},
};

const nb_op nb_op_experts = {"experts", sizeof(nb_experts_attr), shape, forward, backward, cost, cases, NB_LEN(cases)};
