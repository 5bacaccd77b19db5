/* The report as one HTML page: style and drawings are in it, nothing is fetched, nothing runs. All text that came from
 * outside (names, prompts, answers) goes through nb_html_escape. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/report.h"
#include "eval/svg.h"

static const char style[] =
    ":root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1a2029;--soft:#5b6472;--line:#dfe3e8;"
    "--track:#eef0f3;--base:#98a2b3;--adapter:#2f6fde;--good:#0f7b46;--goodbg:#e3f4ea;--bad:#b3261e;--badbg:#fbe6e4;"
    "--c1:#d97706;--c2:#0f9d76;--c3:#9350d8;--c4:#c2376f;--c5:#5f7a12}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b2129;--ink:#e6e9ee;--soft:#9aa5b4;--line:#303846;"
    "--track:#262d38;--base:#7b8798;--adapter:#6ea1ff;--good:#5fd394;--goodbg:#14362a;--bad:#ff8a80;--badbg:#43201f;"
    "--c1:#f5a742;--c2:#3fcfa4;--c3:#bb8cf0;--c4:#f078a8;--c5:#a9c74b}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    "font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif}"
    "main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}\n"
    "h1{font-size:1.7rem;line-height:1.2;margin:0 0 6px}h2{font-size:1.25rem;margin:44px 0 12px;"
    "overflow-wrap:anywhere}h3{font-size:1rem;margin:0 0 8px}p{margin:0 0 8px}.soft{color:var(--soft);"
    "font-size:.9rem;overflow-wrap:anywhere}\n"
    ".grid{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}"
    ".grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr))}"
    ".cap::first-letter{text-transform:uppercase}.card{background:var(--card);border:1px solid var(--line);"
    "border-radius:10px;padding:16px 18px;min-width:0}.card>:last-child{margin-bottom:0}\n"
    ".card.good{border-left:5px solid var(--good)}.card.bad{border-left:5px solid var(--bad)}"
    ".card.same{border-left:5px solid var(--base)}.big{font-size:1.6rem;font-weight:650;line-height:1.25;"
    "margin:4px 0}.big .to{color:var(--soft);font-weight:400}\n"
    ".tag{display:inline-block;border-radius:99px;padding:1px 10px;font-size:.85rem;font-weight:600;"
    "background:var(--track);color:var(--soft);white-space:nowrap}.tag.good{background:var(--goodbg);"
    "color:var(--good)}.tag.bad{background:var(--badbg);color:var(--bad)}\n"
    ".scroll{overflow-x:auto;padding:4px 18px}table{border-collapse:collapse;width:100%;"
    "font-variant-numeric:tabular-nums}th,td{padding:8px 10px;text-align:right;white-space:nowrap;"
    "border-top:1px solid var(--line)}tr:first-child th{border-top:0;color:var(--soft);font-weight:600;"
    "font-size:.85rem}th:first-child,td:first-child{text-align:left;padding-left:0}"
    "td:last-child,th:last-child{padding-right:0}\n"
    "svg{display:block;width:100%;height:auto}svg text{font-size:13px;fill:var(--soft)}svg .value{fill:var(--ink);"
    "font-weight:600}.grid line,line.grid{stroke:var(--line);stroke-width:1}polyline{fill:none;stroke-width:2;"
    "stroke-linejoin:round}.track{fill:var(--track)}rect.base{fill:var(--base)}rect.adapter{fill:var(--adapter)}"
    ".whisker{stroke:var(--ink);stroke-width:1.5;fill:none}\n"
    "polyline.faint{opacity:.3;stroke-width:1}.c0{stroke:var(--adapter)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}"
    ".c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}circle.c0{fill:var(--adapter)}"
    "circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}circle.c4{fill:var(--c4)}"
    "circle.c5{fill:var(--c5)}\n"
    ".key{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem;color:var(--soft);margin:6px 0 0}"
    ".key i{display:inline-block;width:14px;height:3px;border-radius:2px;vertical-align:middle;margin-right:6px}\n"
    ".split{display:flex;height:14px;border-radius:7px;overflow:hidden;background:var(--track);margin:6px 0 8px}"
    ".split b{background:var(--good)}.split s{background:var(--bad)}\n"
    ".pairs{display:grid;gap:12px}.pair{display:grid;gap:6px 14px;grid-template-columns:110px 1fr}"
    ".pair dt{color:var(--soft);font-size:.85rem;padding-top:2px}.pair dd{margin:0;white-space:pre-wrap;"
    "overflow-wrap:anywhere;max-height:16em;overflow:auto;font-size:.93rem}.pair dd.right{color:var(--good)}"
    ".pair dd.wrong{color:var(--bad)}\n"
    ".note{margin-top:12px}details{margin-top:16px}summary{cursor:pointer;font-weight:600;margin-bottom:10px}"
    ".method p{max-width:75ch}code{font-size:.92em;overflow-wrap:anywhere}\n"
    "@media(max-width:620px){main{padding:20px 14px 40px}.opt{display:none}.pair{grid-template-columns:1fr;gap:0}"
    ".pair dd{margin-bottom:8px}th,td{padding:7px 6px;font-size:.9rem}.scroll{padding:4px 12px}"
    ".big{font-size:1.35rem}}\n";

static const char *const verdict_class[] = {"same", "good", "bad"};

static void puts_escaped(nb_text *out, const char *before, const char *s, const char *after) {
    nb_text_puts(out, before);
    nb_html_escape(out, s, 0);
    nb_text_puts(out, after);
}

static void tag(nb_text *out, const nb_difference *d) {
    nb_text_printf(out, "<span class=\"tag %s\">%s</span>", verdict_class[d->verdict],
                   d->verdict == NB_SAME ? "no significant difference" : nb_verdict_word(d->verdict));
}

/* ---- the top: one card per set ---- */

static void card(nb_text *out, const nb_report_set *s) {
    char base[24], adapter[24], diff[24], low[24], high[24];
    if (!s->adapter.rows) {
        nb_measure m = NB_MEASURE_LOSS;
        for (int k = NB_MEASURE_COUNT - 1; k > NB_MEASURE_BITS_PER_BYTE; k--)
            if (isfinite(nb_measure_value(&s->base, (nb_measure)k))) m = (nb_measure)k;
        nb_measure_text(base, m, nb_measure_value(&s->base, m));
        puts_escaped(out, "<div class=\"card same\"><h3>", s->base.name, "</h3>");
        nb_text_printf(out, "<p class=\"big\">%s</p><p class=\"soft\">%s, %lld rows</p></div>\n", base,
                       nb_measures[m].title, (long long)s->base.rows);
        return;
    }
    const nb_difference *d = &s->cmp.d[s->cmp.headline];
    nb_measure_text(base, d->measure, d->base);
    nb_measure_text(adapter, d->measure, d->adapter);
    nb_difference_text(diff, d->measure, d->diff);
    nb_difference_text(low, d->measure, d->low);
    nb_difference_text(high, d->measure, d->high);
    nb_text_printf(out, "<div class=\"card %s\">", verdict_class[d->verdict]);
    puts_escaped(out, "<h3>", s->base.name, "</h3>");
    tag(out, d);
    nb_text_printf(out,
                   "<p class=\"big\">%s <span class=\"to\">&rarr;</span> %s</p><p class=\"soft\">%s, %s%s, 95&nbsp;%% "
                   "interval %s to %s, %lld rows</p></div>\n",
                   base, adapter, nb_measures[d->measure].title, diff, nb_measures[d->measure].percent ? " points" : "",
                   low, high, (long long)s->base.rows);
}

static void head(nb_text *out, const nb_report *r) {
    nb_text_puts(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
                 "content=\"width=device-width, initial-scale=1\"><title>");
    puts_escaped(out, "", r->adapter ? r->adapter : r->base, " &middot; held-out evaluation</title>\n<style>\n");
    nb_text_puts(out, style);
    nb_text_printf(out, "</style></head><body><main>\n<h1>%s</h1>\n",
                   r->adapter ? "Did the adapter help?" : "Held-out evaluation");
    if (r->adapter) puts_escaped(out, "<p class=\"soft\">adapter <code>", r->adapter, "</code> &middot; ");
    else nb_text_puts(out, "<p class=\"soft\">");
    puts_escaped(out, "base <code>", r->base, "</code> &middot; ");
    puts_escaped(out, "", r->weights, "");
    nb_text_printf(out, " &middot; %s</p>\n<div class=\"grid\">\n", r->date);
    for (int i = 0; i < r->n_sets; i++) card(out, &r->sets[i]);
    nb_text_puts(out, "</div>\n");
}

/* ---- one set ---- */

static void measures_table(nb_text *out, const nb_report_set *s) {
    bool both = s->adapter.rows > 0;
    nb_text_puts(out, "<div class=\"card scroll\"><table><tr><th></th>");
    nb_text_puts(
        out, both ? "<th class=\"opt\">base</th><th class=\"opt\">adapter</th><th>difference</th><th>95&nbsp;% interval"
                    "</th><th class=\"opt\">p</th><th class=\"opt\">verdict</th></tr>\n"
                  : "<th>base</th></tr>\n");
    for (int m = 0; m < NB_MEASURE_COUNT && !both; m++) {
        char value[24];
        nb_measure_text(value, (nb_measure)m, nb_measure_value(&s->base, (nb_measure)m));
        if (strcmp(value, "-") != 0)
            nb_text_printf(out, "<tr><td>%s</td><td>%s</td></tr>\n", nb_measures[m].title, value);
    }
    for (int j = 0; j < s->cmp.n; j++) {
        const nb_difference *d = &s->cmp.d[j];
        char base[24], adapter[24], diff[24], low[24], high[24];
        nb_measure_text(base, d->measure, d->base);
        nb_measure_text(adapter, d->measure, d->adapter);
        nb_difference_text(diff, d->measure, d->diff);
        nb_difference_text(low, d->measure, d->low);
        nb_difference_text(high, d->measure, d->high);
        nb_text_printf(out,
                       "<tr><td>%s</td><td class=\"opt\">%s</td><td class=\"opt\">%s</td><td>%s</td><td>%s to %s</td>",
                       nb_measures[d->measure].title, base, adapter, diff, low, high);
        nb_text_printf(out, d->p < 0.0001 ? "<td class=\"opt\">&lt;&nbsp;0.0001</td>" : "<td class=\"opt\">%.4f</td>",
                       d->p);
        nb_text_puts(out, "<td class=\"opt\">");
        tag(out, d);
        nb_text_puts(out, "</td></tr>\n");
    }
    nb_text_puts(out, "</table></div>\n");
}

static void bars(nb_text *out, const nb_report_set *s) {
    bool both = s->adapter.rows > 0;
    nb_text_puts(out, "<div class=\"grid\" style=\"margin-top:16px\">\n");
    for (int m = 0; m < NB_MEASURE_COUNT; m++) {
        char base[24], adapter[24] = "";
        nb_svg_bars b = {.base = nb_measure_value(&s->base, (nb_measure)m), .has_adapter = both};
        for (int j = 0; j < s->cmp.n; j++) {
            const nb_difference *d = &s->cmp.d[j];
            if (d->measure != (nb_measure)m) continue;
            b.adapter = d->adapter, b.low = d->base + d->low, b.high = d->base + d->high;
            nb_measure_text(adapter, d->measure, d->adapter);
        }
        if (!isfinite(b.base)) continue;
        nb_measure_text(base, (nb_measure)m, b.base);
        b.base_text = base, b.adapter_text = adapter;
        b.max = nb_measures[m].percent ? 1 : fmax(b.base, fmax(b.adapter, b.high));
        nb_text_printf(out, "<div class=\"card\"><h3 class=\"cap\">%s <span class=\"soft\">%s is better</span></h3>",
                       nb_measures[m].title, nb_measures[m].lower_is_better ? "lower" : "higher");
        nb_svg_draw_bars(out, nb_measures[m].title, &b);
        nb_text_puts(out, "</div>\n");
    }
    nb_text_puts(out, "</div>\n");
}

static void rows_won(nb_text *out, const nb_comparison *c) {
    double all = (double)c->rows / 100;
    nb_text_printf(
        out,
        "<div class=\"card\" style=\"margin-top:16px\"><h3>Rows by %s</h3><div class=\"split\"><b style=\"width:"
        "%.2f%%\"></b><span style=\"width:%.2f%%\"></span><s style=\"width:%.2f%%\"></s></div><p class=\"soft\">"
        "the adapter won %lld, lost %lld; %lld the same</p></div>\n",
        nb_measures[c->d[c->headline].measure].title, (double)c->won / all, (double)c->tied / all,
        (double)c->lost / all, (long long)c->won, (long long)c->lost, (long long)c->tied);
}

/* ---- examples ---- */

enum { SHOWN = 5, LONGEST = 2000 }; /* examples of a kind, bytes of a text */

static void example(nb_text *out, const nb_report_set *s, int64_t i) {
    int metric = (int)s->cmp.d[s->cmp.headline].measure - NB_MEASURE_BITS_PER_BYTE;
    const nb_row_result *b = &s->base.row[i], *a = &s->adapter.row[i];
    const struct { const char *name, *class, *text; } field[] = {
        {"prompt", "", a->prompt},
        {"reference", "", a->reference},
        {"base", b->score[metric] >= 1 ? "right" : "wrong", b->answer},
        {"adapter", a->score[metric] >= 1 ? "right" : "wrong", a->answer},
    };
    nb_text_printf(out, "<div class=\"card\"><p class=\"soft\">record %lld</p><dl class=\"pair\" style=\"margin:0\">",
                   (long long)b->line);
    for (int f = 0; f < NB_LEN(field); f++) {
        nb_text_printf(out, "<dt>%s</dt><dd class=\"%s\" dir=\"auto\">", field[f].name, field[f].class);
        if (field[f].text[0]) nb_html_escape(out, field[f].text, LONGEST);
        else nb_text_puts(out, "<span class=\"soft\">(nothing)</span>");
        nb_text_puts(out, "</dd>");
    }
    nb_text_puts(out, "</dl></div>\n");
}

static void examples(nb_text *out, const nb_report_set *s) {
    static const char *const title[] = {"Won", "Lost", "Still wrong"};
    for (int kind = NB_EXAMPLE_WON; kind <= NB_EXAMPLE_WRONG; kind++) {
        int64_t rows[SHOWN], all;
        int n = nb_report_examples(s, (nb_example)kind, rows, SHOWN, &all);
        if (!n) continue;
        nb_text_printf(out, "<details%s><summary>%s: %lld row%s", kind < 2 ? " open" : "", title[kind], (long long)all,
                       all == 1 ? "" : "s");
        if (all > n) nb_text_printf(out, ", %d of them shown", n);
        nb_text_puts(out, "</summary><div class=\"pairs\">\n");
        for (int i = 0; i < n; i++) example(out, s, rows[i]);
        nb_text_puts(out, "</div></details>\n");
    }
}

static void cut_answers(nb_text *out, const nb_report_set *s) {
    const nb_heldout_result *side[] = {&s->base, &s->adapter};
    if (s->base.metrics == 1u << NB_METRIC_LOSS) return;
    for (int i = 0; i < 2; i++) {
        int64_t cut = side[i]->stopped[NB_STOP_LIMIT], full = side[i]->stopped[NB_STOP_CONTEXT];
        if (!side[i]->rows || !(cut + full)) continue;
        nb_text_printf(out, "<p class=\"soft note\">%s: %lld of %lld answers ran into <code>max_new_tokens</code>",
                       i ? "adapter" : "base", (long long)cut, (long long)side[i]->rows);
        if (full) nb_text_printf(out, ", %lld into the end of the context", (long long)full);
        nb_text_puts(out, "</p>\n");
    }
}

static void one_set(nb_text *out, const nb_report_set *s) {
    puts_escaped(out, "<h2>", s->base.name, "</h2>\n");
    nb_text_printf(out, "<p class=\"soft\">%lld rows, %lld trained tokens</p>\n", (long long)s->base.rows,
                   (long long)s->base.tokens);
    measures_table(out, s);
    bars(out, s);
    if (!s->adapter.rows) return;
    rows_won(out, &s->cmp);
    cut_answers(out, s);
    examples(out, s);
}

/* ---- training curves ---- */

/* Exponential mean with a memory of about 2 % of the points, without a pull to its first value. */
static double *smooth(const nb_series *s) {
    double *out = nb_calloc((size_t)s->n, sizeof *out), keep = s->n > 200 ? 1 - 50.0 / s->n : 0.75, sum = 0, weight = 0;
    for (int i = 0; i < s->n; i++) {
        sum = keep * sum + s->y[i], weight = keep * weight + 1;
        out[i] = sum / weight;
    }
    return out;
}

static void key_entry(nb_text *out, const char *color, const char *name) {
    nb_text_printf(out, "<span><i style=\"background:var(--%s)\"></i>", color);
    nb_html_escape(out, name, 0);
    nb_text_puts(out, "</span>");
}

/* A chart of the training series `name` (smoothed over the raw line) and of every evaluation "<set>/<name>". */
static void curve(nb_text *out, const nb_curves *c, const char *title, const char *name, bool smoothed) {
    enum { COLORS = 5 };
    static const char *const dots[] = {"c1 dots", "c2 dots", "c3 dots", "c4 dots", "c5 dots"};
    static const char *const color[] = {"c1", "c2", "c3", "c4", "c5"};
    const nb_series *train = nb_curves_find(c, name, false);
    nb_svg_line lines[2 + COLORS];
    nb_text key = {0};
    int n = 0, k = 0;
    double *mean = NULL;
    if (train && smoothed && train->n > 20) {
        mean = smooth(train);
        lines[n++] = (nb_svg_line){"c0 faint", train->x, train->y, train->n};
        lines[n++] = (nb_svg_line){"c0", train->x, mean, train->n};
    } else if (train) {
        lines[n++] = (nb_svg_line){"c0", train->x, train->y, train->n};
    }
    if (train) key_entry(&key, "adapter", mean ? "training, smoothed" : "training");
    for (int i = 0; i < c->n && k < COLORS; i++) {
        const char *slash = strrchr(c->s[i].name, '/');
        if (!c->s[i].eval || strcmp(slash ? slash + 1 : c->s[i].name, name) != 0) continue;
        char *set = slash ? nb_strndup(c->s[i].name, (size_t)(slash - c->s[i].name)) : nb_strdup("held-out");
        key_entry(&key, color[k], set);
        free(set);
        lines[n++] = (nb_svg_line){dots[k++], c->s[i].x, c->s[i].y, c->s[i].n};
    }
    if (n) {
        nb_text_printf(out, "<div class=\"card\"><h3 class=\"cap\">%s</h3>", title);
        nb_svg_lines(out, title, lines, n);
        if (k) nb_text_printf(out, "<div class=\"key\">%s</div>", key.s);
        nb_text_puts(out, "</div>\n");
    }
    nb_text_free(&key);
    free(mean);
}

static void curves(nb_text *out, const nb_curves *c) {
    if (!c->n) return;
    nb_text_puts(out, "<h2>Training</h2><p class=\"soft\">by optimizer step</p>\n<div class=\"grid wide\">\n");
    curve(out, c, "Loss", "loss", true);
    for (int m = 1; m < NB_METRIC_COUNT; m++) curve(out, c, nb_metrics[m].title, nb_metrics[m].name, false);
    curve(out, c, "Learning rate", "learning_rate", false);
    curve(out, c, "Gradient norm", "grad_norm", true);
    curve(out, c, "Tokens per second", "tokens_per_second", true);
    nb_text_puts(out, "</div>\n");
}

static void method(nb_text *out, const nb_report *r) {
    nb_text_puts(out, "<h2>How this was measured</h2><div class=\"card method soft\">\n");
    if (r->adapter)
        nb_text_printf(
            out,
            "<p>Base and adapter answered the same rows. The 95&nbsp;%% interval is a paired bootstrap over rows "
            "(%d resamples). p is the chance of a difference at least this large if both were equally good: a "
            "randomization test, and McNemar&#39;s exact test for measures that are right or wrong. A difference "
            "counts as significant when p &lt; 0.05 and the interval excludes 0.</p>\n",
            NB_RESAMPLES);
    nb_text_puts(
        out,
        "<p>Loss: mean negative log-likelihood of the trained tokens, in nats. Perplexity: e to the loss. Bits per "
        "byte: the same in bits per byte of text, which does not depend on the tokenizer. Answers are generated "
        "greedily. Exact match: equal to the reference, white space around both aside. Token F1: words in common, as "
        "in SQuAD (lower case, no punctuation, no articles). ROUGE-L: longest common subsequence of words, F "
        "measure.</p>\n");
    if (r->config) puts_escaped(out, "<p>Configuration: <code>", r->config, "</code></p>\n");
    if (r->base_sha256) puts_escaped(out, "<p>Base sha256: <code>", r->base_sha256, "</code></p>\n");
    nb_text_puts(out, "<p>Made by nibble " NB_VERSION ".</p></div>\n");
}

void nb_report_html(nb_text *out, const nb_report *r) {
    head(out, r);
    for (int i = 0; i < r->n_sets; i++) one_set(out, &r->sets[i]);
    curves(out, &r->curves);
    method(out, r);
    nb_text_puts(out, "</main></body></html>\n");
}
