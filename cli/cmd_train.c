#include <stdlib.h>

#include "cli/cli.h"
#include "configs/config.h"
#include "core/status.h"
#include "train/loop.h"

int nb_cmd_train(int argc, char **argv) {
    nb_opt_list sets = {0};
    nb_train_options o = {0};
    int64_t threads = -1;
    const char *device = NULL;
    const nb_opt opts[] = {
        {"set", NB_OPT_LIST, &sets, "KEY=VALUE", "set a key of the configuration (repeatable)"},
        {"resume", NB_OPT_STR, &o.resume, "auto|DIR|none",
         "where to begin; auto: the newest whole checkpoint of output_dir"},
        {"overwrite", NB_OPT_FLAG, &o.overwrite, NULL, "delete what an earlier run left in output_dir and start anew"},
        {"threads", NB_OPT_INT, &threads, "N", "threads to use; 0: all cores"},
        {"device", NB_OPT_STR, &device, NB_DEVICES, NB_DEVICE_HELP},
    };
    const char *path;
    int n;
    bool done = false;
    nb_config c;
    nb_status st = nb_opt_parse(
        argc, argv, "nibble train CONFIG [--set key=value]... [--resume auto|DIR|none] [--overwrite]",
        "SIGINT or SIGTERM finish the step, save a checkpoint and leave; the same command goes on from there. A run that is\n"
        "complete is left alone.\n", opts,
        NB_LEN(opts), &path, 1, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK && n < 1)
        st = nb_fail(NB_EINPUT, "which configuration? usage: nibble train CONFIG (nibble train --help)");
    if (st == NB_OK) st = nb_cli_config(&c, path, &sets, threads, device);
    if (st == NB_OK) {
        st = nb_train(&c, &o);
        nb_config_free(&c);
    }
    free(sets.v);
    return nb_exit_status("train", st);
}
