/* nibble config check|resolve|keys */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "configs/config.h"
#include "core/nearest.h"

static const char usage[] = "nibble config check CONFIG | resolve CONFIG | keys [options]";
static const char notes[] =
    "check    looks for mistakes; prints nothing but one line when there are none\n"
    "resolve  prints the configuration with every key explicit\n"
    "keys     prints the reference of all keys";

static nb_status run(int argc, char **argv, nb_opt_list *sets, bool *done) {
    bool markdown = false;
    const char *pos[2] = {NULL, NULL};
    const nb_opt opts[] = {
        {"set", NB_OPT_LIST, sets, "KEY=VALUE", "override a key of the file; may be repeated"},
        {"markdown", NB_OPT_FLAG, &markdown, NULL, "keys: as Markdown, the text of docs/config.md"},
    };
    static const char *const verbs[] = {"check", "resolve", "keys"};
    int n = 0;
    NB_TRY(nb_opt_parse(argc, argv, usage, notes, opts, NB_LEN(opts), pos, 2, &n, done));
    if (*done) return NB_OK;
    if (n == 0) return nb_fail(NB_EINPUT, "usage: %s", usage);
    nb_text out = {0};
    nb_config c;
    if (!strcmp(pos[0], "keys")) {
        nb_config_keys_text(&out, markdown);
    } else if (!strcmp(pos[0], "check") || !strcmp(pos[0], "resolve")) {
        if (n < 2) return nb_fail(NB_EINPUT, "%s needs the YAML file: nibble config %s CONFIG", pos[0], pos[0]);
        NB_TRY(nb_config_load(&c, pos[1], sets->v, sets->n));
        if (!strcmp(pos[0], "check")) nb_text_printf(&out, "%s: no mistakes\n", pos[1]);
        else NB_TRY(nb_config_resolve_text(&c, &out));
        nb_config_free(&c);
    } else {
        const char *near = nb_nearest(pos[0], verbs, NB_LEN(verbs));
        return nb_fail(NB_EINPUT, "'%s' is not check, resolve or keys%s%s%s", pos[0], near ? "; did you mean " : "",
                       near ? near : "", near ? "?" : "");
    }
    fputs(out.s, stdout);
    nb_text_free(&out);
    return NB_OK;
}

int nb_cmd_config(int argc, char **argv) {
    nb_opt_list sets = {0};
    bool done;
    nb_status st = run(argc, argv, &sets, &done);
    free(sets.v);
    return nb_exit_status("config", st);
}
