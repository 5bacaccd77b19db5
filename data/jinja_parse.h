/* Private to data/jinja_parse.c and jinja_statements.c: looking at tokens, making nodes, expressions. */
#ifndef NB_DATA_JINJA_PARSE_H
#define NB_DATA_JINJA_PARSE_H

#include "data/jinja_impl.h"

static inline const ji_token *ji_now(const ji *j) {
    return &j->tokens[j->position];
}

static inline bool ji_token_is(const ji_token *t, ji_token_type type, const char *text) {
    return t->type == type && t->n == strlen(text) && !memcmp(t->s, text, t->n);
}

static inline bool ji_at_word(const ji *j, const char *word) {
    return ji_token_is(ji_now(j), JT_NAME, word);
}

static inline bool ji_at_op(const ji *j, const char *op) {
    return ji_token_is(ji_now(j), JT_OPERATOR, op);
}

void nb_ji_next(ji *j);
bool nb_ji_skip_word(ji *j, const char *word); /* true if it was there */
bool nb_ji_skip_op(ji *j, const char *op);
void nb_ji_unexpected(ji *j, const char *wanted) __attribute__((noreturn));
void nb_ji_want_op(ji *j, const char *op);
void nb_ji_want_word(ji *j, const char *word);
const ji_str *nb_ji_want_name(ji *j);

ji_node *nb_ji_make(ji *j, ji_kind kind);                     /* stands at the current token */
ji_node *nb_ji_with(ji_node *n, ji_node *a, ji_node *b);      /* ... or where a stands */
ji_node *nb_ji_expression(ji *j);
ji_node *nb_ji_or_expression(ji *j);                          /* without "if else" */
/* One of `one`, or several with commas: JN_TUPLE with its elements in list. Empty ones in parentheses alone. */
ji_node *nb_ji_tuple(ji *j, ji_node *(*one)(ji *), bool parentheses);
ji_node *nb_ji_filter_name(ji *j, ji_node *of);               /* behind "|" */

#endif
