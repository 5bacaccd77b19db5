/* Shared by the commands: one file per command, no logic of its own. A command gets argv with
 * argv[0] = its own name and returns the process's exit status: 0 only on success. */
#ifndef NB_CLI_CLI_H
#define NB_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "configs/config.h"
#include "core/status.h"

typedef struct nb_command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help; /* one line */
} nb_command;

/* One option: --name VALUE or --name=VALUE. kind says what `out` points to. A flag also accepts
 * --no-name. Repeatable options (NB_OPT_LIST) append to an nb_opt_list. */
typedef enum nb_opt_kind { NB_OPT_FLAG, NB_OPT_TRISTATE, NB_OPT_INT, NB_OPT_REAL, NB_OPT_STR, NB_OPT_LIST } nb_opt_kind;
typedef struct nb_opt_list {
    const char **v;
    int n, cap;
} nb_opt_list;
typedef struct nb_opt {
    const char *name; /* without the dashes */
    nb_opt_kind kind;
    void *out; /* FLAG: bool*; TRISTATE: int* (-1 unset, 0, 1); INT: int64_t*; REAL: double*; STR: const char** */
    const char *arg, *help; /* "DIR", "what it does" */
} nb_opt;

/* Parses argv by the table; positional arguments (at most max_pos) go to pos[] and *n_pos. Options
 * and positionals may be mixed; "--" ends options. --help prints usage, the table and `notes` to
 * stdout and sets *done with status NB_OK: the caller returns 0. Unknown options: nearest name. */
nb_status nb_opt_parse(int argc, char **argv, const char *usage, const char *notes, const nb_opt *opts, int n_opts,
                       const char **pos, int max_pos, int *n_pos, bool *done);

/* Prints "nibble NAME: message" to stderr and returns the exit status for `st`:
 * 0 for NB_OK, 130/143 for NB_EINTERRUPTED (by the signal), else 1. */
int nb_exit_status(const char *name, nb_status st);
/* Text of a file to stdout, its control characters (but newline and tab) made visible. */
void nb_cli_show(const char *text, size_t n);
/* "--device NAME" common to many commands. */
#define NB_DEVICES "auto|cpu|cuda|cuda:N"
#define NB_DEVICE_HELP "where to compute; auto (the default): a GPU if there is one that can be used"
/* "--threads N" common to many commands: call once after parsing (0 = all). */
nb_status nb_cli_threads(int64_t threads);
/* The configuration with --set, --threads (-1: not given) and --device (NULL: not given) put in; frees the list. */
nb_status nb_cli_config(nb_config *c, const char *path, nb_opt_list *sets, int64_t threads, const char *device);

#endif
