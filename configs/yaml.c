#include "configs/yaml.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "core/mem.h"

typedef struct anchor {
    char *name;
    nb_yaml *node;
} anchor;

typedef struct reader {
    nb_yaml_doc *doc;
    const char *file, *text;
    size_t size;
    yaml_parser_t parser;
    anchor *anchors;
    int n_anchors, cap_anchors;
} reader;

static nb_mark mark_of(yaml_mark_t m) { return (nb_mark){(int)m.line + 1, (int)m.column + 1}; }

static nb_status fail_at(const reader *r, nb_mark at, const char *what) {
    return nb_fail(NB_EINPUT, "%s:%d:%d: %s", r->file, at.line, at.col, what);
}

/* Length of the UTF-8 sequence at s (n > 0 bytes left), 0 if it is none (RFC 3629: no overlong forms,
 * no surrogates). */
static size_t utf8_length(const unsigned char *s, size_t n) {
    if (s[0] < 0x80) return 1;
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n < len) return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
    if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return len;
}

/* libyaml tells the offset of a bad byte only; people want the line. */
static nb_status check_bytes(const reader *r) {
    const unsigned char *s = (const unsigned char *)r->text;
    nb_mark at = {1, 1};
    for (size_t i = 0, len; i < r->size; i += len) {
        len = utf8_length(s + i, r->size - i);
        if (!len) return fail_at(r, at, "not UTF-8; save the file in that encoding");
        if ((s[i] < 32 && s[i] != '\t' && s[i] != '\n' && s[i] != '\r') || s[i] == 127)
            return fail_at(r, at, "a control character; remove it");
        if (s[i] == '\n') at = (nb_mark){at.line + 1, 1};
        else at.col++;
    }
    return NB_OK;
}

/* The byte at a mark; 0 behind the end. */
static char byte_at(const reader *r, yaml_mark_t m) {
    size_t i = 0, line = 0;
    while (i < r->size && line < m.line) line += r->text[i++] == '\n';
    for (size_t col = 0; i < r->size && col < m.column; col++) {
        size_t len = utf8_length((const unsigned char *)r->text + i, r->size - i);
        i += len ? len : 1;
    }
    return i < r->size ? r->text[i] : 0;
}

static nb_status syntax_error(const reader *r) {
    const yaml_parser_t *p = &r->parser;
    nb_mark at = mark_of(p->problem_mark);
    if (p->error == YAML_MEMORY_ERROR) return nb_fail(NB_ENOMEM, "%s: out of memory", r->file);
    if (byte_at(r, p->problem_mark) == '\t')
        return fail_at(r, at, "a tab where YAML wants spaces; indent with spaces");
    return nb_fail(NB_EINPUT, "%s:%d:%d: %s%s%s; not YAML from here on", r->file, at.line, at.col,
                   p->problem ? p->problem : "unreadable", p->context ? " " : "", p->context ? p->context : "");
}

static nb_status next(reader *r, yaml_event_t *ev) {
    return yaml_parser_parse(&r->parser, ev) ? NB_OK : syntax_error(r);
}

static nb_yaml *new_node(reader *r, nb_yaml_kind kind, yaml_mark_t m) {
    nb_yaml *node = NB_NEW(nb_yaml);
    *node = (nb_yaml){.kind = kind, .at = mark_of(m), .size = 1};
    NB_GROW(r->doc->nodes, r->doc->n, r->doc->cap);
    return r->doc->nodes[r->doc->n++] = node;
}

static nb_status check_tag(const reader *r, const yaml_char_t *tag, yaml_mark_t m) {
    static const char standard[] = "tag:yaml.org,2002:";
    if (!tag || !strncmp((const char *)tag, standard, sizeof standard - 1)) return NB_OK;
    return fail_at(r, mark_of(m), "tags like this one are not used here; remove it");
}

static nb_status grow_size(const reader *r, nb_yaml *node, const nb_yaml *child) {
    node->size += child->size;
    if (node->size <= NB_YAML_MAX_NODES) return NB_OK;
    return fail_at(r, node->at, "aliases expand to more than 100000 values; write the file out plainly");
}

static nb_status read_node(reader *r, yaml_event_t *ev, int depth, nb_yaml **out);

static nb_status read_scalar(reader *r, const yaml_event_t *ev, nb_yaml **out) {
    NB_TRY(check_tag(r, ev->data.scalar.tag, ev->start_mark));
    const char *s = (const char *)ev->data.scalar.value;
    if (strlen(s) != ev->data.scalar.length)
        return fail_at(r, mark_of(ev->start_mark), "a NUL character in a text; remove it");
    nb_yaml *node = *out = new_node(r, NB_YAML_SCALAR, ev->start_mark);
    node->text = nb_strdup(s);
    node->plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return NB_OK;
}

static nb_status read_alias(reader *r, const yaml_event_t *ev, nb_yaml **out) {
    const char *name = (const char *)ev->data.alias.anchor;
    for (int i = r->n_anchors - 1; i >= 0; i--) /* the last anchor of a name counts */
        if (!strcmp(r->anchors[i].name, name)) {
            *out = r->anchors[i].node;
            return NB_OK;
        }
    nb_mark at = mark_of(ev->start_mark);
    return nb_fail(NB_EINPUT, "%s:%d:%d: *%s refers to no finished anchor &%s above", r->file, at.line, at.col, name,
                   name);
}

static nb_status read_list(reader *r, const yaml_event_t *start, int depth, nb_yaml **out) {
    NB_TRY(check_tag(r, start->data.sequence_start.tag, start->start_mark));
    nb_yaml *node = *out = new_node(r, NB_YAML_LIST, start->start_mark);
    for (;;) {
        yaml_event_t ev;
        NB_TRY(next(r, &ev));
        if (ev.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&ev);
            return NB_OK;
        }
        nb_yaml *item;
        NB_TRY(read_node(r, &ev, depth, &item));
        NB_GROW(node->items, node->n, node->cap);
        node->items[node->n++] = item;
        NB_TRY(grow_size(r, node, item));
    }
}

static nb_yaml_pair *find_pair(const nb_yaml *map, const char *key) {
    for (int i = 0; i < map->n; i++)
        if (!strcmp(map->pairs[i].key, key)) return &map->pairs[i];
    return NULL;
}

static void add_pair(nb_yaml *map, const char *key, nb_mark at, nb_yaml *value, bool merged) {
    NB_GROW(map->pairs, map->n, map->cap);
    map->pairs[map->n++] = (nb_yaml_pair){nb_strdup(key), at, value, merged};
}

/* `<<: *map` or `<<: [*first, *second]`: keys that the map, or an earlier one, does not have. */
static nb_status merge(const reader *r, nb_yaml *map, const nb_yaml *from) {
    for (int i = 0; i < (from->kind == NB_YAML_LIST ? from->n : 1); i++) {
        const nb_yaml *src = from->kind == NB_YAML_LIST ? from->items[i] : from;
        if (src->kind != NB_YAML_MAP) return fail_at(r, src->at, "<< wants a map, an alias of one, or a list of those");
        for (int k = 0; k < src->n; k++)
            if (!find_pair(map, src->pairs[k].key)) {
                add_pair(map, src->pairs[k].key, src->pairs[k].at, src->pairs[k].value, true);
                NB_TRY(grow_size(r, map, src->pairs[k].value));
            }
    }
    return NB_OK;
}

static nb_status read_key(reader *r, nb_yaml *map, yaml_event_t *ev, int depth, nb_yaml **merged) {
    nb_yaml *key, *value;
    NB_TRY(read_node(r, ev, depth, &key));
    if (key->kind != NB_YAML_SCALAR) return fail_at(r, key->at, "a key must be a plain word");
    yaml_event_t next_ev;
    NB_TRY(next(r, &next_ev));
    NB_TRY(read_node(r, &next_ev, depth, &value));
    if (key->plain && !strcmp(key->text, "<<")) {
        if (*merged) return fail_at(r, key->at, "a second << in one map; give one << a list");
        *merged = value;
        return NB_OK;
    }
    const nb_yaml_pair *twin = find_pair(map, key->text);
    if (twin)
        return nb_fail(NB_EINPUT, "%s:%d:%d: %s: already set in line %d; keep one of the two", r->file, key->at.line,
                       key->at.col, key->text, twin->at.line);
    add_pair(map, key->text, key->at, value, false);
    return grow_size(r, map, value);
}

static nb_status read_map(reader *r, const yaml_event_t *start, int depth, nb_yaml **out) {
    NB_TRY(check_tag(r, start->data.mapping_start.tag, start->start_mark));
    nb_yaml *node = *out = new_node(r, NB_YAML_MAP, start->start_mark), *merged = NULL;
    for (;;) {
        yaml_event_t ev;
        NB_TRY(next(r, &ev));
        if (ev.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&ev);
            return merged ? merge(r, node, merged) : NB_OK;
        }
        NB_TRY(read_key(r, node, &ev, depth, &merged));
    }
}

/* Reads the node that *ev begins; always deletes *ev. An anchor counts once its node is finished, so
 * that no node can contain itself. */
static nb_status read_node(reader *r, yaml_event_t *ev, int depth, nb_yaml **out) {
    nb_status st;
    const yaml_char_t *name = NULL;
    *out = NULL;
    if (depth >= NB_YAML_MAX_DEPTH) {
        st = fail_at(r, mark_of(ev->start_mark), "nested too deep (32 levels)");
    } else if (ev->type == YAML_SCALAR_EVENT) {
        st = read_scalar(r, ev, out);
        name = ev->data.scalar.anchor;
    } else if (ev->type == YAML_ALIAS_EVENT) {
        st = read_alias(r, ev, out);
    } else if (ev->type == YAML_SEQUENCE_START_EVENT) {
        st = read_list(r, ev, depth + 1, out);
        name = ev->data.sequence_start.anchor;
    } else {
        NB_ASSERT(ev->type == YAML_MAPPING_START_EVENT); /* libyaml's grammar leaves nothing else */
        st = read_map(r, ev, depth + 1, out);
        name = ev->data.mapping_start.anchor;
    }
    if (st == NB_OK && name) {
        NB_GROW(r->anchors, r->n_anchors, r->cap_anchors);
        r->anchors[r->n_anchors++] = (anchor){nb_strdup((const char *)name), *out};
    }
    yaml_event_delete(ev);
    return st;
}

static nb_status read_document(reader *r) {
    yaml_event_t ev;
    NB_TRY(next(r, &ev)); /* stream start */
    yaml_event_delete(&ev);
    NB_TRY(next(r, &ev));
    bool empty = ev.type == YAML_STREAM_END_EVENT;
    yaml_event_delete(&ev); /* document start */
    if (empty) return nb_fail(NB_EINPUT, "%s: the file is empty; `nibble config keys` lists the keys", r->file);
    NB_TRY(next(r, &ev));
    NB_TRY(read_node(r, &ev, 0, &r->doc->root));
    NB_TRY(next(r, &ev)); /* document end */
    yaml_event_delete(&ev);
    NB_TRY(next(r, &ev));
    nb_mark at = mark_of(ev.start_mark);
    bool more = ev.type != YAML_STREAM_END_EVENT;
    yaml_event_delete(&ev);
    return more ? fail_at(r, at, "a second document begins here; give each its own file") : NB_OK;
}

nb_status nb_yaml_parse(nb_yaml_doc *doc, const char *file, const char *text, size_t size) {
    reader r = {.doc = doc, .file = file, .text = text, .size = size};
    *doc = (nb_yaml_doc){0};
    if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) r.text += 3, r.size -= 3; /* byte order mark */
    if (size > NB_YAML_MAX_BYTES)
        return nb_fail(NB_EINPUT, "%s: %zu bytes; a configuration has at most 1 MiB", file, size);
    NB_TRY(check_bytes(&r));
    if (!yaml_parser_initialize(&r.parser)) return nb_fail(NB_ENOMEM, "%s: out of memory", file);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)r.text, r.size);
    nb_status st = read_document(&r);
    yaml_parser_delete(&r.parser);
    for (int i = 0; i < r.n_anchors; i++) free(r.anchors[i].name);
    free(r.anchors);
    if (st != NB_OK) nb_yaml_free(doc);
    return st;
}

void nb_yaml_free(nb_yaml_doc *doc) {
    for (int i = 0; i < doc->n; i++) {
        nb_yaml *node = doc->nodes[i];
        for (int k = 0; node->pairs && k < node->n; k++) free(node->pairs[k].key);
        free(node->pairs);
        free(node->items);
        free(node->text);
        free(node);
    }
    free(doc->nodes);
    *doc = (nb_yaml_doc){0};
}

bool nb_yaml_is_null(const nb_yaml *node) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (node->kind != NB_YAML_SCALAR || !node->plain) return false;
    for (int i = 0; i < NB_LEN(words); i++)
        if (!strcmp(node->text, words[i])) return true;
    return false;
}

const char *nb_yaml_kind_name(const nb_yaml *node) {
    return node->kind == NB_YAML_MAP ? "a map" : node->kind == NB_YAML_LIST ? "a list" : "a single value";
}
