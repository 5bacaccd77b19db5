/* Chat templates as Ollama's Modelfile has them. tests/interop/check_modelfile.py runs them in Go. */
#include "adapters/export.h"
#include "core/json.h"
#include "data/chat_go.h"
#include "tests/test.h"

#include "core/file.h"
#include "core/mem.h"

static nb_tokenizer *plain; /* <s>, </s>, and no BOS in front of texts */

static int load_plain(void **state) {
    (void)state;
    return nb_tokenizer_load(&plain, "tests/golden/llama") == NB_OK ? 0 : -1;
}

static int free_plain(void **state) {
    (void)state;
    nb_tokenizer_free(plain);
    return 0;
}

/* A file of tests/golden/modelfiles. */
static void equals_golden(const nb_text *text, const char *name) {
    char *path = nb_asprintf("tests/golden/modelfiles/%s", name), *want;
    size_t n;
    assert_ok(nb_file_read(path, &want, &n));
    assert_string_equal(text->s, want);
    free(path), free(want);
}

static void builtins(void **state) {
    (void)state;
    static const char *const names[] = {"chatml", "llama3", "llama3.1", "mistral", "mistral_v0.2", "mistral_v1", "zephyr",
                                        "alpaca", "qwen2.5", "smollm2"};
    for (int i = 0; i < NB_LEN(names); i++) {
        const nb_chat_template *c;
        nb_text text = {0};
        assert_ok(nb_chat_template_find(&c, names[i], plain));
        assert_ok(nb_export_modelfile(&text, "model.gguf", c, plain, i == 0 ? "Be brief." : NULL));
        equals_golden(&text, names[i]);
        nb_text_free(&text);
    }
}

static void published(void **state) {
    (void)state;
    static const struct { const char *name, *golden; bool system; } cases[] = {
        {"google-gemma-2-2b-it", "gemma", false},
        {"microsoft-Phi-3.5-mini-instruct", "phi3", true},
        {"Qwen-Qwen3", "qwen3", true},
    };
    json_t *root, *it;
    size_t i;
    int found = 0;
    assert_ok(nb_json_load(VECTORS("chat/rendered.json"), &root));
    json_array_foreach(json_object_get(root, "cases"), i, it) {
        const char *name = json_string_value(json_object_get(it, "name"));
        const nb_chat_template *c;
        nb_chat_go_form form;
        nb_text text = {0};
        assert_ok(nb_chat_template_find(&c, json_string_value(json_object_get(it, "template")), plain));
        assert_true(nb_chat_go(c, plain, &text, &form)); /* every one of them has a form */
        for (int k = 0; k < NB_LEN(cases); k++) {
            if (strcmp(name, cases[k].name) != 0) continue;
            found++;
            assert_true(form.system == cases[k].system);
            text.n = 0;
            assert_ok(nb_export_modelfile(&text, "model.gguf", c, plain, NULL));
            equals_golden(&text, cases[k].golden);
            if (!form.system)
                assert_fails(nb_export_modelfile(&text, "model.gguf", c, plain, "Be brief."), NB_EINPUT, "--system");
        }
        nb_text_free(&text);
    }
    assert_int_equal(found, NB_LEN(cases));
    json_decref(root);
}

static bool go(const char *jinja, const nb_tokenizer *t, nb_text *text, nb_chat_go_form *form) {
    const nb_chat_template *c;
    text->n = 0;
    assert_ok(nb_chat_template_find(&c, jinja, t));
    return nb_chat_go(c, t, text, form);
}

#define EACH(text) "{% for m in messages %}" text "{% endfor %}"

static void what_has_no_form(void **state) {
    (void)state;
    static const char *const templates[] = {
        EACH("{{ loop.index }}{{ m.content }}"),          /* numbers the turns */
        EACH("{{ m.content | upper }}"),                  /* changes messages */
        EACH("{% if loop.last %}{{ m.content }}{% endif %}"), /* forgets some */
        EACH("{{ m.content }}{{ m.content }}"),
        EACH("{{ raise_exception('no') }}"),
        "{{ messages | length }}" EACH("{{ m.content }}"),
    };
    nb_text text = {0};
    nb_chat_go_form form;
    for (int i = 0; i < NB_LEN(templates); i++) assert_false(go(templates[i], plain, &text, &form));
    const nb_chat_template *c;
    assert_ok(nb_chat_template_find(&c, templates[0], plain));
    text.n = 0;
    assert_ok(nb_export_modelfile(&text, "model.gguf", c, plain, NULL));
    assert_null(strstr(text.s, "TEMPLATE"));
    assert_non_null(strstr(text.s, "# The chat template is the GGUF file's"));
    text.n = 0;
    assert_ok(nb_export_modelfile(&text, "x.gguf", NULL, plain, NULL));
    assert_string_equal(text.s, "# ollama create NAME -f Modelfile\nFROM ./x.gguf\nPARAMETER stop \"</s>\"\n");
    assert_fails(nb_export_modelfile(&text, "x.gguf", NULL, plain, "a\"\"\"b"), NB_EUNSUPPORTED, "three quotes");
    nb_text_free(&text);
}

/* Neither an action nor the text's end can be begun by what a template writes. */
static void text_that_go_would_read(void **state) {
    (void)state;
    nb_text text = {0};
    nb_chat_go_form form;
    assert_true(go(EACH("{{ '{' '{ \"\"\"\"\" ' }}{{ m.role }}: {{ m.content }};"), plain, &text, &form));
    assert_null(strstr(text.s, "\"\"\""));
    assert_non_null(strstr(text.s, "{{ \"{{\" }} {{ `\"` }}\"{{ `\"` }}\"\" user: "));
    nb_text_free(&text);
}

/* The golden Llama's tokenizer with a post-processor that puts <s> in front. */
static nb_tokenizer *adding_bos(void) {
    char *path = nb_path_join(nb_test_tmp(), "tokenizer.json"), *config = nb_path_join(nb_test_tmp(), "config.json");
    json_t *root, *post = json_loads("{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\", "
                                     "\"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [], "
                                     "\"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [1], \"tokens\": [\"<s>\"]"
                                     "}}}", 0, NULL);
    nb_tokenizer *t;
    assert_ok(nb_json_load("tests/golden/llama/tokenizer.json", &root));
    json_object_set_new(root, "post_processor", post);
    assert_ok(nb_json_save(path, root));
    assert_ok(nb_file_copy("tests/golden/llama/config.json", config));
    assert_ok(nb_tokenizer_load(&t, nb_test_tmp()));
    assert_true(nb_tokenizer_adds_bos(t));
    json_decref(root);
    free(path), free(config);
    return t;
}

static void bos_is_put_once(void **state) {
    (void)state;
    nb_tokenizer *t = adding_bos();
    nb_text text = {0};
    nb_chat_go_form form;
    assert_true(go("llama3", plain, &text, &form));
    assert_true(strstr(text.s, "<s>") && !form.more_bos);
    assert_true(go("llama3", t, &text, &form));
    assert_true(!strstr(text.s, "<s>") && !form.more_bos);
    assert_true(go("mistral", t, &text, &form));
    assert_true(!strstr(text.s, "<s>") && !form.more_bos);
    assert_true(go("chatml", t, &text, &form));
    assert_true(form.more_bos);
    nb_text_free(&text);
    nb_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builtins),         cmocka_unit_test(published),
        cmocka_unit_test(what_has_no_form), cmocka_unit_test(text_that_go_would_read),
        cmocka_unit_test(bos_is_put_once),
    };
    return cmocka_run_group_tests(tests, load_plain, free_plain);
}
