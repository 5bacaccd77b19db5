/* The one parametric transformer: a base (model/weights.h), what is trained on top of it, and the graph that runs
 * both for training, evaluation and generation. */
#ifndef NB_MODEL_TRANSFORMER_H
#define NB_MODEL_TRANSFORMER_H

#include "autograd/ops.h"
#include "core/batch.h"
#include "model/resident.h"
#include "model/weights.h"

/* A linear layer as the graph runs it. Trained parts are leaves owned by whoever attached them. */
typedef struct nb_linear {
    const nb_base_linear *base;  /* name, and the weight as the host has it */
    const nb_weight *w;          /* on the device */
    nb_tensor bias;              /* frozen; data NULL: none */
    nb_tensor *weight, *bias_trained; /* trained whole; stand for w and bias */
    nb_tensor *lora_A, *lora_B;  /* [R, in], [out, R] */
    nb_tensor *magnitude;        /* [out], DoRA's, or NULL */
    const float *squares;        /* [out] squared norms of w's rows, with a magnitude */
    float scale, dropout;
    uint32_t site;               /* number of this module in the model, from 0: dropout key */
} nb_linear;

typedef struct nb_block {
    nb_linear *lin;                  /* [nb_spec_slots]; those of all blocks are one array */
    nb_linear_slot *experts;         /* [3 * E] of a sparse layer: its experts' as the graph has them */
    int32_t *offsets;                /* [E + 1] where their rows begin, in the run of the graph that is under way */
    nb_tensor *share;                /* their mean probabilities there, where the load-balancing loss counts */
    nb_tensor norm_bias[NB_NORMS];   /* of layer norms; data NULL: none */
    nb_tensor norm[NB_NORMS];        /* frozen leaves; data NULL: the family has no such norm */
    nb_tensor *norm_trained[NB_NORMS], *norm_bias_trained[NB_NORMS]; /* trained whole, else NULL */
} nb_block;

/* Rows of the embedding (and of an untied head) trained on top of a frozen one: added tokens. */
typedef struct nb_token_rows {
    int32_t *ids;           /* [n] ascending */
    int32_t *ids_on_device; /* = ids where host memory serves */
    int64_t n;
    nb_tensor *embed, *head; /* [n, C]; head = embed when tied */
} nb_token_rows;

/* A low-rank adapter of the embedding: token t's row is W[t] + scale * A[t] B^T. A head tied to it does without. */
typedef struct nb_embedding_lora {
    nb_tensor *A, *B; /* [V, R], [C, R]; NULL: none */
    float scale;
} nb_embedding_lora;

typedef struct nb_model {
    const nb_base *base; /* borrowed */
    nb_resident weights; /* as the device has them */
    const nb_spec *spec; /* = &base->spec */
    nb_block *block;     /* [layers] */
    nb_linear head;      /* adapter: full of a tied model: head.weight = embed_trained */
    int64_t n_sparse;    /* layers with experts */
    const int32_t **sparse_offsets; /* [n_sparse] their offsets */
    float aux_coef;      /* of the load-balancing loss in training: the spec's, unless set otherwise after opening */
    nb_tensor final_norm, final_norm_bias, *final_norm_trained, *final_norm_bias_trained;
    nb_tensor *embed_trained, *positions_trained;
    nb_embedding_lora embed_lora;
    nb_token_rows rows;  /* n = 0: none */
    struct nb_rope_table {
        float *cos, *sin; /* [positions, rot/2] on the device; NULL: no layer uses it */
    } rope[2];
    int64_t positions;
    nb_dev *dev;         /* where it runs; borrowed */
    int64_t changes;     /* counts what was attached and detached: recordings of an earlier state are not replayed */
} nb_model;

/* positions: longest sequence it will run (RoPE tables are made for so many; learned positions end at the context).
 * length: of the sequences the run is about, which chooses among the frequencies of dynamic and longrope. */
nb_status nb_model_open(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions, int64_t length);
/* The same with the base's layers shared out over the ranks of `comm` (NULL: all are here); see model/shared.h. */
nb_status nb_model_open_shared(nb_model **out, const nb_base *base, nb_dev *dev, int64_t positions, int64_t length,
                               nb_comm *comm);
void nb_model_free(nb_model *m);
size_t nb_model_table_bytes(const nb_model *m); /* of its RoPE tables */
/* Calls fn for every linear layer of the blocks in order (layer, slot); then, if with_head, lm_head. */
void nb_model_each_linear(nb_model *m, bool with_head, void (*fn)(nb_linear *lin, int64_t layer, void *arg), void *arg);

/* Keys and values of earlier tokens: rows [n_slots * slot_len] per layer, one slot a sequence. */
typedef struct nb_kv_cache {
    nb_elem **k, **v; /* [layers] each [rows, KV*D] */
    int64_t rows;
    size_t bytes;
    nb_dev *dev;
} nb_kv_cache;
nb_status nb_kv_cache_open(nb_kv_cache *c, const nb_model *m, int64_t rows);
void nb_kv_cache_close(nb_kv_cache *c);

/* What a run of the graph yields. */
typedef struct nb_graph {
    nb_tensor *hidden; /* [T, C] after the final norm */
    nb_tensor *loss;   /* [n_trained] negative log-likelihood per trained token, in order of position; NULL if none */
    nb_tensor *objective; /* what is minimized: loss, or loss with the load-balancing loss of the batch added to each */
    nb_tensor *logits; /* [n_logits, V], when asked for */
} nb_graph;

/* What the loss of a batch is computed at, and what comes of it. On the device. */
typedef struct nb_loss_rows {
    const int32_t *rows, *targets; /* [n] rows of trained tokens, in order, and the tokens that should follow */
    int64_t n;
    int32_t *argmax;               /* [n] out: the most likely next token; NULL: not wanted */
} nb_loss_rows;

/* Batches handed to the graph have their arrays on the device (nb_runner sees to that).
 * Hidden states of a batch, then the loss at r. */
nb_status nb_model_loss(nb_model *m, nb_tape *t, const nb_batch *b, const nb_loss_rows *r, nb_graph *g);
/* Logits (F32) at rows[n] of a batch (for generation: the last token of each sequence), with an optional KV cache. */
nb_status nb_model_logits(nb_model *m, nb_tape *t, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows,
                          int64_t n, nb_graph *g);
/* Upper bound of nodes one run records: for nb_tape_open. */
int nb_model_max_nodes(const nb_model *m);

/* ---- runners: a plan, an arena and a tape for one kind of work, made once ---- */

/* All memory of a kind of work is planned on the null device at its largest size and allocated here, before any real
 * work. Several runners may share one arena (the larger wins): they never run at the same time. */
typedef struct nb_arena {
    char *base;
    size_t bytes;
    nb_dev *dev;
} nb_arena;
/* Makes the arena at least `bytes`; what it held is gone. Opening a runner does this. */
nb_status nb_arena_grow(nb_arena *a, nb_dev *dev, size_t bytes);
void nb_arena_free(nb_arena *a);

/* The index arrays of one batch, on the host and (in one block, one transfer) on the device. */
typedef struct nb_indices {
    int32_t *rows, *targets; /* [n] trained tokens on the host */
    int32_t *host;     /* staging of everything that travels */
    char *device;      /* its copy; NULL where host memory serves */
    size_t bytes;
    int32_t *argmax;   /* [max_tokens] on the device */
    float *losses_at;  /* [max_tokens] on the device: the arena has them only until backward begins */
    float *losses;     /* [n] on the host, once nb_runner_loss is done */
    int32_t *best;     /* [n] likewise: the most likely next tokens */
    int64_t n;         /* trained tokens */
} nb_indices;

/* A decoding step's launches, recorded on a device that can (nb_backend.record) and replayed. Everything that differs from
 * step to step lies in device memory. */
typedef struct nb_recording {
    struct nb_recording_key {
        int64_t n, n_segs, n_rows, changes; /* of which batch, over which state of the model */
        const void *cache, *arena, *ws;     /* and in which memory */
    } key;
    int64_t seen;   /* times it ran */
    void *launches; /* NULL: not recorded yet */
    const float *logits;
} nb_recording;

typedef struct nb_runner {
    nb_model *model;
    nb_tape *tape;
    nb_plan plan;
    nb_indices index;
    nb_arena *arena;
    int64_t max_tokens, max_logits;
    bool backward;
    double balance; /* the load-balancing loss of the last batch, 0 where it does not count */
    double flops; /* of the forward pass, and of what is computed again, at the largest size */
    nb_recording recording[16];
    int n_recordings;
} nb_runner;
/* Training (backward = true) or evaluation of batches of at most max_tokens tokens. recompute NULL: everything is kept
 * for the backward pass. */
nb_status nb_runner_open_loss(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, bool backward,
                              const nb_recompute *recompute);
/* Generation: batches of at most max_tokens tokens with logits at up to max_logits rows, over `cache` (may be NULL). */
nb_status nb_runner_open_logits(nb_runner **out, nb_model *m, nb_arena *arena, int64_t max_tokens, int64_t max_logits,
                                nb_kv_cache *cache);
void nb_runner_free(nb_runner *r);
/* What a training step over so many tokens takes, by planning alone: bytes of activations and of kernel scratch, and
 * the forward FLOPs, which count again where they are computed again. */
typedef struct nb_need {
    size_t bytes, scratch;
    double flops;
} nb_need;
nb_status nb_runner_measure(nb_model *m, int64_t max_tokens, const nb_recompute *recompute, nb_need *need);
size_t nb_runner_bytes(const nb_runner *r); /* activation bytes its plan takes */

/* Set r->tape->training, seed and step first when dropout should act. */
/* Forward (and backward, gradients scaled by grad_scale, into the leaves). *loss_sum = sum of the losses; nll (host,
 * [n_trained], may be NULL) receives each. A batch without trained tokens is skipped with loss 0. */
nb_status nb_runner_loss(nb_runner *r, const nb_batch *b, float grad_scale, double *loss_sum, float *nll);
/* logits: host [n, V] at rows[n]. _there: they stay on the device, until the runner (or another of its arena) runs again. */
nb_status nb_runner_logits_there(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                                 const float **logits);
nb_status nb_runner_logits(nb_runner *r, const nb_batch *b, nb_kv_cache *cache, const int32_t *rows, int64_t n,
                           float *logits);

#endif
