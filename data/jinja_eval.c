/* Running the syntax tree: scopes, statements, expressions, calls. */
#include "data/jinja_impl.h"

struct ji_scope {
    ji_scope *parent;
    ji_dict names;
};

enum { SIGNAL_NONE, SIGNAL_BREAK, SIGNAL_CONTINUE };
enum { FN_RANGE, FN_NAMESPACE, FN_DICT, FN_RAISE, FN_STRFTIME };
static const char *const functions[] = {"range", "namespace", "dict", "raise_exception", "strftime_now"};
enum { MAX_RANGE = 100000 }; /* jinja2's sandbox has the same limit */

static ji_val eval(ji *j, const ji_node *n, ji_scope *s);

/* ---- names ---- */

ji_scope *nb_ji_scope(ji *j, ji_scope *parent) {
    ji_scope *s = nb_ji_alloc(j, 1, sizeof *s);
    *s = (ji_scope){.parent = parent};
    return s;
}

void nb_ji_set(ji *j, ji_scope *s, const ji_str *name, ji_val v) {
    nb_ji_put(j, &s->names, ji_string(name), v);
}

static ji_val look_up(ji *j, const ji_scope *s, const ji_str *name) {
    ji_val v;
    for (; s; s = s->parent) {
        nb_ji_step(j, 1);
        if (nb_ji_get(j, &s->names, ji_string(name), &v)) return v;
    }
    for (int i = 0; i < NB_LEN(functions); i++)
        if (nb_ji_is(name, functions[i]) && (i != FN_STRFTIME || j->now))
            return (ji_val){.type = JI_FUNCTION, .function = i};
    return ji_undefined(name);
}

/* A name, or names in parentheses or with commas, which take a value apart. */
static void assign(ji *j, const ji_node *target, ji_val v, ji_scope *s) {
    if (target->kind == JN_NAME) {
        nb_ji_set(j, s, target->name, v);
        return;
    }
    const ji_list *l = nb_ji_iterate(j, v);
    size_t i = 0;
    for (const ji_node *t = target->list; t; t = t->next, i++) {
        if (i >= l->n) nb_ji_fail(j, "not enough values to unpack (got %zu)", l->n);
        assign(j, t, l->v[i], s);
    }
    if (i < l->n) nb_ji_fail(j, "too many values to unpack (expected %zu)", i);
}

/* ---- attributes and items ---- */

static bool loop_attr(ji *j, const ji_loop *l, const ji_str *name, ji_val *out) {
    size_t n = l->items->n;
    const struct {
        const char *name;
        ji_val value;
    } known[] = {{"index", ji_int((int64_t)l->index + 1)},     {"index0", ji_int((int64_t)l->index)},
                 {"revindex", ji_int((int64_t)(n - l->index))}, {"revindex0", ji_int((int64_t)(n - l->index) - 1)},
                 {"first", ji_bool(l->index == 0)},             {"last", ji_bool(l->index + 1 == n)},
                 {"length", ji_int((int64_t)n)},                {"depth", ji_int(1)},
                 {"depth0", ji_int(0)}}; /* only recursive loops get deeper */
    for (int i = 0; i < NB_LEN(known); i++)
        if (nb_ji_is(name, known[i].name)) return *out = known[i].value, true;
    bool previous = nb_ji_is(name, "previtem"), there;
    if (!previous && !nb_ji_is(name, "nextitem")) return false;
    there = previous ? l->index > 0 : l->index + 1 < n;
    *out = there ? l->items->v[previous ? l->index - 1 : l->index + 1] : ji_undefined(nb_ji_cstr(j, "loop item"));
    return true;
}

ji_val nb_ji_attr(ji *j, ji_val v, const ji_str *name) {
    ji_val out;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (v.type == JI_LOOP && loop_attr(j, v.loop, name, &out)) return out;
    if (nb_ji_method_find(j, v, name, &out)) return out;
    if ((v.type == JI_DICT || v.type == JI_NAMESPACE) && nb_ji_get(j, v.d, ji_string(name), &out)) return out;
    return ji_undefined(name);
}

ji_val nb_ji_item(ji *j, ji_val v, ji_val key) {
    ji_val out;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (v.type == JI_DICT && key.type != JI_LIST && key.type != JI_DICT && nb_ji_get(j, v.d, key, &out)) return out;
    if (key.type == JI_STRING) return nb_ji_attr(j, v, key.s);
    if (ji_is_integral(key) && (v.type == JI_LIST || v.type == JI_TUPLE || v.type == JI_STRING)) {
        int64_t n = (int64_t)nb_ji_length(j, v), i = ji_as_int(key);
        if (i < 0) i += n;
        if (i >= 0 && i < n) {
            if (v.type != JI_STRING) return v.l->v[i];
            size_t at = nb_ji_char_at(v.s, (size_t)i);
            return ji_string(nb_ji_slice(j, v.s, at, at + nb_ji_char_len(v.s->s + at, v.s->n - at)));
        }
    }
    ji_builder b = nb_ji_builder(j);
    if (key.type == JI_UNDEFINED || ji_is_number(key) || key.type == JI_NONE) {
        nb_ji_add(&b, "item ", 5, 0);
        nb_ji_add_str(&b, nb_ji_to_str(j, key));
    }
    return ji_undefined(nb_ji_built(&b));
}

/* ---- calls ---- */

ji_val nb_ji_arg(ji *j, const ji_args *a, size_t i, const char *name, ji_val fallback) {
    if (i < a->positional.n) return a->positional.v[i];
    ji_val v;
    return name && a->named.keys.n && nb_ji_get(j, &a->named, ji_string(nb_ji_cstr(j, name)), &v) ? v : fallback;
}

const ji_str *nb_ji_arg_str(ji *j, const ji_args *a, size_t i, const char *name, const char *what) {
    ji_val v = nb_ji_arg(j, a, i, name, ji_none());
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (v.type != JI_STRING) nb_ji_fail(j, "%s wants a string, not '%s'", what, nb_ji_type_name(v));
    return v.s;
}

int64_t nb_ji_arg_int(ji *j, const ji_args *a, size_t i, const char *name, int64_t fallback) {
    ji_val v = nb_ji_arg(j, a, i, name, ji_int(fallback));
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (!ji_is_integral(v)) nb_ji_fail(j, "an integer is wanted, not '%s'", nb_ji_type_name(v));
    return ji_as_int(v);
}

static ji_args arguments(ji *j, const ji_node *list, ji_scope *s) {
    ji_args a = {0};
    for (; list; list = list->next) {
        if (list->kind == JN_KEYWORD) nb_ji_put(j, &a.named, ji_string(list->name), eval(j, list->a, s));
        else nb_ji_push(j, &a.positional, eval(j, list, s));
    }
    return a;
}

/* What `body` writes, as a string. */
static const ji_str *captured(ji *j, const ji_node *body, ji_scope *s) {
    ji_builder b = nb_ji_builder(j), *outer = j->output;
    j->output = &b;
    nb_ji_exec(j, body, s);
    j->output = outer;
    return nb_ji_built(&b);
}

static ji_val call_macro(ji *j, const ji_macro *m, const ji_args *a) {
    ji_scope *s = nb_ji_scope(j, m->scope);
    const ji_str *caller = nb_ji_cstr(j, "caller");
    const ji_node *name = m->node->name ? m->node : NULL;
    size_t i = 0, used = 0;
    ji_val v;
    for (const ji_node *p = m->node->list; p; p = p->next, i++) {
        bool named = nb_ji_get(j, &a->named, ji_string(p->name), &v);
        if (i < a->positional.n) v = a->positional.v[i];
        else if (named) used++;
        else if (p->a) v = eval(j, p->a, s);
        else v = ji_undefined(p->name);
        nb_ji_set(j, s, p->name, v);
    }
    if (nb_ji_get(j, &a->named, ji_string(caller), &v)) nb_ji_set(j, s, caller, v), used++;
    if (a->positional.n > i || a->named.keys.n > used)
        nb_ji_fail(j, "macro '%.*s' is given arguments that it does not have", name ? (int)name->name->n : 0,
                   name ? name->name->s : "");
    return ji_string(captured(j, m->node->body, s));
}

static ji_val call_range(ji *j, const ji_args *a) {
    size_t n = a->positional.n;
    int64_t start = n > 1 ? nb_ji_arg_int(j, a, 0, NULL, 0) : 0, stop = nb_ji_arg_int(j, a, n > 1, NULL, 0),
            step = nb_ji_arg_int(j, a, 2, NULL, 1), count = 0;
    if (n < 1 || n > 3) nb_ji_fail(j, "range wants one to three integers");
    if (!step) nb_ji_fail(j, "range() with a step of 0");
    /* unsigned: the distance of any two int64 fits, and so does any step's size */
    uint64_t distance = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t size = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    if (step > 0 ? stop > start : stop < start) {
        if ((distance - 1) / size >= MAX_RANGE) nb_ji_fail(j, "range() of more than %d elements", MAX_RANGE);
        count = (int64_t)((distance - 1) / size) + 1;
    }
    ji_val out = ji_of_list(nb_ji_new_list(j));
    for (int64_t i = 0; i < count; i++) nb_ji_push(j, out.l, ji_int(start + i * step));
    return out;
}

static ji_val call_dict(ji *j, const ji_args *a, ji_type type) {
    ji_val out = {.type = type, .d = nb_ji_new_dict(j)};
    ji_val from = nb_ji_arg(j, a, 0, NULL, ji_none());
    if (from.type == JI_DICT)
        for (size_t i = 0; i < from.d->keys.n; i++) nb_ji_put(j, out.d, from.d->keys.v[i], from.d->values.v[i]);
    else if (from.type != JI_NONE) nb_ji_fail(j, "a dictionary is wanted, not '%s'", nb_ji_type_name(from));
    for (size_t i = 0; i < a->named.keys.n; i++) nb_ji_put(j, out.d, a->named.keys.v[i], a->named.values.v[i]);
    return out;
}

static ji_val call_function(ji *j, int which, const ji_args *a) {
    switch (which) {
    case FN_RANGE: return call_range(j, a);
    case FN_NAMESPACE: return call_dict(j, a, JI_NAMESPACE);
    case FN_DICT: return call_dict(j, a, JI_DICT);
    case FN_RAISE: {
        const ji_str *s = nb_ji_to_str(j, nb_ji_arg(j, a, 0, "message", ji_none()));
        nb_ji_fail(j, "the template refuses this conversation: %.*s", s->n > 800 ? 800 : (int)s->n, s->s);
    }
    default: {
        const ji_str *f = nb_ji_arg_str(j, a, 0, "format", "strftime_now");
        char *format = nb_ji_alloc(j, f->n + 1, 1), *text = nb_ji_alloc(j, 1024, 1);
        memcpy(format, f->s, f->n);
        format[f->n] = 0;
        return ji_string(nb_ji_str(j, text, strftime(text, 1024, format, j->now)));
    }
    }
}

static ji_val call(ji *j, ji_val f, const ji_args *a) {
    switch (f.type) {
    case JI_MACRO: return call_macro(j, f.macro, a);
    case JI_METHOD: return nb_ji_method_call(j, f.method, a);
    case JI_FUNCTION: return call_function(j, f.function, a);
    case JI_UNDEFINED: nb_ji_undefined(j, f);
    default: nb_ji_fail(j, "'%s' object is not callable", nb_ji_type_name(f));
    }
}

/* ---- expressions ---- */

static ji_val eval_compare(ji *j, const ji_node *n, ji_scope *s) {
    ji_val x = eval(j, n->a, s);
    for (const ji_node *k = n->list; k; k = k->next) {
        ji_val y = eval(j, k->a, s);
        bool ok;
        j->at = k;
        if (k->op == JO_IN || k->op == JO_NOT_IN) ok = nb_ji_contains(j, y, x) == (k->op == JO_IN);
        else if (k->op == JO_EQ || k->op == JO_NE) ok = nb_ji_eq(j, x, y) == (k->op == JO_EQ);
        else {
            if (x.type == JI_UNDEFINED) nb_ji_undefined(j, x);
            if (y.type == JI_UNDEFINED) nb_ji_undefined(j, y);
            int c = nb_ji_compare(j, x, y);
            ok = k->op == JO_LT ? c < 0 : k->op == JO_LE ? c <= 0 : k->op == JO_GT ? c > 0 : c >= 0;
        }
        if (!ok) return ji_bool(false);
        x = y;
    }
    return ji_bool(true);
}

static ji_val eval_list(ji *j, const ji_node *n, ji_scope *s) {
    ji_list *l = nb_ji_new_list(j);
    for (const ji_node *k = n->list; k; k = k->next) nb_ji_push(j, l, eval(j, k, s));
    return n->kind == JN_LIST ? ji_of_list(l) : ji_of_tuple(l);
}

static ji_val eval_dict(ji *j, const ji_node *n, ji_scope *s) {
    ji_val out = {.type = JI_DICT, .d = nb_ji_new_dict(j)};
    for (const ji_node *k = n->list; k; k = k->next->next) {
        ji_val key = eval(j, k, s), value = eval(j, k->next, s);
        j->at = k;
        nb_ji_put(j, out.d, key, value);
    }
    return out;
}

static ji_val eval_concat(ji *j, const ji_node *n, ji_scope *s) {
    ji_builder b = nb_ji_builder(j);
    for (const ji_node *k = n->list; k; k = k->next) {
        ji_val v = eval(j, k, s);
        j->at = k;
        nb_ji_add_str(&b, nb_ji_to_str(j, v));
    }
    return ji_string(nb_ji_built(&b));
}

/* What needs the values of its parts and no more. */
static ji_val eval_parts(ji *j, const ji_node *n, ji_scope *s) {
    ji_val x = eval(j, n->a, s), y = ji_none(), z = ji_none(), w = ji_none();
    ji_args a = {0};
    if (n->kind == JN_CALL || n->kind == JN_FILTER || n->kind == JN_TEST) a = arguments(j, n->list, s);
    else if (n->b) y = eval(j, n->b, s);
    if (n->kind == JN_SLICE) {
        if (n->c) z = eval(j, n->c, s);
        if (n->list) w = eval(j, n->list, s);
    }
    j->at = n;
    switch (n->kind) {
    case JN_ATTR: return nb_ji_attr(j, x, n->name);
    case JN_ITEM: return nb_ji_item(j, x, y);
    case JN_SLICE: return nb_ji_slice_of(j, x, y, z, w);
    case JN_CALL: return call(j, x, &a);
    case JN_FILTER: return nb_ji_filter(j, n->name, x, &a);
    case JN_TEST: return ji_bool(nb_ji_test(j, n->name, x, &a));
    case JN_UNARY: return nb_ji_negate(j, x, n->op == JO_SUB);
    default: return nb_ji_binary(j, n->op, x, y);
    }
}

static ji_val eval(ji *j, const ji_node *n, ji_scope *s) {
    ji_val v;
    j->at = n;
    nb_ji_step(j, 1);
    nb_ji_deeper(j);
    switch (n->kind) {
    case JN_CONST: v = n->value; break;
    case JN_NAME: v = look_up(j, s, n->name); break;
    case JN_LIST: case JN_TUPLE: v = eval_list(j, n, s); break;
    case JN_DICT: v = eval_dict(j, n, s); break;
    case JN_CONCAT: v = eval_concat(j, n, s); break;
    case JN_COMPARE: v = eval_compare(j, n, s); break;
    case JN_NOT: v = ji_bool(!nb_ji_true(eval(j, n->a, s))); break;
    case JN_AND: case JN_OR:
        v = eval(j, n->a, s);
        if (nb_ji_true(v) == (n->kind == JN_AND)) v = eval(j, n->b, s);
        break;
    case JN_COND:
        if (nb_ji_true(eval(j, n->b, s))) v = eval(j, n->a, s);
        else v = n->c ? eval(j, n->c, s) : ji_undefined(NULL);
        break;
    default: v = eval_parts(j, n, s);
    }
    j->depth--;
    return v;
}

/* A chain of filters whose innermost one has no input of its own. */
static ji_val apply(ji *j, const ji_node *n, ji_val v, ji_scope *s) {
    nb_ji_deeper(j);
    if (n->a) v = apply(j, n->a, v, s);
    ji_args a = arguments(j, n->list, s);
    j->at = n;
    v = nb_ji_filter(j, n->name, v, &a);
    j->depth--;
    return v;
}

/* ---- statements ---- */

static void exec_if(ji *j, const ji_node *n, ji_scope *s) {
    const ji_node *k = n;
    if (!nb_ji_true(eval(j, k->a, s)))
        for (k = n->list; k && k->a && !nb_ji_true(eval(j, k->a, s));) k = k->next;
    if (k) nb_ji_exec(j, k->body, s);
}

static void exec_for(ji *j, const ji_node *n, ji_scope *s) {
    ji_val all = eval(j, n->b, s);
    j->at = n->b;
    const ji_list *items = nb_ji_iterate(j, all);
    if (n->c) {
        ji_list *kept = nb_ji_new_list(j);
        for (size_t i = 0; i < items->n; i++) {
            ji_scope *one = nb_ji_scope(j, s);
            assign(j, n->a, items->v[i], one);
            if (nb_ji_true(eval(j, n->c, one))) nb_ji_push(j, kept, items->v[i]);
        }
        items = kept;
    }
    ji_loop *loop = nb_ji_alloc(j, 1, sizeof *loop);
    const ji_str *name = nb_ji_cstr(j, "loop");
    *loop = (ji_loop){.items = items};
    for (; loop->index < items->n; loop->index++) {
        ji_scope *one = nb_ji_scope(j, s);
        j->at = n;
        nb_ji_step(j, 1);
        nb_ji_set(j, one, name, (ji_val){.type = JI_LOOP, .loop = loop});
        assign(j, n->a, items->v[loop->index], one);
        nb_ji_exec(j, n->body, one);
        int signal = j->signal;
        j->signal = SIGNAL_NONE;
        if (signal == SIGNAL_BREAK) break;
    }
    if (!items->n) nb_ji_exec(j, n->list, nb_ji_scope(j, s));
}

static void exec_set(ji *j, const ji_node *n, ji_scope *s) {
    ji_val v;
    if (n->kind == JN_SET) v = eval(j, n->b, s);
    else v = ji_string(captured(j, n->body, nb_ji_scope(j, s)));
    if (n->kind == JN_SET_BLOCK && n->b) v = apply(j, n->b, v, s);
    j->at = n;
    if (n->a->kind != JN_ATTR) {
        assign(j, n->a, v, s);
        return;
    }
    ji_val of = eval(j, n->a->a, s);
    j->at = n;
    if (of.type != JI_NAMESPACE)
        nb_ji_fail(j, "attributes can be set in a namespace only, not in '%s'", nb_ji_type_name(of));
    nb_ji_put(j, of.d, ji_string(n->a->name), v);
}

static ji_val define(ji *j, const ji_node *n, ji_scope *s) {
    ji_macro *m = nb_ji_alloc(j, 1, sizeof *m);
    *m = (ji_macro){n, s};
    return (ji_val){.type = JI_MACRO, .macro = m};
}

static ji_val exec_call(ji *j, const ji_node *n, ji_scope *s) {
    ji_val f = eval(j, n->a->a, s);
    ji_args a = arguments(j, n->a->list, s);
    nb_ji_put(j, &a.named, ji_string(n->b->name), define(j, n->b, s));
    j->at = n;
    return call(j, f, &a);
}

static void exec_one(ji *j, const ji_node *n, ji_scope *s) {
    ji_scope *inner;
    ji_val v;
    switch (n->kind) {
    case JN_TEXT: nb_ji_add_str(j->output, n->name); break;
    case JN_PRINT:
        v = eval(j, n->a, s);
        j->at = n->a;
        nb_ji_add_str(j->output, nb_ji_to_str(j, v));
        break;
    case JN_IF: exec_if(j, n, s); break;
    case JN_FOR: exec_for(j, n, s); break;
    case JN_SET: case JN_SET_BLOCK: exec_set(j, n, s); break;
    case JN_MACRO: nb_ji_set(j, s, n->name, define(j, n, s)); break;
    case JN_CALL_BLOCK: nb_ji_add_str(j->output, nb_ji_to_str(j, exec_call(j, n, s))); break;
    case JN_FILTER_BLOCK:
        v = ji_string(captured(j, n->body, nb_ji_scope(j, s)));
        nb_ji_add_str(j->output, nb_ji_to_str(j, apply(j, n->b, v, s)));
        break;
    case JN_WITH:
        inner = nb_ji_scope(j, s);
        for (const ji_node *k = n->list; k; k = k->next) assign(j, k->a, eval(j, k->b, s), inner);
        nb_ji_exec(j, n->body, inner);
        break;
    case JN_GENERATION: {
        const ji_str *text = captured(j, n->body, nb_ji_scope(j, s));
        nb_ji_add_slice(j->output, text, 0, text->n, JI_GENERATION);
        break;
    }
    default: j->signal = n->kind == JN_BREAK ? SIGNAL_BREAK : SIGNAL_CONTINUE;
    }
}

void nb_ji_exec(ji *j, const ji_node *body, ji_scope *s) {
    nb_ji_deeper(j);
    for (const ji_node *n = body; n && !j->signal; n = n->next) {
        j->at = n;
        nb_ji_step(j, 1);
        exec_one(j, n, s);
    }
    j->depth--;
}
