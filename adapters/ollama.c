/* A folder that `ollama create` reads: the model as GGUF, and a Modelfile with what a GGUF file cannot say to Ollama.
 * https://github.com/ollama/ollama/blob/main/docs/modelfile.md */
#include <stdlib.h>
#include <string.h>

#include "adapters/export.h"
#include "adapters/parts.h"
#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "data/chat_go.h"

/* A line of its own between quotes, which Modelfiles do not escape. */
static void put_stop(nb_text *t, const char *token) {
    if (token && *token && !strpbrk(token, "\n\r\"")) nb_text_printf(t, "PARAMETER stop \"%s\"\n", token);
}

static nb_status put_block(nb_text *t, const char *key, const char *text) {
    if (strstr(text, "\"\"\""))
        return nb_fail(NB_EUNSUPPORTED, "%s: three quotes in a row end a text in a Modelfile and cannot stand in one", key);
    nb_text_printf(t, "%s \"\"\"%s\"\"\"\n", key, text);
    return NB_OK;
}

static nb_status put_template(nb_text *t, const nb_chat_template *chat, const nb_tokenizer *tokenizer,
                              const char *system) {
    nb_text go = {0};
    nb_chat_go_form form = {0};
    nb_status st = NB_OK;
    if (!chat) {
        nb_info("no chat template is known: the Modelfile has none, and prompts reach the model as they are");
    } else if (!nb_chat_go(chat, tokenizer, &go, &form)) {
        nb_warn("chat template %s depends on more than the roles of messages and has no form in Go: the Modelfile has no "
                "TEMPLATE, and Ollama goes by the template that the GGUF file holds", nb_chat_template_name(chat));
        nb_text_puts(t, "# The chat template is the GGUF file's: it has no form in Go.\n");
    } else {
        if (!form.system) nb_text_puts(t, "# The chat template has no place for a system message.\n");
        if (system && !form.system)
            st = nb_fail(NB_EINPUT, "--system: chat template %s has no place for a system message",
                         nb_chat_template_name(chat));
        if (form.more_bos)
            nb_warn("the tokenizer begins texts with a BOS, and chat template %s has none: Ollama will put one in front",
                    nb_chat_template_name(chat));
        if (st == NB_OK) st = put_block(t, "TEMPLATE", go.s);
        if (st == NB_OK) put_stop(t, nb_chat_end_of_turn(chat, tokenizer));
    }
    nb_text_free(&go);
    return st;
}

nb_status nb_export_modelfile(nb_text *t, const char *gguf, const nb_chat_template *chat, const nb_tokenizer *tokenizer,
                              const char *system) {
    nb_text_printf(t, "# ollama create NAME -f Modelfile\nFROM ./%s\n", gguf);
    NB_TRY(put_template(t, chat, tokenizer, system));
    const char *eos = nb_tokenizer_eos(tokenizer) < 0 ? NULL
                                                      : nb_tokenizer_token(tokenizer, nb_tokenizer_eos(tokenizer));
    const char *end = chat ? nb_chat_end_of_turn(chat, tokenizer) : NULL;
    if (eos && !(end && !strcmp(eos, end))) put_stop(t, eos);
    return system ? put_block(t, "SYSTEM", system) : NB_OK;
}

static nb_status write_modelfile(const char *model, const char *dir, const nb_chat_template *chat, const char *system) {
    char *path = nb_path_join(dir, "Modelfile");
    nb_tokenizer *tokenizer = NULL;
    nb_text text = {0};
    nb_status st = nb_tokenizer_load(&tokenizer, model);
    if (st == NB_OK && !chat && nb_tokenizer_chat_template(tokenizer))
        st = nb_chat_template_find(&chat, "tokenizer_default", tokenizer);
    if (st == NB_OK) st = nb_export_modelfile(&text, "model.gguf", chat, tokenizer, system);
    if (st == NB_OK) st = nb_file_write(path, text.s, text.n);
    nb_text_free(&text);
    nb_tokenizer_free(tokenizer);
    free(path);
    return st;
}

nb_status nb_export_ollama(const char *model, const char *name, const char *out, const nb_gguf_mix *mix, bool verify,
                           const nb_chat_template *chat, const char *system, nb_export_report *r) {
    char *tmp = nb_asprintf("%s.tmp", out), *gguf = nb_path_join(tmp, "model.gguf");
    nb_status st = nb_remove_tree(tmp);
    if (st == NB_OK) st = nb_mkdirs(tmp);
    if (st == NB_OK) st = write_modelfile(model, tmp, chat, system); /* the small part first: it may be refused */
    if (st == NB_OK) st = nb_export_gguf(model, name, gguf, mix, verify, r);
    if (st == NB_OK) st = nb_replace_dir(tmp, out);
    if (st != NB_OK) nb_remove_tree(tmp);
    free(tmp), free(gguf);
    return st;
}
