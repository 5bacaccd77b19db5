/* The configuration of a run: one plain struct with one typed member per key, filled from a YAML
 * file and --set options by the tables keys.def and dataset_keys.def. Every scalar is typed by its
 * key: `1e-5` is a number where a number is wanted, `no` a string where a string is wanted. */
#ifndef NB_CONFIGS_CONFIG_H
#define NB_CONFIGS_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/mem.h"
#include "core/status.h"

typedef struct nb_strs { /* a list of strings; a lone scalar is a list of one, with `scalar` set */
    char **v;
    int n;
    bool scalar;
} nb_strs;
typedef struct nb_ints {
    int64_t *v;
    int n;
} nb_ints;
typedef struct nb_pairs { /* names to numbers, in the order they were written */
    char **name;
    double *value;
    int n;
} nb_pairs;
void nb_pairs_add(nb_pairs *m, const char *name, double value);
void nb_pairs_free(nb_pairs *m);

enum { NB_AUTO = -1 }; /* of TRI keys: auto, else 0 or 1 */

/* Values of CHOICE keys, in the order of the rows' ranges (a test compares). */
enum { NB_COMPUTE_AUTO, NB_COMPUTE_BF16, NB_COMPUTE_F32 };                     /* bnb_4bit_compute_dtype */
enum { NB_ADAPTER_QLORA, NB_ADAPTER_LORA, NB_ADAPTER_FULL };                   /* adapter */
enum { NB_CHAT_TOKENIZER_DEFAULT, NB_CHAT_CHATML, NB_CHAT_LLAMA3, NB_CHAT_MISTRAL, NB_CHAT_ZEPHYR, NB_CHAT_ALPACA,
       NB_CHAT_JINJA };
enum { NB_EXCESS_RAISE, NB_EXCESS_SPLIT, NB_EXCESS_TRUNCATE, NB_EXCESS_DROP }; /* excess_length_strategy */
enum { NB_OPTIMIZER_ADAMW, NB_OPTIMIZER_ADAMW_8BIT };                          /* optimizer */
enum { NB_LR_CONSTANT, NB_LR_LINEAR, NB_LR_COSINE };                           /* lr_scheduler */
enum { NB_CHECKPOINTING_FALSE, NB_CHECKPOINTING_SMART, NB_CHECKPOINTING_TRUE, NB_CHECKPOINTING_AUTO };
enum { NB_ZERO_NONE, NB_ZERO_OPTIMIZER, NB_ZERO_BASE };                        /* zero_stage */
enum { NB_WHEN_NO, NB_WHEN_STEPS, NB_WHEN_EPOCH };                             /* eval_strategy, save_strategy */
enum { NB_DATA_COMPLETION, NB_DATA_ALPACA, NB_DATA_PROMPT_COMPLETION, NB_DATA_CHAT_TEMPLATE, NB_DATA_TOKENIZED };
enum { NB_EOS_ALL, NB_EOS_TURN, NB_EOS_LAST, NB_EOS_NONE };                    /* train_on_eos */

/* KIND -> C type. Strings are owned by the config; one that is not set is NULL. Numbers that are not
 * set and have no default are 0. */
typedef bool nb_key_BOOL;     /* true false yes no on off */
typedef int nb_key_TRI;       /* the same, or auto: NB_AUTO, 0, 1 */
typedef int64_t nb_key_INT;
typedef double nb_key_REAL;
typedef char *nb_key_STR;
typedef char *nb_key_PATH;    /* ${env:NAME} is replaced; relative to the working directory */
typedef int nb_key_CHOICE;    /* index into the row's range */
typedef uint64_t nb_key_SIZE; /* bytes; 22GiB, 800 MiB, 5GB */
typedef nb_strs nb_key_STRS;
typedef nb_ints nb_key_INTS;
typedef nb_pairs nb_key_MAP;
typedef char *nb_key_VALUES;  /* a map of anything, as JSON text */

/* Where a key was set: line and column (from 1) of its value in the file; line -1 for --set; line 0:
 * it was not set. */
typedef struct nb_mark {
    int line, col;
} nb_mark;

#define SECTION(ident, title) NB_KEY_section_##ident,
#define KEY(member, kind, dflt, range, aliases, help) NB_KEY_##member,
#define SUB(group, member, kind, dflt, range, aliases, help) NB_KEY_##group##_##member,
enum {
#include "configs/keys.def"
    NB_KEY_COUNT
};
#undef KEY
#undef SUB
#define KEY(member, kind, dflt, range, aliases, help) NB_DATASET_KEY_##member,
#define SUB(group, member, kind, dflt, range, aliases, help) NB_DATASET_KEY_##group##_##member,
enum {
#include "configs/dataset_keys.def"
    NB_DATASET_KEY_COUNT
};
#undef SECTION
#undef KEY
#undef SUB

#define SECTION(ident, title)
#define KEY(member, kind, dflt, range, aliases, help) nb_key_##kind member;
#define SUB(group, member, kind, dflt, range, aliases, help) nb_key_##kind group##_##member;

typedef struct nb_config_dataset {
#include "configs/dataset_keys.def"
    nb_mark mark; /* where the entry begins */
    nb_mark at[NB_DATASET_KEY_COUNT];
} nb_config_dataset;

typedef struct nb_config {
#include "configs/keys.def"
    nb_config_dataset *datasets, *test_datasets;
    int n_datasets, n_test_datasets;
    char *file; /* the YAML file's name as given; NULL for a config that was made in memory */
    nb_mark at[NB_KEY_COUNT];
} nb_config;
#undef SECTION
#undef KEY
#undef SUB

/* nb_is_set(c, lora_r): the file or --set gave the key a value. */
#define nb_is_set(c, member) ((c)->at[NB_KEY_##member].line != 0)
#define nb_dataset_is_set(d, member) ((d)->at[NB_DATASET_KEY_##member].line != 0)

/* Reads `path`, applies `sets` ("key=value", "special_tokens.pad_token=x", "datasets.0.path=x"; an
 * index one past the end appends), works out the defaults that lean on other keys, and checks
 * everything. All mistakes found are in the one message, each as file:line:column. On failure *c
 * holds nothing to free. Warns once about keys of other tools that mean nothing here. */
nb_status nb_config_load(nb_config *c, const char *path, const char *const *sets, int n_sets);
void nb_config_free(nb_config *c);

/* For configs made in memory: the table's defaults; a new dataset entry with its defaults (valid
 * until the next one is added); nb_config_derive works out the rest, as nb_config_load does. Strings
 * put into members must come from nb_strdup: nb_config_free frees them. */
void nb_config_init(nb_config *c);
nb_config_dataset *nb_config_add_dataset(nb_config *c, bool test);
void nb_config_derive(nb_config *c);

/* Keys that are required, exclude or need each other; all mistakes in one message. */
nb_status nb_config_check(const nb_config *c);

/* The configuration as YAML with every key explicit, in the table's order; it reads back to the same
 * configuration and the same text. Appends to *out. */
nb_status nb_config_resolve_text(const nb_config *c, nb_text *out);

/* The reference of all keys: plain text for the terminal, or the Markdown of docs/config.md. */
void nb_config_keys_text(nb_text *out, bool markdown);

#endif
