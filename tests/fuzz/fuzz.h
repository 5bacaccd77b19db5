/* Fuzz targets: each reads one untrusted file, given as bytes, and does with it what the program does. A target must
 * come back from any bytes whatever, within a second and little memory, and free what it took.
 *
 * `make fuzz` builds them with libFuzzer (tests/fuzz/run.sh); tests/test_fuzz.c runs them on the seeds and on what was
 * found. Where a target reads several files, the input holds them with a zero byte between. */
#ifndef NB_TESTS_FUZZ_FUZZ_H
#define NB_TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer.h"

typedef struct fuzz_target {
    const char *name;
    void (*run)(const uint8_t *data, size_t n);
} fuzz_target;
extern const fuzz_target fuzz_targets[];
extern const int n_fuzz_targets;

/* Bytes [data, data + n) of an input. */
typedef struct fuzz_part {
    const uint8_t *data;
    size_t n;
} fuzz_part;
/* Takes from the front of `rest` what stands before its next zero byte (or all of it). */
fuzz_part fuzz_take(fuzz_part *rest);
/* Writes NAME into this process's scratch folder, which may be "folder/file"; the path stays valid for a few calls. */
const char *fuzz_file(const char *name, const void *data, size_t n);
/* A path there, nothing written; an old file of the name is removed. */
const char *fuzz_path(const char *name);
/* ... a safetensors file: a header, its length in front, and data. */
const char *fuzz_safetensors(const char *name, fuzz_part header, fuzz_part data);
/* Texts there and back. */
void fuzz_use(const nb_tokenizer *t, fuzz_part text);
/* Text of an input as a string; free it. */
char *fuzz_string(fuzz_part p);

void fuzz_read_safetensors(const uint8_t *data, size_t n);
void fuzz_read_gguf(const uint8_t *data, size_t n);
void fuzz_read_config(const uint8_t *data, size_t n);
void fuzz_read_tokenizer(const uint8_t *data, size_t n);
void fuzz_read_sentencepiece(const uint8_t *data, size_t n);
void fuzz_read_template(const uint8_t *data, size_t n);
void fuzz_read_yaml(const uint8_t *data, size_t n);
void fuzz_read_rows(const uint8_t *data, size_t n);
void fuzz_read_adapter(const uint8_t *data, size_t n);
void fuzz_read_base(const uint8_t *data, size_t n);
void fuzz_read_quant_state(const uint8_t *data, size_t n);

#endif
