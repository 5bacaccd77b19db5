/* nibble COMMAND ...: finds the command in commands.def and runs it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/cpu.h"
#include "core/interrupt.h"
#include "core/mem.h"
#include "core/nearest.h"
#include "core/utf8.h"

#define COMMAND(name, help) int nb_cmd_##name(int argc, char **argv);
#include "cli/commands.def"
#undef COMMAND

static const nb_command commands[] = {
#define COMMAND(name, help) {#name, nb_cmd_##name, help},
#include "cli/commands.def"
#undef COMMAND
};

static void usage(FILE *out) {
    fputs("nibble fine-tunes small language models: 4-bit base, low-rank adapters, no Python, no network.\n\n"
          "usage: nibble COMMAND [options]\n\n", out);
    for (int i = 0; i < NB_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n`nibble COMMAND --help` lists a command's options. `nibble --version` prints the version.\n", out);
}

static int unknown(const char *name) {
    const char *names[NB_LEN(commands)];
    for (int i = 0; i < NB_LEN(commands); i++) names[i] = commands[i].name;
    const char *near = nb_nearest(name, names, NB_LEN(commands));
    fprintf(stderr, "nibble: there is no command '%s'", name);
    if (near) fprintf(stderr, "; did you mean '%s'?\n", near);
    else fputs("; `nibble --help` lists the commands\n", stderr);
    return 1;
}

/* Results that never reached stdout (a full disk, a closed pipe) must not count as success. */
static int flushed(int rc) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return rc;
    perror("nibble: standard output");
    return rc ? rc : 1;
}

int main(int argc, char **argv) {
    nb_threads_settle(argv);
    if (nb_cpu_check() != NB_OK) {
        fprintf(stderr, "nibble: %s\n", nb_message());
        return 1;
    }
    if (argc < 2) {
        usage(stderr);
        return 1;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || (!strcmp(name, "help") && argc == 2)) {
        usage(stdout);
        return flushed(0);
    }
    if (!strcmp(name, "--version")) {
        puts("nibble " NB_VERSION);
        return flushed(0);
    }
    char help[] = "--help", *as_help[] = {argv[0], argv[2], help, NULL};
    if (!strcmp(name, "help")) name = argv[2], argc = 3, argv = as_help; /* `help X` is `X --help` */
    for (int i = 0; i < NB_LEN(commands); i++)
        if (!strcmp(commands[i].name, name)) return flushed(commands[i].run(argc - 1, argv + 1));
    return unknown(name);
}

void nb_cli_show(const char *text, size_t n) {
    char shown[8];
    for (const char *end = text + n; text < end;) {
        if (nb_utf8_show(shown, &text)) fputs(shown, stdout);
        else fputs("\\x00", stdout), text++;
    }
}

int nb_exit_status(const char *name, nb_status st) {
    if (st == NB_OK) return 0;
    fflush(stdout);
    if (*nb_message()) fprintf(stderr, "nibble %s: %s\n", name, nb_message()); /* empty: another process tells */
    if (st != NB_EINTERRUPTED) return 1;
    return 128 + (nb_interrupted() ? nb_interrupted() : SIGINT);
}

nb_status nb_cli_threads(int64_t threads) {
    if (threads < 0 || threads > 4096)
        return nb_fail(NB_EINPUT, "--threads %lld: give a number from 0 (all cores) to 4096", (long long)threads);
    nb_threads_set((int)threads);
    return NB_OK;
}

static void add_set(nb_opt_list *sets, char *text) {
    NB_GROW(sets->v, sets->n, sets->cap);
    sets->v[sets->n++] = text;
}

nb_status nb_cli_config(nb_config *c, const char *path, nb_opt_list *sets, int64_t threads, const char *device) {
    char *more[2] = {threads != -1 ? nb_asprintf("threads=%lld", (long long)threads) : NULL,
                     device ? nb_asprintf("device=%s", device) : NULL};
    for (int i = 0; i < 2; i++)
        if (more[i]) add_set(sets, more[i]);
    nb_status st = nb_config_load(c, path, sets->v, sets->n);
    free(more[0]), free(more[1]);
    free(sets->v);
    *sets = (nb_opt_list){0};
    return st;
}
