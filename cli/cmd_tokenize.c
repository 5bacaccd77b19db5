/* nibble tokenize: text to token ids and back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/tokenizer_open.h"
#include "cli/cli.h"
#include "core/file.h"
#include "core/json.h"
#include "core/mem.h"
#include "data/tokenizer.h"

typedef struct job {
    const nb_tokenizer *t;
    int flags;
    bool decode;
} job;

static void print_ids(const nb_ids *ids) {
    putchar('[');
    for (int64_t i = 0; i < ids->n; i++) printf(i ? ", %d" : "%d", ids->id[i]);
    puts("]");
}

static nb_status print_text(const job *j, const nb_ids *ids) {
    nb_text text = {0};
    for (int64_t i = 0; i < ids->n; i++)
        if (ids->id[i] < 0 || ids->id[i] >= nb_tokenizer_vocab_size(j->t))
            return nb_fail(NB_EINPUT, "token id %d (number %lld) is outside the vocabulary of %d", ids->id[i],
                           (long long)i + 1, nb_tokenizer_vocab_size(j->t));
    nb_status st = nb_tokenizer_decode(j->t, ids->id, ids->n, !(j->flags & NB_TOK_SPECIAL), &text);
    if (st == NB_OK) {
        fwrite(text.s, 1, text.n, stdout);
        putchar('\n');
    }
    nb_text_free(&text);
    return st;
}

/* "[1, 2, 3]", "1,2,3" or "1 2 3" */
static nb_status parse_ids(const char *s, size_t n, nb_ids *out) {
    const char *end = s + n;
    while (s < end) {
        if (strchr(" \t\r\n,[]", *s)) {
            s++;
            continue;
        }
        char *stop;
        long id = strtol(s, &stop, 10);
        if (stop == s || id < INT32_MIN || id > INT32_MAX)
            return nb_fail(NB_EINPUT, "--decode wants token ids, such as [1, 2, 3], not \"%.40s\"", s);
        nb_ids_add(out, (int32_t)id, 0);
        s = stop;
    }
    return NB_OK;
}

static nb_status one(const job *j, const char *text, size_t n) {
    nb_ids ids = {0};
    nb_status st;
    if (j->decode) {
        st = parse_ids(text, n, &ids);
        if (st == NB_OK) st = print_text(j, &ids);
    } else {
        st = nb_tokenizer_encode(j->t, text, n, j->flags, &ids);
        if (st == NB_OK) print_ids(&ids);
    }
    nb_ids_free(&ids);
    return st;
}

static nb_status whole_file(const job *j, const char *path) {
    char *text;
    size_t n;
    NB_TRY(nb_file_read(path, &text, &n));
    nb_status st = one(j, text, n);
    free(text);
    return st == NB_OK ? st : nb_prefix(st, "%s", path);
}

static nb_status json_row(const job *j, const char *line, size_t n) {
    json_error_t err;
    json_t *row = json_loadb(line, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &err), *ids;
    nb_status st;
    if (!row) return nb_fail(NB_EINPUT, "column %d: not valid JSON: %s", err.column, err.text);
    ids = json_is_array(row) ? row : json_object_get(row, "ids");
    const json_t *text = json_object_get(row, "text");
    if (j->decode && json_is_array(ids)) {
        char *s = json_dumps(ids, JSON_COMPACT);
        st = one(j, s, strlen(s));
        free(s);
    } else if (!j->decode && json_is_string(text)) st = one(j, json_string_value(text), json_string_length(text));
    else st = nb_fail(NB_EINPUT, j->decode ? "no array \"ids\" in this row" : "no string \"text\" in this row");
    json_decref(row);
    return st;
}

static nb_status json_lines(const job *j, const char *path) {
    nb_map m;
    nb_status st = NB_OK;
    NB_TRY(nb_map_open(&m, path));
    const char *s = (const char *)m.data, *end = s + m.size;
    for (int64_t line = 1; s < end && st == NB_OK; line++) {
        const char *nl = memchr(s, '\n', (size_t)(end - s));
        size_t n = (size_t)((nl ? nl : end) - s);
        if (n && strspn(s, " \t\r") < n) st = json_row(j, s, n);
        if (st != NB_OK) st = nb_prefix(st, "%s:%lld", path, (long long)line);
        s += n + 1;
    }
    nb_map_close(&m);
    return st;
}

int nb_cmd_tokenize(int argc, char **argv) {
    const char *base = NULL, *file = NULL, *text_file = NULL, *jsonl = NULL, *text = NULL;
    bool special = true, decode = false, done = false;
    int n_pos = 0;
    const nb_opt opts[] = {
        {"base", NB_OPT_STR, &base, "DIR", "model folder whose tokenizer to use"},
        {"tokenizer", NB_OPT_STR, &file, "FILE", "a tokenizer.json or tokenizer.model, or a folder with one"},
        {"special", NB_OPT_FLAG, &special, NULL,
         "default: add bos/eos as the tokenizer does; with --decode, show special tokens"},
        {"decode", NB_OPT_FLAG, &decode, NULL, "the input is token ids: print their text"},
        {"file", NB_OPT_STR, &text_file, "F", "take a whole file as one text"},
        {"jsonl", NB_OPT_STR, &jsonl, "F", "take field `text` of every line (with --decode: an array, or field `ids`)"},
    };
    nb_tokenizer *t = NULL;
    nb_status st = nb_opt_parse(argc, argv, "nibble tokenize --base DIR|--tokenizer FILE TEXT|--file F|--jsonl F",
                                "Prints one JSON array of ids per input.", opts, NB_LEN(opts), &text, 1, &n_pos, &done);
    if (done) return 0;
    if (st == NB_OK && (!base == !file))
        st = nb_fail(NB_EINPUT, "give either --base DIR or --tokenizer FILE");
    if (st == NB_OK && n_pos + (text_file != NULL) + (jsonl != NULL) != 1)
        st = nb_fail(NB_EINPUT, "give one input: TEXT, --file F or --jsonl F");
    if (st == NB_OK) st = nb_tokenizer_open(&t, base ? base : file);
    if (st == NB_OK) {
        job j = {.t = t, .flags = special ? NB_TOK_SPECIAL : 0, .decode = decode};
        st = text_file ? whole_file(&j, text_file) : jsonl ? json_lines(&j, jsonl) : one(&j, text, strlen(text));
    }
    nb_tokenizer_free(t);
    return nb_exit_status("tokenize", st);
}
