/* Tokens to a syntax tree, with the precedence of jinja2's parser: conditional, or, and, not, comparison, + -, ~,
 * * / // %, **, signs, then filters and tests. */
#include "data/jinja_impl.h"

static const ji_token *now(const ji *j) {
    return &j->tokens[j->position];
}

static void next(ji *j) {
    if (now(j)->type != JT_EOF) j->position++;
    j->line = now(j)->line;
    j->column = now(j)->column;
}

static bool token_is(const ji_token *t, ji_token_type type, const char *text) {
    return t->type == type && t->n == strlen(text) && !memcmp(t->s, text, t->n);
}

static bool at_word(const ji *j, const char *word) {
    return token_is(now(j), JT_NAME, word);
}

static bool at_op(const ji *j, const char *op) {
    return token_is(now(j), JT_OPERATOR, op);
}

static bool skip_word(ji *j, const char *word) {
    return at_word(j, word) && (next(j), true);
}

static bool skip_op(ji *j, const char *op) {
    return at_op(j, op) && (next(j), true);
}

static void unexpected(ji *j, const char *wanted) __attribute__((noreturn));
static void unexpected(ji *j, const char *wanted) {
    const ji_token *t = now(j);
    j->line = t->line;
    j->column = t->column;
    const char *what = t->type == JT_EOF ? "the end of the template" : t->type == JT_TEXT ? "text" : NULL;
    int n = t->n > 40 ? 40 : (int)t->n;
    nb_ji_fail(j, "expected %s, found %s%.*s%s", wanted, what ? what : "\"", what ? 0 : n, t->s, what ? "" : "\"");
}

static void want_op(ji *j, const char *op) {
    if (!skip_op(j, op)) unexpected(j, op);
}

static void want_word(ji *j, const char *word) {
    if (!skip_word(j, word)) unexpected(j, word);
}

static ji_node *make(ji *j, ji_kind kind) {
    ji_node *n = nb_ji_alloc(j, 1, sizeof *n);
    *n = (ji_node){.kind = kind, .line = now(j)->line, .column = now(j)->column};
    return n;
}

static ji_node *with(ji_node *n, ji_node *a, ji_node *b) {
    n->a = a;
    n->b = b;
    if (a) n->line = a->line, n->column = a->column;
    return n;
}

static void append(ji_node **list, ji_node *n) {
    while (*list) list = &(*list)->next;
    *list = n;
}

static const ji_str *want_name(ji *j) {
    const ji_token *t = now(j);
    if (t->type != JT_NAME) unexpected(j, "a name");
    next(j);
    return nb_ji_str(j, t->s, t->n);
}

/* ---- expressions ---- */

static ji_node *expression(ji *j);
static ji_node *or_expression(ji *j);
static ji_node *unary(ji *j, bool filters);
static ji_node *postfix(ji *j, ji_node *n);

/* JN_CONST: value. */
static ji_node *constant(ji *j, ji_val v) {
    ji_node *n = make(j, JN_CONST);
    n->value = v;
    return n;
}

static bool at_end_of_tuple(const ji *j) {
    ji_token_type t = now(j)->type;
    return t == JT_PRINT_END || t == JT_BLOCK_END || at_op(j, ")") || at_op(j, "]") || at_word(j, "in");
}

/* One expression, or several with commas: JN_TUPLE with its elements in list. */
static ji_node *tuple(ji *j, ji_node *(*one)(ji *), bool parentheses) {
    ji_node *all = make(j, JN_TUPLE), **end = &all->list;
    bool comma = false;
    while (!at_end_of_tuple(j)) {
        *end = one(j);
        end = &(*end)->next;
        comma = skip_op(j, ",");
        if (!comma) break;
    }
    if (all->list && !all->list->next && !comma) return all->list;
    if (!all->list && !parentheses) unexpected(j, "an expression");
    return all;
}

/* Arguments up to ")": positional ones into list; JN_KEYWORD {name, a} too. */
static void arguments(ji *j, ji_node *call) {
    ji_node **end = &call->list;
    bool named = false;
    want_op(j, "(");
    while (!at_op(j, ")")) {
        const ji_token *t = now(j);
        if (at_op(j, "*") || at_op(j, "**")) nb_ji_fail(j, "arguments by * and ** are not supported");
        ji_node *n;
        if (t->type == JT_NAME && token_is(t + 1, JT_OPERATOR, "=")) {
            n = make(j, JN_KEYWORD);
            n->name = want_name(j);
            next(j);
            n->a = expression(j);
            named = true;
        } else {
            if (named) unexpected(j, "an argument with a name");
            n = expression(j);
        }
        *end = n;
        end = &n->next;
        if (!skip_op(j, ",")) break;
    }
    want_op(j, ")");
}

/* JN_DICT: keys and values in turn in list. */
static ji_node *dict(ji *j) {
    ji_node *n = make(j, JN_DICT), **end = &n->list;
    next(j);
    while (!at_op(j, "}")) {
        *end = expression(j);
        want_op(j, ":");
        (*end)->next = expression(j);
        end = &(*end)->next->next;
        if (!skip_op(j, ",")) break;
    }
    want_op(j, "}");
    return n;
}

static ji_node *string(ji *j) {
    ji_node *n = make(j, JN_CONST);
    ji_builder b = nb_ji_builder(j);
    for (; now(j)->type == JT_STRING; next(j)) nb_ji_add(&b, now(j)->s, now(j)->n, 0);
    n->value = ji_string(nb_ji_built(&b));
    return n;
}

/* JN_NAME: name. JN_LIST: elements in list. */
static ji_node *primary(ji *j) {
    const ji_token *t = now(j);
    ji_node *n;
    switch (t->type) {
    case JT_STRING: return string(j);
    case JT_INT: n = constant(j, ji_int(t->i)); break;
    case JT_FLOAT: n = constant(j, ji_float(t->f)); break;
    case JT_NAME:
        if (at_word(j, "true") || at_word(j, "True")) n = constant(j, ji_bool(true));
        else if (at_word(j, "false") || at_word(j, "False")) n = constant(j, ji_bool(false));
        else if (at_word(j, "none") || at_word(j, "None")) n = constant(j, ji_none());
        else {
            n = make(j, JN_NAME);
            n->name = nb_ji_str(j, t->s, t->n);
        }
        break;
    default:
        if (at_op(j, "{")) return dict(j);
        if (skip_op(j, "(")) {
            n = tuple(j, expression, true);
            want_op(j, ")");
            return n;
        }
        if (!at_op(j, "[")) unexpected(j, "an expression");
        n = make(j, JN_LIST);
        next(j);
        for (ji_node **end = &n->list; !at_op(j, "]"); end = &(*end)->next) {
            *end = expression(j);
            if (!skip_op(j, ",")) break;
        }
        want_op(j, "]");
        return n;
    }
    next(j);
    return n;
}

static ji_node *slice_part(ji *j) {
    return at_op(j, ":") || at_op(j, "]") ? NULL : expression(j);
}

/* JN_ITEM: a[b]. JN_SLICE: a[b:c:list]. */
static ji_node *subscript(ji *j, ji_node *of) {
    ji_node *n = with(make(j, JN_ITEM), of, NULL);
    next(j);
    n->b = slice_part(j);
    if (skip_op(j, ":")) {
        n->kind = JN_SLICE;
        n->c = slice_part(j);
        if (skip_op(j, ":")) n->list = slice_part(j);
    } else if (!n->b) {
        unexpected(j, "an expression");
    }
    if (at_op(j, ",")) unexpected(j, "] (an index of several parts is not supported)");
    want_op(j, "]");
    return n;
}

/* JN_ATTR: a.name. JN_CALL: a(list). */
static ji_node *postfix(ji *j, ji_node *n) {
    for (;;) {
        nb_ji_step(j, 1);
        if (at_op(j, "(")) {
            n = with(make(j, JN_CALL), n, NULL);
            arguments(j, n);
        } else if (at_op(j, "[")) {
            n = subscript(j, n);
        } else if (skip_op(j, ".")) {
            const ji_token *t = now(j);
            if (t->type == JT_INT) {
                n = with(make(j, JN_ITEM), n, constant(j, ji_int(t->i)));
                next(j);
            } else {
                n = with(make(j, JN_ATTR), n, NULL);
                n->name = want_name(j);
            }
        } else {
            return n;
        }
    }
}

/* JN_FILTER: a | name(list); a may be absent in filter blocks. */
static ji_node *filter(ji *j, ji_node *of) {
    ji_node *n = with(make(j, JN_FILTER), of, NULL);
    n->name = want_name(j);
    if (at_op(j, "(")) arguments(j, n);
    return n;
}

static bool starts_argument(const ji *j) {
    static const char *const words[] = {"else", "or", "and"}, *const ops[] = {"(", "[", "{"};
    ji_token_type t = now(j)->type;
    for (size_t i = 0; i < 3; i++) {
        if (at_word(j, words[i])) return false;
        if (at_op(j, ops[i])) return true;
    }
    return t == JT_NAME || t == JT_STRING || t == JT_INT || t == JT_FLOAT;
}

/* JN_TEST: a is name(list); inside JN_NOT for "is not". */
static ji_node *test(ji *j, ji_node *of) {
    ji_node *n = with(make(j, JN_TEST), of, NULL);
    bool negated = skip_word(j, "not");
    n->name = want_name(j);
    if (at_op(j, "(")) arguments(j, n);
    else if (at_word(j, "is")) unexpected(j, "one test only");
    else if (starts_argument(j)) n->list = postfix(j, primary(j));
    return negated ? with(make(j, JN_NOT), n, NULL) : n;
}

static ji_node *filters_and_tests(ji *j, ji_node *n) {
    for (;;) {
        nb_ji_step(j, 1);
        if (skip_op(j, "|")) n = filter(j, n);
        else if (skip_word(j, "is")) n = test(j, n);
        else if (at_op(j, "(")) {
            n = with(make(j, JN_CALL), n, NULL);
            arguments(j, n);
        } else return n;
    }
}

/* JN_UNARY: op a, JO_ADD or JO_SUB. */
static ji_node *unary(ji *j, bool filters) {
    ji_node *n;
    nb_ji_deeper(j);
    if (at_op(j, "-") || at_op(j, "+")) {
        n = make(j, JN_UNARY);
        n->op = at_op(j, "-") ? JO_SUB : JO_ADD;
        next(j);
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
        if (!at_op(j, ops[i].text)) {
            i++;
            continue;
        }
        ji_node *n = make(j, JN_BINARY);
        next(j);
        n->op = ops[i].op;
        left = with(n, left, operand(j));
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
    if (!at_op(j, "~")) return first;
    ji_node *n = make(j, JN_CONCAT), **end = &first->next;
    n->list = first;
    while (skip_op(j, "~")) {
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
        if (skip_op(j, ops[i].text)) return *op = ops[i].op, true;
    if (skip_word(j, "in")) return *op = JO_IN, true;
    if (!at_word(j, "not") || !token_is(now(j) + 1, JT_NAME, "in")) return false;
    next(j);
    next(j);
    return *op = JO_NOT_IN, true;
}

/* JN_COMPARE: a with each of list by its op, as in Python: a < b < c. The operators are in JN_KEYWORD {op, a}. */
static ji_node *compare(ji *j) {
    ji_node *first = sum(j), *all = NULL, **end = NULL;
    ji_op op;
    while (comparison(j, &op)) {
        if (!all) {
            all = with(make(j, JN_COMPARE), first, NULL);
            end = &all->list;
        }
        ji_node *n = make(j, JN_KEYWORD);
        n->op = op;
        n->a = sum(j);
        *end = n;
        end = &n->next;
    }
    return all ? all : first;
}

static ji_node *not_expression(ji *j) {
    if (!at_word(j, "not")) return compare(j);
    nb_ji_deeper(j);
    ji_node *n = make(j, JN_NOT);
    next(j);
    n->a = not_expression(j);
    j->depth--;
    return n;
}

static ji_node *and_expression(ji *j) {
    ji_node *n = not_expression(j);
    while (skip_word(j, "and")) n = with(make(j, JN_AND), n, not_expression(j));
    return n;
}

static ji_node *or_expression(ji *j) {
    ji_node *n = and_expression(j);
    while (skip_word(j, "or")) n = with(make(j, JN_OR), n, and_expression(j));
    return n;
}

/* JN_COND: a if b else c; c may be absent. */
static ji_node *expression(ji *j) {
    nb_ji_deeper(j);
    ji_node *n = or_expression(j);
    while (skip_word(j, "if")) {
        n = with(make(j, JN_COND), n, or_expression(j));
        if (skip_word(j, "else")) n->c = expression(j);
    }
    j->depth--;
    return n;
}

/* ---- statements ---- */

static void end_block(ji *j) {
    if (now(j)->type != JT_BLOCK_END) unexpected(j, "%}");
    next(j);
}

/* "{%" NAME is next, NAME one of the words (a list that ends with NULL). */
static bool at_tag(const ji *j, const char *const *words) {
    if (now(j)->type != JT_BLOCK_BEGIN) return false;
    for (; *words; words++)
        if (token_is(now(j) + 1, JT_NAME, *words)) return true;
    return false;
}

static ji_node *statement(ji *j);

/* Statements up to one of these tags, whose name is the next token afterwards. */
static ji_node *body_until(ji *j, const char *const *words) {
    ji_node *body = NULL, **end = &body;
    while (!at_tag(j, words)) {
        if (now(j)->type == JT_EOF) unexpected(j, words[1] ? words[1] : words[0]);
        ji_node *n = statement(j);
        *end = n;
        end = &n->next;
    }
    next(j);
    return body;
}

/* The body of a block that a loop outside of it cannot be left from. */
static ji_node *body_with_end(ji *j, const char *end) {
    const char *const words[] = {end, NULL};
    int loops = j->loops;
    j->loops = 0;
    ji_node *body = body_until(j, words);
    j->loops = loops;
    next(j);
    end_block(j);
    return body;
}

/* A name, name.attribute, or several of them with commas. */
static ji_node *target_part(ji *j) {
    if (skip_op(j, "(")) {
        ji_node *n = tuple(j, target_part, false);
        want_op(j, ")");
        return n;
    }
    ji_node *n = make(j, JN_NAME);
    n->name = want_name(j);
    return n;
}

/* JN_IF: a condition, body, and what follows of the same chain in list: JN_IF each, of which else has no a. */
static ji_node *if_statement(ji *j) {
    static const char *const words[] = {"elif", "else", "endif", NULL};
    ji_node *first = make(j, JN_IF), *n = first, **end = &first->list;
    next(j);
    n->a = tuple(j, or_expression, false);
    for (;;) {
        end_block(j);
        n->body = body_until(j, words);
        if (skip_word(j, "endif")) break;
        if (n != first && !n->a) unexpected(j, "endif");
        n = make(j, JN_IF);
        if (skip_word(j, "elif")) n->a = tuple(j, or_expression, false);
        else next(j);
        *end = n;
        end = &n->next;
    }
    end_block(j);
    return first;
}

/* JN_FOR: a target, b iterated, c condition; body; list: body of else. */
static ji_node *for_statement(ji *j) {
    static const char *const words[] = {"else", "endfor", NULL};
    ji_node *n = make(j, JN_FOR);
    next(j);
    n->a = tuple(j, target_part, false);
    want_word(j, "in");
    n->b = tuple(j, or_expression, false);
    if (skip_word(j, "if")) n->c = expression(j);
    if (at_word(j, "recursive")) nb_ji_fail(j, "recursive loops are not supported");
    end_block(j);
    j->loops++;
    n->body = body_until(j, words);
    j->loops--;
    if (skip_word(j, "else")) {
        end_block(j);
        n->list = body_until(j, words + 1);
    }
    next(j);
    end_block(j);
    return n;
}

static ji_node *filter_chain(ji *j, ji_node *n) {
    do n = filter(j, n);
    while (skip_op(j, "|"));
    return n;
}

/* JN_SET: a target (JN_ATTR of a name for a namespace), b. JN_SET_BLOCK: a target, b filters or NULL, body. */
static ji_node *set_statement(ji *j) {
    ji_node *n = make(j, JN_SET);
    next(j);
    if (token_is(now(j) + 1, JT_OPERATOR, ".")) {
        ji_node *of = target_part(j);
        next(j);
        n->a = with(make(j, JN_ATTR), of, NULL);
        n->a->name = want_name(j);
    } else {
        n->a = tuple(j, target_part, false);
    }
    if (skip_op(j, "=")) {
        n->b = tuple(j, expression, false);
        end_block(j);
        return n;
    }
    n->kind = JN_SET_BLOCK;
    if (skip_op(j, "|")) n->b = filter_chain(j, NULL);
    end_block(j);
    n->body = body_with_end(j, "endset");
    return n;
}

/* Parameters of a macro: JN_NAME {name, a default or NULL} in list. */
static void parameters(ji *j, ji_node *macro) {
    bool defaults = false;
    want_op(j, "(");
    while (!at_op(j, ")")) {
        ji_node *p = make(j, JN_NAME);
        p->name = want_name(j);
        if (skip_op(j, "=")) p->a = expression(j), defaults = true;
        else if (defaults) unexpected(j, "a default");
        append(&macro->list, p);
        if (!skip_op(j, ",")) break;
    }
    want_op(j, ")");
}

/* JN_MACRO: name, list parameters, body. */
static ji_node *macro_statement(ji *j) {
    ji_node *n = make(j, JN_MACRO);
    next(j);
    n->name = want_name(j);
    parameters(j, n);
    end_block(j);
    n->body = body_with_end(j, "endmacro");
    return n;
}

/* JN_CALL_BLOCK: a the call; b the JN_MACRO that it knows as caller. */
static ji_node *call_statement(ji *j) {
    ji_node *n = make(j, JN_CALL_BLOCK);
    n->b = make(j, JN_MACRO);
    next(j);
    n->b->name = nb_ji_cstr(j, "caller");
    if (at_op(j, "(")) parameters(j, n->b);
    n->a = expression(j);
    if (n->a->kind != JN_CALL) unexpected(j, "a call");
    end_block(j);
    n->b->body = body_with_end(j, "endcall");
    return n;
}

/* JN_FILTER_BLOCK: b filters, body. */
static ji_node *filter_statement(ji *j) {
    ji_node *n = make(j, JN_FILTER_BLOCK);
    next(j);
    n->b = filter_chain(j, NULL);
    end_block(j);
    n->body = body_with_end(j, "endfilter");
    return n;
}

/* JN_WITH: list of JN_SET, body. */
static ji_node *with_statement(ji *j) {
    ji_node *n = make(j, JN_WITH);
    next(j);
    while (now(j)->type != JT_BLOCK_END) {
        ji_node *set = make(j, JN_SET);
        set->a = target_part(j);
        want_op(j, "=");
        set->b = expression(j);
        append(&n->list, set);
        if (!skip_op(j, ",")) break;
    }
    end_block(j);
    n->body = body_with_end(j, "endwith");
    return n;
}

static ji_node *generation_statement(ji *j) {
    ji_node *n = make(j, JN_GENERATION);
    next(j);
    end_block(j);
    n->body = body_with_end(j, "endgeneration");
    return n;
}

static ji_node *jump_statement(ji *j) {
    ji_node *n = make(j, at_word(j, "break") ? JN_BREAK : JN_CONTINUE);
    if (!j->loops) nb_ji_fail(j, "break or continue outside of a loop");
    next(j);
    end_block(j);
    return n;
}

static ji_node *statement(ji *j) {
    static const struct {
        const char *word;
        ji_node *(*parse)(ji *);
    } tags[] = {{"if", if_statement},         {"for", for_statement},       {"set", set_statement},
                {"macro", macro_statement},   {"call", call_statement},     {"filter", filter_statement},
                {"with", with_statement},     {"generation", generation_statement},
                {"break", jump_statement},    {"continue", jump_statement}};
    ji_node *n = make(j, JN_TEXT);
    nb_ji_deeper(j);
    if (now(j)->type == JT_TEXT) { /* JN_TEXT: name */
        n->name = nb_ji_str(j, now(j)->s, now(j)->n);
        next(j);
    } else if (now(j)->type == JT_PRINT_BEGIN) { /* JN_PRINT: a */
        n->kind = JN_PRINT;
        next(j);
        n->a = tuple(j, expression, false);
        if (now(j)->type != JT_PRINT_END) unexpected(j, "}}");
        next(j);
    } else {
        next(j);
        size_t i = 0;
        while (i < sizeof tags / sizeof *tags && !at_word(j, tags[i].word)) i++;
        if (i == sizeof tags / sizeof *tags)
            unexpected(j, "a tag that chat templates use (if, for, set, macro, call, filter, with, generation, break, "
                          "continue)");
        n = tags[i].parse(j);
    }
    j->depth--;
    return n;
}

ji_node *nb_ji_parse_body(ji *j) {
    ji_node *body = NULL, **end = &body;
    while (now(j)->type != JT_EOF) {
        ji_node *n = statement(j);
        *end = n;
        end = &n->next;
    }
    return body;
}
