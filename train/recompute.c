#include "train/recompute.h"

#include <stdlib.h>

typedef struct search {
    nb_model *model;
    int64_t tokens;
    double room;        /* bytes there are */
    nb_recompute best;  /* fits; or, while none does, takes the least */
    nb_need need;       /* of the best */
    bool tried, found;
} search;

static nb_status measure(const search *s, nb_recompute c, nb_need *need, bool *fits) {
    NB_TRY(nb_runner_measure(s->model, s->tokens, &c, need));
    *fits = (double)need->bytes + (double)need->scratch <= s->room;
    return NB_OK;
}

static nb_status try_choice(search *s, nb_recompute c, bool *fits) {
    nb_need need;
    NB_TRY(measure(s, c, &need, fits));
    bool better = s->found ? *fits && need.flops < s->need.flops : *fits || !s->tried || need.bytes < s->need.bytes;
    s->tried = true;
    if (!better) return NB_OK;
    s->found = *fits;
    s->best = c;
    s->need = need;
    return NB_OK;
}

static nb_recompute at(nb_recompute from, nb_recompute step, int64_t k) {
    return (nb_recompute){from.full + k * step.full, from.smart + k * step.smart};
}

/* The least *k in 0..n at which from + k * step fits, by halving; n + 1: none does. Each layer more takes less memory;
 * the last may not, as backward begins with it. */
static nb_status least(search *s, nb_recompute from, nb_recompute step, int64_t n, int64_t *k) {
    int64_t low = 0, high = n;
    bool fits;
    *k = n + 1;
    NB_TRY(try_choice(s, at(from, step, high), &fits));
    if (!fits && n) NB_TRY(try_choice(s, at(from, step, --high), &fits));
    if (!fits) return NB_OK;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        NB_TRY(try_choice(s, at(from, step, mid), &fits));
        if (fits) high = mid;
        else low = mid + 1;
    }
    *k = high;
    return NB_OK;
}

/* Three ways down from keeping everything: more and more layers in part; then more and more of these whole, and back up
 * where the last of them freed more than was wanted; or whole ones alone. */
nb_status nb_recompute_search(nb_model *m, int64_t tokens, double room, nb_recompute *out) {
    const int64_t L = m->spec->layers;
    const nb_recompute none = {0, 0}, smart = {0, 1}, full = {1, 0}, swap = {1, -1};
    search s = {.model = m, .tokens = tokens, .room = room};
    int64_t k;
    bool fits;
    NB_TRY(try_choice(&s, none, &fits));
    if (!fits) {
        NB_TRY(least(&s, none, smart, L, &k));
        if (k > L) NB_TRY(least(&s, (nb_recompute){0, L}, swap, L, &k));
        else k = 0;
        if (k && k < L) NB_TRY(least(&s, (nb_recompute){k, 0}, smart, L - k, &k));
        NB_TRY(least(&s, none, full, L, &k));
    }
    *out = s.best;
    return NB_OK;
}

/* Bytes for activations and kernel scratch, everything else taken off. Ranks on one machine share its memory, and of
 * what they hold only the base. */
static nb_status room_of(const nb_run *r, double *room) {
    nb_memory_plan m = nb_run_memory(r);
    size_t limit;
    NB_TRY(nb_run_memory_limit(r, true, &limit));
    double ranks = r->dev->be->host_memory && !r->config->memory_limit ? r->comm->local_size : 1;
    double rest = (double)(m.total - m.base - m.activations - m.scratch);
    *room = ((double)limit - (double)m.base) / ranks - rest;
    if (*room < 0) *room = 0;
    return NB_OK;
}

/* The least room of any rank: those that share the layers out walk through them in step. */
static nb_status common_room(const nb_run *r, double *room) {
    double *all = nb_calloc((size_t)r->comm->size, sizeof *all);
    nb_status mine = room_of(r, room), st = nb_comm_list(r->comm, mine == NB_OK ? *room : 0, all);
    for (int i = 0; i < r->comm->size && st == NB_OK; i++)
        if (all[i] < *room) *room = all[i];
    free(all);
    return mine != NB_OK ? mine : st;
}

nb_status nb_recompute_choose(const nb_run *r, int64_t tokens, nb_recompute *out) {
    static const nb_recompute *const fixed[] = {
        [NB_CHECKPOINTING_FALSE] = &nb_recompute_none, [NB_CHECKPOINTING_SMART] = &nb_recompute_smart,
        [NB_CHECKPOINTING_TRUE] = &nb_recompute_full};
    if (r->config->gradient_checkpointing != NB_CHECKPOINTING_AUTO) {
        *out = *fixed[r->config->gradient_checkpointing];
        return NB_OK;
    }
    double room = 0;
    NB_TRY(common_room(r, &room));
    if (r->chosen_before) { /* the run's own choice, where it still fits */
        search s = {.model = r->model, .tokens = tokens, .room = room};
        nb_need need;
        bool fits;
        NB_TRY(measure(&s, r->recompute, &need, &fits));
        *out = r->recompute;
        if (fits) return NB_OK;
    }
    return nb_recompute_search(r->model, tokens, room, out);
}

static int64_t below(int64_t n, int64_t most) { return n < most ? n : most; }

void nb_recompute_text(nb_recompute c, int64_t layers, nb_text *out) {
    int64_t full = below(c.full, layers), smart = below(c.smart, layers - full), rest = layers - full - smart;
    const struct {
        int64_t n;
        const char *how;
    } parts[] = {{full, "whole"}, {smart, "in part"}, {rest, "not"}};
    int64_t first = 1;
    for (int i = 0; i < NB_LEN(parts); i++) {
        if (parts[i].n == layers) nb_text_printf(out, "all layers %s", parts[i].how);
        else if (parts[i].n)
            nb_text_printf(out, "%s %lld-%lld %s", first > 1 ? "," : "layers", (long long)first,
                           (long long)(first + parts[i].n - 1), parts[i].how);
        first += parts[i].n;
    }
}
