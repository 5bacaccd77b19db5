#include "data/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/batch.h"
#include "core/json.h"
#include "core/nearest.h"
#include "data/added.h"
#include "data/format_types.h"

/* ---- a row as text ---- */

void nb_example_add(nb_example *ex, const char *s, size_t n) {
    nb_text_add(&ex->text, s, n);
}

void nb_example_train(nb_example *ex, size_t begin, size_t end, bool is_end, bool is_start) {
    if (begin == end && !is_start) return;
    NB_GROW(ex->spans, ex->n_spans, ex->cap_spans);
    ex->spans[ex->n_spans++] = (nb_train_span){begin, end, is_end, is_start};
}

static void example_free(nb_example *ex) {
    nb_text_free(&ex->text);
    free(ex->spans);
    free(ex->contents);
}

nb_status nb_field_missing(const nb_row_in *in, const char *key, const char *setting) {
    nb_text list = {0};
    const char *name, *names[64];
    json_t *value;
    int n = 0;
    nb_text_puts(&list, "");
    json_object_foreach((json_t *)(uintptr_t)in->obj, name, value) {
        if (n == 64) break;
        nb_text_printf(&list, "%s\"%s\"%s", n ? ", " : "", name, json_is_null(value) ? " (null)" : "");
        names[n++] = name;
    }
    const char *near = nb_nearest(key, names, n);
    nb_status st = nb_fail(NB_EINPUT, "%s: no field \"%s\" in this row, which has %s; say which field holds it: %s: %s",
                           in->where, key, n ? list.s : "no fields", setting, near ? near : "NAME");
    nb_text_free(&list);
    return st;
}

nb_status nb_field_text(const nb_row_in *in, const char *key, const char *setting, bool required, nb_field *out) {
    const json_t *v = json_object_get(in->obj, key);
    *out = (nb_field){0};
    if (json_is_string(v)) {
        out->s = json_string_value(v);
        out->n = json_string_length(v);
    } else if (json_is_integer(v)) {
        out->n = (size_t)snprintf(out->digits, sizeof out->digits, "%lld", (long long)json_integer_value(v));
        out->s = out->digits;
    } else if (v && !json_is_null(v)) {
        return nb_fail(NB_EINPUT, "%s: field \"%s\" should be text, not %s", in->where, key, nb_json_type(v));
    } else if (required) {
        return nb_field_missing(in, key, setting);
    }
    return NB_OK;
}

/* ---- types ---- */

/* The Stanford Alpaca prompts (tatsu-lab/stanford_alpaca, train.py): data made for other trainers expects them. */
#define ALPACA_REQUEST "Write a response that appropriately completes the request.\n\n"
static const char alpaca_plain[] = "Below is an instruction that describes a task. " ALPACA_REQUEST;
static const char alpaca_input[] = "Below is an instruction that describes a task, paired with an input that provides "
                                   "further context. " ALPACA_REQUEST;

static nb_status build_completion(const nb_row_in *in, nb_example *ex) {
    nb_field text;
    NB_TRY(nb_field_text(in, in->f->e->field_text, "field_text", true, &text));
    if (!text.n)
        return nb_fail(NB_EINPUT, "%s: the text of this row is empty, there is nothing to train on; remove the row",
                       in->where);
    nb_example_add(ex, text.s, text.n);
    nb_example_train(ex, 0, text.n, false, false);
    return NB_OK;
}

/* Ends the prompt and adds the answer. */
static void add_answer(const nb_row_in *in, nb_example *ex, const nb_field *answer) {
    size_t prompt = ex->text.n;
    nb_example_add(ex, answer->s, answer->n);
    if (in->f->c->train_on_inputs) nb_example_train(ex, 0, prompt, false, false);
    nb_example_train(ex, prompt, ex->text.n, false, true);
}

static nb_status build_prompt_completion(const nb_row_in *in, nb_example *ex) {
    nb_field prompt, completion;
    NB_TRY(nb_field_text(in, in->f->e->field_prompt, "field_prompt", true, &prompt));
    NB_TRY(nb_field_text(in, in->f->e->field_completion, "field_completion", true, &completion));
    nb_example_add(ex, prompt.s, prompt.n);
    add_answer(in, ex, &completion);
    return NB_OK;
}

static nb_status build_alpaca(const nb_row_in *in, nb_example *ex) {
    const nb_config_dataset *e = in->f->e;
    nb_field system = {0}, instruction, input, output;
    NB_TRY(nb_field_text(in, e->field_instruction, "field_instruction", true, &instruction));
    NB_TRY(nb_field_text(in, e->field_input, "field_input", false, &input));
    NB_TRY(nb_field_text(in, e->field_output, "field_output", true, &output));
    if (e->field_system) NB_TRY(nb_field_text(in, e->field_system, "field_system", false, &system));
    if (system.n) nb_text_printf(&ex->text, "%s\n\n", system.s);
    else nb_text_puts(&ex->text, input.n ? alpaca_input : alpaca_plain);
    nb_text_puts(&ex->text, "### Instruction:\n");
    nb_example_add(ex, instruction.s, instruction.n);
    if (input.n) {
        nb_text_puts(&ex->text, "\n\n### Input:\n");
        nb_example_add(ex, input.s, input.n);
    }
    nb_text_puts(&ex->text, "\n\n### Response:\n");
    add_answer(in, ex, &output);
    return NB_OK;
}

static const nb_format_type types[] = {
    [NB_DATA_COMPLETION] = {"completion", build_completion, NULL},
    [NB_DATA_ALPACA] = {"alpaca", build_alpaca, NULL},
    [NB_DATA_PROMPT_COMPLETION] = {"prompt_completion", build_prompt_completion, NULL},
    [NB_DATA_CHAT_TEMPLATE] = {"chat_template", nb_build_chat, NULL},
    [NB_DATA_TOKENIZED] = {"tokenized", NULL, nb_encode_tokenized},
};

/* ---- tokens and labels ---- */

static void reserve(nb_encoded *out, int64_t n) {
    if (n > out->cap) {
        out->cap = n + n / 2;
        out->ids = nb_realloc(out->ids, (size_t)out->cap, sizeof *out->ids);
        out->labels = nb_realloc(out->labels, (size_t)out->cap, sizeof *out->labels);
        out->bytes = nb_realloc(out->bytes, (size_t)out->cap, sizeof *out->bytes);
    }
    out->n = n;
}

static nb_status tokenize(const nb_format *f, nb_example *ex, nb_ids *ids) {
    if (ex->chat) return nb_chat_encode(f->t, &ex->text, ex->contents, ex->n_contents, ids);
    NB_TRY(nb_tokenizer_encode(f->t, ex->text.s, ex->text.n, NB_TOK_SPECIAL | NB_TOK_PLAIN, ids));
    if (!nb_tokenizer_adds_eos(f->t) && nb_tokenizer_eos(f->t) >= 0)
        nb_ids_add(ids, nb_tokenizer_eos(f->t), (int64_t)ex->text.n);
    size_t end = ex->text.n; /* end-of-sequence starts here and is trained */
    nb_example_train(ex, end, end + 1, true, false);
    return NB_OK;
}

/* Labels from spans: both are in the order of the text, so one walk does it. */
static void label(const nb_example *ex, const nb_ids *ids, nb_encoded *out) {
    size_t answer = SIZE_MAX, answer_end = 0, first = SIZE_MAX;
    reserve(out, ids->n);
    out->prompt_n = 0;
    for (int i = 0; i < ex->n_spans; i++)
        if (ex->spans[i].is_start) answer = ex->spans[i].begin, answer_end = ex->spans[i].end;
    for (int64_t i = 0, s = 0; i < ids->n; i++) {
        size_t begin = (size_t)ids->start[i], end = i + 1 < ids->n ? (size_t)ids->start[i + 1] : ex->text.n;
        while (s < ex->n_spans && begin >= ex->spans[s].end) s++;
        bool trained = s < ex->n_spans && begin >= ex->spans[s].begin && i > 0;
        out->ids[i] = ids->id[i];
        out->labels[i] = trained ? ids->id[i] : NB_IGNORE;
        out->bytes[i] = trained && !ex->spans[s].is_end && end > begin ? (int32_t)(end - begin) : 0;
        if (answer != SIZE_MAX && begin >= answer && first == SIZE_MAX && i > 0) first = begin, out->prompt_n = i;
    }
    out->reference.n = 0;
    nb_text_add(&out->reference, "", 0);
    if (first < answer_end) nb_text_add(&out->reference, ex->text.s + first, answer_end - first);
}

static nb_status encode_text(const nb_row_in *in, nb_encoded *out) {
    nb_example ex = {0};
    nb_ids ids = {0};
    nb_status st = in->f->type->build(in, &ex);
    if (st == NB_OK) {
        nb_text_add(&ex.text, "", 0); /* never NULL */
        st = tokenize(in->f, &ex, &ids);
        if (st != NB_OK) nb_prefix(st, "%s", in->where);
    }
    if (st == NB_OK) label(&ex, &ids, out);
    nb_ids_free(&ids);
    example_free(&ex);
    return st;
}

static nb_status check_trains(const nb_row_in *in, const nb_encoded *out) {
    for (int64_t i = 0; i < out->n; i++)
        if (out->labels[i] != NB_IGNORE) return NB_OK;
    return nb_fail(NB_EINPUT, "%s: nothing in this row is trained on (%lld tokens, all masked)%s", in->where,
                   (long long)out->n, in->f->chat ? "; it has no message of a role in roles_to_train" : "");
}

nb_status nb_format_row(const nb_format *f, const nb_reader *r, int64_t i, nb_encoded *out) {
    nb_row_in in = {.f = f};
    json_t *obj;
    snprintf(in.where, sizeof in.where, "%s:%lld", nb_record_path(r, i), (long long)r->records[i].line);
    NB_TRY(nb_record_parse(r, i, &obj));
    in.obj = obj;
    nb_status st = f->type->encode ? f->type->encode(&in, out) : encode_text(&in, out);
    if (st == NB_OK) st = check_trains(&in, out);
    json_decref(obj);
    return st;
}

void nb_encoded_free(nb_encoded *e) {
    free(e->ids);
    free(e->labels);
    free(e->bytes);
    nb_text_free(&e->reference);
    *e = (nb_encoded){0};
}

/* ---- the tokenized type ---- */

static nb_status int_array(const nb_row_in *in, const char *key, bool required, const json_t **out) {
    const json_t *v = json_object_get(in->obj, key);
    *out = json_is_null(v) ? NULL : v;
    if (!*out && !required) return NB_OK;
    if (!*out)
        return nb_fail(NB_EINPUT, "%s: no field \"%s\": a row of type tokenized has input_ids and, optionally, labels",
                       in->where, key);
    if (!json_is_array(v))
        return nb_fail(NB_EINPUT, "%s: \"%s\" should be an array of integers, not %s", in->where, key, nb_json_type(v));
    return NB_OK;
}

static int64_t integer_at(const json_t *array, int64_t i) {
    const json_t *v = json_array_get(array, (size_t)i);
    return json_is_integer(v) ? json_integer_value(v) : -1;
}

nb_status nb_encode_tokenized(const nb_row_in *in, nb_encoded *out) {
    const json_t *ids, *labels;
    NB_TRY(int_array(in, "input_ids", true, &ids));
    NB_TRY(int_array(in, "labels", false, &labels));
    int64_t n = (int64_t)json_array_size(ids), vocab = nb_tokenizer_vocab_size(in->f->t);
    if (labels && (int64_t)json_array_size(labels) != n)
        return nb_fail(NB_EINPUT, "%s: %lld input_ids but %zu labels", in->where, (long long)n,
                       json_array_size(labels));
    reserve(out, n);
    out->prompt_n = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t x = integer_at(ids, i), y = labels ? integer_at(labels, i) : x;
        if (x < 0 || x >= vocab)
            return nb_fail(NB_EINPUT, "%s: input_ids[%lld] should be a token id from 0 to %lld", in->where,
                           (long long)i, (long long)vocab - 1);
        if (y != NB_IGNORE && y != x)
            return nb_fail(NB_EINPUT,
                           "%s: labels[%lld] should be %d (not trained) or equal input_ids[%lld] = %lld (labels are "
                           "not shifted)",
                           in->where, (long long)i, NB_IGNORE, (long long)i, (long long)x);
        out->ids[i] = (int32_t)x;
        out->labels[i] = i ? (int32_t)y : NB_IGNORE;
        out->bytes[i] = 0;
        if (i && y != NB_IGNORE && out->labels[i - 1] == NB_IGNORE) out->prompt_n = i;
    }
    /* Everything trained from the second token on is completion data, not an answer to a prompt of one token. */
    if (out->prompt_n == 1) out->prompt_n = 0;
    nb_text *ref = &out->reference;
    ref->n = 0;
    nb_text_add(ref, "", 0);
    for (int64_t i = 1; i < n; i++) {
        size_t before = ref->n;
        if (out->labels[i] == NB_IGNORE) continue;
        NB_TRY(nb_tokenizer_decode(in->f->t, &out->ids[i], 1, true, ref));
        out->bytes[i] = (int32_t)(ref->n - before);
    }
    ref->n = 0;
    ref->s[0] = 0;
    if (!out->prompt_n) return NB_OK;
    int64_t end = out->prompt_n;
    while (end < n && out->labels[end] != NB_IGNORE) end++;
    return nb_tokenizer_decode(in->f->t, out->ids + out->prompt_n, end - out->prompt_n, true, ref);
}

/* ---- opening ---- */

static nb_status open_chat(nb_format *f) {
    NB_TRY(nb_config_chat(&f->chat, f->c, f->t));
    const char *end = nb_chat_end_of_turn(f->chat, f->t);
    if (!end || nb_tokenizer_token_id(f->t, end) < 0)
        return nb_fail(NB_EINPUT,
                       "chat template %s ends a turn with %s, which this tokenizer does not have, so the model could "
                       "not learn to stop; add it (tokens: [\"%s\"]) or choose another chat_template",
                       nb_chat_template_name(f->chat), end ? end : "its eos_token", end ? end : "</s>");
    return NB_OK;
}

nb_status nb_format_open(nb_format **out, const nb_config *c, const nb_config_dataset *entry, const nb_tokenizer *t) {
    NB_ASSERT(entry->type >= 0 && entry->type < NB_LEN(types));
    nb_format f = {.c = c, .e = entry, .t = t, .type = &types[entry->type]};
    *out = NULL;
    if (entry->type == NB_DATA_CHAT_TEMPLATE) NB_TRY(open_chat(&f));
    else if (entry->type != NB_DATA_TOKENIZED && nb_tokenizer_eos(t) < 0)
        return nb_fail(NB_EINPUT,
                       "%s: the tokenizer has no end-of-sequence token, so the model could not learn to stop; name "
                       "one (special_tokens: {eos_token: \"</s>\"})",
                       entry->path);
    *out = NB_NEW(nb_format);
    **out = f;
    return NB_OK;
}

void nb_format_close(nb_format *f) {
    free(f);
}

static void hash_strs(nb_sha256 *h, const nb_strs *s) {
    nb_sha256_add(h, &s->n, sizeof s->n);
    for (int i = 0; i < s->n; i++) nb_sha256_add_str(h, s->v[i]);
}

void nb_format_hash(const nb_format *f, nb_sha256 *h) {
    const nb_config_dataset *e = f->e;
    const char *parts[] = {
        f->type->name,
        e->field_text,
        e->field_prompt,
        e->field_completion,
        e->field_instruction,
        e->field_input,
        e->field_output,
        e->field_system,
        e->field_messages,
        e->field_tools,
        e->field_documents,
        e->message_property_mappings_role,
        e->message_property_mappings_content,
        f->chat ? nb_chat_template_name(f->chat) : NULL,
        nb_tokenizer_sha256(f->t),
    };
    for (int i = 0; i < NB_LEN(parts); i++) nb_sha256_add_str(h, parts[i]);
    const nb_strs *lists[] = {&e->roles_system, &e->roles_user, &e->roles_assistant, &e->roles_tool,
                              &e->roles_to_train};
    for (int i = 0; i < NB_LEN(lists); i++) hash_strs(h, lists[i]);
    int64_t numbers[] = {e->train_on_eos, f->c->train_on_inputs, nb_tokenizer_bos(f->t), nb_tokenizer_eos(f->t)};
    nb_sha256_add(h, numbers, sizeof numbers);
}
