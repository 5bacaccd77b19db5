/* Targets: tokenizers, chat templates, configurations, rows of data. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "configs/config.h"
#include "core/mem.h"
#include "data/chat_jinja.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static const char sample_text[] =
    "Hello  world, it's <s> 3.14\r\n\t\xC3\xA9 e\xCC\x81 \xE2\x96\x81 \xF0\x9F\x99\x82 \xE6\x97\xA5"
    "\xE6\x9C\xAC\xE8\xAA\x9E <|im_end|>\r\n banana aaaaaaaa heh tail ";

void fuzz_use(const nb_tokenizer *t, fuzz_part text) {
    nb_text back = {0};
    nb_ids ids = {0};
    if (nb_tokenizer_encode(t, (const char *)text.data, text.n, NB_TOK_SPECIAL, &ids) == NB_OK)
        nb_tokenizer_decode(t, ids.id, ids.n, false, &back);
    ids.n = 0;
    nb_tokenizer_encode(t, (const char *)text.data, text.n, NB_TOK_PLAIN, &ids);
    for (int64_t i = 1; i < ids.n; i++)
        if (ids.start[i] < ids.start[i - 1] || (size_t)ids.start[i] > text.n) abort();
    for (int32_t id = -1; id < 8; id++) nb_tokenizer_decode(t, &id, 1, true, &back);
    nb_text_free(&back);
    nb_ids_free(&ids);
}

static void load_and_use(const char *path, fuzz_part text) {
    nb_tokenizer *t;
    if (!text.n) text = (fuzz_part){(const uint8_t *)sample_text, sizeof sample_text - 1};
    if (nb_tokenizer_load(&t, path) != NB_OK) return;
    fuzz_use(t, text);
    nb_tokenizer_free(t);
}

/* tokenizer.json, tokenizer_config.json (may be empty: none), a text (empty: a fixed one). */
void fuzz_read_tokenizer(const uint8_t *data, size_t n) {
    fuzz_part rest = {data, n}, json = fuzz_take(&rest), config = fuzz_take(&rest);
    if (config.n) fuzz_file("tok/tokenizer_config.json", config.data, config.n);
    else fuzz_path("tok/tokenizer_config.json");
    load_and_use(fuzz_file("tok/tokenizer.json", json.data, json.n), rest);
}

void fuzz_read_sentencepiece(const uint8_t *data, size_t n) {
    load_and_use(fuzz_file("spm/tokenizer.model", data, n), (fuzz_part){0});
}

/* A template, and the messages as JSON (empty, or no messages: fixed ones). */
static json_t *conversation(fuzz_part text) {
    static const char fixed[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \" Be \\u00e9 \"}, {\"role\": \"user\", \"content\": \"Hi "
        "<|im_end|>\"}, "
        "{\"role\": \"assistant\", \"content\": \"<think>a</think>b\\n\"}, {\"role\": \"user\", \"content\": \"\"}], "
        "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"x\": 1.5}}}], "
        "\"documents\": null, "
        "\"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"n\": -7}";
    json_t *v = text.n ? json_loadb((const char *)text.data, text.n, 0, NULL) : NULL;
    if (json_is_object(v)) return v;
    json_decref(v);
    return json_loads(fixed, 0, NULL);
}

/* The turns of a conversation by a template that renders it: spans in order, within the text. */
static void find_turns(const nb_jinja *j, const json_t *v) {
    enum { MOST = 8 };
    static nb_tokenizer *t;
    const json_t *list = json_object_get(v, "messages");
    const nb_chat_extra extra = {json_object_get(v, "tools"), json_object_get(v, "documents")};
    nb_message_t m[MOST];
    nb_text text = {0};
    nb_chat_span *spans;
    int n = (int)json_array_size(list), n_spans;
    if (n < 1 || n > MOST) return;
    for (int i = 0; i < n; i++) {
        const json_t *one = json_array_get(list, (size_t)i);
        m[i] = (nb_message_t){json_string_value(json_object_get(one, "role")),
                              json_string_value(json_object_get(one, "content")), one};
        if (!m[i].role) return;
    }
    if (!t && nb_tokenizer_load(&t, "data/samples/base") != NB_OK) abort();
    if (nb_chat_jinja_render(j, t, m, n, &extra, false, &text, &spans, &n_spans) == NB_OK) {
        nb_ids ids = {0};
        for (int i = 0; i < n_spans; i++) {
            const nb_chat_span *s = &spans[i];
            bool placed = s->begin <= s->end && s->end <= s->end_of_turn && s->end_of_turn <= text.n;
            if (!placed || s->message < -1 || s->message >= n || (i && s->begin < s[-1].end)) abort();
        }
        if (text.n < 10000) nb_chat_encode(t, &text, spans, n_spans, &ids);
        nb_ids_free(&ids);
    }
    free(spans);
    nb_text_free(&text);
}

void fuzz_read_template(const uint8_t *data, size_t n) {
    /* A hundredth of the time, a quarter of the memory: what keeps these limits keeps the real ones. */
    static const nb_jinja_limits limits = {.steps = 200000, .memory = 64 << 20, .output = 4 << 20, .depth = 400};
    static const struct tm day = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26};
    fuzz_part rest = {data, n}, text = fuzz_take(&rest);
    nb_jinja *j;
    nb_jinja_output out;
    if (nb_jinja_parse(&j, (const char *)text.data, text.n) != NB_OK) return;
    json_t *v = conversation(rest);
    nb_jinja_input in = {.variables = v, .now = &day, .limits = &limits};
    if (nb_jinja_render(j, &in, &out) == NB_OK) {
        size_t at = 0;
        for (int i = 0; i < out.n_runs; i++) {
            if (out.runs[i].begin < at || out.runs[i].end < out.runs[i].begin || out.runs[i].end > out.text.n) abort();
            at = out.runs[i].end;
        }
        find_turns(j, v);
    }
    nb_jinja_output_free(&out);
    json_decref(v);
    nb_jinja_free(j);
}

void fuzz_read_yaml(const uint8_t *data, size_t n) {
    nb_config c;
    if (nb_config_load(&c, fuzz_file("x.yaml", data, n), NULL, 0) != NB_OK) return;
    nb_text text = {0};
    nb_config_resolve_text(&c, &text);
    nb_text_free(&text);
    nb_config_free(&c);
}

/* The first byte says which form the file has and which type of row it is. */
void fuzz_read_rows(const uint8_t *data, size_t n) {
    static const char *const names[] = {"x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt"};
    static nb_tokenizer *t;
    if (!n) return;
    if (!t && nb_tokenizer_load(&t, "data/samples/base") != NB_OK) abort();
    nb_config c;
    nb_dataset *d;
    nb_config_init(&c);
    nb_config_dataset *e = nb_config_add_dataset(&c, false);
    e->path = nb_strdup(fuzz_file(names[data[0] % 5], data + 1, n - 1));
    e->type = (data[0] / 5) % 5;
    c.chat_template = NB_CHAT_CHATML;
    c.excess_length_strategy = NB_EXCESS_SPLIT;
    free(c.dataset_prepared_path);
    c.dataset_prepared_path = nb_strdup("none");
    if (nb_dataset_open(&d, &c, e, t, 16) == NB_OK) nb_dataset_free(d);
    unlink(e->path);
    nb_config_free(&c);
}
