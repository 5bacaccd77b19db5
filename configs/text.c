/* The configuration written out, and the reference of its keys. */
#include <string.h>

#include "configs/keys.h"

/* Keys of one table below each other, `first` in front of the first line and as many spaces in front
 * of the others; "group.key" rows become a nested map. */
static void print_keys(const nb_key *keys, int n, const void *base, const nb_mark *at, const char *first,
                       nb_text *out) {
    static const char spaces[] = "    ";
    const char *indent = first, *group = NULL;
    for (int i = 0; i < n; i++) {
        if (keys[i].kind == NB_KIND_SECTION) continue;
        const char *name = keys[i].name, *dot = strchr(name, '.');
        if (dot && (!group || strncmp(group, name, (size_t)(dot - name) + 1) != 0)) {
            nb_text_printf(out, "%s%.*s:\n", indent, (int)(dot - name), name);
            indent = &spaces[4 - strlen(first)];
        }
        group = dot ? name : NULL;
        nb_text_printf(out, "%s%s%s: ", indent, dot ? "  " : "", dot ? dot + 1 : name);
        indent = &spaces[4 - strlen(first)];
        nb_key_print(&keys[i], base, at[i].line != 0, out);
        nb_text_puts(out, "\n");
    }
}

static void print_datasets(const char *name, const nb_config_dataset *d, int n, nb_text *out) {
    nb_text_printf(out, "%s:%s\n", name, n ? "" : " []");
    for (int i = 0; i < n; i++)
        print_keys(nb_dataset_keys, NB_DATASET_KEY_COUNT, &d[i], d[i].at, "  - ", out);
}

nb_status nb_config_resolve_text(const nb_config *c, nb_text *out) {
    print_keys(nb_keys, NB_KEY_COUNT, c, c->at, "", out);
    print_datasets("datasets", c->datasets, c->n_datasets, out);
    print_datasets("test_datasets", c->test_datasets, c->n_test_datasets, out);
    return NB_OK;
}

static const char *type_name(const nb_key *k) {
    static const char *const names[] = {
        [NB_KIND_BOOL] = "true or false", [NB_KIND_TRI] = "true, false or auto", [NB_KIND_INT] = "whole number",
        [NB_KIND_REAL] = "number", [NB_KIND_STR] = "text", [NB_KIND_PATH] = "path", [NB_KIND_CHOICE] = "one of",
        [NB_KIND_SIZE] = "amount of memory", [NB_KIND_STRS] = "list of texts", [NB_KIND_INTS] = "list of numbers",
        [NB_KIND_MAP] = "map of names to numbers", [NB_KIND_VALUES] = "map of names to values"};
    return names[k->kind];
}

/* "one of nf4, fp4", "number in [0, 1)", "list of texts". */
static void print_type(const nb_key *k, nb_text *out) {
    char buf[64];
    bool words = k->range[0] && (k->kind == NB_KIND_CHOICE || k->kind == NB_KIND_STR || k->kind == NB_KIND_STRS);
    nb_text_puts(out, !words ? type_name(k) : k->kind == NB_KIND_STRS ? "list of" : "one of");
    if (k->range[0] && !words) nb_text_printf(out, " in %s", k->range);
    for (int i = 0; words && nb_choice_name(k->range, i, 0, buf); i++) {
        nb_text_printf(out, "%s %s", i ? "," : "", buf);
        for (int alias = 1; nb_choice_name(k->range, i, alias, buf); alias++)
            nb_text_printf(out, "%s%s", alias == 1 ? " (also " : ", ", buf);
        if (nb_choice_name(k->range, i, 1, buf)) nb_text_puts(out, ")");
    }
}

static const char *default_text(const nb_key *k) { return k->dflt[0] ? k->dflt : "null"; }

/* '|' ends a cell of a Markdown table. */
static void print_cell(const char *s, nb_text *out) {
    for (; *s; s++) nb_text_printf(out, *s == '|' ? "\\%c" : "%c", *s);
}

static void print_row(const nb_key *k, bool markdown, nb_text *out) {
    if (!markdown) {
        nb_text_printf(out, "  %s: ", k->name);
        print_type(k, out);
        nb_text_printf(out, "; default %s\n      %s\n", default_text(k), k->help);
        if (k->aliases[0]) nb_text_printf(out, "      also: %s\n", k->aliases);
        return;
    }
    nb_text type = {0};
    print_type(k, &type);
    nb_text_printf(out, "| `%s` | ", k->name);
    print_cell(type.s, out);
    nb_text_printf(out, k->dflt[0] == '(' ? " | %s | " : " | `%s` | ", default_text(k));
    print_cell(k->help, out);
    if (k->aliases[0]) nb_text_printf(out, "; also: %s", k->aliases);
    nb_text_puts(out, " |\n");
    nb_text_free(&type);
}

static void print_heading(const char *title, bool markdown, nb_text *out) {
    static const char columns[] = "| key | value | default | what it does |\n|---|---|---|---|\n";
    if (markdown) nb_text_printf(out, "\n## %s\n\n%s", title, columns);
    else nb_text_printf(out, "\n%s\n", title);
}

struct other_row {
    const char *name, *harmless, *why;
};
#define REFUSED(name, harmless, why) {name, harmless, why},
#define IGNORED(name) {name, "", NULL},
#define DATASET_REFUSED(name, harmless, why) {"datasets[]." name, harmless, why},
#define DATASET_IGNORED(name) {"datasets[]." name, "", NULL},
static const struct other_row others[] = {
#include "configs/other_keys.def"
};

static void print_others(nb_text *out) {
    nb_text_puts(out, "\n## Keys of other tools\n\nIgnored, with one warning that lists them: ");
    for (int i = 0, n = 0; i < NB_LEN(others); i++)
        if (!others[i].why) nb_text_printf(out, "%s`%s`", n++ ? ", " : "", others[i].name);
    nb_text_puts(out, ".\n\nRefused, unless null or as in the second column:\n\n"
                      "| key | harmless | why |\n|---|---|---|\n");
    for (int i = 0; i < NB_LEN(others); i++)
        if (others[i].why)
            nb_text_printf(out, "| `%s` | %s | %s |\n", others[i].name, others[i].harmless, others[i].why);
}

static const char intro[] =
    "# Configuration reference\n\n"
    "Written by `nibble config keys --markdown`; a test compares it with the program.\n\n"
    "A configuration is one YAML file. Every value is typed by its key: `1e-5` is a number, `no` can be a text.\n"
    "Empty, `~` and `null` mean \"not set\": the default counts. Unknown and repeated keys are mistakes, reported\n"
    "with line and column. Anchors, aliases and `<<` work. Relative paths are relative to the working directory, and\n"
    "`${env:NAME}` is replaced in paths. `--set key=value` overrides a key (`--set datasets.0.path=x.jsonl` one of a\n"
    "dataset, `--set special_tokens.pad_token=x` one of a map); `nibble config check` looks for mistakes, `nibble\n"
    "config resolve` prints the file with every default. Required are base_model, datasets and output_dir alone.\n";

void nb_config_keys_text(nb_text *out, bool markdown) {
    if (markdown) nb_text_puts(out, intro);
    for (int i = 0; i < NB_KEY_COUNT; i++)
        if (nb_keys[i].kind == NB_KIND_SECTION) print_heading(nb_keys[i].name, markdown, out);
        else print_row(&nb_keys[i], markdown, out);
    print_heading("Each entry of datasets and test_datasets", markdown, out);
    for (int i = 0; i < NB_DATASET_KEY_COUNT; i++) print_row(&nb_dataset_keys[i], markdown, out);
    if (markdown) print_others(out);
}
