/* nibble quantize: a model folder in 4 bits, as transformers and bitsandbytes save it. */
#include <stdio.h>

#include "cli/cli.h"
#include "core/log.h"
#include "model/weights.h"

int nb_cmd_quantize(int argc, char **argv) {
    const char *base = NULL, *out = NULL;
    bool double_quant = true, done;
    int64_t threads = 0;
    const nb_opt opts[] = {
        {"base", NB_OPT_STR, &base, "DIR", "model folder, or org/name in the local Hugging Face cache"},
        {"out", NB_OPT_STR, &out, "DIR", "new folder to write"},
        {"double-quant", NB_OPT_FLAG, &double_quant, NULL, "quantize the scales too (default; --no-double-quant)"},
        {"threads", NB_OPT_INT, &threads, "N", "threads to use (0: all cores)"},
    };
    nb_status st = nb_opt_parse(argc, argv, "nibble quantize --base DIR --out DIR",
                                "Linear layers become NF4, blocks of 64; embedding, norms and head stay as they are.",
                                opts, NB_LEN(opts), NULL, 0, NULL, &done);
    if (st != NB_OK || done) return nb_exit_status("quantize", st);
    if (!base || !out) st = nb_fail(NB_EINPUT, "--base DIR and --out DIR are needed");
    if (st == NB_OK) st = nb_cli_threads(threads);
    if (st == NB_OK) st = nb_base_quantize_dir(base, out, double_quant);
    if (st == NB_OK) printf("%s\n", out);
    return nb_exit_status("quantize", st);
}
