#include "generate/generate.h"

#include <stdlib.h>
#include <string.h>

#include "core/interrupt.h"
#include "generate/tops.h"

typedef struct slot {
    const nb_gen_request *request; /* NULL: free */
    nb_gen_result *result;
    nb_decoder *decoder;
    int32_t *ids;     /* [slot_len] prompt, then answer */
    int64_t n, cached; /* ids[0..cached) have their keys and values in the cache */
    int64_t take;     /* tokens in the pass being made */
    size_t shown;     /* bytes of result->text given to on_text */
    int64_t cap;      /* of result->ids */
} slot;

struct nb_generator {
    nb_model *model;
    const nb_tokenizer *tokenizer;
    nb_runner *runner;
    nb_kv_cache cache;
    nb_sampler sampler;
    nb_tops tops; /* open where the device's memory is not the host's */
    slot *slots;
    int64_t n_slots, slot_len, max_tokens;
    int32_t *stop_ids;
    int n_stop_ids, n_stop;
    char **stop;
    size_t longest_stop;
    bool keep_prefix;
    /* one pass */
    int32_t *ids, *pos, *kv_rows, *rows; /* [max_tokens] x 3, [slots] */
    uint32_t *sample;                    /* [max_tokens] */
    nb_seg *segs;                        /* [slots] */
    float *logits;                       /* [V] of one sequence, on the host */
};

const char *nb_stop_name(nb_stop s) {
    static const char *const name[] = {"end token", "stop string", "token limit", "end of the context", "interrupted"};
    return name[s];
}

void nb_gen_result_free(nb_gen_result *r) {
    free(r->ids);
    nb_text_free(&r->text);
    *r = (nb_gen_result){0};
}

static nb_status check_options(const nb_gen_options *o, int64_t positions) {
    NB_ASSERT(o->slots >= 1 && o->max_tokens >= o->slots);
    if (o->slot_len < 2 || o->slot_len > positions)
        return nb_fail(NB_EINPUT,
                       "sequences of %lld tokens (prompt and answer together) were asked for; this model takes "
                       "from 2 to %lld",
                       (long long)o->slot_len, (long long)positions);
    for (int i = 0; i < o->n_stop; i++)
        if (!o->stop[i][0]) return nb_fail(NB_EINPUT, "a stop string is empty: every answer would end at once");
    return NB_OK;
}

nb_status nb_generator_open(nb_generator **out, nb_model *m, nb_arena *arena, const nb_tokenizer *t,
                            const nb_gen_options *o) {
    NB_TRY(check_options(o, m->positions));
    nb_generator *g = NB_NEW(nb_generator);
    *g = (nb_generator){.model = m, .tokenizer = t, .n_slots = o->slots, .slot_len = o->slot_len,
                        .max_tokens = o->max_tokens, .n_stop_ids = o->n_stop_ids, .n_stop = o->n_stop,
                        .keep_prefix = o->keep_prefix};
    size_t n = (size_t)o->max_tokens, slots = (size_t)o->slots;
    g->slots = nb_calloc(slots, sizeof *g->slots);
    for (int64_t s = 0; s < o->slots; s++) g->slots[s].ids = nb_calloc((size_t)o->slot_len, sizeof(int32_t));
    g->ids = nb_calloc(n, sizeof *g->ids), g->pos = nb_calloc(n, sizeof *g->pos);
    g->kv_rows = nb_calloc(n, sizeof *g->kv_rows), g->sample = nb_calloc(n, sizeof *g->sample);
    g->rows = nb_calloc(slots, sizeof *g->rows), g->segs = nb_calloc(slots, sizeof *g->segs);
    g->stop_ids = nb_calloc((size_t)o->n_stop_ids + 1, sizeof *g->stop_ids);
    if (o->n_stop_ids) memcpy(g->stop_ids, o->stop_ids, (size_t)o->n_stop_ids * sizeof *g->stop_ids);
    g->stop = nb_calloc((size_t)o->n_stop + 1, sizeof *g->stop);
    for (int i = 0; i < o->n_stop; i++) {
        g->stop[i] = nb_strdup(o->stop[i]);
        if (strlen(o->stop[i]) > g->longest_stop) g->longest_stop = strlen(o->stop[i]);
    }
    nb_sampler_open(&g->sampler, m->spec->vocab);
    void *logits;
    nb_status st;
    NB_GO(st, nb_big_alloc(&logits, (size_t)m->spec->vocab * sizeof *g->logits, "logits"), failed);
    g->logits = logits;
    if (!m->dev->be->host_memory) NB_GO(st, nb_tops_open(&g->tops, m->dev, o->slots, m->spec->vocab), failed);
    NB_GO(st, nb_kv_cache_open(&g->cache, m, o->slots * o->slot_len), failed);
    NB_GO(st, nb_runner_open_logits(&g->runner, m, arena, o->max_tokens, o->slots, &g->cache), failed);
    *out = g;
    return NB_OK;
failed:
    nb_generator_free(g);
    return st;
}

void nb_generator_free(nb_generator *g) {
    if (!g) return;
    if (g->runner) nb_runner_free(g->runner);
    if (g->cache.rows) nb_kv_cache_close(&g->cache);
    nb_sampler_close(&g->sampler);
    nb_tops_close(&g->tops);
    if (g->logits) nb_big_free(g->logits, (size_t)g->model->spec->vocab * sizeof *g->logits);
    for (int64_t s = 0; s < g->n_slots; s++) {
        free(g->slots[s].ids);
        nb_decoder_free(g->slots[s].decoder);
    }
    for (int i = 0; i < g->n_stop; i++) free(g->stop[i]);
    void *all[] = {g->slots, g->ids, g->pos, g->kv_rows, g->sample, g->rows, g->segs, g->stop_ids, g->stop, g};
    for (int i = 0; i < NB_LEN(all); i++) free(all[i]);
}

size_t nb_generator_bytes(const nb_generator *g) {
    return g->cache.bytes + (size_t)g->model->spec->vocab * sizeof *g->logits;
}
int64_t nb_generator_slot_len(const nb_generator *g) { return g->slot_len; }

void nb_generator_forget(nb_generator *g) {
    for (int64_t s = 0; s < g->n_slots; s++) g->slots[s].n = g->slots[s].cached = 0;
}

/* ---- a request enters a slot and leaves it ---- */

/* Tokens at the front of the prompt whose keys and values the slot holds; the last is always read: its logits. */
static int64_t shared_prefix(const slot *s, const nb_gen_request *r) {
    int64_t k = 0, max = s->cached < r->prompt_n - 1 ? s->cached : r->prompt_n - 1;
    while (k < max && s->ids[k] == r->prompt[k]) k++;
    return k;
}

static nb_status enter(nb_generator *g, const nb_gen_request *r, nb_gen_result *result) {
    if (r->prompt_n < 1) return nb_fail(NB_EINPUT, "the prompt is empty: there is nothing to continue");
    if (r->prompt_n >= g->slot_len)
        return nb_fail(NB_EINPUT,
                       "the prompt has %lld tokens, but prompt and answer together may have %lld: shorten it",
                       (long long)r->prompt_n, (long long)g->slot_len);
    slot *best = NULL;
    int64_t known = -1;
    for (int64_t i = 0; i < g->n_slots; i++) {
        slot *s = &g->slots[i];
        if (s->request) continue;
        int64_t k = g->keep_prefix ? shared_prefix(s, r) : 0;
        if (k > known) best = s, known = k;
    }
    NB_ASSERT(best);
    memcpy(best->ids, r->prompt, (size_t)r->prompt_n * sizeof *best->ids);
    if (!best->decoder) best->decoder = nb_decoder_open(g->tokenizer, true);
    best->request = r, best->result = result;
    best->n = r->prompt_n, best->cached = known;
    best->shown = 0, best->cap = 0;
    return NB_OK;
}

/* Gives on_text what is certain: all, or all but what may begin a stop string. */
static bool show(const nb_generator *g, slot *s, bool all) {
    const nb_text *t = &s->result->text;
    size_t end = t->n;
    if (!all && g->longest_stop) {
        size_t back = g->longest_stop - 1 < end - s->shown ? g->longest_stop - 1 : end - s->shown;
        bool begins = false;
        for (; back > 0 && !begins; back -= !begins)
            for (int i = 0; i < g->n_stop && !begins; i++)
                begins = back < strlen(g->stop[i]) && !memcmp(t->s + end - back, g->stop[i], back);
        end -= back;
    }
    if (!s->request->on_text || end <= s->shown) return true;
    size_t from = s->shown;
    s->shown = end;
    return s->request->on_text(s->request->arg, t->s + from, end - from);
}

/* Cuts the text before the first stop string that ends behind byte `from`. */
static bool cut_at_stop(const nb_generator *g, nb_text *t, size_t from) {
    size_t begin = from > g->longest_stop ? from - g->longest_stop : 0;
    char *first = NULL;
    for (int i = 0; i < g->n_stop && t->n > begin; i++) {
        size_t len = strlen(g->stop[i]);
        char *at = memmem(t->s + begin, t->n - begin, g->stop[i], len);
        if (at && (!first || at < first)) first = at;
    }
    if (!first) return false;
    t->n = (size_t)(first - t->s);
    *first = 0;
    return true;
}

static void leave(nb_generator *g, slot *s, nb_stop why) {
    nb_text *t = &s->result->text;
    size_t before = t->n;
    if (why != NB_STOP_STRING) {
        nb_decoder_flush(s->decoder, t);
        if (cut_at_stop(g, t, before)) why = NB_STOP_STRING;
    } else {
        nb_text rest = {0};
        nb_decoder_flush(s->decoder, &rest);
        nb_text_free(&rest);
    }
    if (why != NB_STOP_CALLER && !show(g, s, true)) why = NB_STOP_CALLER;
    s->result->stop = why;
    s->request = NULL;
}

static nb_status take_token(nb_generator *g, slot *s, int32_t token, bool *done) {
    nb_gen_result *r = s->result;
    *done = true;
    for (int i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == token) return leave(g, s, NB_STOP_TOKEN), NB_OK;
    NB_GROW(r->ids, r->n, s->cap);
    r->ids[r->n++] = token;
    s->ids[s->n++] = token;
    size_t before = r->text.n;
    NB_TRY(nb_decoder_push(s->decoder, token, &r->text));
    if (g->n_stop && cut_at_stop(g, &r->text, before)) leave(g, s, NB_STOP_STRING);
    else if (!show(g, s, false)) leave(g, s, NB_STOP_CALLER);
    else if (r->n >= s->request->max_new_tokens) leave(g, s, NB_STOP_LIMIT);
    else if (s->n == g->slot_len) leave(g, s, NB_STOP_CONTEXT);
    else *done = false;
    return NB_OK;
}

/* ---- one pass of the model ---- */

static void add_tokens(nb_generator *g, nb_batch *b, slot *s) {
    int64_t room = g->max_tokens - b->n, first = (int64_t)(s - g->slots) * g->slot_len;
    s->take = s->n - s->cached < room ? s->n - s->cached : room;
    if (!s->take) return;
    for (int64_t i = 0; i < s->take; i++) {
        int64_t at = s->cached + i, k = b->n + i;
        g->ids[k] = s->ids[at];
        g->pos[k] = (int32_t)at;
        g->kv_rows[k] = (int32_t)(first + at);
        g->sample[k] = (uint32_t)s->request->sequence;
    }
    g->segs[b->n_segs++] = (nb_seg){(int32_t)b->n, (int32_t)s->take, (int32_t)first, (int32_t)(s->cached + s->take)};
    b->n += s->take;
}

/* A token from row i of the logits: from its most likely ones if they are at hand and decide it. */
static nb_status choose(nb_generator *g, const nb_sampling *o, bool tops, const float *logits, int64_t i, const slot *s,
                        int32_t *token) {
    nb_dev *dev = g->model->dev;
    const int64_t V = g->model->spec->vocab;
    bool sure = false;
    if (tops) {
        nb_top top = nb_tops_row(&g->tops, i);
        nb_sampler_next_of_top(&g->sampler, o, &top, s->n, s->request->sequence, token, &sure);
    }
    if (sure) return NB_OK;
    NB_TRY(dev->be->get(dev, g->logits, logits + i * V, (size_t)V * sizeof *logits));
    return nb_sampler_next(&g->sampler, o, g->logits, s->ids, s->n, s->request->sequence, token);
}

static bool reads(const slot *s) { return s->request && !s->result->n; }

/* What is left of the prompts, as far as there is room; when all are read, one token of every sequence being answered.
 * Then a token for each slot that caught up. The two never share a pass: sums of the second kind may be made otherwise
 * (nb_batch.answers), and a text must not depend on what else is being generated. */
static nb_status pass(nb_generator *g, const nb_sampling *o, nb_progress *progress) {
    nb_batch b = {.ids = g->ids, .pos = g->pos, .sample = g->sample, .segs = g->segs, .kv_rows = g->kv_rows,
                  .answers = true};
    slot *ready[g->n_slots]; /* slots are few: tens */
    int64_t n_ready = 0;
    for (int64_t i = 0; i < g->n_slots; i++)
        if (reads(&g->slots[i])) b.answers = false;
    for (int64_t i = 0; i < g->n_slots; i++) {
        slot *s = &g->slots[i];
        s->take = 0;
        if (!s->request || reads(s) == b.answers) continue;
        add_tokens(g, &b, s);
        if (!s->take || s->cached + s->take < s->n) continue;
        g->rows[n_ready] = (int32_t)b.n - 1;
        ready[n_ready++] = s;
    }
    if (!n_ready) g->rows[0] = (int32_t)b.n - 1; /* prompts alone: a row nobody looks at */
    const float *logits;
    NB_TRY(nb_runner_logits_there(g->runner, &b, &g->cache, g->rows, n_ready ? n_ready : 1, &logits));
    const bool tops = g->tops.dev && n_ready && nb_sampling_of_top(o);
    if (tops) NB_TRY(nb_tops_find(&g->tops, logits, n_ready, g->model->spec->vocab, nb_sampling_rate(o)));
    for (int64_t i = 0; i < g->n_slots; i++)
        if (g->slots[i].request) g->slots[i].cached += g->slots[i].take;
    for (int64_t i = 0; i < n_ready; i++) {
        slot *s = ready[i];
        int32_t token;
        bool done;
        NB_TRY(choose(g, o, tops, logits, i, s, &token));
        NB_TRY(take_token(g, s, token, &done));
        if (done && progress) nb_progress_set(progress, progress->done + 1, NULL);
    }
    return NB_OK;
}

static nb_status run_all(nb_generator *g, const nb_sampling *o, const nb_gen_request *requests, int64_t n,
                         nb_gen_result *results, nb_progress *progress) {
    for (int64_t next = 0;;) {
        int64_t busy = 0;
        for (int64_t i = 0; i < g->n_slots; i++) busy += g->slots[i].request != NULL;
        for (; next < n && busy < g->n_slots; next++) {
            if (requests[next].max_new_tokens < 1) {
                results[next].stop = NB_STOP_LIMIT;
                continue;
            }
            NB_TRY(enter(g, &requests[next], &results[next]));
            busy++;
        }
        if (!busy) return NB_OK;
        NB_TRY(pass(g, o, progress));
        if (nb_interrupted()) return nb_fail(NB_EINTERRUPTED, "interrupted while generating");
    }
}

nb_status nb_generate(nb_generator *g, const nb_sampling *sampling, const nb_gen_request *requests, int64_t n,
                      nb_gen_result *results, nb_progress *progress) {
    memset(results, 0, (size_t)n * sizeof *results);
    NB_TRY(nb_sampling_check(sampling));
    nb_status st = run_all(g, sampling, requests, n, results, progress);
    for (int64_t i = 0; i < g->n_slots; i++) { /* after an error: what was under way is dropped */
        slot *s = &g->slots[i];
        if (!s->request) continue;
        s->request = NULL, s->n = s->cached = 0;
        nb_decoder_free(s->decoder);
        s->decoder = NULL;
    }
    return st;
}

/* ---- stop ids ---- */

static int ascending(const void *x, const void *y) {
    int32_t u = *(const int32_t *)x, v = *(const int32_t *)y;
    return (u > v) - (u < v);
}

int32_t *nb_stop_ids(const nb_tokenizer *t, const nb_chat_template *chat, int *n) {
    int n_eos, k = 0;
    const int32_t *eos = nb_tokenizer_eos_ids(t, &n_eos);
    const char *turn = chat ? nb_chat_end_of_turn(chat, t) : NULL;
    int32_t *ids = nb_calloc((size_t)n_eos + 1, sizeof *ids), turn_id = turn ? nb_tokenizer_token_id(t, turn) : -1;
    if (n_eos) memcpy(ids, eos, (size_t)n_eos * sizeof *ids);
    if (turn_id >= 0) ids[n_eos++] = turn_id;
    qsort(ids, (size_t)n_eos, sizeof *ids, ascending);
    for (int i = 0; i < n_eos; i++)
        if (k == 0 || ids[i] != ids[k - 1]) ids[k++] = ids[i];
    if (!k) nb_warn("the tokenizer names no end token: answers end only at the token limit or a stop string");
    *n = k;
    return ids;
}
