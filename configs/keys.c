#include "configs/keys.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SECTION(ident, title) {.name = title, .kind = NB_KIND_SECTION},
#define KEY(member, kind, dflt, range, aliases, help) \
    {#member, NB_KIND_##kind, offsetof(NB_OWNER, member), dflt, range, aliases, help},
#define SUB(group, member, kind, dflt, range, aliases, help) \
    {#group "." #member, NB_KIND_##kind, offsetof(NB_OWNER, group##_##member), dflt, range, aliases, help},

#define NB_OWNER nb_config
const nb_key nb_keys[NB_KEY_COUNT] = {
#include "configs/keys.def"
};
#undef NB_OWNER
#define NB_OWNER nb_config_dataset
const nb_key nb_dataset_keys[NB_DATASET_KEY_COUNT] = {
#include "configs/dataset_keys.def"
};

void nb_errors_add(nb_errors *e, nb_mark at, const char *fmt, ...) {
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    e->n++;
    if (e->text.n > 3000) return; /* counted; the message has no room for more */
    if (e->text.n) nb_text_puts(&e->text, "\n");
    if (at.line < 0) nb_text_printf(&e->text, "--set %s", line);
    else if (!e->file) nb_text_puts(&e->text, line);
    else if (at.line == 0) nb_text_printf(&e->text, "%s: %s", e->file, line);
    else nb_text_printf(&e->text, "%s:%d:%d: %s", e->file, at.line, at.col, line);
}

nb_status nb_errors_done(nb_errors *e) {
    nb_status st = e->n == 0 ? NB_OK
                   : e->n == 1 ? nb_fail(NB_EINPUT, "%s", e->text.s)
                               : nb_fail(NB_EINPUT, "%d mistakes\n%s", e->n, e->text.s);
    nb_text_free(&e->text);
    e->n = 0;
    return st;
}

/* The next word of a list separated by one of `separators`, or NULL. */
static const char *next_word(const char **at, const char *separators, size_t *len) {
    *at += strspn(*at, separators);
    const char *word = *at;
    *len = strcspn(word, separators);
    *at += *len;
    return *len ? word : NULL;
}

static bool same(const char *word, size_t len, const char *name) {
    return strlen(name) == len && !strncmp(word, name, len);
}

int nb_key_find(const nb_key *keys, int n, const char *name, const char **only) {
    static _Thread_local char value[32];
    *only = NULL;
    for (int i = 0; i < n; i++)
        if (keys[i].kind != NB_KIND_SECTION && !strcmp(keys[i].name, name)) return i;
    for (int i = 0; i < n; i++) {
        const char *at = keys[i].aliases, *word;
        for (size_t len; at && (word = next_word(&at, " ", &len));) {
            size_t bare = strcspn(word, "= ");
            if (!same(word, bare < len ? bare : len, name)) continue;
            if (bare < len) {
                snprintf(value, sizeof value, "%.*s", (int)(len - bare - 1), word + bare + 1);
                *only = value;
            }
            return i;
        }
    }
    return -1;
}

bool nb_key_null_is_value(const nb_key *k) { return k->range && strstr(k->range, "or null") != NULL; }

const char *nb_choice_name(const char *range, int value, int i, char *buf) {
    size_t len;
    const char *choice;
    for (; (choice = next_word(&range, "|", &len)); value--) {
        if (value) continue;
        const char *at = choice, *word;
        size_t n;
        while ((word = next_word(&at, "=|", &n)) && word < choice + len)
            if (i-- == 0) {
                snprintf(buf, 64, "%.*s", (int)n, word);
                return buf;
            }
        return NULL;
    }
    return NULL;
}

static bool parse_bool(const char *text, int *out) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "False", "True",
                                        "No", "Yes", "Off", "On", "FALSE", "TRUE", "NO", "YES", "OFF", "ON"};
    for (int i = 0; i < NB_LEN(words); i++)
        if (!strcmp(text, words[i])) {
            *out = i & 1;
            return true;
        }
    return false;
}

static int spelled_choice(const char *range, const char *text) {
    char buf[64];
    for (int value = 0; nb_choice_name(range, value, 0, buf); value++)
        for (int i = 0; nb_choice_name(range, value, i, buf); i++)
            if (!strcmp(buf, text)) return value;
    return -1;
}

/* A choice that has true or false among its words takes YAML's other spellings of them. */
static int find_choice(const char *range, const char *text) {
    int choice = spelled_choice(range, text), flag;
    return choice < 0 && parse_bool(text, &flag) ? spelled_choice(range, flag ? "true" : "false") : choice;
}

static bool bad_choice(const char *range, const char *text, nb_text *why) {
    char buf[64];
    nb_text_printf(why, "'%s' is none of", text);
    for (int value = 0; nb_choice_name(range, value, 0, buf); value++)
        nb_text_printf(why, "%s %s", value ? "," : "", buf);
    return false;
}

/* Is the text one of a range's words? "cuda:N" stands for cuda:0, cuda:1, ... */
static bool fits_words(const char *range, const char *text) {
    char buf[64];
    for (int value = 0; nb_choice_name(range, value, 0, buf); value++) {
        size_t stem = strlen(buf) - 1, n = strlen(text);
        if (!strcmp(buf, text)) return true;
        if (buf[stem] == 'N' && n > stem && n <= stem + 6 && !strncmp(buf, text, stem) &&
            strspn(text + stem, "0123456789") == n - stem)
            return true;
    }
    return false;
}

/* "[0, 1)": the bounds and whether they belong to it. */
static bool in_range(double v, const char *range) {
    char open, close, hi_text[32];
    double lo, hi = INFINITY;
    if (!range || sscanf(range, "%c%lf, %31[^])]%c", &open, &lo, hi_text, &close) != 4) return true;
    if (strcmp(hi_text, "inf") != 0) hi = strtod(hi_text, NULL);
    return (open == '[' ? v >= lo : v > lo) && (close == ']' ? v <= hi : v < hi);
}

static bool parse_int(const nb_key *k, const char *text, int64_t *out, nb_text *why) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (!*text || *end || text[strspn(text, "+-0123456789")]) {
        nb_text_printf(why, "'%s' is not a whole number", text);
        return false;
    }
    if (errno || !in_range((double)v, k->range)) {
        nb_text_printf(why, "%s is out of range, which is %s", text, k->range);
        return false;
    }
    *out = v;
    return true;
}

static bool parse_real(const nb_key *k, const char *text, double *out, nb_text *why) {
    char *end;
    double v = strtod(text, &end);
    if (!*text || *end || text[strspn(text, "+-.eE0123456789")]) {
        nb_text_printf(why, "'%s' is not a number", text);
        return false;
    }
    if (!isfinite(v) || !in_range(v, k->range)) {
        nb_text_printf(why, "%s is out of range, which is %s", text, k->range);
        return false;
    }
    *out = v;
    return true;
}

static bool parse_size(const char *text, uint64_t *out, nb_text *why) {
    static const struct { const char *name; double factor; } units[] = {
        {"", 1}, {"B", 1}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
        {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}};
    size_t digits = strspn(text, "0123456789.");
    char *end;
    double v = strtod(text, &end);
    if (digits && end == text + digits) {
        const char *unit = end + strspn(end, " ");
        for (int i = 0; i < NB_LEN(units); i++)
            if (!strcmp(unit, units[i].name) && v * units[i].factor >= 1 && v * units[i].factor < 9e18) {
                *out = (uint64_t)(v * units[i].factor);
                return true;
            }
    }
    nb_text_printf(why, "'%s' is not an amount of memory; write 22GiB, 800MiB or a number of bytes", text);
    return false;
}

/* ${env:NAME} is replaced in paths and refused elsewhere, where it would pass for text. */
static bool parse_str(const nb_key *k, const char *text, char **out, nb_text *why) {
    nb_text t = {0};
    nb_text_puts(&t, "");
    for (const char *at = text; *at;) {
        if (strncmp(at, "${env:", 6) != 0) {
            nb_text_add(&t, at++, 1);
            continue;
        }
        char name[128];
        size_t len = strcspn(at + 6, "}");
        const char *value = NULL;
        if (k->kind != NB_KIND_PATH) {
            nb_text_puts(why, "${env:...} is replaced in paths only");
        } else if (!at[6 + len] || len == 0 || len >= sizeof name) {
            nb_text_printf(why, "'%s' has a ${env: without its NAME and closing brace", text);
        } else {
            snprintf(name, sizeof name, "%.*s", (int)len, at + 6);
            value = getenv(name);
            if (!value) nb_text_printf(why, "the environment has no variable %s", name);
        }
        if (!value) {
            nb_text_free(&t);
            return false;
        }
        nb_text_puts(&t, value);
        at += 6 + len + 1;
    }
    if (!t.n && k->kind == NB_KIND_PATH) {
        nb_text_free(&t);
        nb_text_puts(why, "an empty path");
        return false;
    }
    *out = t.s;
    return true;
}

static bool parse_scalar(const nb_key *k, void *p, const char *text, nb_text *why) {
    int flag, choice;
    switch (k->kind) {
    case NB_KIND_BOOL:
        if (!parse_bool(text, &flag)) break;
        *(bool *)p = flag != 0;
        return true;
    case NB_KIND_TRI:
        if (!strcmp(text, "auto")) flag = NB_AUTO;
        else if (!parse_bool(text, &flag)) break;
        *(int *)p = flag;
        return true;
    case NB_KIND_CHOICE:
        if ((choice = find_choice(k->range, text)) < 0) return bad_choice(k->range, text, why);
        *(int *)p = choice;
        return true;
    case NB_KIND_INT: return parse_int(k, text, p, why);
    case NB_KIND_REAL: return parse_real(k, text, p, why);
    case NB_KIND_SIZE: return parse_size(text, p, why);
    default: return parse_str(k, text, p, why);
    }
    nb_text_printf(why, "'%s' is not true or false%s", text, k->kind == NB_KIND_TRI ? " or auto" : "");
    return false;
}

static bool set_item(const nb_key *k, const nb_yaml *item, char **out, nb_text *why) {
    if (item->kind != NB_YAML_SCALAR || nb_yaml_is_null(item)) {
        nb_text_printf(why, "each item must be a text, not %s",
                       nb_yaml_is_null(item) ? "empty" : nb_yaml_kind_name(item));
        return false;
    }
    if (!k->range[0]) return parse_str(k, item->text, out, why);
    int choice = find_choice(k->range, item->text);
    char buf[64];
    if (choice < 0) return bad_choice(k->range, item->text, why);
    *out = nb_strdup(nb_choice_name(k->range, choice, 0, buf));
    return true;
}

static void free_strs(nb_strs *s) {
    for (int i = 0; i < s->n; i++) free(s->v[i]);
    free(s->v);
}

static bool set_strs(const nb_key *k, nb_strs *out, const nb_yaml *value, nb_text *why) {
    bool scalar = value->kind == NB_YAML_SCALAR;
    int n = scalar ? 1 : value->n;
    nb_strs s = {.v = nb_calloc((size_t)n + 1, sizeof *s.v), .scalar = scalar};
    while (s.n < n && set_item(k, scalar ? value : value->items[s.n], &s.v[s.n], why)) s.n++;
    free_strs(s.n == n ? out : &s);
    if (s.n < n) return false;
    *out = s;
    return true;
}

static bool set_ints(const nb_key *k, nb_ints *out, const nb_yaml *value, nb_text *why) {
    bool list = value->kind == NB_YAML_LIST;
    int n = list ? value->n : 1;
    int64_t *v = nb_calloc((size_t)n + 1, sizeof *v);
    for (int i = 0; i < n; i++) {
        const nb_yaml *item = list ? value->items[i] : value;
        if (item->kind == NB_YAML_SCALAR ? parse_int(k, item->text, &v[i], why)
                                         : (nb_text_printf(why, "item %d must be a number", i + 1), false))
            continue;
        free(v);
        return false;
    }
    free(out->v);
    *out = (nb_ints){v, n};
    return true;
}

void nb_pairs_add(nb_pairs *m, const char *name, double value) {
    m->name = nb_realloc(m->name, (size_t)m->n + 1, sizeof *m->name);
    m->value = nb_realloc(m->value, (size_t)m->n + 1, sizeof *m->value);
    m->name[m->n] = nb_strdup(name);
    m->value[m->n++] = value;
}

void nb_pairs_free(nb_pairs *m) {
    for (int i = 0; i < m->n; i++) free(m->name[i]);
    free(m->name);
    free(m->value);
    *m = (nb_pairs){0};
}

static bool set_map(const nb_key *k, nb_pairs *out, const nb_yaml *value, nb_text *why) {
    nb_pairs m = {0};
    for (int i = 0; i < value->n; i++) {
        const nb_yaml_pair *pair = &value->pairs[i];
        double v;
        if (pair->value->kind != NB_YAML_SCALAR) nb_text_printf(why, "'%s' must have a number", pair->key);
        else if (parse_real(k, pair->value->text, &v, why)) {
            nb_pairs_add(&m, pair->key, v);
            continue;
        }
        nb_pairs_free(&m);
        return false;
    }
    nb_pairs_free(out);
    *out = m;
    return true;
}

/* A plain scalar is a number or true or false where it reads as one. */
static json_t *scalar_value(const nb_yaml *v) {
    char *end;
    int flag;
    if (!v->plain) return json_string(v->text);
    if (nb_yaml_is_null(v)) return json_null();
    if (parse_bool(v->text, &flag)) return json_boolean(flag);
    if (!v->text[strspn(v->text, "+-.eE0123456789")]) {
        errno = 0;
        long long whole = strtoll(v->text, &end, 10);
        if (!*end && !errno) return json_integer(whole);
        double real = strtod(v->text, &end);
        if (!*end && isfinite(real)) return json_real(real);
    }
    return json_string(v->text);
}

static json_t *any_value(const nb_yaml *v) {
    if (v->kind == NB_YAML_SCALAR) return scalar_value(v);
    json_t *out = v->kind == NB_YAML_LIST ? json_array() : json_object();
    for (int i = 0; i < v->n; i++)
        if (v->kind == NB_YAML_LIST) json_array_append_new(out, any_value(v->items[i]));
        else if (!json_object_get(out, v->pairs[i].key))
            json_object_set_new(out, v->pairs[i].key, any_value(v->pairs[i].value));
    return out;
}

static void set_values(char **out, const nb_yaml *value) {
    json_t *v = any_value(value);
    free(*out);
    *out = value->n ? json_dumps(v, 0) : NULL;
    json_decref(v);
}

bool nb_key_set(const nb_key *k, void *base, const nb_yaml *value, nb_text *why) {
    void *p = (char *)base + k->offset;
    if (k->kind == NB_KIND_MAP && value->kind == NB_YAML_MAP) return set_map(k, p, value, why);
    if (k->kind == NB_KIND_VALUES && value->kind == NB_YAML_MAP) return set_values(p, value), true;
    if (k->kind == NB_KIND_MAP || k->kind == NB_KIND_VALUES) {
        nb_text_printf(why, "wants a map, not %s", nb_yaml_kind_name(value));
        return false;
    }
    bool list = k->kind == NB_KIND_STRS || k->kind == NB_KIND_INTS;
    if (value->kind == NB_YAML_MAP || (value->kind == NB_YAML_LIST && !list)) {
        nb_text_printf(why, "wants %s, not %s", list ? "a list" : "a single value", nb_yaml_kind_name(value));
        return false;
    }
    if (k->kind == NB_KIND_STRS) return set_strs(k, p, value, why);
    if (k->kind == NB_KIND_INTS) return set_ints(k, p, value, why);
    if (k->kind != NB_KIND_STR && k->kind != NB_KIND_PATH) return parse_scalar(k, p, value->text, why);
    char *text;
    if (k->range[0] && !fits_words(k->range, value->text)) return bad_choice(k->range, value->text, why);
    if (!parse_str(k, value->text, &text, why)) return false;
    free(*(char **)p);
    *(char **)p = text;
    return true;
}

void nb_key_clear(const nb_key *k, void *base) {
    static const size_t size[] = {
        [NB_KIND_SECTION] = 0,           [NB_KIND_BOOL] = sizeof(nb_key_BOOL), [NB_KIND_TRI] = sizeof(nb_key_TRI),
        [NB_KIND_INT] = sizeof(nb_key_INT), [NB_KIND_REAL] = sizeof(nb_key_REAL), [NB_KIND_STR] = sizeof(char *),
        [NB_KIND_PATH] = sizeof(char *), [NB_KIND_CHOICE] = sizeof(int),       [NB_KIND_SIZE] = sizeof(nb_key_SIZE),
        [NB_KIND_STRS] = sizeof(nb_strs), [NB_KIND_INTS] = sizeof(nb_ints),
        [NB_KIND_MAP] = sizeof(nb_pairs), [NB_KIND_VALUES] = sizeof(char *)};
    void *p = (char *)base + k->offset;
    if (k->kind == NB_KIND_STR || k->kind == NB_KIND_PATH || k->kind == NB_KIND_VALUES) free(*(char **)p);
    if (k->kind == NB_KIND_INTS) free(((nb_ints *)p)->v);
    if (k->kind == NB_KIND_STRS) free_strs(p);
    if (k->kind == NB_KIND_MAP) nb_pairs_free(p);
    memset(p, 0, size[k->kind]);
}

void nb_key_set_default(const nb_key *k, void *base) {
    if (k->kind == NB_KIND_SECTION) return;
    nb_key_clear(k, base);
    if (!k->dflt[0] || k->dflt[0] == '(') return;
    nb_yaml_doc doc = {0};
    nb_yaml scalar = {.kind = NB_YAML_SCALAR, .text = (char *)(uintptr_t)k->dflt};
    nb_text why = {0};
    if (strchr("[{", k->dflt[0])) NB_ASSERT(nb_yaml_parse(&doc, k->name, k->dflt, strlen(k->dflt)) == NB_OK);
    NB_ASSERT(nb_key_set(k, base, doc.root ? doc.root : &scalar, &why));
    nb_yaml_free(&doc);
}

/* Quoted unless it reads as itself everywhere: by other YAML readers too. */
static void print_str(const char *s, nb_text *out) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
    int flag;
    bool word = *s && !s[strspn(s, safe)] && !strchr("-.0123456789", *s) && !parse_bool(s, &flag) &&
                strcasecmp(s, "y") && strcasecmp(s, "n") && strcasecmp(s, "null");
    if (word) {
        nb_text_puts(out, s);
        return;
    }
    nb_text_puts(out, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') nb_text_printf(out, "\\%c", c);
        else if (c == '\n') nb_text_puts(out, "\\n");
        else if (c == '\t') nb_text_puts(out, "\\t");
        else if (c < 32 || c == 127) nb_text_printf(out, "\\x%02x", c);
        else nb_text_add(out, s, 1);
    }
    nb_text_puts(out, "\"");
}

/* The shortest decimal that reads back as the same double. */
static void print_real(double v, nb_text *out) {
    char buf[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(buf, sizeof buf, "%.*g", digits, v);
        if (strtod(buf, NULL) == v) break;
    }
    nb_text_puts(out, buf);
}

static void print_list(const nb_key *k, const void *p, nb_text *out) {
    const nb_strs *s = p;
    const nb_ints *v = p;
    int n = k->kind == NB_KIND_STRS ? s->n : v->n;
    if (k->kind == NB_KIND_STRS && s->scalar && n == 1) {
        print_str(s->v[0], out);
        return;
    }
    nb_text_puts(out, "[");
    for (int i = 0; i < n; i++) {
        if (i) nb_text_puts(out, ", ");
        if (k->kind == NB_KIND_STRS) print_str(s->v[i], out);
        else nb_text_printf(out, "%lld", (long long)v->v[i]);
    }
    nb_text_puts(out, "]");
}

static void print_map(const nb_pairs *m, nb_text *out) {
    nb_text_puts(out, "{");
    for (int i = 0; i < m->n; i++) {
        if (i) nb_text_puts(out, ", ");
        print_str(m->name[i], out);
        nb_text_puts(out, ": ");
        print_real(m->value[i], out);
    }
    nb_text_puts(out, "}");
}

void nb_key_print(const nb_key *k, const void *base, bool set, nb_text *out) {
    const void *p = (const char *)base + k->offset;
    char buf[64];
    bool none = !set && (!k->dflt[0] || k->dflt[0] == '('); /* then zero stands for "no value" */
    switch (k->kind) {
    case NB_KIND_BOOL: nb_text_puts(out, *(const bool *)p ? "true" : "false"); return;
    case NB_KIND_TRI:
        nb_text_puts(out, *(const int *)p == NB_AUTO ? "auto" : *(const int *)p ? "true" : "false");
        return;
    case NB_KIND_CHOICE: nb_text_puts(out, nb_choice_name(k->range, *(const int *)p, 0, buf)); return;
    case NB_KIND_INT:
        if (none && !*(const int64_t *)p) break;
        nb_text_printf(out, "%lld", (long long)*(const int64_t *)p);
        return;
    case NB_KIND_REAL:
        if (none && *(const double *)p == 0) break;
        print_real(*(const double *)p, out);
        return;
    case NB_KIND_SIZE:
        if (!*(const uint64_t *)p) break;
        nb_text_printf(out, "%llu", (unsigned long long)*(const uint64_t *)p);
        return;
    case NB_KIND_STR:
    case NB_KIND_PATH:
        if (!*(char *const *)p) break;
        print_str(*(char *const *)p, out);
        return;
    case NB_KIND_STRS:
    case NB_KIND_INTS: print_list(k, p, out); return;
    case NB_KIND_MAP: print_map(p, out); return;
    case NB_KIND_VALUES: /* JSON is YAML in flow style */
        if (!*(char *const *)p) break;
        nb_text_puts(out, *(char *const *)p);
        return;
    case NB_KIND_SECTION: return;
    }
    nb_text_puts(out, "null");
}
