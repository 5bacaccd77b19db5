#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/export.h"
#include "adapters/merge.h"
#include "cli/cli.h"
#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "model/gguf_base.h"

typedef struct args {
    nb_session_options session;
    const char *format, *dtype, *system;
    const nb_gguf_mix *mix; /* dtype, where there is one */
    char *out;              /* without a slash at its end */
    bool verify;
    int64_t threads;
} args;

static bool is(bool (*what)(const char *dir), const char *base) {
    char *dir = NULL;
    bool yes = base && nb_base_resolve(base, &dir) == NB_OK && what(dir);
    free(dir);
    return yes;
}

/* A base in GGUF or in 4 bits is no folder of floats, but can become one. */
static bool is_packed(const char *base) { return is(nb_gguf_is, base) || is(nb_base_is_quantized, base); }

/* Merging is into float weights, or what 4 bits stand for where the base is stored so; the adapter alone needs its base only
 * for the shapes, in whatever form is at hand. */
static nb_status open_session(nb_session *s, const args *a, bool merges) {
    nb_session_options o = a->session;
    if (!o.adapter && !(merges && is_packed(o.base)))
        return nb_fail(NB_EINPUT, "--format %s: --adapter DIR is needed", a->format);
    o.load_in_4bit = merges ? 0 : -1;
    o.keep_quantized = true;
    o.lm_head_quant = "none";
    return nb_session_open(s, &o);
}

static nb_status merge(nb_session *s, const char *out) {
    return nb_merge(s, out, s->base->prequantized ? NB_MERGE_NF4_ROUNDTRIP : NB_MERGE_ORIGINAL);
}

/* "out/" -> "out": the name of a folder, and of the files beside it. */
static const char *last_name(const char *path, char *out, size_t size) {
    snprintf(out, size, "%s", path);
    for (size_t n = strlen(out); n > 1 && out[n - 1] == '/'; n--) out[n - 1] = 0;
    return nb_path_base(out);
}

static void say(const args *a, const nb_export_report *r) {
    char size[16];
    printf("wrote %s: %lld tensors, %s", a->out, (long long)r->tensors, nb_bytes((double)r->bytes, size));
    if (r->verified) printf("; all %lld read back and agree within the format's rounding", (long long)r->verified);
    printf("\n");
}

/* ---- one function a format ---- */

static nb_status export_hf(const args *a) {
    nb_session s;
    nb_drift d;
    NB_TRY(open_session(&s, a, true));
    nb_status st = merge(&s, a->out);
    if (st == NB_OK && !s.adapter) printf("wrote %s: the base\n", a->out);
    else if (st == NB_OK) printf("wrote %s: base + adapter, %d modules merged\n", a->out, s.adapter->n_attached);
    if (st == NB_OK && a->verify) {
        st = nb_merge_drift(&d, &s, a->out, NULL);
        if (st == NB_OK && !(d.max_kl < 0.1))
            st = nb_fail(NB_ENUMERIC, "%s: its logits are not those of base + adapter: KL up to %g nats", a->out,
                         d.max_kl);
        if (st == NB_OK)
            printf("read back: KL from base%s %.3g nats on average, %.3g at most over %lld positions\n",
                   s.adapter ? " + adapter" : "", d.mean_kl, d.max_kl, (long long)d.positions);
    }
    nb_session_close(&s);
    return st;
}

static nb_status export_peft(const args *a) {
    nb_session s;
    int64_t n;
    if (nb_file_exists(a->out))
        return nb_fail(NB_EINPUT, "%s: exists; nothing was written. Name another folder", a->out);
    NB_TRY(open_session(&s, a, false));
    nb_status st =
        nb_adapter_save(s.adapter, a->out, s.adapter->manifest, s.own_tokenizer ? s.tokenizer : NULL);
    if (st == NB_OK && a->verify) {
        st = nb_export_same_tensors(a->session.adapter, a->out, "adapter_model", &n);
        if (st == NB_OK) printf("wrote %s: all %lld tensors read back and are equal\n", a->out, (long long)n);
    } else if (st == NB_OK) {
        printf("wrote %s\n", a->out);
    }
    nb_session_close(&s);
    return st;
}

static nb_status export_lora(const args *a) {
    nb_session s;
    nb_export_report r;
    char name[256];
    NB_TRY(open_session(&s, a, false));
    nb_status st = nb_export_gguf_lora(&s, last_name(a->session.adapter, name, sizeof name), a->out, a->verify, &r);
    if (st == NB_OK) say(a, &r);
    nb_session_close(&s);
    return st;
}

/* ---- formats of a whole model: of a folder in float, which an adapter is merged into on the way ---- */

typedef nb_status of_folder(const args *a, const char *dir, const char *name, const nb_chat_template *chat);

/* With an adapter, or from a base that is no folder of floats, the model is one beside the output for as long as this takes. */
static nb_status of_model(const args *a, of_folder *f) {
    nb_session s;
    char name[256], *dir;
    if (nb_file_exists(a->out))
        return nb_fail(NB_EINPUT, "%s: exists; nothing was written. Give another name", a->out);
    if (!a->session.adapter && !a->session.base) return nb_fail(NB_EINPUT, "--base DIR is needed");
    if (!a->session.adapter && !is_packed(a->session.base)) {
        NB_TRY(nb_base_resolve(a->session.base, &dir));
        nb_status st = f(a, dir, last_name(a->session.base, name, sizeof name), NULL);
        free(dir);
        return st;
    }
    NB_TRY(open_session(&s, a, true));
    const nb_chat_template *chat = s.chat;
    dir = nb_asprintf("%s.merged.tmp", a->out);
    nb_status st = nb_remove_tree(dir);
    if (st == NB_OK) st = merge(&s, dir);
    nb_session_close(&s);
    const char *of = a->session.adapter ? a->session.adapter : a->session.base;
    if (st == NB_OK) st = f(a, dir, last_name(of, name, sizeof name), chat);
    nb_remove_tree(dir);
    free(dir);
    return st;
}

static nb_status gguf_of(const args *a, const char *dir, const char *name, const nb_chat_template *chat) {
    (void)chat; /* the folder has it */
    nb_export_report r;
    NB_TRY(nb_export_gguf(dir, name, a->out, a->mix, a->verify, &r));
    say(a, &r);
    return NB_OK;
}

static nb_status ollama_of(const args *a, const char *dir, const char *name, const nb_chat_template *chat) {
    nb_export_report r;
    NB_TRY(nb_export_ollama(dir, name, a->out, a->mix, a->verify, chat, a->system, &r));
    say(a, &r);
    printf("with it: cd %s && ollama create %s -f Modelfile\n", a->out, name);
    return NB_OK;
}

static nb_status bnb_of(const args *a, const char *dir, const char *name, const nb_chat_template *chat) {
    (void)name, (void)chat;
    int64_t n, bytes;
    char size[16];
    NB_TRY(nb_base_quantize_dir(dir, a->out, true));
    if (!a->verify) {
        printf("wrote %s\n", a->out);
        return NB_OK;
    }
    nb_status st = nb_base_verify_quantized(dir, a->out, &n, &bytes);
    if (st != NB_OK) return nb_remove_tree(a->out), st;
    printf("wrote %s: %s; all %lld tensors read back and agree within the format's rounding\n", a->out,
           nb_bytes((double)bytes, size), (long long)n);
    return NB_OK;
}

static nb_status export_gguf(const args *a) { return of_model(a, gguf_of); }
static nb_status export_ollama(const args *a) { return of_model(a, ollama_of); }
static nb_status export_bnb(const args *a) {
    if (!a->session.adapter && is(nb_base_is_quantized, a->session.base))
        return nb_fail(NB_EINPUT, "%s: is saved in 4 bits already", a->session.base);
    return of_model(a, bnb_of);
}

static const struct { const char *name; nb_status (*run)(const args *); bool has_dtype, has_system; } formats[] = {
    {"gguf", export_gguf, .has_dtype = true},
    {"gguf-lora", export_lora},
    {"ollama", export_ollama, .has_dtype = true, .has_system = true},
    {"hf", export_hf},
    {"peft", export_peft},
    {"bnb", export_bnb},
};
#define FORMATS "gguf, gguf-lora, ollama, hf, peft or bnb"

static nb_status run(args *a) {
    if (!a->format || !a->out) return nb_fail(NB_EINPUT, "--format (" FORMATS ") and --out PATH are needed");
    for (int i = 0; i < NB_LEN(formats); i++) {
        if (strcmp(formats[i].name, a->format) != 0) continue;
        if (a->dtype && !formats[i].has_dtype)
            return nb_fail(NB_EINPUT, "--dtype %s: only --format gguf and ollama have a choice of types", a->dtype);
        a->mix = a->dtype ? nb_gguf_mix_find(a->dtype) : NULL;
        if (a->dtype && !a->mix) return nb_fail(NB_EINPUT, "--dtype %s: say %s", a->dtype, nb_gguf_mix_names);
        if (a->system && !formats[i].has_system)
            return nb_fail(NB_EINPUT, "--system: only --format ollama keeps a system message");
        NB_TRY(nb_cli_threads(a->threads));
        return formats[i].run(a);
    }
    return nb_fail(NB_EINPUT, "--format %s: say " FORMATS, a->format);
}

int nb_cmd_export(int argc, char **argv) {
    const char *out = NULL;
    args a = {.verify = true, .session = {.device = "cpu", .dtype = "f32"}};
    const nb_opt opts[] = {
        {"base", NB_OPT_STR, &a.session.base, "DIR", "base model: folder or GGUF (default: the one the adapter names)"},
        {"adapter", NB_OPT_STR, &a.session.adapter, "DIR",
         "PEFT adapter folder: merged on the way, into the stored weights"},
        {"format", NB_OPT_STR, &a.format, "FORMAT",
         "gguf (a model for llama.cpp), gguf-lora (an adapter for llama.cpp), ollama (GGUF and Modelfile), hf (merged "
         "model folder), peft (adapter folder), bnb (model folder in bitsandbytes' 4 bits)"},
        {"dtype", NB_OPT_STR, &a.dtype, "TYPE",
         "gguf, ollama: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q5_0, q4_0 (default: as the base is stored)"},
        {"system", NB_OPT_STR, &a.system, "TEXT", "ollama: the system message where a conversation has none"},
        {"out", NB_OPT_STR, &out, "PATH", "file (gguf, gguf-lora) or folder to write; must not exist"},
        {"verify", NB_OPT_FLAG, &a.verify, NULL, "read back and compare what was written (the default)"},
        {"threads", NB_OPT_INT, &a.threads, "N", "threads (0: all cores)"},
    };
    int n;
    bool done = false;
    nb_status st = nb_opt_parse(argc, argv, "nibble export --base DIR [--adapter DIR] --format FORMAT --out PATH",
                                "Other ways to merge a QLoRA adapter: nibble merge, then export --base.\n", opts,
                                NB_LEN(opts), NULL, 0, &n, &done);
    if (st == NB_OK && done) return 0;
    if (st == NB_OK && out) {
        a.out = nb_strdup(out);
        for (size_t i = strlen(out); i > 1 && a.out[i - 1] == '/'; i--) a.out[i - 1] = 0;
    }
    if (st == NB_OK) st = run(&a);
    free(a.out);
    return nb_exit_status("export", st);
}
