/* What an evaluation found, for people and for programs: a table for the terminal, a JSON document, and one HTML page
 * that needs nothing else (no scripts, no files beside it). */
#ifndef NB_EVAL_REPORT_H
#define NB_EVAL_REPORT_H

#include <jansson.h>

#include "core/mem.h"
#include "eval/compare.h"
#include "eval/curves.h"

typedef struct nb_report_set {
    nb_heldout_result base, adapter; /* adapter.rows = 0: the base alone */
    nb_comparison cmp;               /* when there are both */
} nb_report_set;

typedef struct nb_report {
    char *base, *adapter;    /* folders as given; adapter NULL: the base alone */
    char *config;            /* NULL: none */
    char *base_sha256, *weights; /* "NF4, products in bf16" */
    char date[20];           /* "2026-01-31 12:00", local time */
    nb_report_set *sets;
    int n_sets;
    nb_curves curves;        /* of the run that made the adapter; n = 0: none */
} nb_report;

/* Compares every set of a report with an adapter: fills cmp. */
nb_status nb_report_compare(nb_report *r, uint64_t seed);
void nb_report_free(nb_report *r); /* with everything in it */

void nb_report_text(nb_text *out, const nb_report *r, bool color);
json_t *nb_report_json(const nb_report *r); /* caller decrefs */
void nb_report_html(nb_text *out, const nb_report *r);

/* Rows worth showing: WON and LOST by the headline's measure, WRONG: neither won nor lost, and not right. Fills
 * rows[max] with indices and returns how many; *all = how many such rows there are. 0 when no answers were kept. */
typedef enum nb_example { NB_EXAMPLE_WON, NB_EXAMPLE_LOST, NB_EXAMPLE_WRONG } nb_example;
int nb_report_examples(const nb_report_set *s, nb_example kind, int64_t *rows, int max, int64_t *all);

#endif
