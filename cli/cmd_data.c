/* nibble data: what a run trains on. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapters/adapter.h"
#include "adapters/tokenizer_open.h"
#include "cli/cli.h"
#include "core/batch.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/nearest.h"
#include "core/utf8.h"
#include "data/added.h"
#include "data/dataset.h"
#include "model/spec.h"
#include "model/weights.h"

static const char usage[] = "nibble data CONFIG [--row N [--dataset NAME]] [--set key=value]...";
static const char notes[] = "Without --row: rows, tokens, lengths and packing of every dataset, and the ledger of "
                            "where all rows and tokens went.\n"
                            "With --row: the text of one row with the tokens that are trained on in green (in "
                            "[brackets] without a terminal), and\n"
                            "its ids and labels one by one.";

/* "12,345" into buf[32]; returns buf. */
static char *grouped(int64_t x, char buf[32]) {
    char plain[24];
    int n = snprintf(plain, sizeof plain, "%lld", (long long)x), k = 0;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0) buf[k++] = ',';
        buf[k++] = plain[i];
    }
    buf[k] = 0;
    return buf;
}

static double percent(int64_t part, int64_t whole) {
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* ---- all datasets ---- */

enum { BINS = 10, BAR = 40 };

/* A bar of `eighths` eighths of a character. */
static void print_bar(int64_t eighths) {
    static const char *const blocks[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    for (int64_t i = 0; i < eighths / 8; i++) fputs("█", stdout);
    puts(blocks[eighths % 8]);
}

static void print_lengths(const nb_dataset *d, int64_t shortest, int64_t longest) {
    int64_t width = (longest - shortest) / BINS + 1, count[BINS] = {0}, most = 1, rows = nb_dataset_rows(d);
    char buf[32];
    for (int64_t i = 0; i < rows; i++) {
        nb_row r;
        nb_dataset_row(d, i, &r);
        int64_t *bin = &count[(r.n - shortest) / width];
        if (++*bin > most) most = *bin;
    }
    printf("  %15s %12s\n", "tokens in a row", "rows");
    for (int b = 0; b < BINS && shortest + b * width <= longest; b++) {
        int64_t first = shortest + b * width;
        printf("  %6lld - %6lld %12s  ", (long long)first, (long long)(first + width - 1), grouped(count[b], buf));
        print_bar(count[b] ? (count[b] * BAR * 8 + most - 1) / most : 0);
    }
}

static void print_set(const nb_dataset *d, const char *use) {
    const nb_ledger *l = nb_dataset_ledger(d);
    int64_t longest = 0, shortest = INT64_MAX;
    char rows[32], tokens[32], trained[32];
    for (int64_t i = 0; i < nb_dataset_rows(d); i++) {
        nb_row r;
        nb_dataset_row(d, i, &r);
        if (r.n > longest) longest = r.n;
        if (r.n < shortest) shortest = r.n;
    }
    printf("%s (%s", nb_dataset_name(d), use);
    if (nb_dataset_weight(d) != 1) printf(", weight %g", nb_dataset_weight(d));
    printf(")\n  %s rows, %s tokens, %s trained on (%.1f %%), longest row %lld tokens%s\n", grouped(l->rows_out, rows),
           grouped(l->tokens_out, tokens), grouped(l->tokens_trained, trained),
           percent(l->tokens_trained, l->tokens_out), (long long)longest,
           l->longest > longest ? " (longer ones were cut or dropped)" : "");
    print_lengths(d, shortest, longest);
    putchar('\n');
}

static void print_cells(const char *name, const int64_t *cells, int n) {
    char buf[32];
    printf("  %-20.20s", name);
    for (int i = 0; i < n; i++) printf(" %13s", grouped(cells[i], buf));
    putchar('\n');
}

static void print_ledger(const nb_dataset *const *sets, int n) {
    printf("ledger\n  %-20s %13s %13s %13s %13s %13s\n", "rows", "in", "+ pieces", "- too long", "- repeated", "= out");
    for (int i = 0; i < n; i++) {
        const nb_ledger *l = nb_dataset_ledger(sets[i]);
        const int64_t cells[] = {l->rows_in, l->rows_split_extra, l->rows_dropped_long, l->rows_dropped_duplicate,
                                 l->rows_out};
        print_cells(nb_dataset_name(sets[i]), cells, NB_LEN(cells));
    }
    printf("  %-20s %13s %13s %13s %13s %13s %13s\n", "tokens", "in", "+ overlap", "- cut off", "- dropped", "= out",
           "trained on");
    for (int i = 0; i < n; i++) {
        const nb_ledger *l = nb_dataset_ledger(sets[i]);
        const int64_t cells[] = {l->tokens_in,      l->tokens_overlap, l->tokens_truncated,
                                 l->tokens_dropped, l->tokens_out,     l->tokens_trained};
        print_cells(nb_dataset_name(sets[i]), cells, NB_LEN(cells));
    }
}

static nb_status print_packing(const nb_config *c, const nb_data *d, int64_t sequence_len) {
    nb_loader_options o = {.sequence_len = sequence_len,
                           .micro_batch_size = c->micro_batch_size,
                           .accumulation = c->gradient_accumulation_steps,
                           .packing = c->sample_packing,
                           .shuffle = true,
                           .epochs = c->num_epochs,
                           .max_steps = c->max_steps,
                           .seed = (uint64_t)c->seed};
    nb_loader *l;
    char rows[32], epoch[32], steps[32];
    NB_TRY(nb_loader_open(&l, d, &o));
    printf("\n%s: %s rows to train on fill %.1f %% of sequences of %lld tokens; %s steps an epoch, %s in all\n",
           c->sample_packing ? "packing" : "no packing", grouped(d->n_samples, rows), 100 * nb_loader_fill(l),
           (long long)sequence_len, grouped(nb_loader_steps_per_epoch(l), epoch), grouped(nb_loader_steps(l), steps));
    nb_loader_free(l);
    return NB_OK;
}

/* ---- one row ---- */

static void print_escaped(const nb_text *t) {
    putchar('"');
    for (size_t i = 0; i < t->n; i++) {
        if (t->s[i] == '\n') fputs("\\n", stdout);
        else if (t->s[i] == '\t') fputs("\\t", stdout);
        else if (t->s[i] == '"') fputs("\\\"", stdout);
        else {
            uint32_t cp;
            const int n = nb_utf8_char(t->s + i, t->n - i, &cp); /* decoding gives valid text */
            nb_cli_show(t->s + i, (size_t)n);
            i += (size_t)n - 1;
        }
    }
    puts("\"");
}

/* The text, by runs of tokens that are trained on or not: characters of several tokens stay whole within a run. */
static nb_status print_text(const nb_tokenizer *t, const nb_row *r, bool color) {
    nb_text text = {0};
    nb_status st = NB_OK;
    for (int32_t i = 0, end; i < r->n && st == NB_OK; i = end) {
        bool trained = r->labels[i] != NB_IGNORE;
        for (end = i + 1; end < r->n && (r->labels[end] != NB_IGNORE) == trained;) end++;
        text.n = 0;
        st = nb_tokenizer_decode(t, r->ids + i, end - i, false, &text);
        if (trained) fputs(color ? "\033[32m" : "[", stdout);
        nb_cli_show(text.n ? text.s : "", text.n);
        if (trained) fputs(color ? "\033[0m" : "]", stdout);
    }
    putchar('\n');
    nb_text_free(&text);
    return st;
}

static nb_status print_row(const nb_tokenizer *t, const nb_dataset *d, int64_t row) {
    bool color = nb_use_color(STDOUT_FILENO);
    int64_t rows = nb_dataset_rows(d);
    nb_row r;
    if (row < 1 || row > rows)
        return nb_fail(NB_EINPUT, "--row %lld: %s has the rows 1 to %lld", (long long)row, nb_dataset_name(d),
                       (long long)rows);
    nb_dataset_row(d, row - 1, &r);
    printf("row %lld of %s, from %s:%lld: %d tokens, %d trained on (%.1f %%)\n\n", (long long)row, nb_dataset_name(d),
           r.file, (long long)r.line, r.n, r.trained, percent(r.trained, r.n));
    NB_TRY(print_text(t, &r, color));
    printf("\n%6s %8s %8s  text\n", "place", "id", "label");
    nb_text text = {0};
    for (int32_t i = 0; i < r.n; i++) {
        text.n = 0;
        NB_TRY(nb_tokenizer_decode(t, r.ids + i, 1, false, &text));
        if (color && r.labels[i] != NB_IGNORE) fputs("\033[32m", stdout);
        printf("%6d %8d %8d  ", i, r.ids[i], r.labels[i]);
        print_escaped(&text);
        if (color && r.labels[i] != NB_IGNORE) fputs("\033[0m", stdout);
    }
    nb_text_free(&text);
    return NB_OK;
}

/* ---- the command ---- */

/* The tokenizer and sequence length training would use, without loading the model's weights. */
static nb_status open_tokenizer(const nb_config *c, nb_tokenizer **t, int64_t *sequence_len) {
    char *dir;
    nb_spec spec;
    NB_TRY(nb_base_resolve(c->base_model, &dir));
    nb_status st = nb_spec_load(&spec, dir);
    const char *from = c->tokenizer ? c->tokenizer : dir;
    if (!c->tokenizer && c->lora_model_dir && nb_adapter_has_tokenizer(c->lora_model_dir)) from = c->lora_model_dir;
    if (st == NB_OK) st = nb_tokenizer_open(t, from);
    free(dir);
    if (st == NB_OK) st = nb_tokens_add(*t, c, NULL, NULL);
    *sequence_len = c->sequence_len ? c->sequence_len : spec.context < 2048 ? spec.context : 2048;
    return st;
}

static nb_status find_set(const nb_dataset *const *sets, int n, const char *name, const nb_dataset **out) {
    const char **names = nb_calloc((size_t)n, sizeof *names);
    *out = name ? NULL : sets[0];
    for (int i = 0; i < n; i++) {
        names[i] = nb_dataset_name(sets[i]);
        if (name && !strcmp(names[i], name)) *out = sets[i];
    }
    const char *near = *out ? NULL : nb_nearest(name, names, n);
    nb_status st =
        *out ? NB_OK
             : nb_fail(NB_EINPUT, "no dataset is called \"%s\"; did you mean \"%s\"?", name, near ? near : names[0]);
    free(names);
    return st;
}

static nb_status show(const nb_config *c, const nb_tokenizer *t, int64_t sequence_len, int64_t row, const char *name) {
    nb_data d;
    NB_TRY(nb_data_open(&d, c, t, sequence_len));
    int n = 0;
    const nb_dataset **sets = nb_calloc((size_t)(d.n_train + d.n_held_out), sizeof *sets), *chosen;
    for (int i = 0; i < d.n_train; i++) sets[n++] = d.train[i];
    for (int i = 0; i < d.n_held_out; i++) sets[n++] = d.held_out[i];
    nb_status st = NB_OK;
    if (row) {
        st = find_set(sets, n, name, &chosen);
        if (st == NB_OK) st = print_row(t, chosen, row);
    } else {
        for (int i = 0; i < n; i++) print_set(sets[i], i < d.n_train ? "training" : "held out");
        print_ledger(sets, n);
        st = print_packing(c, &d, sequence_len);
    }
    free(sets);
    nb_data_free(&d);
    return st;
}

static nb_status run(int argc, char **argv, nb_opt_list *sets) {
    int64_t row = 0, threads = 0;
    const char *name = NULL, *path = NULL;
    const nb_opt opts[] = {
        {"row", NB_OPT_INT, &row, "N", "show this row (from 1) with what is trained on"},
        {"dataset", NB_OPT_STR, &name, "NAME", "the dataset --row counts in; default: the first"},
        {"set", NB_OPT_LIST, sets, "KEY=VALUE", "set a key of the configuration (repeatable)"},
        {"threads", NB_OPT_INT, &threads, "N", "threads to tokenize with; default: all"},
    };
    int n = 0;
    bool done = false;
    NB_TRY(nb_opt_parse(argc, argv, usage, notes, opts, NB_LEN(opts), &path, 1, &n, &done));
    if (done) return NB_OK;
    if (!n) return nb_fail(NB_EINPUT, "which configuration? usage: %s", usage);
    if (name && !row) row = 1;
    NB_TRY(nb_cli_threads(threads));
    nb_config c;
    nb_tokenizer *t = NULL;
    int64_t sequence_len;
    NB_TRY(nb_config_load(&c, path, sets->v, sets->n));
    nb_status st = open_tokenizer(&c, &t, &sequence_len);
    if (st == NB_OK) st = show(&c, t, sequence_len, row, name);
    nb_tokenizer_free(t);
    nb_config_free(&c);
    return st;
}

int nb_cmd_data(int argc, char **argv) {
    nb_opt_list sets = {0};
    nb_status st = run(argc, argv, &sets);
    free(sets.v);
    return nb_exit_status("data", st);
}
