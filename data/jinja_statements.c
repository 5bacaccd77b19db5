/* Tokens to statements: what stands in {% %}. */
#include "data/jinja_parse.h"

static void end_block(ji *j) {
    if (ji_now(j)->type != JT_BLOCK_END) nb_ji_unexpected(j, "%}");
    nb_ji_next(j);
}

/* "{%" NAME is next, NAME one of the words (a list that ends with NULL). */
static bool at_tag(const ji *j, const char *const *words) {
    if (ji_now(j)->type != JT_BLOCK_BEGIN) return false;
    for (; *words; words++)
        if (ji_token_is(ji_now(j) + 1, JT_NAME, *words)) return true;
    return false;
}

static ji_node *statement(ji *j);

/* Statements up to one of these tags, whose name is the next token afterwards. */
static ji_node *body_until(ji *j, const char *const *words) {
    ji_node *body = NULL, **end = &body;
    while (!at_tag(j, words)) {
        if (ji_now(j)->type == JT_EOF) nb_ji_unexpected(j, words[1] ? words[1] : words[0]);
        ji_node *n = statement(j);
        *end = n;
        end = &n->next;
    }
    nb_ji_next(j);
    return body;
}

/* The body of a block that a loop outside of it cannot be left from. */
static ji_node *body_with_end(ji *j, const char *end) {
    const char *const words[] = {end, NULL};
    int loops = j->loops;
    j->loops = 0;
    ji_node *body = body_until(j, words);
    j->loops = loops;
    nb_ji_next(j);
    end_block(j);
    return body;
}

/* A name, name.attribute, or several of them with commas. */
static ji_node *target_part(ji *j) {
    if (nb_ji_skip_op(j, "(")) {
        ji_node *n = nb_ji_tuple(j, target_part, false);
        nb_ji_want_op(j, ")");
        return n;
    }
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    for (int i = 0; i < NB_LEN(constants); i++)
        if (ji_at_word(j, constants[i])) nb_ji_unexpected(j, "a name that can be set");
    ji_node *n = nb_ji_make(j, JN_NAME);
    n->name = nb_ji_want_name(j);
    return n;
}

/* JN_IF: a condition, body, and what follows of the same chain in list: JN_IF each, of which else has no a. */
static ji_node *if_statement(ji *j) {
    static const char *const words[] = {"elif", "else", "endif", NULL};
    ji_node *first = nb_ji_make(j, JN_IF), *n = first, **end = &first->list;
    nb_ji_next(j);
    n->a = nb_ji_tuple(j, nb_ji_or_expression, false);
    for (;;) {
        end_block(j);
        n->body = body_until(j, words);
        if (nb_ji_skip_word(j, "endif")) break;
        if (n != first && !n->a) nb_ji_unexpected(j, "endif");
        n = nb_ji_make(j, JN_IF);
        if (nb_ji_skip_word(j, "elif")) n->a = nb_ji_tuple(j, nb_ji_or_expression, false);
        else nb_ji_next(j);
        *end = n;
        end = &n->next;
    }
    end_block(j);
    return first;
}

/* JN_FOR: a target, b iterated, c condition; body; list: body of else. */
static ji_node *for_statement(ji *j) {
    static const char *const words[] = {"else", "endfor", NULL};
    ji_node *n = nb_ji_make(j, JN_FOR);
    nb_ji_next(j);
    n->a = nb_ji_tuple(j, target_part, false);
    nb_ji_want_word(j, "in");
    n->b = nb_ji_tuple(j, nb_ji_or_expression, false);
    if (nb_ji_skip_word(j, "if")) n->c = nb_ji_expression(j);
    if (ji_at_word(j, "recursive")) nb_ji_fail(j, "recursive loops are not supported");
    end_block(j);
    j->loops++;
    n->body = body_until(j, words);
    j->loops--;
    if (nb_ji_skip_word(j, "else")) {
        end_block(j);
        n->list = body_until(j, words + 1);
    }
    nb_ji_next(j);
    end_block(j);
    return n;
}

static ji_node *filter_chain(ji *j, ji_node *n) {
    do n = nb_ji_filter_name(j, n);
    while (nb_ji_skip_op(j, "|"));
    return n;
}

/* JN_SET: a target (JN_ATTR of a name for a namespace), b. JN_SET_BLOCK: a target, b filters or NULL, body. */
static ji_node *set_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_SET);
    nb_ji_next(j);
    if (ji_token_is(ji_now(j) + 1, JT_OPERATOR, ".")) {
        ji_node *of = target_part(j);
        nb_ji_next(j);
        n->a = nb_ji_with(nb_ji_make(j, JN_ATTR), of, NULL);
        n->a->name = nb_ji_want_name(j);
    } else {
        n->a = nb_ji_tuple(j, target_part, false);
    }
    if (nb_ji_skip_op(j, "=")) {
        n->b = nb_ji_tuple(j, nb_ji_expression, false);
        end_block(j);
        return n;
    }
    n->kind = JN_SET_BLOCK;
    if (nb_ji_skip_op(j, "|")) n->b = filter_chain(j, NULL);
    end_block(j);
    n->body = body_with_end(j, "endset");
    return n;
}

/* Parameters of a macro: JN_NAME {name, a default or NULL} in list. */
static void parameters(ji *j, ji_node *macro) {
    ji_node **end = &macro->list;
    bool defaults = false;
    nb_ji_want_op(j, "(");
    while (!ji_at_op(j, ")")) {
        ji_node *p = nb_ji_make(j, JN_NAME);
        p->name = nb_ji_want_name(j);
        if (nb_ji_skip_op(j, "=")) p->a = nb_ji_expression(j), defaults = true;
        else if (defaults) nb_ji_unexpected(j, "a default");
        *end = p;
        end = &p->next;
        if (!nb_ji_skip_op(j, ",")) break;
    }
    nb_ji_want_op(j, ")");
}

/* JN_MACRO: name, list parameters, body. */
static ji_node *macro_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_MACRO);
    nb_ji_next(j);
    n->name = nb_ji_want_name(j);
    parameters(j, n);
    end_block(j);
    n->body = body_with_end(j, "endmacro");
    return n;
}

/* JN_CALL_BLOCK: a the call; b the JN_MACRO that it knows as caller. */
static ji_node *call_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_CALL_BLOCK);
    n->b = nb_ji_make(j, JN_MACRO);
    nb_ji_next(j);
    n->b->name = nb_ji_cstr(j, "caller");
    if (ji_at_op(j, "(")) parameters(j, n->b);
    n->a = nb_ji_expression(j);
    if (n->a->kind != JN_CALL) nb_ji_unexpected(j, "a call");
    end_block(j);
    n->b->body = body_with_end(j, "endcall");
    return n;
}

/* JN_FILTER_BLOCK: b filters, body. */
static ji_node *filter_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_FILTER_BLOCK);
    nb_ji_next(j);
    n->b = filter_chain(j, NULL);
    end_block(j);
    n->body = body_with_end(j, "endfilter");
    return n;
}

/* JN_WITH: list of JN_SET, body. */
static ji_node *with_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_WITH), **end = &n->list;
    nb_ji_next(j);
    while (ji_now(j)->type != JT_BLOCK_END) {
        ji_node *set = nb_ji_make(j, JN_SET);
        set->a = target_part(j);
        nb_ji_want_op(j, "=");
        set->b = nb_ji_expression(j);
        *end = set;
        end = &set->next;
        if (!nb_ji_skip_op(j, ",")) break;
    }
    end_block(j);
    n->body = body_with_end(j, "endwith");
    return n;
}

static ji_node *generation_statement(ji *j) {
    ji_node *n = nb_ji_make(j, JN_GENERATION);
    nb_ji_next(j);
    end_block(j);
    n->body = body_with_end(j, "endgeneration");
    return n;
}

static ji_node *jump_statement(ji *j) {
    ji_node *n = nb_ji_make(j, ji_at_word(j, "break") ? JN_BREAK : JN_CONTINUE);
    if (!j->loops) nb_ji_fail(j, "break or continue outside of a loop");
    nb_ji_next(j);
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
    ji_node *n = nb_ji_make(j, JN_TEXT);
    nb_ji_deeper(j);
    if (ji_now(j)->type == JT_TEXT) { /* JN_TEXT: name */
        n->name = nb_ji_str(j, ji_now(j)->s, ji_now(j)->n);
        nb_ji_next(j);
    } else if (ji_now(j)->type == JT_PRINT_BEGIN) { /* JN_PRINT: a */
        n->kind = JN_PRINT;
        nb_ji_next(j);
        n->a = nb_ji_tuple(j, nb_ji_expression, false);
        if (ji_now(j)->type != JT_PRINT_END) nb_ji_unexpected(j, "}}");
        nb_ji_next(j);
    } else {
        nb_ji_next(j);
        size_t i = 0;
        while (i < sizeof tags / sizeof *tags && !ji_at_word(j, tags[i].word)) i++;
        if (i == sizeof tags / sizeof *tags)
            nb_ji_unexpected(j, "a tag that chat templates use (if, for, set, macro, call, filter, with, generation, "
                                "break, continue)");
        n = tags[i].parse(j);
    }
    j->depth--;
    return n;
}

ji_node *nb_ji_parse_body(ji *j) {
    ji_node *body = NULL, **end = &body;
    while (ji_now(j)->type != JT_EOF) {
        ji_node *n = statement(j);
        *end = n;
        end = &n->next;
    }
    return body;
}
