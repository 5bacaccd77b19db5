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

static nb_status message_text(const nb_row_in *in, const json_t *m, size_t i, const char *key, const char *mapping,
                              const char **out) {
    const json_t *v = json_object_get(m, key);
    const char *name, *names[32], *near;
    json_t *value;
    int n = 0;
    *out = json_string_value(v);
    if (*out) return NB_OK;
    if (v && !json_is_null(v))
        return nb_fail(NB_EINPUT, "%s: message %zu: \"%s\" should be text, not %s", in->where, i + 1, key,
                       nb_json_type(v));
    json_object_foreach((json_t *)(uintptr_t)m, name, value) if (n < 32) names[n++] = name;
    near = nb_nearest(key, names, n);
    if (!near) near = n == 2 ? names[!strcmp(mapping, "content")] : "NAME";
    return nb_fail(NB_EINPUT,
                   "%s: message %zu has no \"%s\"; say what it is called in this data: message_property_mappings: "
                   "{%s: %s}",
                   in->where, i + 1, key, mapping, near);
}

static nb_status read_message(const nb_row_in *in, const json_t *m, size_t i, nb_message_t *out) {
    const nb_config_dataset *e = in->f->e;
    const char *name;
    if (!json_is_object(m))
        return nb_fail(NB_EINPUT, "%s: message %zu should be an object, not %s", in->where, i + 1, nb_json_type(m));
    NB_TRY(message_text(in, m, i, e->message_property_mappings_role, "role", &name));
    NB_TRY(message_text(in, m, i, e->message_property_mappings_content, "content", &out->content));
    out->role = role_of(e, name);
    if (!out->role)
        return nb_fail(
            NB_EINPUT,
            "%s: message %zu has the unknown role \"%s\"; say what it stands for: roles: {assistant: [%s]} (or "
            "system, user, tool)",
            in->where, i + 1, name, name);
    return NB_OK;
}

/* The row's messages, with the text of field_system in front when there is such a field. malloc'd at *out. */
static nb_status read_messages(const nb_row_in *in, nb_message_t **out, int *count) {
    const nb_config_dataset *e = in->f->e;
    const json_t *list = json_object_get(in->obj, e->field_messages),
                 *system = json_object_get(in->obj, e->field_system);
    if (!list || json_is_null(list)) return nb_field_missing(in, e->field_messages, "field_messages");
    if (!json_is_array(list))
        return nb_fail(NB_EINPUT, "%s: \"%s\" should be a list of messages, not %s", in->where, e->field_messages,
                       nb_json_type(list));
    size_t n = json_array_size(list);
    nb_message_t *m = nb_calloc(n + 1, sizeof *m);
    nb_status st = NB_OK;
    *count = 0;
    if (json_is_string(system) && json_string_length(system))
        m[(*count)++] = (nb_message_t){"system", json_string_value(system)};
    for (size_t i = 0; i < n && st == NB_OK; i++) st = read_message(in, json_array_get(list, i), i, &m[(*count)++]);
    if (st == NB_OK && n && *count > (int)n && !strcmp(m[1].role, "system"))
        st = nb_fail(NB_EINPUT, "%s: the row has a system message and a field \"%s\" too; keep one of them", in->where,
                     e->field_system);
    if (st == NB_OK) *out = m;
    else free(m);
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
    return s[1].message == s->message && s[1].begin == s->end_of_turn && s->end == s->end_of_turn;
}

nb_status nb_build_chat(const nb_row_in *in, nb_example *ex) {
    const nb_format *f = in->f;
    nb_message_t *m = NULL;
    int n = 0;
    NB_TRY(read_messages(in, &m, &n));
    ex->chat = true;
    nb_status st = nb_chat_render(f->chat, f->t, m, n, false, &ex->text, &ex->contents, &ex->n_contents);
    if (st != NB_OK) nb_prefix(st, "%s", in->where);
    for (int i = 0; st == NB_OK && i < ex->n_contents; i++) {
        const nb_chat_span *s = &ex->contents[i];
        size_t begin = s->begin;
        for (; i + 1 < ex->n_contents && continues(s); i++) s++; /* the parts of one turn */
        bool trained = f->c->train_on_inputs || (has(&f->e->roles_to_train, m[s->message].role) && !s->untrained);
        bool assistant = !strcmp(m[s->message].role, "assistant");
        if (trained) nb_example_train(ex, begin, s->end, false, assistant);
        if (trains_end(f->e->train_on_eos, trained, i == ex->n_contents - 1))
            nb_example_train(ex, s->end, s->end_of_turn, true, false);
    }
    free(m);
    return st;
}
