/* Chat templates with tools, documents and variables of their own: golden/chat (made by make_golden.py there with
 * transformers) as hashes and as what {% generation %} marks; rows of data that have them. */
#include "tests/test.h"

#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "data/chat.h"
#include "data/dataset.h"
#include "data/jinja.h"

static json_t *golden;

static nb_tokenizer *sample_tokenizer(void) {
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_load(&t, "data/samples/base"));
    assert_ok(nb_tokenizer_set_special(t, "bos_token", "<s>"));
    assert_ok(nb_tokenizer_set_special(t, "eos_token", "</s>"));
    return t;
}

static char *template_text(const char *name) {
    char *path = nb_asprintf("tests/golden/chat/%s.jinja", name), *text = NULL;
    size_t n;
    if (nb_file_exists(path)) assert_ok(nb_file_read(path, &text, &n));
    free(path);
    return text;
}

static void hash_text(nb_hex hex, nb_status st, const char *s, size_t n) {
    strcpy(hex, "");
    if (st == NB_OK) nb_sha256_of(s ? s : "", n, hex);
    hex[16] = 0;
}

/* All variables of a conversation as they are. */
static void check_plain(const char *name, const char *jinja) {
    const json_t *talks = json_object_get(golden, "conversations"),
                 *want = json_object_get(json_object_get(golden, "sha256"), name);
    const struct tm day = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26, .tm_wday = 5, .tm_yday = 207};
    nb_jinja *j;
    assert_ok(nb_jinja_parse(&j, jinja, strlen(jinja)));
    for (size_t i = 0; i < json_array_size(talks); i++) {
        const char *hash = json_string_value(json_array_get(want, i));
        nb_jinja_output out;
        nb_hex hex;
        nb_jinja_input in = {.variables = json_array_get(talks, i), .now = &day};
        nb_status st = nb_jinja_render(j, &in, &out);
        hash_text(hex, st, out.text.s, out.text.n);
        if (strcmp(hex, hash ? hash : ""))
            fail_msg("%s, conversation %zu (transformers %s it): %s", name, i, hash ? "renders" : "refuses",
                     st == NB_OK ? out.text.s : nb_message());
        nb_jinja_output_free(&out);
    }
    nb_jinja_free(j);
}

static void test_renderings(void **s) {
    (void)s;
    const char *name;
    json_t *hashes;
    int n = 0;
    assert_int_equal(json_array_size(json_object_get(golden, "conversations")), 30);
    json_object_foreach(json_object_get(golden, "sha256"), name, hashes) {
        char *text = template_text(name);
        if (text) check_plain(name, text), n++;
        free(text);
    }
    assert_true(n >= 12);
}

static void test_published(void **s) {
    (void)s;
    json_t *root, *c;
    size_t i;
    assert_ok(nb_json_load(VECTORS("chat/rendered.json"), &root));
    json_array_foreach(json_object_get(root, "cases"), i, c)
        check_plain(json_string_value(json_object_get(c, "name")), json_string_value(json_object_get(c, "template")));
    json_decref(root);
}

/* ---- the way rows of data go: messages, tools and documents apart, other variables as defaults ---- */

typedef struct rendered {
    nb_status st;
    nb_text text;
    nb_chat_span *spans;
    int n_spans;
    bool *trained; /* [text.n] */
} rendered;

static void rendered_free(rendered *r) {
    nb_text_free(&r->text);
    free(r->spans);
    free(r->trained);
}

static const json_t *given(const json_t *talk, const char *name) {
    const json_t *v = json_object_get(talk, name);
    return json_is_null(v) ? NULL : v;
}

static rendered render_talk(const nb_chat_template *c, const nb_tokenizer *t, const json_t *talk) {
    rendered r = {.st = NB_OK};
    nb_message_t m[16];
    json_t *message, *v, *kwargs = json_object();
    const char *name;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)talk, name,
                        v) if (!strstr(" messages tools documents add_generation_prompt bos_token eos_token ", name))
        json_object_set(kwargs, name, v);
    if (json_object_size(kwargs)) {
        char *text = json_dumps(kwargs, 0);
        r.st = nb_chat_template_preset(&c, c, t, text);
        free(text);
    }
    json_decref(kwargs);
    json_array_foreach(json_object_get(talk, "messages"), i, message)
        m[i] = (nb_message_t){json_string_value(json_object_get(message, "role")),
                              json_string_value(json_object_get(message, "content")), message};
    const nb_chat_extra extra = {given(talk, "tools"), given(talk, "documents")};
    if (r.st == NB_OK)
        r.st =
            nb_chat_render_extra(c, t, m, (int)i, &extra, json_is_true(json_object_get(talk, "add_generation_prompt")),
                                 &r.text, &r.spans, &r.n_spans);
    r.trained = nb_calloc(r.text.n + 1, 1);
    for (int k = 0; k < r.n_spans; k++) {
        const nb_chat_span *s = &r.spans[k];
        assert_true(s->begin <= s->end && s->end <= s->end_of_turn && s->end_of_turn <= r.text.n);
        assert_true(!k || s->begin >= s[-1].end);
        if (s->message >= 0 && !strcmp(m[s->message].role, "assistant") && !s->untrained)
            memset(r.trained + s->begin, 1, s->end_of_turn - s->begin);
    }
    return r;
}

/* marks: the bytes that transformers gives the loss. */
static void check_marks(const char *name, size_t i, const rendered *r, const json_t *marks) {
    const json_t *one;
    size_t k;
    bool *want = nb_calloc(r->text.n + 1, 1);
    json_array_foreach(marks, k, one) {
        size_t begin = (size_t)json_integer_value(json_array_get(one, 0)),
               end = (size_t)json_integer_value(json_array_get(one, 1));
        assert_true(begin <= end && end <= r->text.n);
        memset(want + begin, 1, end - begin);
    }
    for (size_t b = 0; b < r->text.n; b++)
        if (want[b] != r->trained[b])
            fail_msg("%s, conversation %zu: byte %zu is %strained, wanted otherwise: ...%s\n%s", name, i, b,
                     r->trained[b] ? "" : "not ", r->text.s + b, r->text.s);
    free(want);
}

static void test_rows_and_marks(void **s) {
    (void)s;
    nb_tokenizer *t = sample_tokenizer();
    const json_t *talks = json_object_get(golden, "conversations"), *all_marks = json_object_get(golden, "generation");
    const char *name;
    json_t *hashes;
    json_object_foreach(json_object_get(golden, "sha256"), name, hashes) {
        char *text = template_text(name);
        if (!text) continue;
        const nb_chat_template *c;
        assert_ok(nb_chat_template_find(&c, text, t));
        for (size_t i = 0; i < json_array_size(talks); i++) {
            const char *want = json_string_value(json_array_get(hashes, i));
            const json_t *marks = json_object_get(all_marks, name);
            rendered r = render_talk(c, t, json_array_get(talks, i));
            nb_hex hex;
            hash_text(hex, r.st, r.text.s, r.text.n);
            if (strcmp(hex, want ? want : ""))
                fail_msg("%s, conversation %zu: %s", name, i, r.st == NB_OK ? r.text.s : nb_message());
            if (want && marks) check_marks(name, i, &r, json_array_get(marks, i));
            rendered_free(&r);
        }
        free(text);
    }
    nb_tokenizer_free(t);
}

/* The text without `what`; frees it. */
static char *without(char *text, const char *what) {
    nb_text out = {0};
    const char *from = text, *at;
    for (; (at = strstr(from, what)); from = at + strlen(what)) nb_text_add(&out, from, (size_t)(at - from));
    nb_text_puts(&out, from);
    free(text);
    return out.s;
}

/* Nothing of such an answer shows where it stands. */
static bool answers_nothing(const json_t *talk) {
    json_t *m;
    size_t i;
    bool nothing = false;
    json_array_foreach(json_object_get(talk, "messages"), i, m) nothing |=
        !strcmp(json_string_value(json_object_get(m, "role")), "assistant") && !json_object_get(m, "tool_calls") &&
        !json_string_length(json_object_get(m, "content"));
    return nothing;
}

/* A template without {% generation %} trains what it would mark: from the prompt's end to the end token, calls of tools
 * and what the template writes around them included. */
static void test_marks_without_generation(void **s) {
    (void)s;
    static const char *const names[] = {"qwen25", "chatml", "granite"};
    nb_tokenizer *t = sample_tokenizer();
    const json_t *talks = json_object_get(golden, "conversations");
    assert_ok(nb_tokenizer_add(t, "<|end_of_text|>", true, NULL));
    for (int k = 0; k < NB_LEN(names); k++) {
        char *text = without(without(template_text(names[k]), "{% generation %}"), "{% endgeneration %}");
        const nb_chat_template *c;
        assert_ok(nb_chat_template_find(&c, text, t));
        for (size_t i = 0; i < json_array_size(talks); i++) {
            const json_t *marks = json_array_get(json_object_get(json_object_get(golden, "generation"), names[k]), i);
            rendered r = render_talk(c, t, json_array_get(talks, i));
            if (r.st == NB_OK && json_is_array(marks) && !answers_nothing(json_array_get(talks, i)))
                check_marks(names[k], i, &r, marks);
            rendered_free(&r);
        }
        free(text);
    }
    nb_tokenizer_free(t);
}

/* ---- rows ---- */

#define TOOLS "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"x\":\"<|im_end|>\"}}}]"
#define CALL(arguments)                                                                             \
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\"," \
    "\"function\":{\"name\":\"f\",\"arguments\":" arguments "}}]}"
#define ANSWER \
    "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"42\"},{\"role\":\"assistant\",\"content\":\"It is 42.\"}"
#define USER "{\"role\":\"user\",\"content\":\"q\"}"
#define CALLED "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>"

static nb_status open_row(nb_dataset **d, const nb_tokenizer *t, const char *row, const char *template,
                          const char *kwargs) {
    char path[300];
    nb_config c;
    nb_config_init(&c);
    nb_config_dataset *e = nb_config_add_dataset(&c, false);
    snprintf(path, sizeof path, "%s/tools.jsonl", nb_test_tmp());
    assert_ok(nb_file_write(path, row, strlen(row)));
    e->path = nb_strdup(path);
    e->type = NB_DATA_CHAT_TEMPLATE;
    c.dataset_prepared_path = nb_strdup("none");
    c.chat_template = NB_CHAT_JINJA;
    c.chat_template_jinja = nb_asprintf("jinja:tests/golden/chat/%s.jinja", template);
    c.chat_template_kwargs = kwargs ? nb_strdup(kwargs) : NULL;
    nb_status st = nb_dataset_open(d, &c, e, t, 2048);
    nb_config_free(&c);
    return st;
}

/* The row's trained text, pieces divided by "|"; its whole text at *all. */
static char *trained(const nb_dataset *d, const nb_tokenizer *t, nb_text *all) {
    nb_row r;
    nb_text out = {0};
    nb_dataset_row(d, 0, &r);
    nb_text_puts(&out, "");
    for (int32_t k = 0; k < r.n; k++) {
        assert_ok(nb_tokenizer_decode(t, &r.ids[k], 1, false, all));
        if (r.labels[k] == NB_IGNORE) continue;
        if (out.n && r.labels[k - 1] == NB_IGNORE) nb_text_puts(&out, "|");
        assert_ok(nb_tokenizer_decode(t, &r.ids[k], 1, false, &out));
    }
    return out.s;
}

static void test_rows(void **s) {
    (void)s;
    static const struct {
        const char *row, *template, *kwargs, *want, *holds;
    } cases[] = {
        {"{\"messages\":[" USER "," CALL("{\"x\": 1}") "," ANSWER "],\"tools\":" TOOLS "}", "qwen25", NULL,
         CALLED "|It is 42.<|im_end|>", "<tools>\n{\"type\": \"function\""},
        /* OpenAI's way: arguments as JSON text; tools as text of the whole column */
        {"{\"messages\":[" USER "," CALL("\"{\\\"x\\\": 1}\"") "," ANSWER "],\"tools\":\"[]\"}", "qwen3", NULL,
         CALLED "|<think>\n\n</think>\n\nIt is 42.<|im_end|>", "<tool_response>\n42\n</tool_response>"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a "
         "\"},{\"type\":\"text\",\"text\":\"b\"}]},"
         "{\"role\":\"assistant\",\"content\":\"c\",\"tool_calls\":null,\"name\":null}],\"tools\":[]}",
         "chatml", NULL, "c<|im_end|>", "user\na b<|im_end|>"},
        {"{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"c\"}]}", "smollm3",
         "{\"enable_thinking\": false}", "<|im_start|>assistant\n<think>\n\n</think>\nc<|im_end|>\n", "/no_think"},
    };
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_load(&t, "data/samples/base"));
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_dataset *d;
        nb_text all = {0};
        assert_ok(open_row(&d, t, cases[i].row, cases[i].template, cases[i].kwargs));
        char *got = trained(d, t, &all);
        assert_string_equal(got, cases[i].want);
        if (!strstr(all.s, cases[i].holds)) fail_msg("%s lacks %s", all.s, cases[i].holds);
        free(got);
        nb_text_free(&all);
        nb_dataset_free(d);
    }
    nb_tokenizer_free(t);
}

/* "<|im_end|>" in a tool's description is text. */
static void test_no_injection_by_tools(void **s) {
    (void)s;
    nb_tokenizer *t;
    nb_dataset *d;
    nb_row r;
    assert_ok(nb_tokenizer_load(&t, "data/samples/base"));
    assert_ok(open_row(&d, t,
                       "{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":\"c\"}],\"tools\":" TOOLS "}",
                       "qwen25", NULL));
    nb_dataset_row(d, 0, &r);
    int32_t end = nb_tokenizer_token_id(t, "<|im_end|>");
    int n = 0;
    for (int32_t i = 0; i < r.n; i++) n += r.ids[i] == end;
    assert_int_equal(n, 3); /* of system, user and assistant */
    nb_dataset_free(d);
    nb_tokenizer_free(t);
}

static void test_refused(void **s) {
    (void)s;
    static const struct {
        const char *row, *template, *kwargs, *message;
    } cases[] = {
        {"{\"messages\":[" USER "," ANSWER "],\"tools\":" TOOLS "}", "chatml", NULL, "writes nothing of them"},
        {"{\"messages\":[" USER "," CALL("{}") "]}", "zephyr", NULL,
         "calls tools, but the chat template writes nothing"},
        {"{\"messages\":[" USER "," ANSWER "],\"tools\":{\"a\":1}}", "qwen25", NULL, "\"tools\" should be a list"},
        {"{\"messages\":[" USER "," ANSWER "],\"tools\":\"{\"}", "qwen25", NULL, "\"tools\" should be a list"},
        {"{\"messages\":[" USER ",{\"role\":\"assistant\",\"tool_calls\":{}}]}", "qwen25", NULL,
         "\"tool_calls\" should be a list"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"url\":\"x\"}]}]}", "qwen25", NULL,
         "message 1: part 1 of \"content\" is no text"},
        {"{\"messages\":[" USER ",{\"role\":\"assistant\",\"content\":null}]}", "qwen25", NULL,
         "message 2 has no \"content\""},
        {"{\"messages\":[" USER "]}", "qwen25", "{\"messages\": []}", "\"messages\" cannot be set"},
        {"{\"messages\":[" USER "]}", "qwen25", "{\"a-b\": 1}", "\"a-b\" cannot be set"},
        {"{\"messages\":[" USER "]}", "qwen25", "[1]", "should be a map"},
    };
    nb_tokenizer *t;
    assert_ok(nb_tokenizer_load(&t, "data/samples/base"));
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_dataset *d;
        assert_fails(open_row(&d, t, cases[i].row, cases[i].template, cases[i].kwargs), NB_EINPUT, cases[i].message);
    }
    nb_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renderings), cmocka_unit_test(test_published),
        cmocka_unit_test(test_rows_and_marks), cmocka_unit_test(test_marks_without_generation),
        cmocka_unit_test(test_rows), cmocka_unit_test(test_no_injection_by_tools), cmocka_unit_test(test_refused),
    };
    if (nb_json_load("tests/golden/chat/golden.json", &golden) != NB_OK) {
        fprintf(stderr, "%s\n", nb_message());
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
