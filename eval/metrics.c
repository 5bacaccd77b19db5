#include "eval/metrics.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "core/json.h"
#include "core/mem.h"
#include "core/nearest.h"

const nb_metric_info nb_metrics[NB_METRIC_COUNT] = {
    [NB_METRIC_LOSS] = {"loss", "loss", false},
    [NB_METRIC_EXACT_MATCH] = {"exact_match", "exact match", true},
    [NB_METRIC_F1] = {"f1", "token F1", false},
    [NB_METRIC_ROUGE_L] = {"rouge_l", "ROUGE-L", false},
    [NB_METRIC_REGEX] = {"regex", "regular expression", true},
    [NB_METRIC_JSON_VALID] = {"json_valid", "valid JSON", true},
};

nb_status nb_metrics_parse(unsigned *set, const char *const *names, int n, const char *where) {
    const char *known[NB_METRIC_COUNT];
    for (int m = 0; m < NB_METRIC_COUNT; m++) known[m] = nb_metrics[m].name;
    *set = 1u << NB_METRIC_LOSS;
    for (int i = 0; i < n; i++) {
        int m = 0;
        while (m < NB_METRIC_COUNT && strcmp(names[i], known[m]) != 0) m++;
        if (m < NB_METRIC_COUNT) {
            *set |= 1u << m;
            continue;
        }
        const char *near = nb_nearest(names[i], known, NB_METRIC_COUNT);
        return nb_fail(NB_EINPUT, "%s: there is no metric '%s'%s%s%s; the metrics are loss, exact_match, f1, rouge_l, "
                       "regex, json_valid", where, names[i], near ? ", did you mean '" : "", near ? near : "",
                       near ? "'?" : "");
    }
    return NB_OK;
}

static const char blanks[] = " \t\r\n\v\f";

/* The text without white space around it. */
static const char *trim(const char *s, size_t *n) {
    s += strspn(s, blanks);
    *n = strlen(s);
    while (*n && strchr(blanks, s[*n - 1])) --*n;
    return s;
}

double nb_exact_match(const char *answer, const char *reference) {
    size_t n, m;
    const char *a = trim(answer, &n), *r = trim(reference, &m);
    return n == m && !memcmp(a, r, n);
}

double nb_json_valid(const char *text) {
    json_t *v = json_loads(text, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, NULL);
    json_decref(v);
    return v != NULL;
}

/* ---- words ---- */

typedef struct words { /* begin[i] points to NUL-terminated text inside `text` */
    char *text;
    const char **begin;
    int n, cap;
} words;

static void words_free(words *w) {
    free(w->text);
    free(w->begin);
}

typedef enum part { DROP, SPLIT, KEEP } part; /* what a character is to a rule of splitting */

static part squad_part(utf8proc_int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    bool mark = c < 128 ? c && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c)
                        : k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
    if (mark) return DROP;
    bool space = c < 128 ? c && strchr(blanks, c) : k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_ZP;
    return space ? SPLIT : KEEP;
}

static part rouge_part(utf8proc_int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NO ? KEEP : SPLIT; /* L*, M*, N* */
}

static words split(const char *s, part (*rule)(utf8proc_int32_t), bool drop_articles) {
    words w = {0};
    size_t n = strlen(s), out = 0, begin = 0;
    w.text = nb_malloc(n * 3 + 2); /* lower case takes at most 3 bytes for 2, U+FFFD 3 for a stray byte */
    for (size_t i = 0; i <= n;) {
        utf8proc_int32_t c = ' ';
        utf8proc_ssize_t len =
            i < n ? utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c) : 1;
        if (len < 1) len = 1, c = 0xFFFD; /* not UTF-8: a symbol of its own */
        i += (size_t)len;
        part p = i > n ? SPLIT : rule(c);
        if (p == KEEP) {
            out += (size_t)utf8proc_encode_char(utf8proc_tolower(c), (utf8proc_uint8_t *)w.text + out);
        } else if (p == SPLIT && out > begin) {
            w.text[out] = 0;
            const char *word = w.text + begin;
            bool article = drop_articles && (!strcmp(word, "a") || !strcmp(word, "an") || !strcmp(word, "the"));
            if (article) {
                out = begin;
                continue;
            }
            NB_GROW(w.begin, w.n, w.cap);
            w.begin[w.n++] = word;
            begin = ++out;
        }
    }
    return w;
}

static int by_text(const void *x, const void *y) { return strcmp(*(const char *const *)x, *(const char *const *)y); }

static double f_measure(double common, int answer_n, int reference_n) {
    if (common == 0) return 0;
    double precision = common / answer_n, recall = common / reference_n;
    return 2 * precision * recall / (precision + recall);
}

double nb_token_f1(const char *answer, const char *reference) {
    words a = split(answer, squad_part, true), r = split(reference, squad_part, true);
    int common = 0;
    if (a.n) qsort(a.begin, (size_t)a.n, sizeof *a.begin, by_text);
    if (r.n) qsort(r.begin, (size_t)r.n, sizeof *r.begin, by_text);
    for (int i = 0, j = 0; i < a.n && j < r.n;) {
        int order = strcmp(a.begin[i], r.begin[j]);
        if (order == 0) common++;
        if (order <= 0) i++;
        if (order >= 0) j++;
    }
    double score = a.n || r.n ? f_measure(common, a.n, r.n) : 1;
    words_free(&a);
    words_free(&r);
    return score;
}

double nb_rouge_l(const char *answer, const char *reference) {
    words a = split(answer, rouge_part, false), r = split(reference, rouge_part, false);
    int *row = nb_calloc((size_t)r.n + 1, sizeof *row); /* row[j]: longest common subsequence of a[0..i), r[0..j) */
    for (int i = 0; i < a.n; i++)
        for (int j = 0, diagonal = 0; j < r.n; j++) {
            int above = row[j + 1];
            row[j + 1] = !strcmp(a.begin[i], r.begin[j]) ? diagonal + 1 : above > row[j] ? above : row[j];
            diagonal = above;
        }
    double score = f_measure(row[r.n], a.n, r.n);
    free(row);
    words_free(&a);
    words_free(&r);
    return score;
}

/* ---- expressions ---- */

struct nb_regex {
    pcre2_code *code;
    int group; /* number of the group "answer", or -1 */
    char *pattern;
};

nb_status nb_regex_open(nb_regex **out, const char *pattern) {
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[256];
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!c) {
        pcre2_get_error_message(code, why, sizeof why);
        return nb_fail(NB_EINPUT, "regular expression '%s', at character %zu: %s", pattern, (size_t)at + 1,
                       (char *)why);
    }
    nb_regex *r = NB_NEW(nb_regex);
    *r = (nb_regex){c, pcre2_substring_number_from_name(c, (PCRE2_SPTR) "answer"), nb_strdup(pattern)};
    if (r->group < 0) r->group = -1;
    *out = r;
    return NB_OK;
}

void nb_regex_free(nb_regex *r) {
    if (!r) return;
    pcre2_code_free(r->code);
    free(r->pattern);
    free(r);
}

/* *found; and the group's text (all of the match without a group), white space around it aside, in *text. */
static nb_status search(const nb_regex *r, const char *s, bool *found, char **text) {
    char why[256];
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(r->code, NULL);
    if (!m) return nb_fail(NB_ENOMEM, "no memory for matching '%s'", r->pattern);
    int rc = pcre2_match(r->code, (PCRE2_SPTR)s, PCRE2_ZERO_TERMINATED, 0, 0, m, NULL);
    *found = rc >= 0;
    *text = NULL;
    if (rc >= 0) {
        PCRE2_SIZE *span = pcre2_get_ovector_pointer(m) + 2 * (r->group > 0 ? r->group : 0);
        if (span[0] != PCRE2_UNSET && span[0] <= span[1]) *text = nb_strndup(s + span[0], span[1] - span[0]);
    }
    pcre2_match_data_free(m);
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH) return NB_OK;
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
    return nb_fail(NB_EINPUT, "regular expression '%s' fails on \"%.60s%s\": %s; make it simpler", r->pattern, s,
                   strlen(s) > 60 ? "..." : "", why);
}

nb_status nb_regex_score(const nb_regex *r, const char *answer, const char *reference, double *score) {
    bool found = false, wanted = false;
    char *got = NULL, *want = NULL;
    nb_status st = search(r, answer, &found, &got);
    *score = found;
    if (st == NB_OK && found && r->group > 0) {
        st = search(r, reference, &wanted, &want);
        *score = wanted && got && want && nb_exact_match(got, want) == 1;
    }
    free(got);
    free(want);
    return st;
}
