#include "eval/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

nb_status nb_score_ids(nb_score *s, nb_model *m, nb_arena *arena, const int32_t *ids, int64_t n) {
    *s = (nb_score){0};
    if (n < 2)
        return nb_fail(NB_EINPUT, "a text of %lld tokens has no next token to score: give at least two", (long long)n);
    if (n > m->positions)
        return nb_fail(NB_EINPUT, "the text has %lld tokens, the model can see %lld", (long long)n,
                       (long long)m->positions);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->spec->vocab)
            return nb_fail(NB_EINPUT, "token id %d (number %lld) is not below the vocabulary's %lld", ids[i],
                           (long long)i, (long long)m->spec->vocab);
    nb_runner *r;
    NB_TRY(nb_runner_open_loss(&r, m, arena, n, false, NULL));
    int32_t *pos = nb_calloc((size_t)n, sizeof *pos), *targets = nb_calloc((size_t)n, sizeof *targets);
    uint32_t *sample = nb_calloc((size_t)n, sizeof *sample);
    for (int64_t i = 0; i < n; i++) {
        pos[i] = (int32_t)i;
        targets[i] = i + 1 < n ? ids[i + 1] : 0; /* the last one is scored only for its argmax */
    }
    nb_seg seg = {0, (int32_t)n, 0, (int32_t)n};
    nb_batch b = {.n = n, .ids = ids, .targets = targets, .pos = pos, .sample = sample, .segs = &seg, .n_segs = 1,
                  .n_trained = n};
    s->n = n;
    s->nll = nb_calloc((size_t)n, sizeof *s->nll);
    s->argmax = nb_calloc((size_t)n, sizeof *s->argmax);
    double sum;
    nb_status st = nb_runner_loss(r, &b, 0, &sum, s->nll);
    memcpy(s->argmax, r->index.best, (size_t)n * sizeof *s->argmax);
    for (int64_t i = 0; i + 1 < n; i++) s->loss += s->nll[i];
    s->loss /= (double)(n - 1);
    nb_runner_free(r);
    free(pos), free(targets), free(sample);
    if (st == NB_OK && !isfinite(s->loss))
        st = nb_fail(NB_ENUMERIC, "the model's loss on this text is not finite: its weights or the adapter's are "
                     "damaged, or bf16 is too narrow for them (--dtype f32)");
    if (st != NB_OK) nb_score_free(s);
    return st;
}

void nb_score_free(nb_score *s) {
    free(s->nll);
    free(s->argmax);
    *s = (nb_score){0};
}
