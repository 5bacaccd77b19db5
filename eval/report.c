#include "eval/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

nb_status nb_report_compare(nb_report *r, uint64_t seed) {
    for (int i = 0; i < r->n_sets; i++)
        NB_TRY(nb_compare(&r->sets[i].cmp, &r->sets[i].base, &r->sets[i].adapter, seed));
    return NB_OK;
}

void nb_report_free(nb_report *r) {
    for (int i = 0; i < r->n_sets; i++) {
        nb_heldout_result_free(&r->sets[i].base);
        nb_heldout_result_free(&r->sets[i].adapter);
    }
    nb_curves_free(&r->curves);
    void *all[] = {r->sets, r->base, r->adapter, r->config, r->base_sha256, r->weights};
    for (int i = 0; i < NB_LEN(all); i++) free(all[i]);
    *r = (nb_report){0};
}

/* ---- examples ---- */

typedef struct pick {
    int64_t row;
    double size; /* of the difference, or of what is missing to be right */
} pick;

static int by_size(const void *x, const void *y) {
    const pick *u = x, *v = y;
    return u->size > v->size ? -1 : u->size < v->size ? 1 : (u->row > v->row) - (u->row < v->row);
}

int nb_report_examples(const nb_report_set *s, nb_example kind, int64_t *rows, int max, int64_t *all) {
    nb_measure m = s->cmp.d[s->cmp.headline].measure;
    *all = 0;
    if (m <= NB_MEASURE_BITS_PER_BYTE || !s->adapter.rows || !s->adapter.row[0].answer) return 0;
    int metric = (int)m - NB_MEASURE_BITS_PER_BYTE;
    pick *p = nb_calloc((size_t)s->adapter.rows, sizeof *p);
    for (int64_t i = 0; i < s->adapter.rows; i++) {
        int sign = nb_compare_row(&s->base.row[i], &s->adapter.row[i], m);
        double was = s->base.row[i].score[metric], is = s->adapter.row[i].score[metric];
        bool fits = kind == NB_EXAMPLE_WON ? sign > 0 : kind == NB_EXAMPLE_LOST ? sign < 0 : sign == 0 && is < 1;
        if (fits) p[(*all)++] = (pick){i, kind == NB_EXAMPLE_WRONG ? 1 - is : fabs(is - was)};
    }
    qsort(p, (size_t)*all, sizeof *p, by_size);
    int64_t alike = 0; /* of those as large as the largest, some from the whole set, not just the first */
    while (alike < *all && p[alike].size == p[0].size) alike++;
    int n = *all < max ? (int)*all : max;
    for (int i = 0; i < n; i++) rows[i] = p[alike > n ? i * alike / n : i].row;
    free(p);
    return n;
}
