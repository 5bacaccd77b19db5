/* jansson with nibble's error messages. */
#ifndef NB_CORE_JSON_H
#define NB_CORE_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "core/status.h"

/* Reads a JSON file; on a syntax error: path:line:column and the reason. Duplicate keys are an
 * error. Caller json_decref's *root. */
nb_status nb_json_load(const char *path, json_t **root);
/* Writes a JSON value, indented by 2, keys sorted, newline at the end; atomic. */
nb_status nb_json_save(const char *path, const json_t *root);

/* Typed look-ups in an object. Absent or null: the output keeps its value. Wrong type: an error
 * naming `where` (usually the path), the key and both types. */
nb_status nb_json_int(const json_t *obj, const char *key, int64_t *out, const char *where);
nb_status nb_json_real(const json_t *obj, const char *key, double *out, const char *where);
nb_status nb_json_bool(const json_t *obj, const char *key, bool *out, const char *where);
nb_status nb_json_str(const json_t *obj, const char *key, const char **out, const char *where); /* borrowed */
const char *nb_json_type(const json_t *v); /* "object", "string", ... */

#endif
