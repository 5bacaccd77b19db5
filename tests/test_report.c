/* The reports of a made-up evaluation: what they must say, that nothing from outside gets into the page's markup, and
 * that the page needs nothing else. */
#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "eval/report.h"
#include "eval/svg.h"
#include "tests/test.h"

enum { ROWS = 200 };

/* Rows of a set: `right` of 100 answers are exact. */
static nb_heldout_result result(const char *name, int right, double loss, bool texts) {
    nb_heldout_result r = {.name = nb_strdup(name), .rows = ROWS, .metrics = 1u << NB_METRIC_LOSS};
    nb_rng g = nb_rng_open(3, NB_RNG_TEST, (uint64_t)right);
    if (texts) r.metrics |= 1u << NB_METRIC_EXACT_MATCH | 1u << NB_METRIC_F1;
    r.row = nb_calloc(ROWS, sizeof *r.row);
    for (int64_t i = 0; i < ROWS; i++) {
        nb_row_result *row = &r.row[i];
        *row = (nb_row_result){.row = i, .line = i + 1, .tokens = 12 + i % 5, .bytes = 50};
        row->loss_sum = (double)row->tokens * (loss + 0.2 * nb_rng_uniform(&g));
        for (int m = 0; m < NB_METRIC_COUNT; m++) row->score[m] = NAN;
        if (!texts) continue;
        bool exact = (int)nb_rng_below(&g, 100) < right;
        row->prompt = nb_asprintf("Order %lld: <b>please</b> cancel & refund it.", (long long)i);
        row->reference = nb_asprintf("intent: cancel; order: %lld", (long long)i);
        row->answer =
            exact ? nb_strdup(row->reference) : nb_strdup(i % 3 ? "intent: \"none\"; <script>alert(1)</script>" : "");
        row->score[NB_METRIC_EXACT_MATCH] = exact;
        row->score[NB_METRIC_F1] = exact ? 1 : nb_token_f1(row->answer, row->reference);
        row->stop = exact ? NB_STOP_TOKEN : NB_STOP_LIMIT;
        row->answer_tokens = 9;
    }
    nb_heldout_summarize(&r);
    return r;
}

static void write_curves(const char *path) {
    nb_text t = {0};
    nb_rng g = nb_rng_open(5, NB_RNG_TEST, 0);
    for (int step = 1; step <= 500; step++) {
        double loss = 0.15 + 2.6 * exp(-step / 60.0) + 0.12 * nb_rng_normal(&g) * exp(-step / 300.0);
        nb_text_printf(&t,
                       "{\"step\": %d, \"epoch\": %.3f, \"loss\": %.5f, \"learning_rate\": %.3e, \"grad_norm\": %.4f, "
                       "\"tokens_per_second\": %.1f, \"peak_memory\": 1000}\n",
                       step, step / 250.0, loss,
                       3e-3 * (step < 15 ? step / 15.0 : 0.5 * (1 + cos(3.14159 * step / 500))),
                       0.4 + exp(-step / 80.0) + 0.1 * nb_rng_uniform(&g), 41000 + 2000 * nb_rng_normal(&g));
        if (step % 100 == 0)
            nb_text_printf(&t, "{\"step\": %d, \"epoch\": %.3f, \"eval\": {\"larkfield/loss\": %.4f, "
                           "\"larkfield/exact_match\": %.3f, \"general/loss\": %.4f}}\n", step, step / 250.0,
                           0.2 + 2.6 * exp(-step / 60.0), 0.94 * (1 - exp(-step / 90.0)), 1.9 - 0.0004 * step);
    }
    nb_text_puts(&t, "{\"step\": 501, \"lo"); /* being written */
    assert_ok(nb_file_write(path, t.s, t.n));
    nb_text_free(&t);
}

static nb_report report(bool adapter) {
    nb_report r = {.base = nb_strdup("data/samples/base"), .weights = nb_strdup("NF4, products in bf16"), .n_sets = 2,
                   .date = "2026-01-31 12:00", .base_sha256 = nb_strdup("0123456789abcdef")};
    char *path = nb_path_join(nb_test_tmp(), "metrics.jsonl");
    r.sets = nb_calloc(2, sizeof *r.sets);
    r.sets[0].base = result("larkfield", 1, 2.7, true);
    r.sets[1].base = result("general <text>", 0, 1.90, false);
    if (adapter) {
        r.adapter = nb_strdup("out/quickstart/best");
        r.config = nb_strdup("configs/quickstart.yaml");
        r.sets[0].adapter = result("larkfield", 92, 0.12, true);
        r.sets[1].adapter = result("general <text>", 0, 1.90, false);
        for (int64_t i = 0; i < ROWS; i++) r.sets[1].adapter.row[i].loss_sum += (i * 37 % 11 - 5) * 0.3; /* no effect */
        nb_heldout_summarize(&r.sets[1].adapter);
        assert_ok(nb_report_compare(&r, 1));
        write_curves(path);
        assert_ok(nb_curves_load(&r.curves, path));
    }
    free(path);
    return r;
}

static void curves_are_read(void **st) {
    (void)st;
    char *path = nb_path_join(nb_test_tmp(), "m.jsonl");
    nb_curves c;
    const char *text = "{\"step\": 1, \"loss\": 2.5, \"note\": \"x\", \"grad_norm\": null}\n\n"
                       "{\"step\": 2, \"loss\": 2}\r\n{\"step\": 2, \"eval\": {\"a/loss\": 1.5}}\n{\"step\": 3, \"lo";
    assert_ok(nb_file_write(path, text, strlen(text)));
    assert_ok(nb_curves_load(&c, path));
    const nb_series *loss = nb_curves_find(&c, "loss", false), *eval = nb_curves_find(&c, "a/loss", true);
    assert_int_equal(loss->n, 2);
    assert_close(loss->x[1], 2, 0);
    assert_close(loss->y[1], 2, 0);
    assert_int_equal(eval->n, 1);
    assert_null(nb_curves_find(&c, "note", false));
    assert_null(nb_curves_find(&c, "grad_norm", false));
    nb_curves_free(&c);
    assert_ok(nb_file_write(path, "{}\nrubbish\n{}\n", 14));
    assert_fails(nb_curves_load(&c, path), NB_EINPUT, "m.jsonl:2");
    assert_fails(nb_curves_load(&c, "/nowhere/m.jsonl"), NB_EIO, "/nowhere/m.jsonl");
    free(path);
}

static void table(void **st) {
    (void)st;
    nb_report r = report(true);
    nb_text t = {0};
    nb_report_text(&t, &r, false);
    assert_non_null(strstr(t.s, "larkfield: 200 rows, "));
    assert_non_null(strstr(t.s, "verdict: better: exact match +"));
    assert_non_null(strstr(t.s, "verdict: no significant difference: loss "));
    assert_non_null(strstr(t.s, " answers ran into max_new_tokens"));
    assert_null(strchr(t.s, '\033'));
    for (char *line = strtok(t.s, "\n"); line; line = strtok(NULL, "\n")) assert_true(strlen(line) <= 100);
    nb_text_free(&t);
    nb_report_free(&r);
    r = report(false);
    nb_report_text(&t, &r, true);
    assert_non_null(strstr(t.s, "bits per byte"));
    assert_null(strstr(t.s, "adapter"));
    assert_null(strstr(t.s, "verdict"));
    nb_text_free(&t);
    nb_report_free(&r);
}

static void json(void **st) {
    (void)st;
    nb_report r = report(true);
    json_t *o = nb_report_json(&r), *sets = json_object_get(o, "datasets"), *set = json_array_get(sets, 0);
    json_t *measure = json_object_get(json_object_get(set, "measures"), "exact_match");
    assert_int_equal(json_array_size(sets), 2);
    assert_string_equal(json_string_value(json_object_get(measure, "verdict")), "better");
    assert_close(json_number_value(json_object_get(measure, "adapter")), r.sets[0].adapter.score[NB_METRIC_EXACT_MATCH],
                 0);
    assert_close(json_number_value(json_array_get(json_object_get(measure, "interval_95"), 0)),
                 r.sets[0].cmp.d[r.sets[0].cmp.headline].low, 0);
    assert_int_equal(json_array_size(json_object_get(set, "per_row")), ROWS);
    json_t *row = json_array_get(json_object_get(set, "per_row"), 7);
    assert_string_equal(json_string_value(json_object_get(json_object_get(row, "adapter"), "answer")),
                        r.sets[0].adapter.row[7].answer);
    assert_string_equal(json_string_value(json_object_get(row, "reference")), "intent: cancel; order: 7");
    char *path = nb_path_join(nb_test_tmp(), "report.json");
    assert_ok(nb_json_save(path, o)); /* it can be written: no NaN, valid UTF-8 */
    free(path);
    json_decref(o);
    nb_report_free(&r);
}

/* Every tag that opens closes, in order; returns how many there were. */
static int check_tags(const char *html) {
    static const char *const single[] = {"meta", "line", "rect", "circle", "polyline", "path", "!doctype"};
    char open[64][16];
    int depth = 0, n = 0;
    for (const char *p = strchr(html, '<'); p; p = strchr(p + 1, '<'), n++) {
        char name[16] = "";
        bool closes = p[1] == '/', alone = false;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p + 1 + closes, " >/\n"), p + 1 + closes);
        for (int i = 0; i < NB_LEN(single); i++) alone |= !strcmp(name, single[i]);
        if (closes) {
            if (!depth || strcmp(open[--depth], name) != 0) fail_msg("</%s> at \"%.60s\"", name, p);
        } else if (!alone) {
            assert_true(depth < 64);
            strcpy(open[depth++], name);
        }
        assert_non_null(strchr(p, '>'));
    }
    assert_int_equal(depth, 0);
    return n;
}

static void page(void **st) {
    (void)st;
    for (int adapter = 0; adapter < 2; adapter++) {
        nb_report r = report(adapter);
        nb_text t = {0};
        nb_report_html(&t, &r);
        assert_true(check_tags(t.s) > 100);
        assert_null(strstr(t.s, "<script"));
        assert_null(strstr(t.s, "http"));
        assert_null(strstr(t.s, "url("));
        assert_null(strstr(t.s, "src="));
        assert_null(strstr(t.s, "general <text>"));
        assert_non_null(strstr(t.s, "general &lt;text&gt;"));
        assert_null(strstr(t.s, "nan"));
        assert_null(strstr(t.s, "inf,"));
        if (adapter) {
            assert_non_null(strstr(t.s, "&lt;script&gt;alert(1)&lt;/script&gt;"));
            assert_non_null(strstr(t.s, "&lt;b&gt;please&lt;/b&gt; cancel &amp; refund"));
            assert_non_null(strstr(t.s, ">Won: "));
            assert_non_null(strstr(t.s, "(nothing)"));
            assert_non_null(strstr(t.s, ">Loss</h3><svg"));
            assert_non_null(strstr(t.s, ">Gradient norm</h3><svg"));
        }
        char *path = nb_path_join(nb_test_tmp(), adapter ? "adapter.html" : "base.html");
        assert_ok(nb_file_write(path, t.s, t.n));
        free(path);
        nb_text_free(&t);
        nb_report_free(&r);
    }
}

static void examples(void **st) {
    (void)st;
    nb_report r = report(true);
    const nb_report_set *s = &r.sets[0];
    int64_t rows[5], all, won = 0;
    int n = nb_report_examples(s, NB_EXAMPLE_WON, rows, 5, &all);
    assert_int_equal(n, 5);
    assert_int_equal(all, s->cmp.won);
    for (int i = 0; i < 5; i++) {
        assert_true(s->adapter.row[rows[i]].score[NB_METRIC_EXACT_MATCH] == 1);
        assert_true(s->base.row[rows[i]].score[NB_METRIC_EXACT_MATCH] == 0);
        assert_true(i == 0 || rows[i] > rows[i - 1]);
        won += rows[i] > ROWS / 2;
    }
    assert_true(won >= 1); /* from the whole set */
    n = nb_report_examples(s, NB_EXAMPLE_WRONG, rows, 5, &all);
    for (int i = 0; i < n; i++) assert_true(s->adapter.row[rows[i]].score[NB_METRIC_EXACT_MATCH] == 0);
    assert_int_equal(nb_report_examples(&r.sets[1], NB_EXAMPLE_WON, rows, 5, &all), 0); /* no answers there */
    nb_report_free(&r);
}

static void escaping(void **st) {
    (void)st;
    nb_text t = {0};
    nb_html_escape(&t, "<a href='x' t=\"y\">&\x01\x7f\n\t", 0);
    assert_string_equal(t.s, "&lt;a href=&#39;x&#39; t=&quot;y&quot;&gt;&amp;\xEF\xBF\xBD\xEF\xBF\xBD\n\t");
    t.n = 0;
    nb_html_escape(&t, "ab\xC3\xA4z", 3); /* not in the middle of a character */
    assert_string_equal(t.s, "ab ...");
    nb_text_free(&t);
}

/* Charts of awkward data: one point, flat, tiny, huge, negative. */
static void charts(void **st) {
    (void)st;
    static const struct {
        double x[3], y[3];
        int n;
    } data[] = {{{5}, {0}, 1}, {{1, 2, 3}, {2, 2, 2}, 3}, {{0, 1, 2}, {1e-9, 2e-9, 3e-9}, 3},
                {{1, 1e6, 2e6}, {1e12, -1e12, 5}, 3}, {{1, 2, 3}, {-3, -2, -1}, 3}, {{7, 7, 7}, {1, 2, 3}, 3}};
    for (int i = 0; i < NB_LEN(data); i++) {
        nb_svg_line l = {"c0", data[i].x, data[i].y, data[i].n};
        nb_text t = {0};
        nb_svg_lines(&t, "x", &l, 1);
        assert_true(check_tags(t.s) > 8);
        assert_true(t.n < 8000); /* a sane number of ticks */
        assert_null(strstr(t.s, "nan"));
        assert_null(strstr(t.s, "inf"));
        nb_text_free(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(curves_are_read), cmocka_unit_test(table), cmocka_unit_test(json), cmocka_unit_test(page),
        cmocka_unit_test(examples), cmocka_unit_test(escaping), cmocka_unit_test(charts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
