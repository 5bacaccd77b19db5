/* Tests: what follows "is". */
#include "data/jinja_impl.h"

static bool truth(ji_val v, bool b) {
    return v.type == JI_BOOL && v.b == b;
}

static bool same_case(ji *j, ji_val v, int how) {
    const ji_str *s = nb_ji_to_str(j, v), *other = nb_ji_case(j, s, how == JI_UPPER ? JI_LOWER : JI_UPPER);
    return nb_ji_str_eq(s, nb_ji_case(j, s, how)) && !nb_ji_str_eq(s, other);
}

static int64_t whole(ji *j, ji_val v) {
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (!ji_is_integral(v)) nb_ji_fail(j, "this test wants an integer, not '%s'", nb_ji_type_name(v));
    return ji_as_int(v);
}

typedef enum test_name {
    T_DEFINED, T_UNDEFINED, T_NONE, T_STRING, T_MAPPING, T_ITERABLE, T_SEQUENCE, T_NUMBER, T_INTEGER, T_FLOAT,
    T_BOOLEAN, T_TRUE, T_FALSE, T_CALLABLE, T_ODD, T_EVEN, T_DIVISIBLEBY, T_UPPER, T_LOWER, T_IN, T_SAMEAS, T_EQ, T_NE,
    T_LT, T_LE, T_GT, T_GE
} test_name;

static const struct {
    const char *name;
    test_name test;
} names[] = {{"defined", T_DEFINED}, {"undefined", T_UNDEFINED}, {"none", T_NONE}, {"string", T_STRING},
             {"mapping", T_MAPPING}, {"iterable", T_ITERABLE}, {"sequence", T_SEQUENCE}, {"number", T_NUMBER},
             {"integer", T_INTEGER}, {"float", T_FLOAT}, {"boolean", T_BOOLEAN}, {"true", T_TRUE}, {"false", T_FALSE},
             {"callable", T_CALLABLE}, {"odd", T_ODD}, {"even", T_EVEN}, {"divisibleby", T_DIVISIBLEBY},
             {"upper", T_UPPER}, {"lower", T_LOWER}, {"in", T_IN}, {"sameas", T_SAMEAS}, {"eq", T_EQ},
             {"equalto", T_EQ}, {"==", T_EQ}, {"ne", T_NE}, {"!=", T_NE}, {"lt", T_LT}, {"lessthan", T_LT}, {"<", T_LT},
             {"le", T_LE}, {"<=", T_LE}, {"gt", T_GT}, {"greaterthan", T_GT}, {">", T_GT}, {"ge", T_GE}, {">=", T_GE}};

static bool ordered(ji *j, test_name test, ji_val v, ji_val x) {
    if (v.type == JI_UNDEFINED) nb_ji_undefined(j, v);
    if (x.type == JI_UNDEFINED) nb_ji_undefined(j, x);
    int c = nb_ji_compare(j, v, x);
    return test == T_LT ? c < 0 : test == T_LE ? c <= 0 : test == T_GT ? c > 0 : c >= 0;
}

/* None, True, False and equal small things are one object in Python. */
static bool same_object(ji *j, ji_val v, ji_val x) {
    return v.type == x.type && (v.type == JI_LIST || v.type == JI_TUPLE || v.type == JI_DICT ? v.d == x.d
                                                                                              : nb_ji_eq(j, v, x));
}

static bool run(ji *j, test_name test, ji_val v, const ji_args *a) {
    ji_val x = nb_ji_arg(j, a, 0, NULL, ji_undefined(NULL));
    bool list = v.type == JI_LIST || v.type == JI_TUPLE;
    if (test >= T_IN || test == T_DIVISIBLEBY)
        if (a->positional.n != 1) nb_ji_fail(j, "this test wants one argument");
    switch (test) {
    case T_DEFINED: return v.type != JI_UNDEFINED;
    case T_UNDEFINED: return v.type == JI_UNDEFINED;
    case T_NONE: return v.type == JI_NONE;
    case T_STRING: return v.type == JI_STRING;
    case T_MAPPING: return v.type == JI_DICT;
    case T_ITERABLE: return list || v.type == JI_STRING || v.type == JI_DICT || v.type == JI_UNDEFINED;
    case T_SEQUENCE: return list || v.type == JI_STRING || v.type == JI_DICT || v.type == JI_UNDEFINED;
    case T_NUMBER: return ji_is_number(v);
    case T_INTEGER: return v.type == JI_INT;
    case T_FLOAT: return v.type == JI_FLOAT;
    case T_BOOLEAN: return v.type == JI_BOOL;
    case T_TRUE: case T_FALSE: return truth(v, test == T_TRUE);
    case T_CALLABLE: return v.type >= JI_MACRO || v.type == JI_UNDEFINED;
    case T_ODD: case T_EVEN: return (whole(j, v) % 2 != 0) == (test == T_ODD);
    case T_DIVISIBLEBY:
        if (!whole(j, x)) nb_ji_fail(j, "integer modulo by zero");
        return whole(j, x) == -1 || whole(j, v) % whole(j, x) == 0;
    case T_UPPER: case T_LOWER: return same_case(j, v, test == T_UPPER ? JI_UPPER : JI_LOWER);
    case T_IN: return nb_ji_contains(j, x, v);
    case T_SAMEAS: return same_object(j, v, x);
    case T_EQ: case T_NE: return nb_ji_eq(j, v, x) == (test == T_EQ);
    default: return ordered(j, test, v, x);
    }
}

bool nb_ji_test(ji *j, const ji_str *name, ji_val v, const ji_args *a) {
    for (int i = 0; i < NB_LEN(names); i++)
        if (nb_ji_is(name, names[i].name)) return run(j, names[i].test, v, a);
    nb_ji_fail(j, "there is no test '%.*s' here", name->n > 80 ? 80 : (int)name->n, name->s);
}
