/* Every row of autograd/ops.def, every case of it, on every product variant of the cpu backend:
 *  (1) errors that the case expects, (2) forward against double precision, (3) analytic gradients against central
 *  differences of sum(out * r) with r fixed and random, (4) set and add, (5) every subset of frozen inputs leaves the
 *  other gradients bit-equal, (6) red zones intact, (7) variants, (8) a wrong backward is caught. */
#include "autograd/ops.h"
#include "core/cpu.h"
#include "core/mem.h"
#include "tests/reference.h"
#include "tests/test.h"

enum { MAX_TOKENS = 512, MAX_IN = 32 };
static int32_t positions[MAX_TOKENS];
static uint32_t samples[MAX_TOKENS];
static const nb_batch batch = {.n = MAX_TOKENS, .pos = positions, .sample = samples};
static const uint64_t seed = 99;
static const uint32_t step = 5;

/* ---- the operations in double precision: out[k] from in[i] (NULL: absent) ---- */

typedef struct call {
    const nb_op *op;
    const nb_case *c;
    double *in[MAX_IN], *out[NB_MAX_OUT], *r[NB_MAX_OUT];
    int64_t in_size[MAX_IN], out_size[NB_MAX_OUT];
    int n_in, n_out;
} call;

static int64_t rows_of(const call *k, int i) { return k->c->in[i][0]; }
static int64_t cols_of(const call *k, int i) { return k->c->in[i][1]; }

static void ref_product_nt(double *y, const double *x, const double *w, int64_t M, int64_t N, int64_t K, double scale,
                           bool add) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t i = 0; i < K; i++) sum += x[m * K + i] * w[n * K + i];
            y[m * N + n] = scale * sum + (add ? y[m * N + n] : 0);
        }
}

static void ref_embedding(call *k) {
    const nb_embedding_attr *a = k->c->attr;
    int64_t C = cols_of(k, 0);
    for (int64_t t = 0; t < a->n; t++) {
        const double *row = k->in[0] + a->ids[t] * C;
        for (int64_t j = 0; j < a->n_rows && k->in[1]; j++)
            if (a->row_ids[j] == a->ids[t]) row = k->in[1] + j * C;
        for (int64_t c = 0; c < C; c++) {
            double v = row[c];
            for (int64_t r = 0; r < cols_of(k, 2) && k->in[2]; r++)
                v += (double)a->lora_scale * k->in[2][a->ids[t] * cols_of(k, 2) + r] * k->in[3][c * cols_of(k, 2) + r];
            k->out[0][t * C + c] = v * (double)a->scale;
        }
    }
}

static void ref_linear(call *k) {
    const nb_linear_attr *a = k->c->attr;
    int64_t T = rows_of(k, 0), C = cols_of(k, 0);
    for (int s = 0; s < a->n; s++) {
        const double *W = k->in[1 + 4 * s], *bias = k->in[2 + 4 * s], *A = k->in[3 + 4 * s], *B = k->in[4 + 4 * s];
        int64_t N = rows_of(k, 1 + 4 * s), R = A ? rows_of(k, 3 + 4 * s) : 0;
        ref_product_nt(k->out[s], k->in[0], W, T, N, C, 1, false);
        for (int64_t i = 0; bias && i < T * N; i++) k->out[s][i] += bias[i % N];
        if (!A) continue;
        double *x = nb_malloc((size_t)(T * C) * sizeof *x), *xa = nb_malloc((size_t)(T * R) * sizeof *xa);
        for (int64_t i = 0; i < T * C; i++) {
            double keep = a->slot[s].dropout > 0 ? ref_dropout_factor(samples[i / C], positions[i / C], i % C,
                                                                      a->slot[s].dropout, seed, step, a->slot[s].site)
                                                 : 1;
            x[i] = k->in[0][i] * keep;
        }
        ref_product_nt(xa, x, A, T, R, C, 1, false);
        ref_product_nt(k->out[s], xa, B, T, N, R, (double)a->slot[s].scale, true);
        free(x), free(xa);
    }
}

static void ref_dora(call *k) {
    const nb_dora_attr *a = k->c->attr;
    const float *W = a->w->data;
    int64_t N = a->w->rows, C = a->w->cols;
    for (int64_t j = 0; j < N; j++) {
        double norm = 0;
        for (int64_t c = 0; c < C; c++) {
            double v = (double)W[j * C + c];
            for (int64_t r = 0; r < a->R; r++)
                v += (double)a->scale * (double)a->B[j * a->R + r] * (double)a->A[r * C + c];
            norm += v * v;
        }
        for (int64_t t = 0; t < rows_of(k, 0); t++)
            k->out[0][t * N + j] = k->in[0][t * N + j] * k->in[2][j] / sqrt(norm) + (k->in[3] ? k->in[3][j] : 0) +
                                   (k->in[1] ? k->in[1][t * N + j] : 0);
    }
}

static void ref_op_dropout(call *k) {
    const nb_dropout_attr *a = k->c->attr;
    int64_t C = cols_of(k, 0);
    for (int64_t i = 0; i < k->out_size[0]; i++) {
        double x = k->in[0][i];
        double keep = ref_dropout_factor(samples[i / C], positions[i / C], i % C, a->p, seed, step, a->site);
        k->out[0][i] = x * keep;
        k->out[1][i] = x - x * keep;
    }
}

static void ref_op_rmsnorm(call *k) {
    const nb_rmsnorm_attr *a = k->c->attr;
    double rstd[MAX_TOKENS];
    int64_t C = rows_of(k, 1); /* a vector's length; it may divide the columns */
    ref_rmsnorm_fwd(k->out[0], rstd, k->in[0], k->in[1], rows_of(k, 0) * cols_of(k, 0) / C, C, (double)a->eps,
                    (double)a->offset);
}

static void ref_op_layernorm(call *k) {
    double mean[MAX_TOKENS], rstd[MAX_TOKENS];
    ref_layernorm_fwd(k->out[0], mean, rstd, k->in[0], k->in[1], k->in[2], rows_of(k, 0), cols_of(k, 0),
                      (double)((const nb_layernorm_attr *)k->c->attr)->eps);
}

static void ref_op_rope(call *k) {
    const nb_rope_attr *a = k->c->attr;
    double cosine[64], sine[64];
    for (int i = 0; i < 12; i++) cosine[i] = (double)a->cos[i], sine[i] = (double)a->sin[i];
    for (int i = 0; i < 2; i++)
        ref_rope(k->out[i], k->in[i], cosine, sine, a->pos, rows_of(k, i), i ? a->kv_heads : a->heads, a->head_dim,
                 a->rot, false);
}

static void ref_op_attention(call *k) {
    const nb_attention_attr *a = k->c->attr;
    ref_attention ra = {a->segs, a->n_segs, a->heads, a->kv_heads, a->head_dim, a->window, (double)a->scale,
                        (double)a->softcap};
    double *lse = nb_malloc((size_t)(rows_of(k, 0) * a->heads) * sizeof *lse);
    ref_attention_fwd(k->out[0], lse, k->in[0], k->in[1], k->in[2], &ra);
    free(lse);
}

static void ref_op_glu(call *k) {
    double *ones = nb_malloc((size_t)k->out_size[0] * sizeof *ones);
    for (int64_t i = 0; i < k->out_size[0]; i++) ones[i] = 1;
    ref_glu_fwd(k->out[0], k->in[0], k->in[1] ? k->in[1] : ones, k->out_size[0],
                ((const nb_glu_attr *)k->c->attr)->act);
    free(ones);
}

static void ref_op_split(call *k) {
    const nb_split_attr *a = k->c->attr;
    int64_t groups = a->groups > 1 ? a->groups : 1, rows = rows_of(k, 0) * groups, C = cols_of(k, 0) / groups;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t i = 0, at = 0; i < a->n; i++) {
            int64_t part = a->width[i] / groups;
            memcpy(k->out[i] + t * part, k->in[0] + t * C + at, (size_t)part * sizeof(double));
            at += part;
        }
}

static void ref_op_clamp(call *k) {
    double limit = (double)((const nb_clamp_attr *)k->c->attr)->limit;
    for (int64_t i = 0; i < k->out_size[0]; i++) k->out[0][i] = fmax(-limit, fmin(limit, k->in[0][i]));
}

static void ref_op_add(call *k) {
    for (int64_t i = 0; i < k->out_size[0]; i++) k->out[0][i] = k->in[0][i] + k->in[1][i];
}

static void ref_op_linear_xent(call *k) {
    const nb_linear_xent_attr *a = k->c->attr;
    int64_t C = cols_of(k, 0), V = rows_of(k, 1);
    int64_t R = k->in[4] ? rows_of(k, 4) : 0;
    double *logits = nb_malloc((size_t)V * sizeof *logits), xd[64], xa[8];
    assert_true(R <= 8 && C <= 64);
    for (int64_t i = 0; i < a->n; i++) {
        const double *x = k->in[0] + a->rows[i] * C;
        ref_product_nt(logits, x, k->in[1], 1, V, C, 1, false);
        for (int64_t c = 0; c < C && R; c++)
            xd[c] = x[c] * (a->dropout > 0 ? ref_dropout_factor(samples[a->rows[i]], positions[a->rows[i]], c,
                                                                a->dropout, seed, step, a->site)
                                           : 1);
        if (R) ref_product_nt(xa, xd, k->in[4], 1, R, C, 1, false);
        if (R) ref_product_nt(logits, xa, k->in[5], 1, V, R, (double)a->scale, true);
        for (int64_t j = 0; j < a->n_rows && k->in[2]; j++)
            ref_product_nt(logits + a->row_ids[j], x, k->in[2] + j * C, 1, 1, C, 1, false);
        for (int64_t v = 0; v < V && k->in[3]; v++) logits[v] += k->in[3][v];
        for (int64_t v = 0; v < V && a->softcap > 0; v++)
            logits[v] = (double)a->softcap * tanh(logits[v] / (double)a->softcap);
        double max = logits[0], sum = 0;
        for (int64_t v = 1; v < V; v++) max = logits[v] > max ? logits[v] : max;
        for (int64_t v = 0; v < V; v++) sum += exp(logits[v] - max);
        k->out[0][i] = max + log(sum) - logits[a->targets[i]];
    }
    free(logits);
}

static void ref_softmax(double *p, const double *x, int64_t E) {
    double max = x[0], sum = 0;
    for (int64_t e = 1; e < E; e++) max = x[e] > max ? x[e] : max;
    for (int64_t e = 0; e < E; e++) sum += p[e] = exp(x[e] - max);
    for (int64_t e = 0; e < E; e++) p[e] /= sum;
}

/* Choices by sorting, rows by walking the experts. */
static void ref_route(call *k) {
    const nb_route_attr *a = k->c->attr;
    int64_t T = rows_of(k, 0), E = cols_of(k, 0), row = 0;
    double p[MAX_TOKENS], *weight = k->out[0], *token = k->out[1], *place = k->out[2];
    for (int64_t e = 0; e < E; e++)
        for (int64_t t = 0; t < T; t++) {
            ref_softmax(p, k->in[0] + t * E, E);
            double sum = 0;
            int64_t ahead = 0;
            for (int64_t f = 0; f < E; f++) {
                int64_t before = 0;
                for (int64_t g = 0; g < E; g++) before += p[g] > p[f] || (p[g] == p[f] && g < f);
                if (before < a->k) sum += p[f];
                if (f == e) ahead = before;
            }
            if (ahead >= a->k) continue;
            token[row] = (double)t;
            weight[row] = p[e] / (a->renorm ? sum : 1);
            place[t * a->k + ahead] = (double)row++;
        }
    for (int64_t e = 0; e < E && a->share; e++) k->out[3][e] = 0;
    for (int64_t t = 0; t < T && a->share; t++) {
        ref_softmax(p, k->in[0] + t * E, E);
        for (int64_t e = 0; e < E; e++) k->out[3][e] += p[e] / (double)T;
    }
}

/* Row by row: x W^T + scale * drop(x) A^T B^T of the row's expert and token. */
static void ref_experts(call *k) {
    const nb_experts_attr *a = k->c->attr;
    const double *weights = k->in[3];
    int64_t rows = rows_of(k, 1), C = cols_of(k, 0);
    const int32_t *token = k->c->ints[1];
    double x[64], xa[64], y[64];
    for (int i = 0; i < k->n_out; i++) memset(k->out[i], 0, (size_t)k->out_size[i] * sizeof(double));
    for (int64_t i = 0; i < a->n; i++)
        for (int64_t r = 0, e = 0; r < rows; r++) {
            while (r >= a->offsets[e + 1]) e++;
            int at = (int)(4 + 4 * (i * a->experts + e));
            const nb_linear_slot *s = &a->slot[i * a->experts + e];
            const double *row = k->in[0] + (weights ? r : token[r]) * C, *W = k->in[at], *A = k->in[at + 2],
                         *B = k->in[at + 3];
            int64_t N = rows_of(k, at), R = A ? rows_of(k, at + 2) : 0;
            ref_product_nt(y, row, W, 1, N, C, 1, false);
            for (int64_t c = 0; c < C; c++)
                x[c] = row[c] * (s->dropout > 0 ? ref_dropout_factor(samples[token[r]], positions[token[r]], c,
                                                                     s->dropout, seed, step, s->site) : 1);
            if (A) ref_product_nt(xa, x, A, 1, R, C, 1, false);
            if (A) ref_product_nt(y, xa, B, 1, N, R, (double)s->scale, true);
            for (int64_t c = 0; c < N; c++)
                k->out[i][(weights ? token[r] : r) * N + c] += y[c] * (weights ? weights[r] : 1);
        }
}

static void ref_gate_rows(call *k) {
    for (int64_t i = 0; i < k->out_size[0]; i++)
        k->out[0][i] = k->in[0][i] / (1 + exp(-k->in[1][i / cols_of(k, 0)]));
}

static void ref_balance(call *k) {
    const nb_balance_attr *a = k->c->attr;
    double aux = 0, layers = k->n_in - 1;
    for (int64_t e = 0; e < a->experts; e++) {
        double f = 0, p = 0;
        for (int l = 0; l < k->n_in - 1; l++) {
            f += (a->offsets[l][e + 1] - a->offsets[l][e]) / ((double)a->tokens * layers);
            p += k->in[1 + l][e] / layers;
        }
        aux += (double)a->coef * (double)a->experts * f * p;
    }
    for (int64_t i = 0; i < k->out_size[0]; i++) k->out[0][i] = k->in[0][i] + aux;
}

static const struct { const char *name; void (*forward)(call *k); } references[] = {
    {"embedding", ref_embedding}, {"linear", ref_linear}, {"dora", ref_dora}, {"dropout", ref_op_dropout},
    {"rmsnorm", ref_op_rmsnorm},
    {"layernorm", ref_op_layernorm}, {"rope", ref_op_rope}, {"attention", ref_op_attention}, {"glu", ref_op_glu},
    {"split", ref_op_split}, {"clamp", ref_op_clamp}, {"route", ref_route}, {"experts", ref_experts},
    {"gate_rows", ref_gate_rows}, {"balance", ref_balance},
    {"add", ref_op_add}, {"linear_xent", ref_op_linear_xent},
};

static void reference(call *k) {
    for (int i = 0; i < NB_LEN(references); i++)
        if (!strcmp(references[i].name, k->op->name)) {
            references[i].forward(k);
            return;
        }
    fail_msg("no reference for the operation %s", k->op->name);
}

/* ---- one case ---- */

typedef struct bench_case {
    call k;
    nb_dev *dev;
    nb_tape *tape;
    float *grad[MAX_IN]; /* on the host, after backward */
    nb_tensor leaf[MAX_IN], *in[MAX_IN], *out[NB_MAX_OUT];
} bench_case;

static float draw(nb_rng *r) { return (float)(2 * nb_rng_uniform(r) - 1); }

/* n values as `dtype` on the device, and back. */
static void upload(nb_dev *d, void *to, const float *from, int64_t n, nb_dtype dtype) {
    uint16_t *half = nb_malloc((size_t)n * sizeof *half + 1);
    for (int64_t i = 0; i < n; i++) half[i] = nb_f32_to_bf16(from[i]);
    assert_ok(d->be->put(d, to, dtype == NB_F32 ? (const void *)from : half, (size_t)(n * nb_dtype_size(dtype))));
    free(half);
}

static float *download(nb_dev *d, const void *from, int64_t n, nb_dtype dtype) {
    float *out = nb_malloc((size_t)n * sizeof *out + 1);
    assert_ok(d->be->get(d, out, from, (size_t)(n * nb_dtype_size(dtype))));
    for (int64_t i = 0; i < n && dtype == NB_I32; i++) {
        int32_t v;
        memcpy(&v, &out[i], sizeof v);
        out[i] = (float)v;
    }
    for (int64_t i = n - 1; i >= 0 && dtype == NB_BF16; i--) {
        uint16_t h;
        memcpy(&h, (uint16_t *)(void *)out + i, sizeof h);
        out[i] = nb_bf16_to_f32(h);
    }
    return out;
}

static void *room_for(nb_dev *d, const nb_tensor *x) {
    void *p;
    assert_ok(d->be->alloc(d, &p, (size_t)(nb_tensor_size(x) * nb_dtype_size(x->dtype)), "a test's tensor"));
    return p;
}

static void give_back(nb_dev *d, const nb_tensor *x, void *p) {
    if (p) d->be->free(d, p, (size_t)(nb_tensor_size(x) * nb_dtype_size(x->dtype)));
}

/* How many of the first inputs are activations; the others are parameters, which are always F32. */
static int activations(const nb_op *op) {
    static const struct { const char *name; int n; } known[] = {
        {"embedding", 0}, {"linear", 1}, {"dora", 2}, {"dropout", 1}, {"rmsnorm", 1}, {"layernorm", 1}, {"rope", 2},
        {"attention", 3}, {"glu", 2}, {"split", 1}, {"clamp", 1}, {"route", 1}, {"experts", 1}, {"gate_rows", 2},
        {"balance", 0},
        {"add", 2}, {"linear_xent", 1},
    };
    for (int i = 0; i < NB_LEN(known); i++)
        if (!strcmp(known[i].name, op->name)) return known[i].n;
    fail_msg("say in activations() which inputs of %s are activations", op->name);
    return 0;
}

/* Inputs in (-1, 1) from the case's name; frozen: bit i set = in[i] takes no gradient. */
static void open_case(bench_case *b, nb_dev *dev, const nb_op *op, const nb_case *c, uint32_t frozen) {
    *b = (bench_case){.k = {.op = op, .c = c}, .dev = dev};
    frozen |= c->frozen;
    nb_rng r = nb_rng_open(17, NB_RNG_TEST, (uint64_t)c->name[0] * 131 + strlen(c->name));
    assert_ok(nb_tape_open(&b->tape, dev, 4));
    b->tape->grad = b->tape->training = true;
    b->tape->seed = seed;
    b->tape->step = step;
    b->tape->batch = &batch;
    int n = MAX_IN;
    while (n && !c->in[n - 1][0]) n--;
    /* operations with optional inputs take them all */
    if (!strcmp(op->name, "linear")) n = 1 + 4 * ((const nb_linear_attr *)c->attr)->n;
    if (!strcmp(op->name, "embedding") || !strcmp(op->name, "dora")) n = 4;
    if (!strcmp(op->name, "layernorm")) n = 3;
    if (!strcmp(op->name, "linear_xent")) n = 6;
    if (!strcmp(op->name, "glu")) n = 2;
    if (!strcmp(op->name, "experts"))
        n = (int)(4 + 4 * ((const nb_experts_attr *)c->attr)->n * ((const nb_experts_attr *)c->attr)->experts);
    b->k.n_in = n;
    for (int i = 0; i < n; i++) {
        int64_t rows = c->in[i][0], cols = c->in[i][1], size = rows * (cols ? cols : 1);
        if (!rows) continue;
        nb_tensor *x = &b->leaf[i];
        *x = nb_leaf("input", NULL, NULL, cols ? 2 : 1, rows, cols);
        b->in[i] = x;
        x->dtype = i < activations(op) ? dev->elem : NB_F32;
        x->data = room_for(dev, x);
        if (i < 4 && c->ints && c->ints[i]) {
            assert_ok(dev->be->put(dev, x->data, c->ints[i], (size_t)size * sizeof(int32_t)));
            x->dtype = NB_I32;
            continue;
        }
        x->needs_grad = !(frozen >> i & 1);
        if (x->needs_grad) x->grad = room_for(dev, x);
        float *host = nb_malloc((size_t)size * sizeof *host);
        b->k.in_size[i] = size;
        b->k.in[i] = nb_malloc((size_t)size * 8);
        for (int64_t j = 0; j < size; j++) {
            host[j] = dev->elem == NB_BF16 ? nb_round_bf16(draw(&r)) : draw(&r);
            b->k.in[i][j] = (double)host[j];
        }
        upload(dev, x->data, host, size, x->dtype);
        free(host);
    }
}

static void close_case(bench_case *b) {
    for (int i = 0; i < b->k.n_in; i++) {
        if (b->in[i]) give_back(b->dev, b->in[i], b->in[i]->data), give_back(b->dev, b->in[i], b->in[i]->grad);
        free(b->grad[i]), free(b->k.in[i]);
    }
    for (int i = 0; i < b->k.n_out; i++) free(b->k.out[i]), free(b->k.r[i]);
    nb_tape_free(b->tape);
}

static nb_status forward(bench_case *b) { return nb_apply(b->tape, b->k.op, b->in, b->k.n_in, b->k.c->attr, b->out); }

static void size_outputs(bench_case *b) {
    nb_rng r = nb_rng_open(23, NB_RNG_TEST, 1);
    const nb_node *n = &b->tape->nodes[0];
    b->k.n_out = n->n_out;
    for (int i = 0; i < n->n_out; i++) {
        b->k.out_size[i] = nb_tensor_size(n->out[i]);
        b->k.out[i] = nb_calloc((size_t)b->k.out_size[i], 8);
        b->k.r[i] = nb_malloc((size_t)b->k.out_size[i] * 8);
        for (int64_t j = 0; j < b->k.out_size[i]; j++) {
            float v = n->out[i]->dtype == NB_I32 ? 0 : draw(&r);
            b->k.r[i][j] = (double)(b->dev->elem == NB_BF16 ? nb_round_bf16(v) : v);
        }
    }
}

static int64_t largest(const float *g, int64_t n);

/* Runs the op's backward with out[k]->grad = r[k], for all outputs at once, and fetches the gradients. */
static void backward(bench_case *b, bool wrong) {
    nb_node *n = &b->tape->nodes[0];
    for (int i = 0; i < n->n_out; i++) {
        if (n->out[i]->dtype == NB_I32) continue;
        float *r = nb_malloc((size_t)b->k.out_size[i] * sizeof *r);
        for (int64_t j = 0; j < b->k.out_size[i]; j++) r[j] = (float)b->k.r[i][j];
        n->out[i]->grad = room_for(b->dev, n->out[i]);
        upload(b->dev, n->out[i]->grad, r, b->k.out_size[i], n->out[i]->dtype);
        free(r);
    }
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i]) n->beta[i] = n->in[i]->grad_written ? 1 : 0;
    assert_ok(n->op->backward(b->tape, n));
    for (int i = 0; i < n->n_in; i++) {
        if (!n->in[i] || !n->in[i]->grad) continue;
        NB_ASSERT(n->in[i]->dtype != NB_I32);
        b->grad[i] = download(b->dev, n->in[i]->grad, b->k.in_size[i], n->in[i]->dtype);
        if (wrong) b->grad[i][largest(b->grad[i], b->k.in_size[i])] *= 1.02f; /* what a wrong backward would do */
    }
    for (int i = 0; i < n->n_out; i++) {
        give_back(b->dev, n->out[i], n->out[i]->grad);
        n->out[i]->grad = NULL;
    }
}

static double weighted_sum(void *arg) {
    call *k = arg;
    double sum = 0;
    reference(k);
    for (int i = 0; i < k->n_out; i++)
        for (int64_t j = 0; j < k->out_size[i]; j++) sum += k->out[i][j] * k->r[i][j];
    return sum;
}

static double numeric(bench_case *b, double *x) {
    const double h = 1e-5;
    double keep = *x;
    *x = keep + h;
    double up = weighted_sum(&b->k);
    *x = keep - h;
    double down = weighted_sum(&b->k);
    *x = keep;
    return (up - down) / (2 * h);
}

static int64_t largest(const float *g, int64_t n) {
    int64_t at = 0;
    for (int64_t i = 1; i < n; i++)
        if (fabsf(g[i]) > fabsf(g[at])) at = i;
    return at;
}

/* Largest relative error of the analytic gradients, over the inputs: every element of small ones, of others the
 * largest and some drawn at random. */
static double gradient_error(bench_case *b) {
    enum { PROBES = 48 };
    double worst = 0;
    nb_rng r = nb_rng_open(31, NB_RNG_TEST, 2);
    for (int i = 0; i < b->k.n_in; i++) {
        if (!b->grad[i]) continue;
        int64_t size = b->k.in_size[i], probes = size <= PROBES ? size : PROBES;
        double d = 0, s = 0;
        for (int64_t p = 0; p < probes; p++) {
            int64_t j = size <= PROBES ? p
                        : p            ? (int64_t)nb_rng_below(&r, (uint64_t)size)
                                       : largest(b->grad[i], size);
            double want = numeric(b, &b->k.in[i][j]), e = (double)b->grad[i][j] - want;
            d += e * e;
            s += want * want;
        }
        double err = sqrt(d) / (s > 1e-12 ? sqrt(s) : 1);
        if (!(err <= worst)) worst = err;
    }
    return worst;
}

/* Operands, outputs and gradients rounded to bf16 are off by up to 2^-9 each. */
static double tolerance(const nb_dev *d) { return d->elem == NB_BF16 ? 1.2e-2 : 2e-5; }

static void check_case(nb_dev *dev, const nb_op *op, const nb_case *c) {
    bench_case b;
    open_case(&b, dev, op, c, 0);
    nb_status st = forward(&b);
    if (st != c->expect) fail_msg("%s/%s: status %d, wanted %d (%s)", op->name, c->name, st, c->expect, nb_message());
    if (st != NB_OK) {
        assert_int_equal(b.tape->n_bufs, 0); /* refused before any memory was touched */
        assert_true(strlen(nb_message()) > strlen(op->name) + 5);
        close_case(&b);
        return;
    }
    size_outputs(&b);
    reference(&b.k);
    for (int i = 0; i < b.k.n_out; i++) {
        float *want = nb_malloc((size_t)b.k.out_size[i] * 4);
        for (int64_t j = 0; j < b.k.out_size[i]; j++) want[j] = (float)b.k.out[i][j];
        float *got = download(dev, b.out[i]->data, b.k.out_size[i], b.out[i]->dtype);
        double err = nb_rel_error(got, want, b.k.out_size[i]);
        free(got);
        if (!(err <= tolerance(dev))) fail_msg("%s/%s (%s): output %d off by %g", op->name, c->name, dev->gemm, i, err);
        free(want);
    }
    backward(&b, false);
    double err = gradient_error(&b);
    if (!(err <= tolerance(dev))) fail_msg("%s/%s (%s): gradient off by %g", op->name, c->name, dev->gemm, err);
    assert_ok(nb_tape_check_red_zones(b.tape));
    close_case(&b);
}

static void check_adding(nb_dev *dev, const nb_op *op, const nb_case *c) {
    bench_case set, add;
    const double within = dev->elem == NB_BF16 ? 2e-2 : 1e-5;
    if (c->expect != NB_OK) return;
    open_case(&set, dev, op, c, 0);
    open_case(&add, dev, op, c, 0);
    assert_ok(forward(&set));
    assert_ok(forward(&add));
    size_outputs(&set);
    size_outputs(&add);
    for (int i = 0; i < add.k.n_in; i++) {
        if (!add.in[i] || !add.in[i]->needs_grad) continue;
        add.leaf[i].grad_written = true;
        float *fill = nb_malloc((size_t)add.k.in_size[i] * sizeof *fill);
        for (int64_t j = 0; j < add.k.in_size[i]; j++) fill[j] = 3;
        upload(dev, add.leaf[i].grad, fill, add.k.in_size[i], add.leaf[i].dtype);
        for (int64_t j = 0; j < add.k.in_size[i]; j++) fill[j] = NAN; /* set must not read */
        upload(dev, set.leaf[i].grad, fill, add.k.in_size[i], add.leaf[i].dtype);
        free(fill);
    }
    backward(&set, false);
    backward(&add, false);
    for (int i = 0; i < add.k.n_in; i++)
        for (int64_t j = 0; j < add.k.in_size[i] && add.in[i]->needs_grad; j++) {
            double want = 3 + (double)set.grad[i][j];
            if (!(fabs((double)add.grad[i][j] - want) <= within * (1 + fabs(want))))
                fail_msg("%s/%s: input %d element %lld: %g added to 3 gives %g", op->name, c->name, i, (long long)j,
                         (double)set.grad[i][j], (double)add.grad[i][j]);
        }
    close_case(&set);
    close_case(&add);
}

static void check_frozen_subsets(nb_dev *dev, const nb_op *op, const nb_case *c) {
    if (c->expect != NB_OK) return;
    bench_case all;
    open_case(&all, dev, op, c, 0);
    assert_ok(forward(&all));
    size_outputs(&all);
    backward(&all, false);
    int n = all.k.n_in > 6 ? 5 : all.k.n_in;
    for (uint32_t frozen = 1; frozen + 1 < 1u << n; frozen++) {
        bench_case some;
        open_case(&some, dev, op, c, frozen);
        assert_ok(forward(&some));
        if (some.tape->nodes[0].needs_grad) {
            size_outputs(&some);
            backward(&some, false);
            /* a frozen head keeps its gradient rows from the forward pass: the same numbers, products in another
             * order, and rounded once more where elements are bf16 */
            bool same_path = strcmp(op->name, "linear_xent") != 0;
            double near = tolerance(dev) / (dev->elem == NB_BF16 ? 2 : 20);
            for (int i = 0; i < some.k.n_in; i++) {
                if (!some.grad[i]) continue;
                if (same_path && memcmp(some.grad[i], all.grad[i], (size_t)some.k.in_size[i] * 4) != 0)
                    fail_msg("%s/%s: freezing %x changes the gradient of input %d", op->name, c->name, frozen, i);
                assert_close(nb_rel_error(some.grad[i], all.grad[i], some.k.in_size[i]), 0, near);
            }
        }
        assert_ok(nb_tape_check_red_zones(some.tape));
        close_case(&some);
    }
    close_case(&all);
}

/* ---- tests ---- */

/* "emu": the cuda backend's own source, where it is linked in. */
static const struct { const char *device, *gemm; nb_dtype compute; } variants[] = {
    {"cpu", "naive", NB_F32}, {"cpu", "openblas", NB_F32}, {"cpu", "avx512", NB_F32}, {"emu", NULL, NB_F32},
    {"emu", NULL, NB_BF16},
};

static void each_case(void (*check)(nb_dev *, const nb_op *, const nb_case *)) {
    for (int v = 0; v < NB_LEN(variants); v++) {
        nb_dev *dev;
        if (!strcmp(variants[v].device, "emu") && !&nb_backend_emu) continue;
        assert_ok(nb_dev_open(&dev, variants[v].device, variants[v].compute));
        assert_ok(nb_dev_reserve(dev, 8 << 20));
        if (!variants[v].gemm || nb_dev_set_gemm(dev, variants[v].gemm) == NB_OK)
            for (int i = 0; i < nb_op_count; i++) {
                assert_true(nb_ops[i]->n_cases >= 2);
                for (int k = 0; k < nb_ops[i]->n_cases; k++) check(dev, nb_ops[i], &nb_ops[i]->cases[k]);
            }
        nb_dev_close(dev);
    }
}

static void outputs_and_gradients(void **state) { (void)state; each_case(check_case); }
static void gradients_set_and_add(void **state) { (void)state; each_case(check_adding); }
static void frozen_inputs_change_nothing_else(void **state) { (void)state; each_case(check_frozen_subsets); }

/* The driver itself: with a gradient 2 % wrong in one element, every case must be found out. */
static void a_wrong_backward_is_caught(void **state) {
    (void)state;
    nb_dev *dev;
    assert_ok(nb_dev_open(&dev, "cpu", NB_F32));
    assert_ok(nb_dev_reserve(dev, 8 << 20));
    int caught = 0, tried = 0;
    for (int i = 0; i < nb_op_count; i++)
        for (int k = 0; k < nb_ops[i]->n_cases; k++) {
            bench_case b;
            if (nb_ops[i]->cases[k].expect != NB_OK) continue;
            open_case(&b, dev, nb_ops[i], &nb_ops[i]->cases[k], 0);
            assert_ok(forward(&b));
            size_outputs(&b);
            backward(&b, true);
            caught += !(gradient_error(&b) <= tolerance(dev));
            tried++;
            close_case(&b);
        }
    assert_int_equal(caught, tried);
    nb_dev_close(dev);
}

/* A square whose backward forgets the factor 2: the tape runs it, the comparison must not let it pass. */
static nb_status square_shape(nb_tape *t, nb_node *n) {
    nb_node_out(t, n, "square", NB_F32, n->in[0]->n_dims, n->in[0]->d[0], n->in[0]->d[1]);
    n->keep_in = 1;
    return NB_OK;
}
static nb_status square_forward(nb_tape *t, nb_node *n) {
    (void)t;
    const float *x = n->in[0]->data;
    float *y = n->out[0]->data;
    for (int64_t i = 0; i < nb_tensor_size(n->in[0]); i++) y[i] = x[i] * x[i];
    return NB_OK;
}
static float square_slope;
static nb_status square_backward(nb_tape *t, nb_node *n) {
    (void)t;
    const float *x = n->in[0]->data, *dy = n->out[0]->grad;
    float *dx = n->in[0]->grad;
    for (int64_t i = 0; i < nb_tensor_size(n->in[0]); i++)
        dx[i] = square_slope * x[i] * dy[i] + (n->beta[0] != 0 ? dx[i] : 0);
    return NB_OK;
}
static nb_cost square_cost(const nb_node *n) { (void)n; return (nb_cost){0}; }

static double tape_gradient_of_squares(float slope) {
    static const nb_op square = {"square", 0, square_shape, square_forward, square_backward, square_cost, NULL, 0};
    nb_dev *dev;
    nb_tape *t;
    float x[3] = {1, -2, 3}, g[3];
    nb_tensor leaf = nb_leaf("x", x, g, 1, 3, 0), *in = &leaf, *y, *z;
    square_slope = slope;
    assert_ok(nb_dev_open(&dev, "cpu", NB_F32));
    assert_ok(nb_tape_open(&t, dev, 8));
    t->grad = true;
    assert_ok(nb_apply(t, &square, &in, 1, NULL, &y));
    nb_tensor *both[2] = {y, &leaf};
    assert_ok(nb_apply(t, &nb_op_add, both, 2, NULL, &z)); /* x is used twice: x^2 + x */
    assert_ok(nb_backward(t, z, NULL, 1));
    double err = 0;
    for (int i = 0; i < 3; i++) err = fmax(err, fabs((double)g[i] - (2 * (double)x[i] + 1)));
    nb_tape_free(t);
    nb_dev_close(dev);
    return err;
}

static void the_walker_adds_up(void **state) {
    (void)state;
    assert_close(tape_gradient_of_squares(2), 0, 1e-6);
    assert_true(tape_gradient_of_squares(1) > 0.5);
}

int main(void) {
    nb_threads_set(0);
    for (int i = 0; i < MAX_TOKENS; i++) positions[i] = i % 7, samples[i] = (uint32_t)i / 7;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_and_gradients),      cmocka_unit_test(gradients_set_and_add),
        cmocka_unit_test(frozen_inputs_change_nothing_else), cmocka_unit_test(a_wrong_backward_is_caught),
        cmocka_unit_test(the_walker_adds_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
