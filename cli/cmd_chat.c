/* nibble chat: a conversation with a model, on a terminal or through pipes (a line is a message). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/text.h"

typedef struct chat {
    nb_session session;
    nb_generator *generator;
    const nb_text_args *args;
    const char *system;
    nb_message_t *m; /* contents are owned, but for the system's */
    int n, cap;
    int64_t slot_len;
    uint64_t turn;
    bool terminal;
} chat;

static volatile sig_atomic_t stopped; /* Ctrl-C came */
static void stop(int signal_number) { (void)signal_number, stopped = 1; }

static void say(chat *c, const char *role, const char *content) {
    NB_GROW(c->m, c->n, c->cap);
    c->m[c->n++] = (nb_message_t){role, content};
}

static void take_back(chat *c) { free((char *)(uintptr_t)c->m[--c->n].content); }

static void reset(chat *c) {
    while (c->n > (c->system != NULL)) take_back(c);
    if (c->system && !c->n) say(c, "system", c->system);
}

static bool show(void *arg, const char *text, size_t n) { return nb_text_print(arg, text, n) && !stopped; }

/* Answers the last message, which is taken back when that fails for want of room. */
static nb_status answer(chat *c) {
    nb_ids ids = {0};
    nb_status st = nb_text_chat_ids(&c->session, c->m, c->n, &ids);
    if (st == NB_OK && ids.n >= c->slot_len) {
        nb_warn("the conversation has %lld tokens and no longer fits into %lld: /reset starts a new one "
                "(--context N makes more room, up to the model's %lld)",
                (long long)ids.n, (long long)c->slot_len, (long long)c->session.model->positions);
        take_back(c);
    } else if (st == NB_OK) {
        nb_gen_request q = {.prompt = ids.id, .prompt_n = ids.n, .max_new_tokens = c->args->max_new_tokens,
                            .sequence = c->turn++, .on_text = show};
        nb_gen_result r;
        stopped = 0;
        st = nb_generate(c->generator, &c->args->sampling, &q, 1, &r, NULL);
        if (!r.text.n || r.text.s[r.text.n - 1] != '\n') putchar('\n');
        if (st == NB_OK && r.stop == NB_STOP_CONTEXT)
            nb_warn("the answer was cut: the conversation fills its %lld tokens; "
                    "/reset starts a new one",
                    (long long)c->slot_len);
        if (st == NB_OK && r.stop == NB_STOP_LIMIT && c->terminal) nb_info("(cut at --max-new-tokens %lld)",
                                                                           (long long)c->args->max_new_tokens);
        if (st == NB_OK) say(c, "assistant", nb_strndup(r.text.n ? r.text.s : "", r.text.n));
        nb_gen_result_free(&r);
    }
    nb_ids_free(&ids);
    return st;
}

/* /exit and the like: a single word. *leave: the conversation is over. */
static bool command(chat *c, const char *line, bool *leave) {
    if (line[0] != '/' || line[1 + strcspn(line + 1, " \t/.")]) return false;
    if (!strcmp(line, "/exit") || !strcmp(line, "/quit")) *leave = true;
    else if (!strcmp(line, "/reset")) reset(c), nb_info("a new conversation");
    else if (!strcmp(line, "/help"))
        nb_info(
            "/reset  forget the conversation\n/exit   leave (or Ctrl-D)\n/help   this text\nCtrl-C  stop the answer");
    else nb_info("there is no command %s; /help lists them", line);
    return true;
}

static nb_status converse(chat *c) {
    char *line = NULL;
    size_t cap = 0;
    nb_status st = NB_OK;
    for (bool leave = false; !leave && st == NB_OK;) {
        if (c->terminal) fputs("> ", stdout), fflush(stdout);
        errno = 0;
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 && errno == EINTR) { /* Ctrl-C while nothing is being answered */
            clearerr(stdin);
            puts("\n(/exit or Ctrl-D leaves)");
            continue;
        }
        if (n < 0) break;
        while (n && strchr("\r\n", line[n - 1])) line[--n] = 0;
        if (!line[strspn(line, " \t")] || command(c, line, &leave)) continue;
        say(c, "user", nb_strdup(line));
        st = answer(c);
        if (st == NB_EINPUT && c->terminal) { /* a message that cannot be encoded, say: the conversation goes on */
            nb_warn("%s", nb_message());
            take_back(c);
            st = NB_OK;
        }
    }
    free(line);
    return st;
}

static nb_status run(nb_text_args *a, const char *system, int64_t context) {
    chat c = {.args = a, .system = system, .terminal = isatty(0)};
    NB_TRY(nb_text_open(&c.session, a, true));
    int64_t positions = c.session.model->positions;
    c.slot_len = context && context < positions ? context : positions;
    nb_status st = nb_text_generator(&c.generator, &c.session, a, c.slot_len, c.slot_len, true);
    if (st == NB_OK && c.terminal) {
        struct sigaction on_stop = {.sa_handler = stop}; /* no SA_RESTART: reading a line returns */
        sigaction(SIGINT, &on_stop, NULL);
        nb_info("%s%s%s, template %s. /help lists commands.", c.session.base->dir, a->session.adapter ? " with " : "",
                a->session.adapter ? a->session.adapter : "", nb_chat_template_name(c.session.chat));
    }
    if (st == NB_OK) {
        reset(&c);
        st = converse(&c);
        c.system = NULL;
        while (c.n && strcmp(c.m[c.n - 1].role, "system") != 0) take_back(&c);
    }
    free(c.m);
    nb_generator_free(c.generator);
    nb_session_close(&c.session);
    return st;
}

int nb_cmd_chat(int argc, char **argv) {
    nb_text_args a = nb_text_args_default();
    const char *system = NULL;
    int64_t context = 4096;
    a.sampling.temperature = 0.7, a.sampling.top_p = 0.9, a.max_new_tokens = 512;
    const nb_opt opts[] = {
        {"system", NB_OPT_STR, &system, "TEXT", "the system message"},
        {"context", NB_OPT_INT, &context, "N",
         "tokens a conversation may have (default 4096, or the model's limit); 0: its limit"},
        NB_TEXT_OPTIONS(a),
    };
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(
        argc, argv, "nibble chat --base DIR [--adapter DIR]",
        "Defaults: --temperature 0.7 --top-p 0.9 --max-new-tokens 512. What you type cannot contain control\n"
        "tokens. Through a pipe, every line is a message, and only the answers are printed.",
        opts, NB_LEN(opts), NULL, 0, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK && context < 0)
        st = nb_fail(NB_EINPUT, "--context %lld: give a number of tokens", (long long)context);
    if (st == NB_OK) st = run(&a, system, context);
    free(a.stop.v);
    return nb_exit_status("chat", st);
}
