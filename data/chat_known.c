#include "data/chat_known.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "core/hash.h"

enum { QUOTE = 1, TEXT = 2 }; /* bytes that mark a string and literal text in the canonical form */

static bool is_word(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* A string literal: its value between QUOTE marks. Returns the closing quote, or the last byte before `end`. */
static const char *add_string(const char *p, const char *end, nb_text *out) {
    char quote = *p, mark = QUOTE;
    nb_text_add(out, &mark, 1);
    for (p++; p < end && *p != quote; p++) {
        char c = *p;
        if (c == '\\' && p + 1 < end) {
            c = *++p;
            if (c == 'n') c = '\n';
            else if (c == 't') c = '\t';
            else if (c == 'r') c = '\r';
            else if (c != '\\' && c != '\'' && c != '"') nb_text_add(out, "\\", 1);
        }
        nb_text_add(out, &c, 1);
    }
    nb_text_add(out, &mark, 1);
    return p < end ? p : end - 1;
}

static void add_tag(const char *p, const char *end, nb_text *out) {
    bool space = false, first = true;
    for (; p < end; p++) {
        if (isspace((unsigned char)*p)) {
            space = true;
            continue;
        }
        if (space && !first && is_word(*p) && is_word(out->s[out->n - 1])) nb_text_add(out, " ", 1);
        space = first = false;
        if (*p == '\'' || *p == '"') p = add_string(p, end, out);
        else nb_text_add(out, p, 1);
    }
}

/* The end of the tag that begins at p ("{{", "{%" or "{#"), before its closing pair; strings may hold that pair. */
static const char *tag_end(const char *p) {
    char close = p[1] == '{' ? '}' : p[1], quote = 0;
    for (const char *q = p + 2; *q; q++) {
        if (quote) {
            if (*q == '\\' && q[1]) q++;
            else if (*q == quote) quote = 0;
        } else if (close != '#' && (*q == '\'' || *q == '"')) {
            quote = *q;
        } else if (*q == close && q[1] == '}') {
            return q;
        }
    }
    return NULL;
}

static const char *next_tag(const char *p) {
    for (; *p; p++)
        if (*p == '{' && (p[1] == '{' || p[1] == '%' || p[1] == '#')) return p;
    return p;
}

void nb_chat_canonical(const char *jinja, nb_text *out) {
    const char *p = jinja, *all = jinja + strlen(jinja);
    if (all > p && all[-1] == '\n') all--; /* keep_trailing_newline is off */
    bool strip_left = false, drop_newline = false, line_start = true;
    while (p < all) {
        const char *tag = next_tag(p), *begin = p;
        if (tag > all) tag = all;
        const char *end = tag < all ? tag_end(tag) : NULL, *stop = tag;
        if (tag < all && !end) tag = stop = all; /* never closed: text, as good as any other refusal */
        if (tag < all && tag[2] == '-') {
            while (stop > begin && isspace((unsigned char)stop[-1])) stop--;
        } else if (tag < all && tag[1] != '{' && tag[2] != '+') {
            const char *q = stop;
            while (q > begin && (q[-1] == ' ' || q[-1] == '\t')) q--;
            if (q > begin ? q[-1] == '\n' : line_start) stop = q;
        }
        if (strip_left) while (begin < stop && isspace((unsigned char)*begin)) begin++;
        else if (drop_newline && begin < stop && *begin == '\n') begin++;
        if (begin < stop) {
            char mark = TEXT;
            nb_text_add(out, &mark, 1);
            nb_text_add(out, begin, (size_t)(stop - begin));
            nb_text_add(out, &mark, 1);
        }
        if (tag == all) break;
        bool cut = end[-1] == '-' && end - 1 > tag + 1;
        if (tag[1] != '#') {
            nb_text_add(out, tag, 2);
            add_tag(tag + 2 + (tag[2] == '-' || tag[2] == '+'), end - (cut || end[-1] == '+'), out);
            nb_text_add(out, tag[1] == '{' ? "}}" : "%}", 2);
        }
        strip_left = cut;
        drop_newline = tag[1] != '{' && end[-1] != '+';
        p = end + 2;
        line_start = drop_newline && p < all && *p == '\n';
    }
    nb_text_add(out, "", 0);
}

/* SHA-256 of canonical forms of the templates that published models bring. tests/test_chat.c renders them all. */
static const struct {
    const char *sha256, *name;
} known[] = {
    {"f1e9130b03d2c74ef632732bbafa01e91aedb73fcdebe7e0a594119fa2c119c7", "llama3"},       /* Meta-Llama-3-8B-Instruct */
    {"157dba7293d8db5f4f303d5af20ff6a2086d3f16747d7348a5f3c003a398256e", "llama3.1"},     /* Llama-3.1-8B-Instruct */
    {"7e58735a00304e62edde7bd83eb21343a1c90dbdf64bf972818f4fb69d2045d3", "llama3.1"},     /* Llama-3.2-3B-Instruct */
    {"4257063c24561da81bcca95c6c890788cafe1ebad1e486a9d69c5505ce2b335d", "mistral_v1"},
    {"7252923f2ea332925b8d738ec211228663a28b645cfff8cd167ae8eee25ecab6", "mistral_v0.2"}, /* Mistral-7B-Instruct-v0.2 */
    {"9cb7970977ba369c2d8ea903b5070136ad6553768e5905bf12fab87a3a01c4ae", "mistral"},      /* Mistral-7B-Instruct-v0.3 */
    {"3af9892efcaf4b723d21fa47239d4bc884dda69f8109cfd0e66b9cff7c55aab0", "zephyr"},       /* zephyr-7b-beta */
    {"7d052bac7c210352b51907046e2ce9545a5e76afd0de25c64dc79edb00120b6f", "qwen2.5"},      /* Qwen2.5-7B-Instruct */
    {"ac57250d5fd2630f485c7b75e54dc97efd0d523795794a99069eb717c4ada730", "smollm2"},      /* SmolLM2-135M-Instruct */
};

const char *nb_chat_known(const nb_text *canonical) {
    nb_hex hex;
    nb_sha256_of(canonical->s, canonical->n, hex);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].sha256, hex)) return known[i].name;
    return NULL;
}
