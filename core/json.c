#include "core/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

/* Reals that are whole numbers become integers again; returns what v should be replaced by, or NULL. */
static json_t *whole_numbers(json_t *v, int depth) {
    const char *key;
    json_t *e, *r;
    size_t i;
    if (depth > 64) return NULL;
    if (json_is_object(v)) {
        json_object_foreach(v, key, e)
            if ((r = whole_numbers(e, depth + 1))) json_object_set_new(v, key, r);
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, e)
            if ((r = whole_numbers(e, depth + 1))) json_array_set_new(v, i, r);
    } else if (json_is_real(v) && fabs(json_real_value(v)) < 9007199254740992.0 &&
               json_real_value(v) == (double)(json_int_t)json_real_value(v))
        return json_integer((json_int_t)json_real_value(v));
    return NULL;
}

nb_status nb_json_load(const char *path, json_t **root) {
    char *text;
    size_t size;
    *root = NULL;
    NB_TRY(nb_file_read(path, &text, &size));
    json_error_t err;
    *root = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &err);
    /* Many a tokenizer_config.json says "model_max_length": 1000000000000000019884624838656 */
    if (!*root && json_error_code(&err) == json_error_numeric_overflow) {
        *root = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &err);
        whole_numbers(*root, 0);
    }
    free(text);
    if (!*root)
        return nb_fail(NB_EINPUT, "%s:%d:%d: not valid JSON: %s", path, err.line, err.column, err.text);
    return NB_OK;
}

/* With the fewest digits at which every number reads back the same: 1e-06 rather than 9.9999999999999995e-07. */
static char *dump(const json_t *root) {
    char *s = NULL;
    for (size_t digits = 15; digits <= 17; digits++) {
        free(s);
        s = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(digits));
        json_t *again = s ? json_loads(s, JSON_ALLOW_NUL, NULL) : NULL;
        bool same = !s || json_equal(again, root);
        json_decref(again);
        if (same) break;
    }
    return s;
}

nb_status nb_json_save(const char *path, const json_t *root) {
    char *s = dump(root);
    if (!s) return nb_fail(NB_EIO, "%s: cannot be written as JSON (not UTF-8, or not finite)", path);
    nb_out o;
    nb_status st = nb_out_open(&o, path);
    if (st == NB_OK) {
        st = nb_out_write(&o, s, strlen(s));
        if (st == NB_OK) st = nb_out_write(&o, "\n", 1);
        if (st == NB_OK) st = nb_out_commit(&o);
        else nb_out_abort(&o);
    }
    free(s);
    return st;
}

const char *nb_json_type(const json_t *v) {
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_OBJECT: return "object";
    case JSON_ARRAY: return "array";
    case JSON_STRING: return "string";
    case JSON_INTEGER: return "integer";
    case JSON_REAL: return "number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

static const json_t *find(const json_t *obj, const char *key) {
    const json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

static nb_status wrong(const char *where, const char *key, const char *want, const json_t *v) {
    return nb_fail(NB_EINPUT, "%s: \"%s\" should be %s, not %s", where, key, want, nb_json_type(v));
}

nb_status nb_json_int(const json_t *obj, const char *key, int64_t *out, const char *where) {
    const json_t *v = find(obj, key);
    if (!v) return NB_OK;
    if (!json_is_integer(v)) return wrong(where, key, "an integer", v);
    *out = json_integer_value(v);
    return NB_OK;
}

nb_status nb_json_real(const json_t *obj, const char *key, double *out, const char *where) {
    const json_t *v = find(obj, key);
    if (!v) return NB_OK;
    if (!json_is_number(v)) return wrong(where, key, "a number", v);
    *out = json_number_value(v);
    return NB_OK;
}

nb_status nb_json_bool(const json_t *obj, const char *key, bool *out, const char *where) {
    const json_t *v = find(obj, key);
    if (!v) return NB_OK;
    if (!json_is_boolean(v)) return wrong(where, key, "true or false", v);
    *out = json_is_true(v);
    return NB_OK;
}

nb_status nb_json_str(const json_t *obj, const char *key, const char **out, const char *where) {
    const json_t *v = find(obj, key);
    if (!v) return NB_OK;
    if (!json_is_string(v)) return wrong(where, key, "a string", v);
    *out = json_string_value(v);
    return NB_OK;
}
