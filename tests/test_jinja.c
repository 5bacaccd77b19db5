/* The Jinja interpreter against jinja2: golden/jinja (made by make_golden.py there) and the templates of vectors/chat;
 * where text comes from; limits; templates that are broken on purpose. */
#include "tests/test.h"

#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/jinja.h"

static nb_status render_with(const char *jinja, const json_t *variables, const nb_jinja_limits *limits,
                             const struct tm *now, nb_jinja_output *out) {
    nb_jinja *j;
    nb_jinja_input in = {.variables = variables, .limits = limits, .now = now};
    *out = (nb_jinja_output){0};
    NB_TRY(nb_jinja_parse(&j, jinja, strlen(jinja)));
    nb_status st = nb_jinja_render(j, &in, out);
    nb_jinja_free(j);
    return st;
}

/* want: NULL where jinja2 fails. */
static void expect(const char *jinja, const json_t *variables, const char *want) {
    nb_jinja_output out;
    nb_status st = render_with(jinja, variables, NULL, NULL, &out);
    if (want && st != NB_OK) fail_msg("%s\n%s", jinja, nb_message());
    if (!want && st == NB_OK) fail_msg("%s\ngives \"%s\", but jinja2 refuses it", jinja, out.text.s);
    if (want && strcmp(out.text.s, want)) fail_msg("%s\ngives \"%s\"\nwanted \"%s\"", jinja, out.text.s, want);
    if (!want && !strstr(nb_message(), "line ")) fail_msg("%s: no place in: %s", jinja, nb_message());
    nb_jinja_output_free(&out);
}

static void test_semantics(void **s) {
    (void)s;
    json_t *root;
    assert_ok(nb_json_load("tests/golden/jinja/semantics.json", &root));
    const json_t *cases = json_object_get(root, "cases"), *variables = json_object_get(root, "variables");
    assert_true(json_array_size(cases) > 100);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        expect(json_string_value(json_array_get(c, 0)), variables, json_string_value(json_array_get(c, 1)));
    }
    json_decref(root);
}

static void check_hashes(const char *name, const char *jinja, const json_t *talks, const json_t *hashes) {
    for (size_t i = 0; i < json_array_size(talks); i++) {
        const char *want = json_string_value(json_array_get(hashes, i));
        nb_jinja_output out;
        nb_hex hex = "";
        nb_status st = render_with(jinja, json_array_get(talks, i), NULL, NULL, &out);
        if (st == NB_OK) nb_sha256_of(out.text.s, out.text.n, hex);
        hex[16] = 0;
        if (strcmp(hex, want ? want : ""))
            fail_msg("%s, conversation %zu: %s", name, i, st == NB_OK ? out.text.s : nb_message());
        nb_jinja_output_free(&out);
    }
}

static void test_renderings(void **s) {
    (void)s;
    json_t *root, *templates;
    const char *name;
    assert_ok(nb_json_load("tests/golden/jinja/renderings.json", &root));
    const json_t *talks = json_object_get(root, "conversations"), *hashes = json_object_get(root, "sha256");
    assert_int_equal(json_array_size(talks), 30);
    json_object_foreach(json_object_get(root, "templates"), name, templates)
        check_hashes(name, json_string_value(templates), talks, json_object_get(hashes, name));
    json_decref(root);
}

static void test_published_templates(void **s) {
    (void)s;
    static const struct {
        const char *name;
        size_t first, n;
        bool generate;
    } runs[] = {{"sua_gen", 0, 4, true},
                {"sua_full_nogen", 0, 4, false},
                {"ua_train", 1, 2, false},
                {"sua_train", 0, 3, false},
                {"u_gen", 1, 1, true}};
    const struct tm day = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26};
    json_t *golden, *root;
    assert_ok(nb_json_load(VECTORS("chat/rendered.json"), &root));
    assert_ok(nb_json_load("tests/golden/jinja/renderings.json", &golden));
    const json_t *cases = json_object_get(root, "cases"), *all = json_object_get(json_object_get(root, "messages"), "S");
    int n = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i), *rendered = json_object_get(c, "rendered");
        const char *jinja = json_string_value(json_object_get(c, "template"));
        for (int k = 0; k < NB_LEN(runs); k++) {
            const json_t *want = json_object_get(rendered, runs[k].name);
            json_t *messages = json_array();
            for (size_t m = 0; m < runs[k].n; m++) json_array_append(messages, json_array_get(all, runs[k].first + m));
            json_t *v = json_pack("{s:o, s:b, s:n, s:O, s:O}", "messages", messages, "add_generation_prompt",
                                  (int)runs[k].generate, "tools", "bos_token", json_object_get(c, "bos_token"),
                                  "eos_token", json_object_get(c, "eos_token"));
            nb_jinja_output out;
            nb_status st = render_with(jinja, v, NULL, &day, &out);
            if (json_is_object(want)) {
                assert_int_equal(st, NB_EINPUT);
                assert_non_null(strstr(nb_message(), json_string_value(json_object_get(want, "error"))));
            } else {
                assert_int_equal(st, NB_OK);
                assert_string_equal(out.text.s, json_string_value(want));
            }
            nb_jinja_output_free(&out);
            json_decref(v);
            n++;
        }
        const char *name = json_string_value(json_object_get(c, "name"));
        check_hashes(name, jinja, json_object_get(golden, "conversations"),
                     json_object_get(json_object_get(golden, "sha256"), name));
    }
    assert_int_equal(n, 120);
    json_decref(root);
    json_decref(golden);
}

/* Errors say where, and what to look at. */
static void test_errors(void **s) {
    (void)s;
    static const struct {
        const char *jinja, *message;
    } cases[] = {
        {"a\n{% if x %}", "line 2, column 11: expected else, found the end of the template"},
        {"a\n  {{ 'x }}", "line 2, column 6: the string that begins here never ends"},
        {"{{ x.y.z }}", "line 1, column 4: 'x' is undefined"},
        {"{% for m in messages %}\n{{ m.a.b }}{% endfor %}", "line 2, column 4: 'a' is undefined"},
        {"{{ raise_exception('no system here') }}", "the template refuses this conversation: no system here"},
        {"{% include 'x' %}", "expected a tag that chat templates use"},
        {"{% for x in y recursive %}{% endfor %}", "recursive loops are not supported"},
        {"{{ 9223372036854775807 + 1 }}", "this number is not supported"},
        {"{{ 2 ** 70 }}", "beyond 64 bits"},
        {"{{ -9223372036854775806 - 9 }}", "beyond 64 bits"},
        {"{{ '\\ud800' }}", "no character"},
        {"{{ d.list.append(1) }}", "'append' is undefined"},
        {"{{ 1 | tojson(ident=2) }}", "the filter 'tojson' has no argument 'ident' here"},
        {"{{ 1 | length(2) }}", "the filter 'length' takes no more than 0 arguments"},
        {"{{ x|e|nope }}", "there is no filter 'nope'"},
    };
    json_t *v = json_pack("{s:[{s:s}], s:{s:[i]}}", "messages", "content", "x", "d", "list", 1);
    nb_jinja_output out;
    nb_jinja *j;
    for (int i = 0; i < NB_LEN(cases); i++)
        assert_fails(render_with(cases[i].jinja, v, NULL, NULL, &out), NB_EINPUT, cases[i].message);
    assert_fails(nb_jinja_parse(&j, "a\xff", 2), NB_EINPUT, "byte 1 is not UTF-8");
    assert_fails(nb_jinja_parse(&j, "a\0b", 3), NB_EINPUT, "zero byte");
    json_decref(v);
}

static void test_time(void **s) {
    (void)s;
    const char *jinja = "{{ strftime_now('%d %b %Y') if strftime_now is defined else 'never' }}";
    const struct tm day = {.tm_year = 124, .tm_mon = 6, .tm_mday = 26};
    json_t *v = json_object();
    nb_jinja_output out;
    assert_ok(render_with(jinja, v, NULL, NULL, &out));
    assert_string_equal(out.text.s, "never");
    nb_jinja_output_free(&out);
    assert_ok(render_with(jinja, v, NULL, &day, &out));
    assert_string_equal(out.text.s, "26 Jul 2024");
    nb_jinja_output_free(&out);
    json_decref(v);
}

/* ---- where text comes from ---- */

static void test_runs(void **s) {
    (void)s;
    static const struct {
        const char *jinja, *want; /* the text, with content of message 0 as <0...>, of {% generation %} as (...) */
    } cases[] = {
        {"{{ 'a' + messages[0].content + 'b' }}", "a<0 Hi there >b"},
        {"{{ messages[0].content | trim ~ messages[1].content }}", "<0Hi there><1You>"},
        {"{{ messages[0].content.strip()[3:] }}", "<0there>"},
        {"{{ messages[0].content | replace('there', 'x') | upper }}", "<0 HI >X<0 >"},
        {"{{ messages[0].content.split() | join('+') }}", "<0Hi>+<0there>"},
        {"{% macro m(t) %}[{{ t }}]{% endmacro %}{{ m(messages[1].content) }}", "[<1You>]"},
        {"{% set x %}.{{ messages[1].content }}.{% endset %}{{ x | indent(2, true) }}", "  .<1You>."},
        {"{{ messages[1].content | tojson }}{{ messages[1].content[::-1] }}", "\"<1You>\"<1uoY>"},
        {"{{ '%s!' % messages[1].content }}{{ messages[1].content | e }}", "<1You>!<1You>"},
        {"{{ messages[2].content }}|{{ messages[2].content | trim }}", "<2>|<2>"},
        {"a{% generation %}b{{ messages[1].content }}c{% endgeneration %}d", "a(b)(<1You>)(c)d"},
        {"{{ messages[1].role }}", "user"},
        {"{% for c in messages[1].content %}{{ c }}-{% endfor %}", "<1Y>-<1o>-<1u>-"},
        {"{{ messages | map(attribute='content') | list | first }}", "<0 Hi there >"},
        {"{{ messages[1] }}", "{'role': 'user', 'content': '<1You>'}"},
    };
    json_t *v = json_pack("{s:[{s:s,s:s},{s:s,s:s},{s:s,s:s}]}", "messages", "role", "system", "content", " Hi there ",
                          "role", "user", "content", "You", "role", "user", "content", "");
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_jinja_output out;
        nb_text got = {0};
        size_t at = 0;
        assert_ok(render_with(cases[i].jinja, v, NULL, NULL, &out));
        for (int r = 0; r < out.n_runs; r++) {
            const nb_jinja_run *run = &out.runs[r];
            assert_true(run->begin >= at && run->end >= run->begin && run->end <= out.text.n);
            nb_text_add(&got, out.text.s + at, run->begin - at);
            if (run->generation) nb_text_puts(&got, "(");
            if (run->message >= 0) nb_text_printf(&got, "<%d", run->message);
            nb_text_add(&got, out.text.s + run->begin, run->end - run->begin);
            if (run->message >= 0) nb_text_puts(&got, ">");
            if (run->generation) nb_text_puts(&got, ")");
            at = run->end;
        }
        nb_text_puts(&got, out.text.s + at);
        assert_string_equal(got.s, cases[i].want);
        nb_text_free(&got);
        nb_jinja_output_free(&out);
    }
    json_decref(v);
}

/* ---- limits ---- */

static char *repeated(const char *head, const char *middle, int n, const char *tail) {
    nb_text t = {0};
    nb_text_puts(&t, head);
    for (int i = 0; i < n; i++) nb_text_puts(&t, middle);
    nb_text_puts(&t, tail);
    return t.s;
}

static void test_limits(void **s) {
    (void)s;
    static const struct {
        const char *jinja, *message;
    } cases[] = {
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deep"},
        {"{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
         "nested too deep"},
        {"{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}", "chat template"},
        {"{% set l = range(9999) %}{% for a in l %}{{ -1 in l }}{% endfor %}", "steps"},
        {"{{ 'x' * 1000000000 }}", "limit of a chat template"},
        {"{{ 'x' * 100000000000000 }}", "limit of a chat template"},
        {"{{ [0] * 1000000000000 }}", "chat template"},
        {"{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
         "chat template"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
         "chat template"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
         "nested too deep"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}"
         "{{ ns.s | tojson }}", "nested too deep"},
        {"{% set ns = namespace() %}{% set ns.x = ns %}{{ '%999999d' % 1 }}{{ ns.x.x.x.y.z }}", "'y' is undefined"},
        {"{{ '' | indent(999999999) }}{{ 'a' | replace('', 'bbbbbbbb') }}{{ 'a' * 2 | round(400) }}",
         "chat template"},
    };
    json_t *v = json_object();
    nb_jinja_output out;
    for (int i = 0; i < NB_LEN(cases); i++)
        assert_fails(render_with(cases[i].jinja, v, NULL, NULL, &out), NB_EINPUT, cases[i].message);
    char *deep[] = {repeated("{{ ", "(", 5000, ""),
                    repeated("{{ ", "[", 200, "1 }}"),
                    repeated("{{ ", "not ", 5000, "1 }}"),
                    repeated("{{ 1", "-", 5000, "1 }}"),
                    repeated("{{ 1", " + 1", 5000, " }}"),
                    repeated("{{ a", ".b", 5000, " }}"),
                    repeated("{{ 1", " if 1 else 1", 5000, " }}"),
                    repeated("", "{% if 1 %}", 5000, ""),
                    repeated("{{ x", "|string", 5000, "}}"),
                    repeated("{% set ", "(", 300, "a = 1 %}")};
    for (int i = 0; i < NB_LEN(deep); i++) {
        assert_int_equal(render_with(deep[i], v, NULL, NULL, &out), NB_EINPUT);
        free(deep[i]);
    }
    /* A million bytes are no problem, a smaller limit is kept. */
    const char *million = "{% for i in range(1000) %}{{ 'x' * 1000 }}{% endfor %}";
    assert_ok(render_with(million, v, NULL, NULL, &out));
    assert_int_equal(out.text.n, 1000000);
    nb_jinja_output_free(&out);
    nb_jinja_limits small = nb_jinja_default_limits;
    small.output = 999999;
    assert_fails(render_with(million, v, &small, NULL, &out), NB_EINPUT, "more than 999999 bytes");
    small = nb_jinja_default_limits;
    small.memory = 1 << 20;
    assert_fails(render_with(million, v, &small, NULL, &out), NB_EINPUT, "memory");
    json_decref(v);
}

/* Work that grows with the square of a text's length, or is done without an end on a long one, counts as steps. */
static void test_slow_templates(void **s) {
    (void)s;
#define LONG "{% set a = 'a' * 1000000 %}{% set h = 'a' * 500000 %}"
#define LOOP(what) LONG "{% for i in range(99999) %}{% if " what " %}{% endif %}{% endfor %}"
    static const char *const slow[] = {
        LONG "{{ a.rfind(h + 'b') }}", LONG "{{ a.rsplit(h + 'b') | length }}",
        LONG "{{ a.rpartition(h + 'b')[0] | length }}", LONG "{{ a.strip('b' * 500000 + 'a') }}", LONG "{{ a.find(h + 'b') }}",
        "{% set l = ['x' * 1000000] * 9999 %}{{ l | sort | length }}{{ l | max | length }}",
        LOOP("a.startswith(a)"), LOOP("a.endswith(h)"), LOOP("a.isalpha()"), LOOP("a.splitlines()"),
        LOOP("a.partition('b')"),
        LOOP("a == a"), LOOP("a in a"), LOOP("a | length"), LOOP("a.count('b')"), LOOP("a[999999]"),
        LOOP("a < a"), LONG "{{ [a * 50] | string | length }}",
        LOOP("(a + ' ').strip()"), LOOP("a.split()"), LOOP("a.replace('b', '')"), LOOP("{a: 1}[a]"), LOOP("a | int"),
        "{% set ns = namespace(s='') %}{% for i in range(5000) %}{% set ns.s = ns.s ~ messages[0].content ~ '-' %}"
        "{% endfor %}"
        "{{ ns.s | upper | length }}{{ ns.s | tojson | length }}{% for c in ns.s %}{{ c }}{% endfor %}{{ ns.s[::-1] }}",
    };
    json_t *v = json_pack("{s:[{s:s}]}", "messages", "content", "some \"text\"");
    nb_jinja_limits small = nb_jinja_default_limits;
    small.steps /= 10;
    for (int i = 0; i < NB_LEN(slow); i++) {
        nb_jinja_output out;
        double start = nb_now();
        if (render_with(slow[i], v, &small, NULL, &out) != NB_OK) assert_non_null(strstr(nb_message(), "chat template"));
        nb_jinja_output_free(&out);
        if (!(nb_now() - start < 20)) fail_msg("%s takes %.1f s", slow[i], nb_now() - start);
    }
    json_decref(v);
    char *parameters = repeated("{% macro m(a", ",a", 300000, ") %}{% endmacro %}"),
         *names = repeated("{% with a=1", ",a=1", 200000, " %}{% endwith %}");
    nb_jinja_output out;
    v = json_object();
    double start = nb_now();
    assert_ok(render_with(parameters, v, NULL, NULL, &out));
    nb_jinja_output_free(&out);
    assert_ok(render_with(names, v, NULL, NULL, &out));
    nb_jinja_output_free(&out);
    assert_true(nb_now() - start < 20);
    free(parameters);
    free(names);
    json_decref(v);
}

/* ---- broken templates ---- */

/* Random edits of a template that is fine: whatever comes of it, no crash and a message with a place. */
static void mutate(const char *jinja, const json_t *variables, int times, uint64_t seed) {
    static const char *const pieces[] = {"{{", "}}", "{%", "%}", "-", "(", ")", "[", "]", "|", ".", "'", "\"", "\\", "{#",
                                         "#}", " if ", " else ", " in ", " is ", "not ", "%} {% endfor", ":", ",", "*",
                                         "**9", "messages", "loop", "|list", "|tojson", "[::-1]", "\n", "0", "-1", "\xc3\xa9"};
    nb_jinja_limits small = {.steps = 100000, .memory = 8 << 20, .output = 1 << 20, .depth = 100};
    size_t n = strlen(jinja);
    for (int k = 0; k < times; k++) {
        nb_text t = {0};
        nb_text_add(&t, jinja, n);
        for (int e = 0; e < 1 + k % 4; e++) {
            uint32_t r[4];
            nb_philox(r, (uint32_t[4]){(uint32_t)k, (uint32_t)e}, (uint32_t[2]){(uint32_t)seed});
            size_t at = r[0] % t.n, cut = r[1] % 6;
            const char *piece = pieces[r[2] % NB_LEN(pieces)];
            if (cut > t.n - at) cut = t.n - at;
            if (r[3] % 3 == 0) t.s[at] = (char)(32 + r[2] % 95);
            else {
                char *rest = nb_strndup(t.s + at + cut, t.n - at - cut);
                t.n = at;
                nb_text_puts(&t, piece);
                if (r[3] % 3 == 1) nb_text_puts(&t, rest);
                else nb_text_printf(&t, "%.*s%s", (int)cut, jinja, rest);
                free(rest);
            }
            if (!t.n) nb_text_puts(&t, "x");
        }
        nb_jinja *j;
        nb_jinja_output out;
        nb_jinja_input in = {.variables = variables, .limits = &small};
        nb_status st = nb_jinja_parse(&j, t.s, t.n);
        if (st == NB_OK) {
            st = nb_jinja_render(j, &in, &out);
            nb_jinja_output_free(&out);
        }
        if (st != NB_OK) assert_non_null(strstr(nb_message(), "chat template"));
        nb_jinja_free(j);
        nb_text_free(&t);
    }
}

static void test_mutations(void **s) {
    (void)s;
    json_t *root, *golden, *t;
    const char *name;
    uint64_t seed = 1;
    assert_ok(nb_json_load("tests/golden/jinja/semantics.json", &root));
    assert_ok(nb_json_load("tests/golden/jinja/renderings.json", &golden));
    const json_t *cases = json_object_get(root, "cases"), *talk = json_array_get(json_object_get(golden, "conversations"), 9);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const char *jinja = json_string_value(json_array_get(json_array_get(cases, i), 0));
        if (*jinja) mutate(jinja, json_object_get(root, "variables"), 60, seed++);
    }
    json_object_foreach(json_object_get(golden, "templates"), name, t) mutate(json_string_value(t), talk, 300, seed++);
    json_decref(root);
    json_decref(golden);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_semantics), cmocka_unit_test(test_renderings), cmocka_unit_test(test_published_templates),
        cmocka_unit_test(test_errors),    cmocka_unit_test(test_time),       cmocka_unit_test(test_runs),
        cmocka_unit_test(test_limits),    cmocka_unit_test(test_slow_templates), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
