#include <stdio.h>
#include <string.h>

#include "adapters/merge.h"
#include "cli/cli.h"
#include "core/log.h"

static const struct { const char *name; nb_merge_mode mode; } modes[] = {
    {"original", NB_MERGE_ORIGINAL}, {"nf4-roundtrip", NB_MERGE_NF4_ROUNDTRIP}, {"requant", NB_MERGE_REQUANT},
};

static nb_status run(const nb_session_options *o, const char *out, const char *mode_name, int64_t threads) {
    int mode = -1;
    for (int i = 0; i < NB_LEN(modes); i++)
        if (!strcmp(mode_name, modes[i].name)) mode = i;
    if (mode < 0) return nb_fail(NB_EINPUT, "--mode %s: say original, nf4-roundtrip or requant", mode_name);
    if (!o->adapter || !out) return nb_fail(NB_EINPUT, "--adapter DIR and --out DIR are needed");
    nb_session s;
    nb_drift d;
    NB_TRY(nb_cli_threads(threads));
    NB_TRY(nb_session_open(&s, o));
    double start = nb_now();
    nb_status st = nb_merge(&s, out, modes[mode].mode);
    if (st == NB_OK) {
        char took[16];
        printf("merged %d modules into %s (%s) in %s\n", s.adapter->n_attached, out, mode_name,
               nb_duration(nb_now() - start, took));
        st = nb_merge_drift(&d, &s, out, NULL);
    }
    if (st == NB_OK)
        printf("drift from base + adapter over %lld positions: KL mean %.3g, max %.3g nats; "
               "largest log-probability difference %.3g; %.1f %% same most likely token\n",
               (long long)d.positions, d.mean_kl, d.max_kl, d.max_abs, 100 * d.same_argmax);
    nb_session_close(&s);
    return st;
}

int nb_cmd_merge(int argc, char **argv) {
    nb_session_options o = {.load_in_4bit = -1, .lm_head_quant = "none"};
    const char *out = NULL, *mode = "original";
    int64_t threads = 0;
    const nb_opt opts[] = {
        {"base", NB_OPT_STR, &o.base, "DIR", "base model folder (default: the one the adapter names)"},
        {"adapter", NB_OPT_STR, &o.adapter, "DIR", "PEFT adapter folder"},
        {"out", NB_OPT_STR, &out, "DIR", "folder to write; must not exist or be empty"},
        {"mode", NB_OPT_STR, &mode, "MODE",
         "original (into the stored weights), nf4-roundtrip (into the NF4-rounded weights the adapter was "
         "trained on), requant (4 bits again)"},
        {"load-in-4bit", NB_OPT_TRISTATE, &o.load_in_4bit, NULL,
         "how base + adapter run for the comparison (default: as trained)"},
        {"dtype", NB_OPT_STR, &o.dtype, "f32|bf16", "what the comparison computes in"},
        {"device", NB_OPT_STR, &o.device, NB_DEVICES, NB_DEVICE_HELP},
        {"threads", NB_OPT_INT, &threads, "N", "threads (0: all cores)"},
    };
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(
        argc, argv, "nibble merge --base DIR --adapter DIR --out DIR [--mode original|nf4-roundtrip|requant]",
        "The measured drift in logits against base + adapter is printed: choose the mode with the smallest.\n", opts,
        NB_LEN(opts), NULL, 0, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK) st = run(&o, out, mode, threads);
    return nb_exit_status("merge", st);
}
