/* Operators, slices and "%" formatting, as Python has them. */
#include <math.h>
#include <stdio.h>

#include "data/jinja_impl.h"

static void bad_operands(ji *j, const char *op, ji_val x, ji_val y) __attribute__((noreturn));
static void bad_operands(ji *j, const char *op, ji_val x, ji_val y) {
    if (x.type == JI_UNDEFINED) nb_ji_undefined(j, x);
    if (y.type == JI_UNDEFINED) nb_ji_undefined(j, y);
    nb_ji_fail(j, "unsupported operand types for %s: '%s' and '%s'", op, nb_ji_type_name(x), nb_ji_type_name(y));
}

static ji_val checked(ji *j, bool overflow, int64_t v) {
    if (overflow) nb_ji_fail(j, "integers beyond 64 bits are not supported");
    return ji_int(v);
}

static ji_val add(ji *j, ji_val x, ji_val y) {
    if (x.type == JI_STRING && y.type == JI_STRING) {
        ji_builder b = nb_ji_builder(j);
        nb_ji_add_str(&b, x.s);
        nb_ji_add_str(&b, y.s);
        return ji_string(nb_ji_built(&b));
    }
    if (x.type == y.type && (x.type == JI_LIST || x.type == JI_TUPLE)) {
        ji_val out = {.type = x.type, .l = nb_ji_new_list(j)};
        for (size_t i = 0; i < x.l->n; i++) nb_ji_push(j, out.l, x.l->v[i]);
        for (size_t i = 0; i < y.l->n; i++) nb_ji_push(j, out.l, y.l->v[i]);
        return out;
    }
    bad_operands(j, "+", x, y);
}

static ji_val repeat(ji *j, ji_val x, int64_t times) {
    if (x.type == JI_STRING) {
        ji_builder b = nb_ji_builder(j);
        for (int64_t i = 0; i < times && x.s->n; i++) {
            nb_ji_step(j, 1);
            nb_ji_add_str(&b, x.s);
        }
        return ji_string(nb_ji_built(&b));
    }
    ji_val out = {.type = x.type, .l = nb_ji_new_list(j)};
    for (int64_t k = 0; k < times && x.l->n; k++)
        for (size_t i = 0; i < x.l->n; i++) nb_ji_push(j, out.l, x.l->v[i]);
    return out;
}

/* Division that rounds down, and its remainder, which has the divisor's sign. */
static ji_val divide_down(ji *j, ji_op op, int64_t x, int64_t y) {
    if (!y) nb_ji_fail(j, "integer division or modulo by zero");
    if (y == -1) return op == JO_MOD ? ji_int(0) : checked(j, x == INT64_MIN, x == INT64_MIN ? 0 : -x);
    int64_t q = x / y, r = x % y;
    if (r && (r < 0) != (y < 0)) q--, r += y;
    return ji_int(op == JO_MOD ? r : q);
}

static ji_val power(ji *j, int64_t x, int64_t y) {
    int64_t out = 1;
    bool overflow = false;
    if (y < 0) {
        if (!x) nb_ji_fail(j, "0 cannot be raised to a negative power");
        return ji_float(pow((double)x, (double)y));
    }
    if (x == 0 || x == 1) return ji_int(y ? x : 1);
    if (x == -1) return ji_int(y % 2 ? -1 : 1);
    for (int64_t i = 0; i < y && !overflow; i++) overflow = __builtin_mul_overflow(out, x, &out);
    return checked(j, overflow, out);
}

static ji_val integers(ji *j, ji_op op, int64_t x, int64_t y) {
    int64_t out = 0;
    bool over = op == JO_ADD   ? __builtin_add_overflow(x, y, &out)
                : op == JO_SUB ? __builtin_sub_overflow(x, y, &out)
                : op == JO_MUL ? __builtin_mul_overflow(x, y, &out)
                               : false;
    switch (op) {
    case JO_ADD: case JO_SUB: case JO_MUL: return checked(j, over, out);
    case JO_POW: return power(j, x, y);
    case JO_DIV:
        if (!y) nb_ji_fail(j, "division by zero");
        return ji_float((double)x / (double)y);
    default: return divide_down(j, op, x, y);
    }
}

static ji_val floats(ji *j, ji_op op, double x, double y) {
    if (!(y != 0) && (op == JO_DIV || op == JO_MOD || op == JO_FLOORDIV)) nb_ji_fail(j, "float division by zero");
    double r;
    switch (op) {
    case JO_ADD: return ji_float(x + y);
    case JO_SUB: return ji_float(x - y);
    case JO_MUL: return ji_float(x * y);
    case JO_DIV: return ji_float(x / y);
    case JO_FLOORDIV: return ji_float(floor(x / y));
    case JO_POW: return ji_float(pow(x, y));
    default:
        r = fmod(x, y);
        return ji_float(r != 0 && (r < 0) != (y < 0) ? r + y : r);
    }
}

ji_val nb_ji_binary(ji *j, ji_op op, ji_val x, ji_val y) {
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (ji_is_integral(x) && ji_is_integral(y)) return integers(j, op, ji_as_int(x), ji_as_int(y));
    if (ji_is_number(x) && ji_is_number(y)) return floats(j, op, ji_as_float(x), ji_as_float(y));
    if (op == JO_ADD) return add(j, x, y);
    bool x_repeats = x.type == JI_STRING || x.type == JI_LIST || x.type == JI_TUPLE;
    bool y_repeats = y.type == JI_STRING || y.type == JI_LIST || y.type == JI_TUPLE;
    if (op == JO_MUL && x_repeats && ji_is_integral(y)) return repeat(j, x, ji_as_int(y));
    if (op == JO_MUL && y_repeats && ji_is_integral(x)) return repeat(j, y, ji_as_int(x));
    if (op == JO_MOD && x.type == JI_STRING && y.type != JI_UNDEFINED) return ji_string(nb_ji_format(j, x.s, y));
    bad_operands(j, names[op], x, y);
}

ji_val nb_ji_negate(ji *j, ji_val x, bool minus) {
    if (x.type == JI_FLOAT) return ji_float(minus ? -x.f : x.f);
    if (x.type == JI_UNDEFINED) nb_ji_undefined(j, x);
    if (!ji_is_integral(x)) nb_ji_fail(j, "a '%s' has no sign", nb_ji_type_name(x));
    return integers(j, minus ? JO_SUB : JO_ADD, 0, ji_as_int(x));
}

/* ---- slices ---- */

static int64_t bound(ji *j, ji_val v, int64_t n, int64_t step, int64_t absent) {
    if (v.type == JI_NONE) return absent;
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (!ji_is_integral(v)) nb_ji_fail(j, "a slice wants integers, not '%s'", nb_ji_type_name(v));
    int64_t i = ji_as_int(v);
    if (i < 0) i = i < -n ? -1 : i + n;
    if (i < 0) return step < 0 ? -1 : 0;
    return i >= n ? (step < 0 ? n - 1 : n) : i;
}

ji_val nb_ji_slice_of(ji *j, ji_val v, ji_val start, ji_val stop, ji_val by) {
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (v.type != JI_STRING && v.type != JI_LIST && v.type != JI_TUPLE)
        nb_ji_fail(j, "'%s' object cannot be sliced", nb_ji_type_name(v));
    int64_t n = (int64_t)nb_ji_length(j, v);
    if (by.type != JI_NONE && !ji_is_integral(by)) nb_ji_fail(j, "a slice wants integers");
    int64_t step = by.type == JI_NONE ? 1 : ji_as_int(by);
    if (!step) nb_ji_fail(j, "a slice with a step of 0");
    int64_t from = bound(j, start, n, step, step > 0 ? 0 : n - 1), to = bound(j, stop, n, step, step > 0 ? n : -1);
    if (v.type == JI_STRING && step == 1) {
        if (to < from) to = from;
        size_t begin = nb_ji_char_at(v.s, (size_t)from), end = nb_ji_char_at(v.s, (size_t)to);
        return ji_string(nb_ji_slice(j, v.s, begin, end));
    }
    const ji_list *l = nb_ji_iterate(j, v);
    ji_list *out = nb_ji_new_list(j);
    if (step > n) step = n + 1;
    if (step < -n) step = -n - 1;
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) nb_ji_push(j, out, l->v[i]);
    if (v.type == JI_STRING) return ji_string(nb_ji_join(j, nb_ji_cstr(j, ""), out, true));
    return (ji_val){.type = v.type, .l = out};
}

/* ---- "%s" % x ---- */

static void pad(ji_builder *b, const ji_str *s, int width, bool left, char fill) {
    int n = (int)nb_ji_chars(s->s, s->n);
    if (left) nb_ji_add_str(b, s);
    for (int i = n; i < width; i++) nb_ji_add(b, &fill, 1, 0);
    if (!left) nb_ji_add_str(b, s);
}

static const ji_str *converted(ji *j, char kind, int precision, ji_val v) {
    char text[400];
    if (kind == 's' || kind == 'r') {
        ji_builder b = nb_ji_builder(j);
        if (kind == 'r') nb_ji_repr(&b, v);
        else nb_ji_add_str(&b, nb_ji_to_str(j, v));
        const ji_str *s = nb_ji_built(&b);
        return precision < 0 ? s : nb_ji_slice(j, s, 0, nb_ji_char_at(s, (size_t)precision));
    }
    if (!ji_is_number(v)) nb_ji_fail(j, "%%%c wants a number, not '%s'", kind, nb_ji_type_name(v));
    long long whole = (long long)(v.type == JI_FLOAT && fabs(v.f) < 9e18 ? (int64_t)v.f : v.type == JI_FLOAT ? 0
                                                                                         : ji_as_int(v));
    if (kind == 'd' || kind == 'i') snprintf(text, sizeof text, "%lld", whole);
    else if (kind == 'x') snprintf(text, sizeof text, "%s%llx", whole < 0 ? "-" : "",
                                   whole < 0 ? 0 - (unsigned long long)whole : (unsigned long long)whole);
    else if (kind == 'f') snprintf(text, sizeof text, "%.*f", precision < 0 ? 6 : precision, ji_as_float(v));
    else nb_ji_fail(j, "the format %%%c is not supported", kind);
    ji_builder b = nb_ji_builder(j);
    nb_ji_add(&b, text, strlen(text), 0);
    return nb_ji_built(&b);
}

static int small_number(const ji_str *f, size_t *i) {
    int n = 0;
    for (; *i < f->n && f->s[*i] >= '0' && f->s[*i] <= '9'; ++*i) n = n < 100 ? n * 10 + f->s[*i] - '0' : 100;
    return n < 100 ? n : 100;
}

const ji_str *nb_ji_format(ji *j, const ji_str *f, ji_val args) {
    ji_builder b = nb_ji_builder(j);
    size_t used = 0, n = args.type == JI_TUPLE ? args.l->n : 1;
    for (size_t i = 0; i < f->n; i++) {
        size_t text = i;
        while (i < f->n && f->s[i] != '%') i++;
        nb_ji_add_slice(&b, f, text, i, 0);
        if (i == f->n) break;
        bool left = false;
        char fill = ' ';
        for (i++; i < f->n && (f->s[i] == '-' || f->s[i] == '0'); i++)
            if (f->s[i] == '-') left = true;
            else fill = '0';
        int width = small_number(f, &i), precision = -1;
        if (i < f->n && f->s[i] == '.') i++, precision = small_number(f, &i);
        if (i == f->n) nb_ji_fail(j, "a format ends in its middle");
        if (f->s[i] == '%') {
            nb_ji_add(&b, "%", 1, 0);
            continue;
        }
        if (used == n) nb_ji_fail(j, "not enough arguments for a format");
        ji_val v = args.type == JI_TUPLE ? args.l->v[used] : args;
        used++;
        const ji_str *s = converted(j, f->s[i], precision, v);
        pad(&b, s, width, left, left || f->s[i] == 's' || f->s[i] == 'r' ? ' ' : fill);
    }
    if (used < n && args.type != JI_DICT) nb_ji_fail(j, "not all arguments are used by a format");
    return nb_ji_built(&b);
}
