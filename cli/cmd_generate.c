/* nibble generate: complete a prompt, as the text comes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/text.h"
#include "core/file.h"
#include "core/interrupt.h"

typedef struct generate_args {
    nb_text_args text;
    const char *prompt, *prompt_file, *system;
    bool chat;
} generate_args;

static nb_status read_prompt(const generate_args *a, char **text, size_t *n) {
    if (!a->prompt == !a->prompt_file) return nb_fail(NB_EINPUT, "give one of --prompt TEXT and --prompt-file FILE");
    if (a->prompt) {
        *text = nb_strdup(a->prompt), *n = strlen(a->prompt);
        return NB_OK;
    }
    NB_TRY(nb_file_read(a->prompt_file, text, n));
    if (*n && (*text)[*n - 1] == '\n') (*text)[--*n] = 0; /* the file's last line end is not the prompt's */
    if (memchr(*text, 0, *n)) return nb_fail(NB_EINPUT, "%s: contains a NUL byte: not a text", a->prompt_file);
    return NB_OK;
}

static nb_status encode(const generate_args *a, const nb_session *s, const char *text, size_t n, nb_ids *ids) {
    if (!a->chat) return nb_tokenizer_encode(s->tokenizer, text, n, NB_TOK_SPECIAL, ids);
    nb_message_t m[2] = {{"system", a->system}, {"user", text}};
    return a->system ? nb_text_chat_ids(s, m, 2, ids) : nb_text_chat_ids(s, m + 1, 1, ids);
}

static nb_status answer(const generate_args *a, nb_session *s, const nb_ids *ids) {
    int64_t room = s->model->positions, want = ids->n + a->text.max_new_tokens;
    nb_generator *g;
    nb_gen_result r;
    nb_gen_request q = {.prompt = ids->id, .prompt_n = ids->n, .max_new_tokens = a->text.max_new_tokens,
                        .on_text = nb_text_print};
    if (ids->n < 1)
        return nb_fail(NB_EINPUT, "the prompt is empty and the tokenizer puts nothing in front: give some text");
    NB_TRY(nb_text_generator(&g, s, &a->text, want < room ? want : room, ids->n, false));
    double start = nb_now();
    nb_status st = nb_generate(g, &a->text.sampling, &q, 1, &r, NULL);
    double seconds = nb_now() - start;
    if (r.text.n && r.text.s[r.text.n - 1] != '\n') putchar('\n');
    fflush(stdout);
    if (st == NB_OK) {
        nb_info("%lld tokens after a prompt of %lld in %.2f s, %.1f tokens/s; ended by: %s", (long long)r.n,
                (long long)ids->n, seconds, (double)r.n / seconds, nb_stop_name(r.stop));
        if (r.stop == NB_STOP_CONTEXT)
            nb_warn("the answer was cut at the model's context of %lld tokens", (long long)room);
    }
    nb_gen_result_free(&r);
    nb_generator_free(g);
    return st;
}

static nb_status run(generate_args *a) {
    nb_session s;
    nb_ids ids = {0};
    char *text = NULL;
    size_t n = 0;
    nb_interrupt_install();
    nb_status st = read_prompt(a, &text, &n);
    if (st == NB_OK && a->system && !a->chat) st = nb_fail(NB_EINPUT, "--system goes with --chat");
    if (st == NB_OK) st = nb_text_open(&s, &a->text, a->chat);
    if (st == NB_OK) {
        st = encode(a, &s, text, n, &ids);
        if (st == NB_OK) st = answer(a, &s, &ids);
        nb_session_close(&s);
    }
    nb_ids_free(&ids);
    free(text);
    return st;
}

int nb_cmd_generate(int argc, char **argv) {
    generate_args a = {.text = nb_text_args_default()};
    const nb_opt opts[] = {
        {"prompt", NB_OPT_STR, &a.prompt, "TEXT", "the text to continue"},
        {"prompt-file", NB_OPT_STR, &a.prompt_file, "FILE", "the same, from a file (without its last line end)"},
        {"chat", NB_OPT_FLAG, &a.chat, NULL, "the prompt is a user's message: put it into the model's chat template"},
        {"system", NB_OPT_STR, &a.system, "TEXT", "with --chat: the system message"},
        NB_TEXT_OPTIONS(a.text),
    };
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(
        argc, argv, "nibble generate --base DIR [--adapter DIR] --prompt TEXT|--prompt-file FILE [--chat]",
        "The text goes to stdout as it is made, figures to stderr. The default is greedy: give\n"
        "--temperature to draw. Without --chat, control tokens spelled out in the prompt are control tokens.",
        opts, NB_LEN(opts), NULL, 0, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK) st = run(&a);
    free(a.text.stop.v);
    return nb_exit_status("generate", st);
}
