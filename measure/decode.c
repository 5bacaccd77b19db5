#include "measure/decode.h"

#include <stdlib.h>

#include "core/interrupt.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "generate/sampler.h"
#include "measure/median.h"

enum { MAX_RUNS = 256 };

typedef struct decoder {
    nb_model *model;
    nb_arena arena;
    nb_kv_cache cache;
    nb_runner *runner;
    int32_t *ids, *at; /* [rows] tokens; 0, 1, 2, ... */
    uint32_t *sample;
    float *logits;     /* [vocab] */
    nb_sampler sampler;
    int64_t rows;
} decoder;

static nb_status open_decoder(decoder *d, nb_model *m, int64_t rows, int64_t pass) {
    nb_rng rng = nb_rng_open(2, NB_RNG_TEST, 0);
    *d = (decoder){.model = m, .rows = rows};
    d->ids = nb_calloc((size_t)rows, sizeof *d->ids);
    d->at = nb_calloc((size_t)rows, sizeof *d->at);
    d->sample = nb_calloc((size_t)rows, sizeof *d->sample);
    d->logits = nb_calloc((size_t)m->spec->vocab, sizeof *d->logits);
    for (int64_t i = 0; i < rows; i++) {
        d->ids[i] = (int32_t)nb_rng_below(&rng, (uint64_t)m->spec->vocab);
        d->at[i] = (int32_t)i;
    }
    nb_sampler_open(&d->sampler, m->spec->vocab);
    NB_TRY(nb_kv_cache_open(&d->cache, m, rows));
    return nb_runner_open_logits(&d->runner, m, &d->arena, pass, 1, &d->cache);
}

static void close_decoder(decoder *d) {
    nb_runner_free(d->runner);
    nb_kv_cache_close(&d->cache);
    nb_arena_free(&d->arena);
    nb_sampler_close(&d->sampler);
    free(d->ids), free(d->at), free(d->sample), free(d->logits);
}

/* Tokens [at, at + n) into the cache, with the logits of the last. */
static nb_status pass(decoder *d, int64_t at, int64_t n) {
    const nb_seg seg = {0, (int32_t)n, 0, (int32_t)(at + n)};
    const int32_t last = (int32_t)(n - 1);
    nb_batch b = {.n = n, .ids = d->ids + at, .pos = d->at + at, .sample = d->sample, .segs = &seg, .n_segs = 1,
                  .kv_rows = d->at + at, .answers = at > 0};
    return nb_runner_logits(d->runner, &b, &d->cache, &last, 1, d->logits);
}

static nb_status read_prompt(decoder *d) { return pass(d, 0, d->rows); }

static nb_status generate(decoder *d) {
    const nb_sampling greedy = nb_sampling_greedy();
    for (int64_t t = 0; t < d->rows; t++) {
        NB_TRY(pass(d, t, 1));
        if (t + 1 == d->rows) break;
        NB_TRY(nb_sampler_next(&d->sampler, &greedy, d->logits, d->ids, t + 1, 0, &d->ids[t + 1]));
    }
    return NB_OK;
}

static nb_status repeat(decoder *d, nb_status (*run)(decoder *), double seconds, nb_decode *out) {
    double times[MAX_RUNS], end = 0;
    out->runs = -1;
    out->best = 1e30;
    while (out->runs < 1 || (nb_now() < end && out->runs < MAX_RUNS)) {
        double start = nb_now();
        NB_TRY(run(d));
        double took = nb_now() - start;
        if (nb_interrupted()) return nb_fail(NB_EINTERRUPTED, "stopped");
        if (++out->runs == 0) {
            end = nb_now() + seconds;
            continue;
        }
        times[out->runs - 1] = took;
        if (took < out->best) out->best = took;
    }
    out->median = nb_median(times, out->runs);
    return NB_OK;
}

/* Weights of the layers and the head, each counted once; of experts those that one token meets. */
static void weights(const nb_model *m, double *params, double *bytes) {
    *params = *bytes = 0;
    for (int64_t l = 0; l < m->spec->layers; l++)
        for (int s = 0; s < nb_spec_slots(m->spec); s++) {
            const nb_weight *w = m->block[l].lin[s].w;
            double share = s < NB_SLOTS ? 1 : (double)m->spec->top_k / (double)m->spec->experts;
            *params += share * (double)w->rows * (double)w->cols;
            *bytes += share * (double)nb_weight_bytes(w);
        }
}

static nb_status measure(nb_model *m, int64_t tokens, int64_t at_once, double seconds, nb_decode *out) {
    const double n = (double)tokens, passes = n / (double)at_once;
    const double head = (double)m->spec->vocab * (double)m->spec->hidden;
    const nb_spec *s = m->spec;
    const double kv = (double)(2 * s->kv_heads * s->head_dim * s->layers * nb_dtype_size(m->dev->elem));
    double params, bytes;
    decoder d;
    *out = (nb_decode){.tokens = tokens};
    weights(m, &params, &bytes);
    /* half a square of queries and the keys they see, two products; keys and values are read once a pass */
    out->flops = 2 * n * params + 2 * passes * head + 2 * n * n * (double)(s->layers * s->heads * s->head_dim);
    out->bytes = passes * (bytes + (double)nb_weight_bytes(&m->weights.head)) + kv * n * (at_once == 1 ? n / 2 : 1);
    nb_status st = open_decoder(&d, m, tokens, at_once);
    if (st == NB_OK) st = repeat(&d, at_once == 1 ? generate : read_prompt, seconds, out);
    close_decoder(&d);
    return st;
}

nb_status nb_decode_prompt(nb_model *m, int64_t tokens, double seconds, nb_decode *out) {
    return measure(m, tokens, tokens, seconds, out);
}

nb_status nb_decode_generate(nb_model *m, int64_t tokens, double seconds, nb_decode *out) {
    return measure(m, tokens, 1, seconds, out);
}
