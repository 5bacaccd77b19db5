/* The table of targets, scratch files, and libFuzzer's entry points. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"

const fuzz_target fuzz_targets[] = {
    {"safetensors", fuzz_read_safetensors}, {"gguf", fuzz_read_gguf},
    {"config", fuzz_read_config},           {"tokenizer", fuzz_read_tokenizer},
    {"sentencepiece", fuzz_read_sentencepiece}, {"template", fuzz_read_template},
    {"yaml", fuzz_read_yaml},               {"rows", fuzz_read_rows},
    {"adapter", fuzz_read_adapter},         {"base", fuzz_read_base},
    {"quant_state", fuzz_read_quant_state},
};
const int n_fuzz_targets = NB_LEN(fuzz_targets);

/* ---- parts of an input ---- */

fuzz_part fuzz_take(fuzz_part *rest) {
    const uint8_t *zero = rest->n ? memchr(rest->data, 0, rest->n) : NULL;
    fuzz_part out = {rest->data, zero ? (size_t)(zero - rest->data) : rest->n};
    size_t skip = out.n + (zero != NULL);
    rest->data += skip;
    rest->n -= skip;
    return out;
}

char *fuzz_string(fuzz_part p) {
    return nb_strndup(p.n ? (const char *)p.data : "", p.n);
}

/* ---- scratch files ---- */

static char scratch[128];

static void remove_scratch(void) {
    nb_remove_tree(scratch);
}

/* In memory where that is possible: an input is written thousands of times a second. */
static void make_scratch(void) {
    const char *base = getenv("TMPDIR");
    if (nb_is_dir("/dev/shm")) base = "/dev/shm";
    snprintf(scratch, sizeof scratch, "%s/nibble-fuzz-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(scratch)) {
        perror(scratch);
        exit(2);
    }
    atexit(remove_scratch);
}

const char *fuzz_path(const char *name) {
    static char paths[8][256];
    static int turn;
    char *path = paths[turn++ % 8];
    if (!scratch[0]) make_scratch();
    snprintf(path, sizeof paths[0], "%s/%s", scratch, name);
    char *slash = strrchr(path, '/');
    *slash = 0;
    mkdir(path, 0700);
    *slash = '/';
    unlink(path);
    return path;
}

static void write_parts(const char *path, const fuzz_part *parts, int n) {
    FILE *f = fopen(path, "wb");
    bool ok = f != NULL;
    for (int i = 0; ok && i < n; i++) ok = !parts[i].n || fwrite(parts[i].data, 1, parts[i].n, f) == parts[i].n;
    if (!ok || fclose(f)) {
        perror(path);
        exit(2);
    }
}

const char *fuzz_file(const char *name, const void *data, size_t n) {
    const char *path = fuzz_path(name);
    write_parts(path, &(fuzz_part){data, n}, 1);
    return path;
}

const char *fuzz_safetensors(const char *name, fuzz_part header, fuzz_part data) {
    const char *path = fuzz_path(name);
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header.n >> (8 * i));
    write_parts(path, (fuzz_part[]){{length, 8}, header, data}, 3);
    return path;
}

/* ---- libFuzzer ---- */

#ifdef NB_FUZZ
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const fuzz_target *chosen;

/* The program's name says the target: fuzz-gguf. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *name = strrchr(**argv, '-');
    (void)argc;
    for (int i = 0; name && i < n_fuzz_targets; i++)
        if (!strcmp(fuzz_targets[i].name, name + 1)) chosen = &fuzz_targets[i];
    if (!chosen) {
        fprintf(stderr, "%s: the program's name should be fuzz-TARGET\n", **argv);
        exit(2);
    }
    nb_log_set_level(NB_LOG_QUIET);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    chosen->run(data, n);
    return 0;
}
#endif
