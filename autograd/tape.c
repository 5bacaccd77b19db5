#include "autograd/tape.h"

#include <stdlib.h>
#include <string.h>

#include "autograd/ops.h"
#include "core/log.h"
#include "core/mem.h"

const nb_recompute nb_recompute_none = {0, 0}, nb_recompute_smart = {0, INT64_MAX}, nb_recompute_full = {INT64_MAX, 0};

/* Kept at NB_LEVEL_SMART: attention, which costs the more the longer its sequences, and sums, which many a node needs. */
static const char *const dear[] = {"attention", "add"};
/* Kept at every level: nothing is routed twice. */
static const char routing[] = "route";

enum { RED = 256 }; /* bytes of red zone on either side in DIRECT mode */
static const uint32_t red_word = 0x7fa5a5a5u; /* a signalling NaN, in bf16 too: reading it poisons results */

struct nb_direct {
    char *p; /* red, data, red */
    size_t bytes; /* of data, rounded up to whole words */
};

nb_status nb_tape_open(nb_tape **out, nb_dev *dev, int max_nodes) {
    nb_tape *t = NB_NEW(nb_tape);
    t->dev = dev;
    t->clock = nb_now;
    t->mode = NB_MEM_DIRECT;
    t->max_nodes = max_nodes;
    t->max_tensors = max_nodes * (NB_MAX_OUT + NB_MAX_SAVED);
    t->nodes = nb_calloc((size_t)max_nodes, sizeof *t->nodes);
    t->tensors = nb_calloc((size_t)t->max_tensors, sizeof *t->tensors);
    *out = t;
    return NB_OK;
}

void nb_tape_free(nb_tape *t) {
    if (!t) return;
    nb_tape_reset(t);
    for (int i = 0; i < t->max_nodes; i++) free(t->nodes[i].in), free(t->nodes[i].beta);
    free(t->nodes);
    free(t->tensors);
    free(t->direct);
    free(t);
}

void nb_tape_reset(nb_tape *t) {
    if (t->mode == NB_MEM_DIRECT)
        for (int32_t i = 0; i < t->n_bufs; i++)
            t->dev->be->free(t->dev, t->direct[i].p, t->direct[i].bytes + 2 * RED);
    t->n_nodes = t->n_tensors = 0;
    t->n_bufs = t->event = 0;
    t->level = NB_LEVEL_NONE;
}

void nb_tape_follow(nb_tape *t, nb_plan *plan, char *base) {
    nb_tape_reset(t);
    t->mode = base ? NB_MEM_ARENA : NB_MEM_PLAN;
    t->plan = plan;
    t->base = base;
}

/* ---- buffers ---- */

static nb_status direct_block(nb_tape *t, size_t bytes, void **out) {
    if (t->n_bufs >= t->cap_direct) {
        t->cap_direct = t->cap_direct ? t->cap_direct * 2 : 64;
        t->direct = nb_realloc(t->direct, (size_t)t->cap_direct, sizeof *t->direct);
    }
    struct nb_direct *d = &t->direct[t->n_bufs];
    d->bytes = (bytes + 3) / 4 * 4;
    size_t total = d->bytes + 2 * RED;
    uint32_t *red = nb_malloc(total);
    for (size_t i = 0; i < total / 4; i++) red[i] = red_word;
    nb_status st = t->dev->be->alloc(t->dev, (void **)&d->p, total, "a tensor");
    if (st == NB_OK) st = t->dev->be->put(t->dev, d->p, red, total);
    free(red);
    *out = d->p + RED;
    return st;
}

nb_status nb_tape_check_red_zones(const nb_tape *t) {
    for (int32_t b = 0; t->mode == NB_MEM_DIRECT && b < t->n_bufs; b++) {
        const struct nb_direct *d = &t->direct[b];
        for (int side = 0; side < 2; side++) {
            uint32_t red[RED / 4];
            NB_TRY(t->dev->be->get(t->dev, red, d->p + (side ? RED + d->bytes : 0), RED));
            for (int i = 0; i < RED / 4; i++)
                if (red[i] != red_word)
                    return nb_fail(NB_ESHAPE, "buffer %d of %zu bytes: written outside its bounds", b, d->bytes);
        }
    }
    return NB_OK;
}

static nb_status new_buffer(nb_tape *t, int64_t n, nb_dtype dtype, int32_t *id, void **data) {
    size_t raw = (size_t)n * (size_t)nb_dtype_size(dtype), bytes = (raw + NB_ALIGN - 1) / NB_ALIGN * NB_ALIGN;
    void *p = NULL;
    if (t->mode == NB_MEM_DIRECT) {
        NB_TRY(direct_block(t, raw, &p));
    } else if (t->mode == NB_MEM_PLAN) {
        NB_GROW(t->plan->bufs, t->n_bufs, t->plan->cap);
        t->plan->bufs[t->n_bufs] = (nb_plan_buf){bytes, 0, t->event, t->event};
        t->plan->n = t->n_bufs + 1;
        p = (void *)(uintptr_t)(NB_ALIGN * ((size_t)t->n_bufs + 1)); /* never followed */
    } else {
        NB_ASSERT(t->n_bufs < t->plan->n && bytes <= t->plan->bufs[t->n_bufs].bytes);
        p = t->base + t->plan->bufs[t->n_bufs].offset;
    }
    *id = t->n_bufs++;
    *data = p;
    return NB_OK;
}

static void touch(nb_tape *t, int32_t buf) {
    if (t->mode == NB_MEM_PLAN && buf >= 0) t->plan->bufs[buf].last = t->event;
}

nb_status nb_scratch(nb_tape *t, void *out, int64_t n, nb_dtype dtype) {
    int32_t id;
    void *p;
    NB_TRY(new_buffer(t, n, dtype, &id, &p));
    memcpy(out, &p, sizeof p);
    return NB_OK;
}

/* ---- nodes ---- */

static nb_tensor *new_tensor(nb_tape *t, nb_node *n, const char *name, nb_dtype dtype, int n_dims, int64_t d0,
                             int64_t d1) {
    NB_ASSERT(t->n_tensors < t->max_tensors);
    nb_tensor *x = &t->tensors[t->n_tensors++];
    *x = (nb_tensor){.name = name, .n_dims = n_dims, .d = {d0, d1}, .dtype = dtype, .producer = n, .buf = -1,
                     .grad_buf = -1};
    return x;
}

nb_tensor *nb_node_out(nb_tape *t, nb_node *n, const char *name, nb_dtype dtype, int n_dims, int64_t d0, int64_t d1) {
    NB_ASSERT(n->n_out < NB_MAX_OUT);
    return n->out[n->n_out++] = new_tensor(t, n, name, dtype, n_dims, d0, d1);
}

nb_tensor *nb_node_save(nb_tape *t, nb_node *n, const char *name, nb_dtype dtype, int n_dims, int64_t d0, int64_t d1) {
    NB_ASSERT(n->n_saved < NB_MAX_SAVED);
    return n->saved[n->n_saved++] = new_tensor(t, n, name, dtype, n_dims, d0, d1);
}

static bool kept(nb_level level, const char *op) {
    for (int i = 0; i < NB_LEN(dear) && level == NB_LEVEL_SMART; i++)
        if (!strcmp(dear[i], op)) return true;
    return level == NB_LEVEL_NONE || !strcmp(routing, op);
}

void nb_tape_layer(nb_tape *t, int64_t l) {
    const nb_recompute *r = &t->recompute;
    t->level = NB_LEVEL_NONE;
    if (l >= 0 && l < r->full) t->level = NB_LEVEL_FULL;
    else if (l >= 0 && l - r->full < r->smart) t->level = NB_LEVEL_SMART;
}

void nb_tape_keep(nb_tape *t, int first, nb_level most) {
    for (int i = first; i < t->n_nodes && t->level <= most; i++) t->nodes[i].keep = true;
}

static nb_status data_buffer(nb_tape *t, nb_tensor *x) {
    return new_buffer(t, nb_tensor_size(x), x->dtype, &x->buf, &x->data);
}

static nb_status grad_buffer(nb_tape *t, nb_tensor *x) {
    return new_buffer(t, nb_tensor_size(x), x->dtype, &x->grad_buf, &x->grad);
}

static void add_cost(nb_cost *sum, nb_cost c) {
    sum->flops += c.flops;
    sum->bytes += c.bytes;
}

/* Gives outputs and saved tensors fresh buffers and computes them. */
static nb_status run_forward(nb_tape *t, nb_node *n) {
    t->event++;
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i]) touch(t, n->in[i]->buf);
    for (int i = 0; i < n->n_out; i++)
        NB_TRY(data_buffer(t, n->out[i]));
    for (int i = 0; i < n->n_saved; i++)
        NB_TRY(data_buffer(t, n->saved[i]));
    n->live = true;
    double start = t->prof ? t->clock() : 0;
    nb_status st = n->op->forward(t, n);
    if (t->prof) {
        nb_prof_row *r = &t->prof[n->op_index];
        r->forward_s += t->clock() - start;
        add_cost(&r->forward, n->op->cost(n));
        r->calls++;
    }
    return st == NB_OK ? st : nb_prefix(st, "%s", n->op->name);
}

static int op_index(const nb_op *op) {
    for (int i = 0; i < nb_op_count; i++)
        if (nb_ops[i] == op) return i;
    return 0; /* an operation of a test's own */
}

/* A node keeps what it has: once a plan was made, nothing grows. */
static void make_room(nb_node *n, int n_in) {
    if (n_in <= n->cap_in) return;
    n->in = nb_realloc(n->in, (size_t)n_in, sizeof *n->in);
    n->beta = nb_realloc(n->beta, (size_t)n_in, sizeof *n->beta);
    n->cap_in = n_in;
}

nb_status nb_apply(nb_tape *t, const nb_op *op, nb_tensor *const *in, int n_in, const void *attr, nb_tensor **out) {
    NB_ASSERT(t->n_nodes < t->max_nodes && op->attr_size <= NB_MAX_ATTR);
    nb_node *n = &t->nodes[t->n_nodes];
    int tensors_before = t->n_tensors;
    make_room(n, n_in);
    *n = (nb_node){.op = op, .op_index = op_index(op), .n_in = n_in, .in = n->in, .beta = n->beta, .cap_in = n->cap_in};
    if (op->attr_size) memcpy(n->attr, attr, op->attr_size);
    for (int i = 0; i < n_in; i++) {
        n->in[i] = in[i];
        n->needs_grad |= t->grad && in[i] && in[i]->needs_grad;
    }
    nb_status st = op->shape(t, n);
    if (st != NB_OK) {
        t->n_tensors = tensors_before;
        return nb_prefix(st, "%s", op->name);
    }
    n->keep = kept(t->level, op->name);
    t->n_nodes++;
    NB_TRY(run_forward(t, n));
    for (int i = 0; i < n->n_out; i++) {
        n->out[i]->needs_grad = n->needs_grad && n->out[i]->dtype != NB_I32;
        out[i] = n->out[i];
    }
    return NB_OK;
}

/* ---- backward ---- */

static nb_status make_live(nb_tape *t, nb_node *n);

static nb_status need_data(nb_tape *t, nb_tensor *x) {
    return x && x->producer ? make_live(t, x->producer) : NB_OK;
}

/* Computes a dropped node again; its inputs first. */
static nb_status make_live(nb_tape *t, nb_node *n) {
    if (n->live) return NB_OK;
    for (int i = 0; i < n->n_in; i++) NB_TRY(need_data(t, n->in[i]));
    return run_forward(t, n);
}

static nb_status prepare_grads(nb_tape *t, nb_node *n) {
    for (int i = 0; i < n->n_in; i++) {
        nb_tensor *x = n->in[i];
        n->beta[i] = 0;
        if (!x || !x->needs_grad) continue;
        if (!x->grad) NB_TRY(grad_buffer(t, x));
        n->beta[i] = x->grad_written ? 1.0f : 0.0f;
        x->grad_written = true;
        touch(t, x->grad_buf);
    }
    return NB_OK;
}

static nb_status backward_node(nb_tape *t, nb_node *n) {
    int reached = 0;
    for (int i = 0; i < n->n_out; i++) reached += n->out[i]->grad != NULL;
    if (!n->needs_grad || !reached) return NB_OK;
    if (n->n_saved || n->keep_out) NB_TRY(make_live(t, n));
    for (int i = 0; i < n->n_in && i < 32; i++)
        if (n->keep_in >> i & 1) NB_TRY(need_data(t, n->in[i]));
    t->event++;
    for (int i = 0; i < n->n_out; i++) {
        nb_tensor *y = n->out[i];
        if (!y->grad && y->needs_grad) { /* an output nobody used */
            NB_TRY(grad_buffer(t, y));
            NB_TRY(t->dev->k->fill(t->dev, y->grad, y->dtype, 0, nb_tensor_size(y)));
        }
        touch(t, y->grad_buf);
        if (n->keep_out >> i & 1) touch(t, y->buf);
    }
    for (int i = 0; i < n->n_in && i < 32; i++)
        if (n->in[i] && (n->keep_in >> i & 1)) touch(t, n->in[i]->buf);
    for (int i = 0; i < n->n_saved; i++) touch(t, n->saved[i]->buf);
    NB_TRY(prepare_grads(t, n));
    double start = t->prof ? t->clock() : 0;
    nb_status st = n->op->backward(t, n);
    if (t->prof) {
        t->prof[n->op_index].backward_s += t->clock() - start;
        add_cost(&t->prof[n->op_index].backward, nb_backward_cost(n));
    }
    return st == NB_OK ? st : nb_prefix(st, "%s backward", n->op->name);
}

nb_status nb_backward(nb_tape *t, nb_tensor *root, const float *seed, float value) {
    NB_ASSERT(t->grad);
    if (!root->needs_grad) return NB_OK;
    for (int i = 0; i < t->n_nodes; i++)
        if (!t->nodes[i].keep) t->nodes[i].live = false;
    t->event++;
    NB_TRY(grad_buffer(t, root));
    root->grad_written = true;
    NB_ASSERT(!seed || root->dtype == NB_F32);
    if (seed) NB_TRY(t->dev->be->put(t->dev, root->grad, seed, (size_t)nb_tensor_size(root) * sizeof *seed));
    else NB_TRY(t->dev->k->fill(t->dev, root->grad, root->dtype, value, nb_tensor_size(root)));
    int last = t->n_nodes;
    for (int i = last - 1; i >= 0; i--) NB_TRY(backward_node(t, &t->nodes[i]));
    return NB_OK;
}
