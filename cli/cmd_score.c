#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/session.h"
#include "cli/cli.h"
#include "core/file.h"
#include "core/json.h"
#include "eval/score.h"

typedef struct score_args {
    const char *text, *file, *ids;
    bool json;
    int64_t threads;
} score_args;

/* "1,2, 3" -> ids. */
static nb_status parse_ids(const char *s, nb_ids *out) {
    for (const char *p = s; *p;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v > INT32_MAX)
            return nb_fail(NB_EINPUT, "--ids \"%s\": numbers separated by commas are wanted", s);
        nb_ids_add(out, (int32_t)v, 0);
        p = end + strspn(end, ", \t\n[]");
    }
    return NB_OK;
}

static nb_status get_ids(const score_args *a, const nb_session *s, nb_ids *ids) {
    if (!!a->text + !!a->file + !!a->ids != 1) return nb_fail(NB_EINPUT, "give one of --text, --file and --ids");
    if (a->ids) return parse_ids(a->ids + strspn(a->ids, "[ "), ids);
    char *data = NULL;
    size_t n = a->text ? strlen(a->text) : 0;
    if (a->file) NB_TRY(nb_file_read(a->file, &data, &n));
    nb_status st = nb_tokenizer_encode(s->tokenizer, a->text ? a->text : data, n, NB_TOK_SPECIAL, ids);
    free(data);
    return st;
}

static void print_json(const nb_score *sc, const nb_ids *ids) {
    json_t *j = json_object(), *a[3] = {json_array(), json_array(), json_array()};
    for (int64_t i = 0; i < sc->n; i++) {
        json_array_append_new(a[0], json_integer(ids->id[i]));
        if (i + 1 < sc->n) json_array_append_new(a[1], json_real(sc->nll[i]));
        json_array_append_new(a[2], json_integer(sc->argmax[i]));
    }
    json_object_set_new(j, "ids", a[0]);
    json_object_set_new(j, "nll", a[1]);
    json_object_set_new(j, "argmax", a[2]);
    json_object_set_new(j, "loss", json_real(sc->loss));
    json_dumpf(j, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(j);
}

static void print_table(const nb_score *sc, const nb_ids *ids, const nb_tokenizer *t) {
    printf("%8s  %-20s %9s  %s\n", "id", "token", "nll", "most likely instead");
    for (int64_t i = 0; i < sc->n; i++) {
        const char *tok = nb_tokenizer_token(t, ids->id[i]), *top = i ? nb_tokenizer_token(t, sc->argmax[i - 1]) : NULL;
        printf("%8d  %-20s ", ids->id[i], tok ? tok : "?");
        if (!i) printf("%9s\n", "-");
        else printf("%9.4f  %s\n", (double)sc->nll[i - 1], sc->argmax[i - 1] == ids->id[i] ? "" : top ? top : "?");
    }
    printf("loss %.6f over %lld tokens\n", sc->loss, (long long)sc->n - 1);
}

static nb_status run(const nb_session_options *o, const score_args *a) {
    nb_session s;
    nb_ids ids = {0};
    nb_score sc = {0};
    NB_TRY(nb_cli_threads(a->threads));
    NB_TRY(nb_session_open(&s, o));
    nb_status st = get_ids(a, &s, &ids);
    if (st == NB_OK) st = nb_score_ids(&sc, s.model, &s.arena, ids.id, ids.n);
    if (st == NB_OK && a->json) print_json(&sc, &ids);
    else if (st == NB_OK) print_table(&sc, &ids, s.tokenizer);
    nb_score_free(&sc);
    nb_ids_free(&ids);
    nb_session_close(&s);
    return st;
}

int nb_cmd_score(int argc, char **argv) {
    nb_session_options o = {.load_in_4bit = -1};
    score_args a = {0};
    const nb_opt opts[] = {
        {"base", NB_OPT_STR, &o.base, "DIR", "base model folder or hub name in the local cache"},
        {"adapter", NB_OPT_STR, &o.adapter, "DIR", "PEFT adapter folder"},
        {"text", NB_OPT_STR, &a.text, "TEXT", "the text to score"},
        {"file", NB_OPT_STR, &a.file, "FILE", "a file with the text"},
        {"ids", NB_OPT_STR, &a.ids, "1,2,3", "token ids instead of text"},
        {"load-in-4bit", NB_OPT_TRISTATE, &o.load_in_4bit, NULL,
         "quantize the base to NF4 (default: as the adapter was trained)"},
        {"lm-head-quant", NB_OPT_STR, &o.lm_head_quant, "none|nf4|int8",
         "how the output head is held (default: as the adapter was trained)"},
        {"dtype", NB_OPT_STR, &o.dtype, "f32|bf16", "what products compute in"},
        {"device", NB_OPT_STR, &o.device, NB_DEVICES, NB_DEVICE_HELP},
        {"json", NB_OPT_FLAG, &a.json, NULL, "print {\"ids\", \"nll\", \"argmax\", \"loss\"}"},
        {"threads", NB_OPT_INT, &a.threads, "N", "threads (0: all cores)"},
    };
    int n;
    bool done = false;
    nb_status st =
        nb_opt_parse(argc, argv, "nibble score --base DIR [--adapter DIR] --text T|--file F|--ids 1,2,3 [--json]", NULL,
                     opts, NB_LEN(opts), NULL, 0, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK) st = run(&o, &a);
    return nb_exit_status("score", st);
}
