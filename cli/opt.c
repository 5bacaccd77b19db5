/* Command-line options by table: see cli/cli.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/mem.h"
#include "core/nearest.h"

static bool is_flag(const nb_opt *o) { return o->kind == NB_OPT_FLAG || o->kind == NB_OPT_TRISTATE; }

static void print_help(const char *usage, const char *notes, const nb_opt *opts, int n_opts) {
    printf("usage: %s\n\n", usage);
    int width = (int)strlen("--help");
    char left[128];
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < n_opts; i++) {
            const nb_opt *o = &opts[i];
            snprintf(left, sizeof left, "--%s%s%s", o->name, is_flag(o) || !o->arg ? "" : " ",
                     is_flag(o) || !o->arg ? "" : o->arg);
            if (pass == 1) printf("  %-*s  %s\n", width, left, o->help ? o->help : "");
            else if ((int)strlen(left) > width) width = (int)strlen(left);
        }
    printf("  %-*s  this text\n", width, "--help");
    if (notes && *notes) printf("\n%s\n", notes);
}

static nb_status unknown_option(const char *command, const char *arg, const nb_opt *opts, int n_opts) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(arg, "="), arg);
    const char *word = name + strspn(name, "-"), **names = nb_calloc((size_t)n_opts + 1, sizeof *names);
    for (int i = 0; i < n_opts; i++) names[i] = opts[i].name;
    const char *near = nb_nearest(strncmp(word, "no-", 3) ? word : word + 3, names, n_opts);
    free(names);
    if (near) return nb_fail(NB_EINPUT, "unknown option %s; did you mean --%s?", name, near);
    return nb_fail(NB_EINPUT, "unknown option %s; `nibble %s --help` lists the options", name, command);
}

static nb_status set_value(const nb_opt *o, const char *text) {
    char *end = NULL;
    errno = 0;
    if (o->kind == NB_OPT_INT) {
        long long v = strtoll(text, &end, 10);
        if (!*text || *end || errno) return nb_fail(NB_EINPUT, "--%s wants a whole number, not '%s'", o->name, text);
        *(int64_t *)o->out = v;
    } else if (o->kind == NB_OPT_REAL) {
        double v = strtod(text, &end);
        if (!*text || *end || errno || v != v || v - v != 0)
            return nb_fail(NB_EINPUT, "--%s wants a number, not '%s'", o->name, text);
        *(double *)o->out = v;
    } else if (o->kind == NB_OPT_STR) {
        *(const char **)o->out = text;
    } else {
        nb_opt_list *l = o->out;
        NB_GROW(l->v, l->n, l->cap);
        l->v[l->n++] = text;
    }
    return NB_OK;
}

static void set_flag(const nb_opt *o, bool on) {
    if (o->kind == NB_OPT_FLAG) *(bool *)o->out = on;
    else *(int *)o->out = on;
}

/* argv[*i] starts with "--": finds its row, takes the value behind '=' or from argv[*i + 1]. */
static nb_status take_option(int argc, char **argv, int *i, const nb_opt *opts, int n_opts) {
    const char *name = argv[*i] + 2, *eq = strchr(name, '=');
    size_t len = eq ? (size_t)(eq - name) : strlen(name);
    for (int k = 0; k < n_opts; k++) {
        const nb_opt *o = &opts[k];
        bool same = strlen(o->name) == len && !strncmp(o->name, name, len);
        bool negated = is_flag(o) && len == strlen(o->name) + 3 && !strncmp(name, "no-", 3) &&
                       !strncmp(o->name, name + 3, len - 3);
        if (!same && !negated) continue;
        if (is_flag(o)) {
            if (eq) return nb_fail(NB_EINPUT, "--%.*s is a switch and takes no value", (int)len, name);
            set_flag(o, same);
            return NB_OK;
        }
        if (eq) return set_value(o, eq + 1);
        if (*i + 1 >= argc)
            return nb_fail(NB_EINPUT, "--%s needs a value: --%s %s", o->name, o->name, o->arg ? o->arg : "VALUE");
        return set_value(o, argv[++*i]);
    }
    return unknown_option(argv[0], argv[*i], opts, n_opts);
}

nb_status nb_opt_parse(int argc, char **argv, const char *usage, const char *notes, const nb_opt *opts, int n_opts,
                       const char **pos, int max_pos, int *n_pos, bool *done) {
    int n = 0;
    bool options = true;
    *done = false;
    for (int i = 1; i < argc; i++) { /* --help wins over mistakes elsewhere on the line */
        if (!strcmp(argv[i], "--")) break;
        if (strcmp(argv[i], "--help") != 0 && strcmp(argv[i], "-h") != 0) continue;
        print_help(usage, notes, opts, n_opts);
        *done = true;
        if (n_pos) *n_pos = 0;
        return NB_OK;
    }
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (options && !strcmp(arg, "--")) {
            options = false;
        } else if (options && arg[0] == '-' && arg[1] == '-') {
            NB_TRY(take_option(argc, argv, &i, opts, n_opts));
        } else if (options && arg[0] == '-' && arg[1] && (arg[1] < '0' || arg[1] > '9')) {
            return unknown_option(argv[0], arg, opts, n_opts);
        } else if (n >= max_pos) {
            return nb_fail(NB_EINPUT, "unexpected argument '%s'; usage: %s", arg, usage);
        } else {
            pos[n++] = arg;
        }
    }
    if (n_pos) *n_pos = n;
    return NB_OK;
}
