/* Tokens to expressions, with the precedence of jinja2's parser: conditional, or, and, not, comparison, + -, ~,
 * * / // %, **, signs, then filters and tests. */
#include "data/jinja_parse.h"

void nb_ji_next(ji *j) {
    if (ji_now(j)->type != JT_EOF) j->position++;
    j->line = ji_now(j)->line;
    j->column = ji_now(j)->column;
}

bool nb_ji_skip_word(ji *j, const char *word) {
    return ji_at_word(j, word) && (nb_ji_next(j), true);
}

bool nb_ji_skip_op(ji *j, const char *op) {
    return ji_at_op(j, op) && (nb_ji_next(j), true);
}

void nb_ji_unexpected(ji *j, const char *wanted) {
    const ji_token *t = ji_now(j);
    j->line = t->line;
    j->column = t->column;
    const char *what = t->type == JT_EOF ? "the end of the template" : t->type == JT_TEXT ? "text" : NULL;
    int n = t->n > 40 ? 40 : (int)t->n;
    nb_ji_fail(j, "expected %s, found %s%.*s%s", wanted, what ? what : "\"", what ? 0 : n, t->s, what ? "" : "\"");
}

void nb_ji_want_op(ji *j, const char *op) {
    if (!nb_ji_skip_op(j, op)) nb_ji_unexpected(j, op);
}

void nb_ji_want_word(ji *j, const char *word) {
    if (!nb_ji_skip_word(j, word)) nb_ji_unexpected(j, word);
}

ji_node *nb_ji_make(ji *j, ji_kind kind) {
    ji_node *n = nb_ji_alloc(j, 1, sizeof *n);
    *n = (ji_node){.kind = kind, .line = ji_now(j)->line, .column = ji_now(j)->column};
    return n;
}

ji_node *nb_ji_with(ji_node *n, ji_node *a, ji_node *b) {
    n->a = a;
    n->b = b;
    if (a) n->line = a->line, n->column = a->column;
    return n;
}

const ji_str *nb_ji_want_name(ji *j) {
    const ji_token *t = ji_now(j);
    if (t->type != JT_NAME) nb_ji_unexpected(j, "a name");
    nb_ji_next(j);
    return nb_ji_str(j, t->s, t->n);
}

/* ---- expressions ---- */

static ji_node *unary(ji *j, bool filters);
static ji_node *postfix(ji *j, ji_node *n);

/* JN_CONST: value. */
static ji_node *constant(ji *j, ji_val v) {
    ji_node *n = nb_ji_make(j, JN_CONST);
    n->value = v;
    return n;
}

static bool at_end_of_tuple(const ji *j) {
    ji_token_type t = ji_now(j)->type;
    return t == JT_PRINT_END || t == JT_BLOCK_END || ji_at_op(j, ")") || ji_at_op(j, "]") || ji_at_word(j, "in");
}

/* One expression, or several with commas: JN_TUPLE with its elements in list. */
ji_node *nb_ji_tuple(ji *j, ji_node *(*one)(ji *), bool parentheses) {
    ji_node *all = nb_ji_make(j, JN_TUPLE), **end = &all->list;
    bool comma = false;
    while (!at_end_of_tuple(j)) {
        *end = one(j);
        end = &(*end)->next;
        comma = nb_ji_skip_op(j, ",");
        if (!comma) break;
    }
    if (all->list && !all->list->next && !comma) return all->list;
    if (!all->list && !parentheses) nb_ji_unexpected(j, "an expression");
    return all;
}

/* Arguments up to ")": positional ones into list; JN_KEYWORD {name, a} too. */
static void arguments(ji *j, ji_node *call) {
    ji_node **end = &call->list;
    bool named = false;
    nb_ji_want_op(j, "(");
    while (!ji_at_op(j, ")")) {
        const ji_token *t = ji_now(j);
        if (ji_at_op(j, "*") || ji_at_op(j, "**")) nb_ji_fail(j, "arguments by * and ** are not supported");
        ji_node *n;
        if (t->type == JT_NAME && ji_token_is(t + 1, JT_OPERATOR, "=")) {
            n = nb_ji_make(j, JN_KEYWORD);
            n->name = nb_ji_want_name(j);
            nb_ji_next(j);
            n->a = nb_ji_expression(j);
            named = true;
        } else {
            if (named) nb_ji_unexpected(j, "an argument with a name");
            n = nb_ji_expression(j);
        }
        *end = n;
        end = &n->next;
        if (!nb_ji_skip_op(j, ",")) break;
    }
    nb_ji_want_op(j, ")");
}

/* JN_DICT: keys and values in turn in list. */
static ji_node *dict(ji *j) {
    ji_node *n = nb_ji_make(j, JN_DICT), **end = &n->list;
    nb_ji_next(j);
    while (!ji_at_op(j, "}")) {
        *end = nb_ji_expression(j);
        nb_ji_want_op(j, ":");
        (*end)->next = nb_ji_expression(j);
        end = &(*end)->next->next;
        if (!nb_ji_skip_op(j, ",")) break;
    }
    nb_ji_want_op(j, "}");
    return n;
}

static ji_node *string(ji *j) {
    ji_node *n = nb_ji_make(j, JN_CONST);
    ji_builder b = nb_ji_builder(j);
    for (; ji_now(j)->type == JT_STRING; nb_ji_next(j)) nb_ji_add(&b, ji_now(j)->s, ji_now(j)->n, 0);
    n->value = ji_string(nb_ji_built(&b));
    return n;
}

/* JN_NAME: name. JN_LIST: elements in list. */
static ji_node *primary(ji *j) {
    const ji_token *t = ji_now(j);
    ji_node *n;
    switch (t->type) {
    case JT_STRING: return string(j);
    case JT_INT: n = constant(j, ji_int(t->i)); break;
    case JT_FLOAT: n = constant(j, ji_float(t->f)); break;
    case JT_NAME:
        if (ji_at_word(j, "true") || ji_at_word(j, "True")) n = constant(j, ji_bool(true));
        else if (ji_at_word(j, "false") || ji_at_word(j, "False")) n = constant(j, ji_bool(false));
        else if (ji_at_word(j, "none") || ji_at_word(j, "None")) n = constant(j, ji_none());
        else {
            n = nb_ji_make(j, JN_NAME);
            n->name = nb_ji_str(j, t->s, t->n);
        }
        break;
    default:
        if (ji_at_op(j, "{")) return dict(j);
        if (nb_ji_skip_op(j, "(")) {
            n = nb_ji_tuple(j, nb_ji_expression, true);
            nb_ji_want_op(j, ")");
            return n;
        }
        if (!ji_at_op(j, "[")) nb_ji_unexpected(j, "an expression");
        n = nb_ji_make(j, JN_LIST);
        nb_ji_next(j);
        for (ji_node **end = &n->list; !ji_at_op(j, "]"); end = &(*end)->next) {
            *end = nb_ji_expression(j);
            if (!nb_ji_skip_op(j, ",")) break;
        }
        nb_ji_want_op(j, "]");
        return n;
    }
    nb_ji_next(j);
    return n;
}

static ji_node *slice_part(ji *j) {
    return ji_at_op(j, ":") || ji_at_op(j, "]") ? NULL : nb_ji_expression(j);
}

/* JN_ITEM: a[b]. JN_SLICE: a[b:c:list]. */
static ji_node *subscript(ji *j, ji_node *of) {
    ji_node *n = nb_ji_with(nb_ji_make(j, JN_ITEM), of, NULL);
    nb_ji_next(j);
    n->b = slice_part(j);
    if (nb_ji_skip_op(j, ":")) {
        n->kind = JN_SLICE;
        n->c = slice_part(j);
        if (nb_ji_skip_op(j, ":")) n->list = slice_part(j);
    } else if (!n->b) {
        nb_ji_unexpected(j, "an expression");
    }
    if (ji_at_op(j, ",")) nb_ji_unexpected(j, "] (an index of several parts is not supported)");
    nb_ji_want_op(j, "]");
    return n;
}

/* JN_ATTR: a.name. JN_CALL: a(list). */
static ji_node *postfix(ji *j, ji_node *n) {
    for (;;) {
        nb_ji_step(j, 1);
        if (ji_at_op(j, "(")) {
            n = nb_ji_with(nb_ji_make(j, JN_CALL), n, NULL);
            arguments(j, n);
        } else if (ji_at_op(j, "[")) {
            n = subscript(j, n);
        } else if (nb_ji_skip_op(j, ".")) {
            const ji_token *t = ji_now(j);
            if (t->type == JT_INT) {
                n = nb_ji_with(nb_ji_make(j, JN_ITEM), n, constant(j, ji_int(t->i)));
                nb_ji_next(j);
            } else {
                n = nb_ji_with(nb_ji_make(j, JN_ATTR), n, NULL);
                n->name = nb_ji_want_name(j);
            }
        } else {
            return n;
        }
    }
}

/* JN_FILTER: a | name(list); a may be absent in filter blocks. */
ji_node *nb_ji_filter_name(ji *j, ji_node *of) {
    ji_node *n = nb_ji_with(nb_ji_make(j, JN_FILTER), of, NULL);
    n->name = nb_ji_want_name(j);
    if (ji_at_op(j, "(")) arguments(j, n);
    return n;
}

static bool starts_argument(const ji *j) {
    static const char *const words[] = {"else", "or", "and"}, *const ops[] = {"(", "[", "{"};
    ji_token_type t = ji_now(j)->type;
    for (size_t i = 0; i < 3; i++) {
        if (ji_at_word(j, words[i])) return false;
        if (ji_at_op(j, ops[i])) return true;
    }
    return t == JT_NAME || t == JT_STRING || t == JT_INT || t == JT_FLOAT;
}

/* JN_TEST: a is name(list); inside JN_NOT for "is not". */
static ji_node *test(ji *j, ji_node *of) {
    ji_node *n = nb_ji_with(nb_ji_make(j, JN_TEST), of, NULL);
    bool negated = nb_ji_skip_word(j, "not");
    n->name = nb_ji_want_name(j);
    if (ji_at_op(j, "(")) arguments(j, n);
    else if (ji_at_word(j, "is")) nb_ji_unexpected(j, "one test only");
    else if (starts_argument(j)) n->list = postfix(j, primary(j));
    return negated ? nb_ji_with(nb_ji_make(j, JN_NOT), n, NULL) : n;
}

static ji_node *filters_and_tests(ji *j, ji_node *n) {
    for (;;) {
        nb_ji_step(j, 1);
        if (nb_ji_skip_op(j, "|")) n = nb_ji_filter_name(j, n);
        else if (nb_ji_skip_word(j, "is")) n = test(j, n);
        else if (ji_at_op(j, "(")) {
            n = nb_ji_with(nb_ji_make(j, JN_CALL), n, NULL);
            arguments(j, n);
        } else return n;
    }
}

/* JN_UNARY: op a, JO_ADD or JO_SUB. */
static ji_node *unary(ji *j, bool filters) {
    ji_node *n;
    nb_ji_deeper(j);
    if (ji_at_op(j, "-") || ji_at_op(j, "+")) {
        n = nb_ji_make(j, JN_UNARY);
        n->op = ji_at_op(j, "-") ? JO_SUB : JO_ADD;
        nb_ji_next(j);
        n->a = unary(j, false);
    } else {
        n = primary(j);
    }
    n = postfix(j, n);
    if (filters) n = filters_and_tests(j, n);
    j->depth--;
    return n;
}

static ji_node *plain_unary(ji *j) {
    return unary(j, true);
}

typedef struct operator_name {
    const char *text;
    ji_op op;
} operator_name;

/* JN_BINARY: a op b, from the left. */
static ji_node *binary(ji *j, ji_node *(*operand)(ji *), const operator_name *ops, size_t n_ops) {
    ji_node *left = operand(j);
    for (size_t i = 0; i < n_ops;) {
        if (!ji_at_op(j, ops[i].text)) {
            i++;
            continue;
        }
        ji_node *n = nb_ji_make(j, JN_BINARY);
        nb_ji_next(j);
        n->op = ops[i].op;
        left = nb_ji_with(n, left, operand(j));
        i = 0;
    }
    return left;
}

static ji_node *power(ji *j) {
    static const operator_name ops[] = {{"**", JO_POW}};
    return binary(j, plain_unary, ops, 1);
}

static ji_node *product(ji *j) {
    static const operator_name ops[] = {{"*", JO_MUL}, {"/", JO_DIV}, {"//", JO_FLOORDIV}, {"%", JO_MOD}};
    return binary(j, power, ops, 4);
}

/* JN_CONCAT: what list holds, as text. */
static ji_node *concat(ji *j) {
    ji_node *first = product(j);
    if (!ji_at_op(j, "~")) return first;
    ji_node *n = nb_ji_make(j, JN_CONCAT), **end = &first->next;
    n->list = first;
    while (nb_ji_skip_op(j, "~")) {
        *end = product(j);
        end = &(*end)->next;
    }
    return n;
}

static ji_node *sum(ji *j) {
    static const operator_name ops[] = {{"+", JO_ADD}, {"-", JO_SUB}};
    return binary(j, concat, ops, 2);
}

static bool comparison(ji *j, ji_op *op) {
    static const operator_name ops[] = {{"==", JO_EQ}, {"!=", JO_NE}, {"<", JO_LT},
                                        {"<=", JO_LE}, {">", JO_GT},  {">=", JO_GE}};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (nb_ji_skip_op(j, ops[i].text)) return *op = ops[i].op, true;
    if (nb_ji_skip_word(j, "in")) return *op = JO_IN, true;
    if (!ji_at_word(j, "not") || !ji_token_is(ji_now(j) + 1, JT_NAME, "in")) return false;
    nb_ji_next(j);
    nb_ji_next(j);
    return *op = JO_NOT_IN, true;
}

/* JN_COMPARE: a with each of list by its op, as in Python: a < b < c. The operators are in JN_KEYWORD {op, a}. */
static ji_node *compare(ji *j) {
    ji_node *first = sum(j), *all = NULL, **end = NULL;
    ji_op op;
    while (comparison(j, &op)) {
        if (!all) {
            all = nb_ji_with(nb_ji_make(j, JN_COMPARE), first, NULL);
            end = &all->list;
        }
        ji_node *n = nb_ji_make(j, JN_KEYWORD);
        n->op = op;
        n->a = sum(j);
        *end = n;
        end = &n->next;
    }
    return all ? all : first;
}

static ji_node *not_expression(ji *j) {
    if (!ji_at_word(j, "not")) return compare(j);
    nb_ji_deeper(j);
    ji_node *n = nb_ji_make(j, JN_NOT);
    nb_ji_next(j);
    n->a = not_expression(j);
    j->depth--;
    return n;
}

static ji_node *and_expression(ji *j) {
    ji_node *n = not_expression(j);
    while (nb_ji_skip_word(j, "and")) n = nb_ji_with(nb_ji_make(j, JN_AND), n, not_expression(j));
    return n;
}

ji_node *nb_ji_or_expression(ji *j) {
    ji_node *n = and_expression(j);
    while (nb_ji_skip_word(j, "or")) n = nb_ji_with(nb_ji_make(j, JN_OR), n, and_expression(j));
    return n;
}

/* JN_COND: a if b else c; c may be absent. */
ji_node *nb_ji_expression(ji *j) {
    nb_ji_deeper(j);
    ji_node *n = nb_ji_or_expression(j);
    while (nb_ji_skip_word(j, "if")) {
        n = nb_ji_with(nb_ji_make(j, JN_COND), n, nb_ji_or_expression(j));
        if (nb_ji_skip_word(j, "else")) n->c = nb_ji_expression(j);
    }
    j->depth--;
    return n;
}
