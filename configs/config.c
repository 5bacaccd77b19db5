/* YAML file and --set options into nb_config, by the tables. */
#include "configs/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "configs/keys.h"
#include "core/file.h"
#include "core/log.h"
#include "core/nearest.h"

typedef struct other_key {
    const char *name, *harmless, *why; /* why NULL: ignored */
    bool dataset;
} other_key;

#define REFUSED(name, harmless, why) {name, harmless, why, false},
#define IGNORED(name) {name, "", NULL, false},
#define DATASET_REFUSED(name, harmless, why) {name, harmless, why, true},
#define DATASET_IGNORED(name) {name, "", NULL, true},
static const other_key other_keys[] = {
#include "configs/other_keys.def"
};

/* One level of the file being read: the table, the struct it fills, and how its keys are named. */
typedef struct level {
    const nb_key *keys;
    int n;
    void *base;
    nb_mark *at;
    char prefix[64]; /* "datasets.0." in messages */
    bool dataset;
} level;

typedef struct loading {
    nb_config *c;
    nb_errors errors;
    nb_text ignored; /* names, separated by ", " */
} loading;

static level top_level(nb_config *c) { return (level){nb_keys, NB_KEY_COUNT, c, c->at, "", false}; }

static level dataset_level(nb_config_dataset *d, const char *list, int index) {
    level l = {nb_dataset_keys, NB_DATASET_KEY_COUNT, d, d->at, "", true};
    snprintf(l.prefix, sizeof l.prefix, "%s.%d.", list, index);
    return l;
}

static bool is_group(const level *l, const char *name) {
    size_t len = strlen(name);
    for (int i = 0; i < l->n; i++)
        if (l->keys[i].kind != NB_KIND_SECTION && !strncmp(l->keys[i].name, name, len) && l->keys[i].name[len] == '.')
            return true;
    return false;
}

static bool is_list(const level *l, const char *name) {
    return !l->dataset && (!strcmp(name, "datasets") || !strcmp(name, "test_datasets"));
}

static void unknown_key(loading *ld, const level *l, const char *name, nb_mark at) {
    const char *names[NB_KEY_COUNT + NB_DATASET_KEY_COUNT + 2];
    const char *const lists[] = {"datasets", "test_datasets"}, *only;
    int n = 0;
    for (int i = 0; i < l->n; i++)
        if (l->keys[i].kind != NB_KIND_SECTION) names[n++] = l->keys[i].name;
    for (int i = 0; i < (l->dataset ? 0 : 2); i++) names[n++] = lists[i];
    const char *near = nb_nearest(name, names, n);
    if (!l->dataset && nb_key_find(nb_dataset_keys, NB_DATASET_KEY_COUNT, name, &only) >= 0)
        nb_errors_add(&ld->errors, at, "%s%s: belongs to an entry of datasets; indent it", l->prefix, name);
    else if (l->dataset && nb_key_find(nb_keys, NB_KEY_COUNT, name, &only) >= 0)
        nb_errors_add(&ld->errors, at, "%s%s: belongs to the top of the file; do not indent it", l->prefix, name);
    else if (near) nb_errors_add(&ld->errors, at, "%s%s: unknown key; did you mean %s?", l->prefix, name, near);
    else nb_errors_add(&ld->errors, at, "%s%s: unknown key; `nibble config keys` lists them", l->prefix, name);
}

/* True when the key is one of another tool's. */
static bool other(loading *ld, const level *l, const char *name, const nb_yaml *value, nb_mark at) {
    for (int i = 0; i < NB_LEN(other_keys); i++) {
        const other_key *o = &other_keys[i];
        size_t len = strcspn(o->name, "*");
        if (o->dataset != l->dataset || strncmp(o->name, name, len) || (!o->name[len] && name[len])) continue;
        if (!o->why) {
            nb_text_printf(&ld->ignored, "%s%s%s", ld->ignored.n ? ", " : "", l->prefix, name);
            return true;
        }
        bool harmless = nb_yaml_is_null(value) || (value->kind == NB_YAML_LIST && value->n == 0);
        for (const char *w = o->harmless; !harmless && value->kind == NB_YAML_SCALAR && *w; w += strspn(w, " ")) {
            size_t n = strcspn(w, " ");
            harmless = strlen(value->text) == n && !strncasecmp(w, value->text, n);
            w += n;
        }
        if (!harmless) nb_errors_add(&ld->errors, at, "%s%s: %s", l->prefix, name, o->why);
        return true;
    }
    return false;
}

static void set_key(loading *ld, const level *l, int row, const char *name, const char *only, const nb_yaml *value) {
    const nb_key *k = &l->keys[row];
    nb_mark at = value->at;
    if (nb_yaml_is_null(value)) {
        /* An empty adapter is full fine-tuning to Axolotl and a mistake to most people. */
        if (!l->dataset && row == NB_KEY_adapter)
            nb_errors_add(&ld->errors, at, "adapter: empty; write qlora, lora or full, or leave the key out");
        nb_key_set_default(k, l->base);
        l->at[row] = (nb_mark){0, 0};
        if (!nb_key_null_is_value(k)) return;
        nb_key_clear(k, l->base);
        l->at[row] = at;
        return;
    }
    /* chat_template: jinja:FILE is two keys in one. */
    nb_yaml jinja = {.kind = NB_YAML_SCALAR, .at = at, .text = (char[]){"jinja"}};
    if (!l->dataset && row == NB_KEY_chat_template && value->kind == NB_YAML_SCALAR &&
        !strncmp(value->text, "jinja:", 6)) {
        set_key(ld, l, NB_KEY_chat_template_jinja, name, NULL, value);
        value = &jinja;
    }
    nb_text why = {0};
    nb_yaml yes = {.kind = NB_YAML_SCALAR, .text = (char[]){"true"}};
    if (only && (value->kind != NB_YAML_SCALAR || strcmp(value->text, only) != 0))
        nb_errors_add(&ld->errors, at, "%s%s: only %s is supported", l->prefix, name, only);
    else if (!nb_key_set(k, l->base, only ? &yes : value, &why))
        nb_errors_add(&ld->errors, at, "%s%s: %s", l->prefix, name, why.s);
    nb_text_free(&why);
    l->at[row] = at;
}

static void read_map(loading *ld, const level *l, const char *group, const nb_yaml *map);

static void read_datasets(loading *ld, const char *name, const nb_yaml *list) {
    bool test = !strcmp(name, "test_datasets");
    if (nb_yaml_is_null(list)) return;
    if (list->kind != NB_YAML_LIST) {
        nb_errors_add(&ld->errors, list->at, "%s: wants a list, not %s; begin each entry with '- '", name,
                      nb_yaml_kind_name(list));
        return;
    }
    for (int i = 0; i < list->n; i++) {
        nb_config_dataset *d = nb_config_add_dataset(ld->c, test);
        level l = dataset_level(d, name, i);
        d->mark = list->items[i]->at;
        if (list->items[i]->kind == NB_YAML_MAP) read_map(ld, &l, "", list->items[i]);
        else
            nb_errors_add(&ld->errors, d->mark, "%s.%d: wants a map with path and type, not %s", name, i,
                          nb_yaml_kind_name(list->items[i]));
    }
}

static void read_pair(loading *ld, const level *l, const char *group, const nb_yaml_pair *pair) {
    char name[160];
    const char *only;
    snprintf(name, sizeof name, "%s%s%s", group, *group ? "." : "", pair->key);
    int row = nb_key_find(l->keys, l->n, name, &only);
    if (row >= 0) {
        nb_mark before = l->at[row];
        if (before.line && pair->merged) return;
        if (before.line)
            nb_errors_add(&ld->errors, pair->at, "%s%s: %s is already set in line %d; keep one of the two", l->prefix,
                          name, l->keys[row].name, before.line);
        set_key(ld, l, row, name, only, pair->value);
    } else if (!*group && is_group(l, name)) {
        if (pair->value->kind == NB_YAML_MAP) read_map(ld, l, name, pair->value);
        else if (!nb_yaml_is_null(pair->value))
            nb_errors_add(&ld->errors, pair->value->at, "%s%s: wants a map, not %s", l->prefix, name,
                          nb_yaml_kind_name(pair->value));
    } else if (!*group && is_list(l, name)) {
        read_datasets(ld, name, pair->value);
    } else if (*group || !other(ld, l, name, pair->value, pair->at)) {
        unknown_key(ld, l, name, pair->at);
    }
}

static void read_map(loading *ld, const level *l, const char *group, const nb_yaml *map) {
    for (int i = 0; i < map->n; i++) read_pair(ld, l, group, &map->pairs[i]);
}

static nb_status read_file(loading *ld, const char *path) {
    char *text;
    size_t size;
    nb_yaml_doc doc;
    if (nb_is_dir(path)) return nb_fail(NB_EINPUT, "%s: a folder; name the YAML file", path);
    NB_TRY(nb_file_read(path, &text, &size));
    nb_status st = nb_yaml_parse(&doc, path, text, size);
    free(text);
    NB_TRY(st);
    level l = top_level(ld->c);
    if (doc.root->kind == NB_YAML_MAP) read_map(ld, &l, "", doc.root);
    else
        st = nb_fail(NB_EINPUT, "%s:%d:%d: wants `key: value` lines, not %s", path, doc.root->at.line,
                     doc.root->at.col, nb_yaml_kind_name(doc.root));
    nb_yaml_free(&doc);
    return st;
}

/* "datasets.0.path": finds the entry (or appends it) and moves *name behind the index. */
static bool enter_dataset(loading *ld, const char **name, level *l) {
    bool test = !strncmp(*name, "test_datasets.", 14);
    const char *list = test ? "test_datasets" : "datasets";
    char *end;
    if (!test && strncmp(*name, "datasets.", 9) != 0) return true;
    const char *digits = *name + strlen(list) + 1;
    long index = strtol(digits, &end, 10), n = test ? ld->c->n_test_datasets : ld->c->n_datasets;
    if (end == digits || *end != '.' || *digits == '-' || *digits == '+') {
        nb_errors_add(&ld->errors, (nb_mark){-1, 0}, "%s: wants %s.INDEX.KEY, the index from 0", *name, list);
        return false;
    }
    if (index > n) {
        nb_errors_add(&ld->errors, (nb_mark){-1, 0}, "%s: there are %ld entries; the next one is %s.%ld", *name,
                      n, list, n);
        return false;
    }
    if (index == n) nb_config_add_dataset(ld->c, test)->mark = (nb_mark){-1, 0};
    *l = dataset_level(test ? &ld->c->test_datasets[index] : &ld->c->datasets[index], list, (int)index);
    *name = end + 1;
    return true;
}

static void free_datasets(nb_config_dataset **list, int *n);

/* The value behind '=' as a node of its own: as it stands, but YAML where a list or map may stand and it begins with
 * '[' or '{'. */
static void set_value(loading *ld, const level *l, const char *name, const char *text) {
    const nb_mark at = {-1, 0};
    const char *only;
    int row = nb_key_find(l->keys, l->n, name, &only);
    bool list = is_list(l, name);
    nb_kind kind = row >= 0 ? l->keys[row].kind : NB_KIND_SECTION;
    nb_yaml scalar = {.kind = NB_YAML_SCALAR, .at = at, .plain = true}, *value = &scalar;
    nb_yaml_doc doc = {0};
    scalar.text = nb_strdup(text);
    if ((*text == '[' && (list || kind == NB_KIND_STRS || kind == NB_KIND_INTS)) ||
        (*text == '{' && (kind == NB_KIND_MAP || kind == NB_KIND_VALUES))) {
        if (nb_yaml_parse(&doc, name, text, strlen(text)) == NB_OK) value = doc.root;
        else nb_errors_add(&ld->errors, at, "%s", nb_message());
        for (int i = 0; i < doc.n; i++) doc.nodes[i]->at = at;
    }
    if (row >= 0) {
        set_key(ld, l, row, name, only, value);
    } else if (list) {
        if (!strcmp(name, "datasets")) free_datasets(&ld->c->datasets, &ld->c->n_datasets);
        else free_datasets(&ld->c->test_datasets, &ld->c->n_test_datasets);
        read_datasets(ld, name, value);
    } else if (is_group(l, name)) {
        nb_errors_add(&ld->errors, at, "%s%s: a map; set its keys one by one, as in %s.KEY=value", l->prefix, name,
                      name);
    } else if (!other(ld, l, name, value, at)) {
        unknown_key(ld, l, name, at);
    }
    nb_yaml_free(&doc);
    free(scalar.text);
}

static void set(loading *ld, const char *assignment) {
    const char *eq = strchr(assignment, '=');
    if (!eq || eq == assignment) {
        nb_errors_add(&ld->errors, (nb_mark){-1, 0}, "%s: wants KEY=VALUE", assignment);
        return;
    }
    char *key = nb_strndup(assignment, (size_t)(eq - assignment));
    const char *name = key;
    level l = top_level(ld->c);
    if (enter_dataset(ld, &name, &l)) set_value(ld, &l, name, eq + 1);
    free(key);
}

nb_status nb_config_load(nb_config *c, const char *path, const char *const *sets, int n_sets) {
    nb_config_init(c);
    c->file = nb_strdup(path);
    loading ld = {.c = c, .errors = {.file = c->file}};
    nb_status st = read_file(&ld, path);
    for (int i = 0; st == NB_OK && i < n_sets; i++) set(&ld, sets[i]);
    if (st == NB_OK && ld.ignored.n) nb_warn("%s: ignored, they mean nothing here: %s", path, ld.ignored.s);
    if (st == NB_OK) st = nb_errors_done(&ld.errors);
    nb_text_free(&ld.errors.text);
    nb_text_free(&ld.ignored);
    if (st == NB_OK) {
        nb_config_derive(c);
        st = nb_config_check(c);
    }
    if (st != NB_OK) nb_config_free(c);
    return st;
}

void nb_config_init(nb_config *c) {
    memset(c, 0, sizeof *c);
    for (int i = 0; i < NB_KEY_COUNT; i++) nb_key_set_default(&nb_keys[i], c);
}

nb_config_dataset *nb_config_add_dataset(nb_config *c, bool test) {
    nb_config_dataset **list = test ? &c->test_datasets : &c->datasets, *d;
    int *n = test ? &c->n_test_datasets : &c->n_datasets;
    *list = nb_realloc(*list, (size_t)*n + 1, sizeof **list);
    d = &(*list)[(*n)++];
    memset(d, 0, sizeof *d);
    for (int i = 0; i < NB_DATASET_KEY_COUNT; i++) nb_key_set_default(&nb_dataset_keys[i], d);
    return d;
}

static void free_datasets(nb_config_dataset **list, int *n) {
    for (int i = 0; i < *n; i++)
        for (int k = 0; k < NB_DATASET_KEY_COUNT; k++) nb_key_clear(&nb_dataset_keys[k], &(*list)[i]);
    free(*list);
    *list = NULL;
    *n = 0;
}

void nb_config_free(nb_config *c) {
    for (int i = 0; i < NB_KEY_COUNT; i++) nb_key_clear(&nb_keys[i], c);
    free_datasets(&c->datasets, &c->n_datasets);
    free_datasets(&c->test_datasets, &c->n_test_datasets);
    free(c->file);
    memset(c, 0, sizeof *c);
}
