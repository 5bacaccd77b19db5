/* PEFT's rank_pattern and alpha_pattern: ranks and alphas of single modules. A key matches a module where Python's
 * re.match("(.*\\.)?(KEY)$", path) does, and of several that match the first one counts. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/parts.h"
#include "core/mem.h"
#include "core/names.h"

static nb_status matches(const char *key, const char *what, const char *path, bool *yes) {
    char *whole = nb_asprintf("(.*\\.)?(%s)$", key);
    int err;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &err, &at, NULL);
    free(whole);
    if (!re) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(err, why, sizeof why);
        return nb_fail(NB_EINPUT, "%s: \"%s\" is not a regular expression (%s)", what, key, (const char *)why);
    }
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(re, NULL);
    *yes = pcre2_match(re, (PCRE2_SPTR)path, strlen(path), 0, 0, match, NULL) >= 0;
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return NB_OK;
}

nb_status nb_pattern_find(const nb_pairs *m, const char *what, const char *path, double *value, bool *used) {
    for (int i = 0; m && i < m->n; i++) {
        bool yes = false;
        NB_TRY(matches(m->name[i], what, path, &yes));
        if (!yes) continue;
        *value = m->value[i];
        if (used) used[i] = true;
        return NB_OK;
    }
    return NB_OK;
}

nb_status nb_pattern_read(nb_pairs *m, const json_t *config, const char *key, const char *path) {
    const json_t *o = json_object_get(config, key);
    const char *name;
    json_t *v;
    if (!o || json_is_null(o)) return NB_OK;
    if (!json_is_object(o)) return nb_fail(NB_EINPUT, "%s: %s is not an object", path, key);
    json_object_foreach((json_t *)(uintptr_t)o, name, v) {
        double x = json_number_value(v);
        if (!json_is_number(v) || !(x > 0 && x <= 65536))
            return nb_fail(NB_EINPUT, "%s: %s: \"%s\" has no positive number", path, key, name);
        nb_pairs_add(m, name, x);
    }
    return NB_OK;
}

static const char *last_name(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

static double value_of(const struct nb_attached *at, bool alphas) {
    return alphas ? at->alpha : (double)at->r;
}

/* A module is named by the last part of its path where all of that name agree. */
json_t *nb_pattern_of(const nb_adapter *a, bool alphas) {
    json_t *map = json_object();
    nb_names first = {0}; /* of a last part: the first module that has it */
    bool *differ = nb_calloc((size_t)a->n_attached + 1, sizeof *differ); /* of such a module: others do not agree */
    for (int i = 0; i < a->n_attached; i++) {
        const char *last = last_name(a->attached[i].module);
        nb_names_add(&first, last, strlen(last), i);
        int64_t k = nb_names_find(&first, last, strlen(last));
        differ[k] |= value_of(&a->attached[i], alphas) != value_of(&a->attached[k], alphas);
    }
    for (int i = 0; i < a->n_attached; i++) {
        const char *path = a->attached[i].module, *last = last_name(path);
        double v = value_of(&a->attached[i], alphas);
        if (v == (alphas ? a->alpha : (double)a->r)) continue;
        bool agree = !differ[nb_names_find(&first, last, strlen(last))], whole = v == (double)(json_int_t)v;
        json_object_set_new(map, agree ? last : path, whole ? json_integer((json_int_t)v) : json_real(v));
    }
    nb_names_free(&first);
    free(differ);
    return map;
}
