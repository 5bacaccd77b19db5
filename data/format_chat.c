/* The chat_template type: messages in the data's own words to the template's roles, and what of them is trained. */
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/nearest.h"
#include "data/format_types.h"

static bool has(const nb_strs *list, const char *s) {
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->v[i], s)) return true;
    return false;
}

/* "human" -> "user", by the entry's roles. */
static const char *role_of(const nb_config_dataset *e, const char *name) {
    const struct {
        const char *role;
        const nb_strs *names;
    } roles[] = {{"system", &e->roles_system},
                 {"user", &e->roles_user},
                 {"assistant", &e->roles_assistant},
                 {"tool", &e->roles_tool}};
    for (int i = 0; i < NB_LEN(roles); i++)
        if (has(roles[i].names, name)) return roles[i].role;
    return NULL;
}

/* ---- a message ---- */

static nb_status no_such_key(const nb_row_in *in, const json_t *m, size_t i, const char *key, const char *mapping) {
    const char *name, *names[32], *near;
    json_t *value;
    int n = 0;
    json_object_foreach((json_t *)(uintptr_t)m, name, value) if (n < 32) names[n++] = name;
    near = nb_nearest(key, names, n);
    if (!near) near = n == 2 ? names[!strcmp(mapping, "content")] : "NAME";
    return nb_fail(NB_EINPUT,
                   "%s: message %zu has no \"%s\"; say what it is called in this data: message_property_mappings: "
                   "{%s: %s}",
                   in->where, i + 1, key, mapping, near);
}

/* Content as a list of parts is the text of them all. */
static nb_status join_parts(const nb_row_in *in, size_t i, const char *key, const json_t *parts, json_t **out) {
    nb_text all = {0};
    json_t *part;
    size_t k;
    nb_status st = NB_OK;
    nb_text_puts(&all, "");
    json_array_foreach(parts, k, part) {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_is_string(part) ? part : json_object_get(part, "text");
        if (st == NB_OK && (!json_is_string(text) || (type && strcmp(type, "text"))))
            st = nb_fail(NB_EINPUT,
                         "%s: message %zu: part %zu of \"%s\" is no text; only {\"type\": \"text\", \"text\": "
                         "...} is read",
                         in->where, i + 1, k + 1, key);
        if (st == NB_OK) nb_text_puts(&all, json_string_value(text));
    }
    if (st == NB_OK) *out = json_string(all.s);
    nb_text_free(&all);
    return st;
}

/* OpenAI's form has a call's arguments, and a tool's parameters, as JSON text: templates want the object. */
static void parse_inside(json_t *object, const char *key) {
    json_t *text = json_object_get(object, key);
    json_t *v = json_is_string(text) ? json_loads(json_string_value(text), JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (json_is_object(v)) json_object_set(object, key, v);
    json_decref(v);
}

static void parse_each(json_t *list, const char *key) {
    json_t *item;
    size_t i;
    json_array_foreach(list, i, item) {
        parse_inside(item, key);
        parse_inside(json_object_get(item, "function"), key);
    }
}

/* All of a message but its role: what templates may ask for. Fields that are null are as if they were not there. */
static nb_status other_fields(const nb_row_in *in, const json_t *m, size_t i, json_t **out) {
    const nb_config_dataset *e = in->f->e;
    const char *key;
    json_t *v, *calls;
    *out = json_object();
    json_object_foreach((json_t *)(uintptr_t)m, key, v) {
        bool mapped = !strcmp(key, e->message_property_mappings_role) ||
                      !strcmp(key, e->message_property_mappings_content);
        if (!mapped && !json_is_null(v)) json_object_set_new(*out, key, json_deep_copy(v));
    }
    calls = json_object_get(*out, "tool_calls");
    if (json_is_array(calls) && !json_array_size(calls)) json_object_del(*out, "tool_calls");
    else if (json_is_array(calls)) parse_each(calls, "arguments");
    else if (calls)
        return nb_fail(NB_EINPUT, "%s: message %zu: \"tool_calls\" should be a list, not %s", in->where, i + 1,
                       nb_json_type(calls));
    return NB_OK;
}

typedef struct conversation {
    nb_message_t *m;
    json_t **fields; /* owned; what m points to */
    int n;
    json_t *tools, *documents; /* owned, or NULL */
} conversation;

static nb_status read_message(const nb_row_in *in, const json_t *m, size_t i, nb_message_t *out, json_t **fields) {
    const nb_config_dataset *e = in->f->e;
    const char *role = e->message_property_mappings_role, *content = e->message_property_mappings_content;
    if (!json_is_object(m))
        return nb_fail(NB_EINPUT, "%s: message %zu should be an object, not %s", in->where, i + 1, nb_json_type(m));
    const json_t *name = json_object_get(m, role), *v = json_object_get(m, content);
    if (!name || json_is_null(name)) return no_such_key(in, m, i, role, "role");
    if (!json_is_string(name))
        return nb_fail(NB_EINPUT, "%s: message %zu: \"%s\" should be text, not %s", in->where, i + 1, role,
                       nb_json_type(name));
    NB_TRY(other_fields(in, m, i, fields));
    out->fields = *fields;
    if (json_is_array(v)) {
        json_t *text = NULL;
        NB_TRY(join_parts(in, i, content, v, &text));
        json_object_set_new(*fields, "content", text);
        v = text;
    }
    if (v && !json_is_null(v) && !json_is_string(v))
        return nb_fail(NB_EINPUT, "%s: message %zu: \"%s\" should be text, not %s", in->where, i + 1, content,
                       nb_json_type(v));
    out->content = json_string_value(v);
    if (!out->content && !json_object_get(*fields, "tool_calls")) return no_such_key(in, m, i, content, "content");
    if (v && !out->content) json_object_set_new(*fields, "content", json_null());
    out->role = role_of(e, json_string_value(name));
    if (out->role) return NB_OK;
    return nb_fail(NB_EINPUT,
                   "%s: message %zu has the unknown role \"%s\"; say what it stands for: roles: {assistant: [%s]} (or "
                   "system, user, tool)",
                   in->where, i + 1, json_string_value(name), json_string_value(name));
}

/* ---- a conversation ---- */

static void conversation_free(conversation *c) {
    for (int i = 0; i < c->n; i++) json_decref(c->fields[i]);
    free(c->fields);
    free(c->m);
    json_decref(c->tools);
    json_decref(c->documents);
}

/* A list of the row's, or JSON text of one; *out stays NULL when it is absent, null or empty. */
static nb_status read_list(const nb_row_in *in, const char *key, json_t **out) {
    json_t *v = key ? json_object_get(in->obj, key) : NULL;
    if (!v || json_is_null(v) || (json_is_string(v) && !json_string_length(v))) return NB_OK;
    *out = json_is_string(v) ? json_loads(json_string_value(v), JSON_REJECT_DUPLICATES, NULL) : json_deep_copy(v);
    if (!json_is_array(*out))
        return nb_fail(NB_EINPUT, "%s: \"%s\" should be a list, or the JSON text of one, not %s", in->where, key,
                       nb_json_type(v));
    if (!json_array_size(*out)) json_decref(*out), *out = NULL;
    return NB_OK;
}

/* The row's messages, with the text of field_system in front when there is such a field. */
static nb_status read_conversation(const nb_row_in *in, conversation *c) {
    const nb_config_dataset *e = in->f->e;
    const json_t *list = json_object_get(in->obj, e->field_messages),
                 *system = json_object_get(in->obj, e->field_system);
    if (!list || json_is_null(list)) return nb_field_missing(in, e->field_messages, "field_messages");
    if (!json_is_array(list))
        return nb_fail(NB_EINPUT, "%s: \"%s\" should be a list of messages, not %s", in->where, e->field_messages,
                       nb_json_type(list));
    size_t n = json_array_size(list);
    c->m = nb_calloc(n + 1, sizeof *c->m);
    c->fields = nb_calloc(n + 1, sizeof *c->fields);
    if (json_is_string(system) && json_string_length(system))
        c->m[c->n++] = (nb_message_t){"system", json_string_value(system), NULL};
    for (size_t i = 0; i < n; i++) {
        int k = c->n++;
        NB_TRY(read_message(in, json_array_get(list, i), i, &c->m[k], &c->fields[k]));
    }
    if (n && c->n > (int)n && !strcmp(c->m[1].role, "system"))
        return nb_fail(NB_EINPUT, "%s: the row has a system message and a field \"%s\" too; keep one of them",
                       in->where, e->field_system);
    NB_TRY(read_list(in, e->field_tools, &c->tools));
    NB_TRY(read_list(in, e->field_documents, &c->documents));
    parse_each(c->tools, "parameters");
    return NB_OK;
}

/* What a template leaves out was not learned: tools, or the calls of a message. */
static nb_status check_written(const nb_row_in *in, const conversation *c, const nb_example *ex) {
    bool *written = nb_calloc((size_t)c->n + 1, sizeof *written), data = false;
    nb_status st = NB_OK;
    for (int i = 0; i < ex->n_contents; i++) {
        const nb_chat_span *s = &ex->contents[i];
        if (s->message < 0) data = true;
        else written[s->message] |= s->end > s->begin;
    }
    if ((c->tools || c->documents) && !data)
        st = nb_fail(NB_EINPUT,
                     "%s: the row has \"%s\", but the chat template writes nothing of them; take one that does, "
                     "or name a field that is not there",
                     in->where, c->tools ? in->f->e->field_tools : in->f->e->field_documents);
    for (int i = 0; i < c->n && st == NB_OK; i++)
        if (!written[i] && json_object_get(c->m[i].fields, "tool_calls"))
            st = nb_fail(NB_EINPUT, "%s: message %d calls tools, but the chat template writes nothing of it", in->where,
                         i + 1);
    free(written);
    return st;
}

static bool trains_end(int train_on_eos, bool trained, bool last) {
    switch (train_on_eos) {
    case NB_EOS_ALL: return true;
    case NB_EOS_TURN: return trained;
    case NB_EOS_LAST: return trained && last;
    default: return false;
    }
}

/* The next span is of the same turn. */
static bool continues(const nb_chat_span *s) {
    return s[1].message == s->message && s[1].begin == s->end_of_turn && s->end == s->end_of_turn &&
           s[1].untrained == s->untrained;
}

static const char *role_in(const conversation *c, const nb_chat_span *s) {
    return s->message < 0 ? "system" : c->m[s->message].role; /* tools are told of where the system speaks */
}

static void mark_trained(const nb_format *f, const conversation *c, nb_example *ex) {
    for (int i = 0; i < ex->n_contents; i++) {
        const nb_chat_span *s = &ex->contents[i];
        const char *role = role_in(c, s);
        size_t begin = s->begin;
        for (; i + 1 < ex->n_contents && continues(s); i++) s++; /* the parts of one turn */
        bool trained = f->c->train_on_inputs || (has(&f->e->roles_to_train, role) && !s->untrained);
        if (trained) nb_example_train(ex, begin, s->end, false, !strcmp(role, "assistant"));
        if (trains_end(f->e->train_on_eos, trained, i == ex->n_contents - 1))
            nb_example_train(ex, s->end, s->end_of_turn, true, false);
    }
}

nb_status nb_build_chat(const nb_row_in *in, nb_example *ex) {
    const nb_format *f = in->f;
    conversation c = {0};
    ex->chat = true;
    nb_status st = read_conversation(in, &c);
    if (st == NB_OK) {
        const nb_chat_extra extra = {c.tools, c.documents};
        st = nb_chat_render_extra(f->chat, f->t, c.m, c.n, &extra, false, &ex->text, &ex->contents, &ex->n_contents);
        if (st != NB_OK) nb_prefix(st, "%s", in->where);
    }
    if (st == NB_OK) st = check_written(in, &c, ex);
    if (st == NB_OK) mark_trained(f, &c, ex);
    conversation_free(&c);
    return st;
}
