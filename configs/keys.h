/* The key tables and what can be done with one row: find it, set its member from a node, give it its
 * default, free it, print it. Private to configs/. */
#ifndef NB_CONFIGS_KEYS_H
#define NB_CONFIGS_KEYS_H

#include "configs/config.h"
#include "configs/yaml.h"

typedef enum nb_kind {
    NB_KIND_SECTION, NB_KIND_BOOL, NB_KIND_TRI, NB_KIND_INT, NB_KIND_REAL, NB_KIND_STR, NB_KIND_PATH,
    NB_KIND_CHOICE, NB_KIND_SIZE, NB_KIND_STRS, NB_KIND_INTS, NB_KIND_MAP, NB_KIND_VALUES
} nb_kind;

typedef struct nb_key {
    const char *name; /* "lora_r", "special_tokens.bos_token"; of a SECTION: its title */
    nb_kind kind;
    size_t offset;    /* of the member in nb_config or nb_config_dataset */
    const char *dflt, *range, *aliases, *help;
} nb_key;

/* Row i stands for mark i of the struct's `at`. */
extern const nb_key nb_keys[NB_KEY_COUNT], nb_dataset_keys[NB_DATASET_KEY_COUNT];

/* All mistakes of one configuration, one line each. */
typedef struct nb_errors {
    const char *file; /* may be NULL */
    nb_text text;
    int n;
} nb_errors;
/* The message begins with the key's name. A mark of line -1 becomes "--set ", of line 0 "file: ". */
void nb_errors_add(nb_errors *e, nb_mark at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
nb_status nb_errors_done(nb_errors *e); /* NB_OK or the one message; frees */

/* Row of a name or alias, or -1. *only is the one value an alias accepts, else NULL (may be a static
 * buffer, valid until the next call). */
int nb_key_find(const nb_key *keys, int n, const char *name, const char **only);
/* Sets the member in the struct at `base`. False: *why tells what is wrong with the value; the member
 * is unchanged. */
bool nb_key_set(const nb_key *k, void *base, const nb_yaml *value, nb_text *why);
void nb_key_set_default(const nb_key *k, void *base); /* frees the old value */
void nb_key_clear(const nb_key *k, void *base);       /* frees, sets to zero */
bool nb_key_null_is_value(const nb_key *k);           /* null is 0, not "not set" */
/* The value in YAML's flow style. `set`: the file or --set gave it. */
void nb_key_print(const nb_key *k, const void *base, bool set, nb_text *out);
/* Spelling number i of choice `value` in a range "x=y|z", into buf[64]; NULL when there is none. */
const char *nb_choice_name(const char *range, int value, int i, char *buf);

#endif
