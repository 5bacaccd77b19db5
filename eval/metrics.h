/* What an answer is worth beside its reference, one number from 0 to 1 (1 is best), per row. */
#ifndef NB_EVAL_METRICS_H
#define NB_EVAL_METRICS_H

#include <stdbool.h>

#include "core/status.h"

/* Bits of a set: 1u << NB_METRIC_... . Loss (and with it perplexity and bits per byte) is always measured; all
 * others need a generated answer. */
typedef enum nb_metric {
    NB_METRIC_LOSS,
    NB_METRIC_EXACT_MATCH, /* equal to the reference, white space around both aside: 0 or 1 */
    NB_METRIC_F1,          /* nb_token_f1 */
    NB_METRIC_ROUGE_L,     /* nb_rouge_l */
    NB_METRIC_REGEX,       /* nb_regex_score: 0 or 1 */
    NB_METRIC_JSON_VALID,  /* the whole answer is one JSON text (RFC 8259): 0 or 1 */
    NB_METRIC_COUNT
} nb_metric;

typedef struct nb_metric_info {
    const char *name;  /* as in test_datasets[].metrics: "exact_match" */
    const char *title; /* as in reports: "exact match" */
    bool binary;       /* each row is 0 or 1 */
} nb_metric_info;
extern const nb_metric_info nb_metrics[NB_METRIC_COUNT];

/* Names to a set (loss always in it). `where` begins the message of an unknown name. */
nb_status nb_metrics_parse(unsigned *set, const char *const *names, int n, const char *where);

double nb_exact_match(const char *answer, const char *reference);

/* Harmonic mean of precision and recall over the multiset of words, as SQuAD's evaluation does it: lower case, no
 * punctuation, no English articles (a, an, the), split at white space. For other alphabets: Unicode lower case,
 * and punctuation is every character of Unicode's classes P, besides ASCII's symbols. Both empty: 1. */
double nb_token_f1(const char *answer, const char *reference);

/* ROUGE-L's F measure (Lin, 2004; precision and recall weigh the same): longest common subsequence of the words,
 * which are lower-case runs of letters, marks and digits; no stemming. One side empty: 0. */
double nb_rouge_l(const char *answer, const char *reference);

double nb_json_valid(const char *text);

/* PCRE2 expressions, Unicode, searched for anywhere in the answer. */
typedef struct nb_regex nb_regex;
nb_status nb_regex_open(nb_regex **out, const char *pattern); /* syntax errors: NB_EINPUT with their place */
void nb_regex_free(nb_regex *r);                              /* NULL is harmless */
/* 1 if the answer matches. If the expression has a group named "answer", (?<answer>...), that group's text must
 * also equal what the same expression finds in the reference ("#### (?<answer>-?[0-9]+)"). An expression that exceeds
 * PCRE2's limits on some text: NB_EINPUT. */
nb_status nb_regex_score(const nb_regex *r, const char *answer, const char *reference, double *score);

#endif
