/* Private to data/jinja*.c. All memory of a parse or a rendering is in one arena, freed whole; an error anywhere jumps
 * back to the entry point (nb_ji_fail), which is why no function here owns anything. */
#ifndef NB_DATA_JINJA_IMPL_H
#define NB_DATA_JINJA_IMPL_H

#include <setjmp.h>
#include <string.h>

#include "data/jinja.h"

/* ---- strings and values ---- */

enum { JI_GENERATION = 1 << 30 }; /* in an origin; the bits below: message + 1, 0 for template text */
typedef struct ji_run {
    size_t begin, end;
    int origin;
} ji_run;
typedef struct ji_str { /* UTF-8, not NUL-terminated */
    const char *s;
    size_t n;
    const ji_run *runs; /* ascending, what has an origin */
    size_t n_runs;
} ji_str;

typedef enum ji_type {
    JI_UNDEFINED, JI_NONE, JI_BOOL, JI_INT, JI_FLOAT, JI_STRING, JI_LIST, JI_TUPLE, JI_DICT, JI_NAMESPACE, JI_LOOP,
    JI_MACRO, JI_METHOD, JI_FUNCTION
} ji_type;
typedef struct ji_val ji_val;
typedef struct ji_list {
    ji_val *v;
    size_t n, cap;
} ji_list;
typedef struct ji_dict { /* in order of insertion; also a namespace */
    ji_list keys, values;
} ji_dict;
typedef struct ji_loop ji_loop;
typedef struct ji_macro ji_macro;
typedef struct ji_method ji_method;
struct ji_val {
    ji_type type;
    union {
        bool b;
        int64_t i;
        double f;
        const ji_str *s; /* JI_UNDEFINED: what it was called, or NULL */
        ji_list *l;
        ji_dict *d;
        ji_loop *loop;
        const ji_macro *macro;
        const ji_method *method;
        int function;
    };
};

/* ---- the syntax tree ---- */

typedef enum ji_kind {
    /* statements */
    JN_TEXT, JN_PRINT, JN_IF, JN_FOR, JN_SET, JN_SET_BLOCK, JN_MACRO, JN_CALL_BLOCK, JN_FILTER_BLOCK, JN_WITH,
    JN_GENERATION, JN_BREAK, JN_CONTINUE,
    /* expressions */
    JN_CONST, JN_NAME, JN_LIST, JN_TUPLE, JN_DICT, JN_ATTR, JN_ITEM, JN_SLICE, JN_CALL, JN_FILTER, JN_TEST, JN_UNARY,
    JN_BINARY, JN_CONCAT, JN_AND, JN_OR, JN_NOT, JN_COMPARE, JN_COND, JN_KEYWORD
} ji_kind;
typedef enum ji_op { /* operators, and the tokens they are written with */
    JO_ADD, JO_SUB, JO_MUL, JO_DIV, JO_FLOORDIV, JO_MOD, JO_POW, JO_EQ, JO_NE, JO_LT, JO_LE, JO_GT, JO_GE, JO_IN,
    JO_NOT_IN
} ji_op;

/* What a, b, c, list and body hold is said where jinja_parse.c makes each kind. */
typedef struct ji_node ji_node;
struct ji_node {
    ji_kind kind;
    ji_op op;
    int line, column;
    ji_node *a, *b, *c, *list, *body, *next;
    const ji_str *name;
    ji_val value;
};

/* ---- tokens ---- */

typedef enum ji_token_type {
    JT_EOF, JT_TEXT, JT_BLOCK_BEGIN, JT_BLOCK_END, JT_PRINT_BEGIN, JT_PRINT_END, JT_NAME, JT_STRING, JT_INT, JT_FLOAT,
    JT_OPERATOR
} ji_token_type;
typedef struct ji_token {
    ji_token_type type;
    int line, column;
    const char *s; /* its text; of a string: the value */
    size_t n;
    int64_t i;
    double f;
} ji_token;

/* ---- parsing and rendering: one state ---- */

typedef struct ji_block ji_block;
typedef struct ji_scope ji_scope;
typedef struct ji_builder {
    struct ji *j;
    char *s;
    size_t n, cap;
    ji_run *runs;
    size_t n_runs, cap_runs;
} ji_builder;

typedef struct ji {
    ji_block *blocks; /* the arena */
    size_t used, memory_limit;
    nb_jinja_limits limits;
    int64_t steps;
    int depth;
    const ji_node *at; /* for messages */
    int line, column;  /* ... where there is no node */
    jmp_buf out;
    nb_status status;
    char error[1024];
    ji_builder *output;
    ji_scope *globals;
    const struct tm *now;
    const ji_token *tokens; /* parsing */
    size_t position;
    int loops;  /* parsing: how many a break could leave */
    int signal; /* rendering: break or continue on its way to its loop */
} ji;

struct nb_jinja {
    ji_block *blocks;
    const ji_node *body;
};

void *nb_ji_alloc(ji *j, size_t count, size_t size);
void nb_ji_free_blocks(ji_block *b);
void nb_ji_fail(ji *j, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
void nb_ji_undefined(ji *j, ji_val v) __attribute__((noreturn)); /* fails: v, which is needed, is undefined */
void nb_ji_step(ji *j, size_t n);          /* counts n steps against the limit */
void nb_ji_deeper(ji *j);                  /* one level of nesting; j->depth-- goes back */

/* jinja_lex.c, jinja_parse.c */
const ji_token *nb_ji_lex(ji *j, const char *text, size_t n);
ji_node *nb_ji_parse_body(ji *j);

/* jinja_value.c */
ji_builder nb_ji_builder(ji *j);
void nb_ji_add(ji_builder *b, const char *s, size_t n, int origin);
void nb_ji_add_slice(ji_builder *b, const ji_str *s, size_t begin, size_t end, int or_origin);
void nb_ji_add_str(ji_builder *b, const ji_str *s);
const ji_str *nb_ji_built(ji_builder *b);
const ji_str *nb_ji_str(ji *j, const char *s, size_t n);    /* borrows s */
const ji_str *nb_ji_cstr(ji *j, const char *s);
const ji_str *nb_ji_slice(ji *j, const ji_str *s, size_t begin, size_t end);
int nb_ji_origin_at(const ji_str *s, size_t at); /* of the byte at `at` */
bool nb_ji_is(const ji_str *s, const char *word);
bool nb_ji_str_eq(const ji_str *x, const ji_str *y);
int nb_ji_str_cmp(const ji_str *x, const ji_str *y);
size_t nb_ji_find(const ji_str *s, size_t from, const ji_str *what); /* SIZE_MAX: nowhere */
size_t nb_ji_chars(const char *s, size_t n);
size_t nb_ji_char_at(const ji_str *s, size_t i);  /* the byte where character i begins */
size_t nb_ji_char_len(const char *s, size_t n);   /* bytes of the first character */
int32_t nb_ji_codepoint(const char *s, size_t n);
bool nb_ji_is_space(int32_t c);                   /* as Python's str.isspace */
void nb_ji_push(ji *j, ji_list *l, ji_val v);
ji_list *nb_ji_new_list(ji *j);
ji_dict *nb_ji_new_dict(ji *j);
void nb_ji_put(ji *j, ji_dict *d, ji_val key, ji_val value);
bool nb_ji_get(ji *j, const ji_dict *d, ji_val key, ji_val *out);
bool nb_ji_true(ji_val v);
bool nb_ji_eq(ji *j, ji_val x, ji_val y);
int nb_ji_compare(ji *j, ji_val x, ji_val y);     /* fails for types without an order */
bool nb_ji_contains(ji *j, ji_val all, ji_val x);
const char *nb_ji_type_name(ji_val v);            /* as Python calls it */
const ji_str *nb_ji_to_str(ji *j, ji_val v);      /* Python's str() */
void nb_ji_repr(ji_builder *b, ji_val v);         /* Python's repr() */
void nb_ji_float_repr(double f, char out[40]);
ji_list *nb_ji_iterate(ji *j, ji_val v);          /* the elements of anything that has some; fails otherwise */
size_t nb_ji_length(ji *j, ji_val v);
ji_val nb_ji_from_json(ji *j, const json_t *v, int origin);

static inline ji_val ji_undefined(const ji_str *name) { return (ji_val){.type = JI_UNDEFINED, .s = name}; }
static inline ji_val ji_none(void) { return (ji_val){.type = JI_NONE}; }
static inline ji_val ji_bool(bool b) { return (ji_val){.type = JI_BOOL, .b = b}; }
static inline ji_val ji_int(int64_t i) { return (ji_val){.type = JI_INT, .i = i}; }
static inline ji_val ji_float(double f) { return (ji_val){.type = JI_FLOAT, .f = f}; }
static inline ji_val ji_string(const ji_str *s) { return (ji_val){.type = JI_STRING, .s = s}; }
static inline ji_val ji_of_list(ji_list *l) { return (ji_val){.type = JI_LIST, .l = l}; }
static inline ji_val ji_of_tuple(ji_list *l) { return (ji_val){.type = JI_TUPLE, .l = l}; }
static inline bool ji_is_number(ji_val v) { return v.type == JI_BOOL || v.type == JI_INT || v.type == JI_FLOAT; }
static inline bool ji_is_integral(ji_val v) { return v.type == JI_BOOL || v.type == JI_INT; }
static inline int64_t ji_as_int(ji_val v) { return v.type == JI_BOOL ? v.b : v.i; }
static inline double ji_as_float(ji_val v) { return v.type == JI_FLOAT ? v.f : (double)ji_as_int(v); }

/* ---- calls ---- */

typedef struct ji_args { /* of a macro, function, method, filter or test */
    ji_list positional;
    ji_dict named;
} ji_args;
/* Argument i, or the one of that name; `fallback` where neither is given. Methods of built-in types and most filters
 * take their arguments through it. */
ji_val nb_ji_arg(ji *j, const ji_args *a, size_t i, const char *name, ji_val fallback);
const ji_str *nb_ji_arg_str(ji *j, const ji_args *a, size_t i, const char *name, const char *what);
int64_t nb_ji_arg_int(ji *j, const ji_args *a, size_t i, const char *name, int64_t fallback);

struct ji_loop {
    const ji_list *items;
    size_t index;
    ji_list *changed; /* what loop.changed saw last; NULL: nothing yet */
};
struct ji_method {
    ji_val self;
    int which; /* index into the type's table */
};
struct ji_macro {
    const ji_node *node;
    ji_scope *scope; /* where it was defined */
};

/* jinja_eval.c */
void nb_ji_exec(ji *j, const ji_node *body, ji_scope *scope);
ji_scope *nb_ji_scope(ji *j, ji_scope *parent);
void nb_ji_set(ji *j, ji_scope *s, const ji_str *name, ji_val v);
ji_val nb_ji_attr(ji *j, ji_val v, const ji_str *name); /* v.name */
ji_val nb_ji_item(ji *j, ji_val v, ji_val key);         /* v[key] */
/* jinja_ops.c */
ji_val nb_ji_binary(ji *j, ji_op op, ji_val x, ji_val y);
ji_val nb_ji_negate(ji *j, ji_val x, bool minus);
ji_val nb_ji_slice_of(ji *j, ji_val v, ji_val start, ji_val stop, ji_val step);
const ji_str *nb_ji_format(ji *j, const ji_str *format, ji_val args); /* "%s" % x */
/* jinja_filters.c, jinja_tests.c */
ji_val nb_ji_filter(ji *j, const ji_str *name, ji_val v, const ji_args *a);
bool nb_ji_test(ji *j, const ji_str *name, ji_val v, const ji_args *a);
void nb_ji_json(ji *j, ji_builder *b, ji_val v, const ji_args *a);
/* jinja_methods.c */
bool nb_ji_method_find(ji *j, ji_val v, const ji_str *name, ji_val *out);
ji_val nb_ji_method_call(ji *j, const ji_method *m, const ji_args *a);
const ji_str *nb_ji_strip(ji *j, const ji_str *s, const ji_str *chars, bool left, bool right);
ji_val nb_ji_splitlines(ji *j, const ji_str *s, bool keep_ends);
const ji_str *nb_ji_replace(ji *j, const ji_str *s, const ji_str *from, const ji_str *to, int64_t count);
enum { JI_UPPER, JI_LOWER, JI_TITLE, JI_CAPITALIZE, JI_TITLE_FILTER };
const ji_str *nb_ji_case(ji *j, const ji_str *s, int how);
const ji_str *nb_ji_join(ji *j, const ji_str *separator, const ji_list *l, bool strings_only);

#endif
