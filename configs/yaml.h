/* A YAML document as a tree of untyped nodes with places, for the tables to type. Read with
 * libyaml's events. Not a general YAML reader: one document, UTF-8, keys are scalars, standard tags
 * only. Anchors, aliases and `<<` are resolved here; an alias shares its node, so a tree is really a
 * graph without cycles, whose written-out size is capped. */
#ifndef NB_CONFIGS_YAML_H
#define NB_CONFIGS_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "configs/config.h"

enum {
    NB_YAML_MAX_BYTES = 1 << 20,  /* of a file */
    NB_YAML_MAX_DEPTH = 32,
    NB_YAML_MAX_NODES = 100000    /* with every alias written out */
};

typedef enum nb_yaml_kind { NB_YAML_SCALAR, NB_YAML_LIST, NB_YAML_MAP } nb_yaml_kind;

typedef struct nb_yaml nb_yaml;
typedef struct nb_yaml_pair {
    char *key;      /* owned */
    nb_mark at;     /* of the key */
    nb_yaml *value; /* borrowed from the document */
    bool merged;    /* came by `<<`: a key of the map itself wins */
} nb_yaml_pair;

struct nb_yaml {
    nb_yaml_kind kind;
    nb_mark at;
    char *text;          /* scalar */
    bool plain;          /* scalar written without quotes */
    nb_yaml **items;     /* list */
    nb_yaml_pair *pairs; /* map: own pairs first, merged ones behind */
    int n, cap;
    size_t size;         /* nodes below and including this one, aliases written out */
};

typedef struct nb_yaml_doc {
    nb_yaml *root;
    nb_yaml **nodes; /* all nodes, owned */
    int n, cap;
} nb_yaml_doc;

/* `file` is the name in messages, each "file:line:column: ...". On failure nothing is left to free. */
nb_status nb_yaml_parse(nb_yaml_doc *doc, const char *file, const char *text, size_t size);
void nb_yaml_free(nb_yaml_doc *doc);

/* Nothing at all, `~` or `null`, without quotes. */
bool nb_yaml_is_null(const nb_yaml *node);
const char *nb_yaml_kind_name(const nb_yaml *node); /* "a list", ... */

#endif
