/* Chat templates in Jinja: a bounded interpreter of what model cards use of the language, with jinja2's semantics as
 * transformers sets it up (trim_blocks, lstrip_blocks, loop controls, sandboxed, no escaping of HTML).
 *
 * A template is untrusted input: evaluation steps, memory, output and nesting are limited, lists and dictionaries
 * cannot be changed, and nothing outside the given variables can be reached.
 *
 * Every string remembers which of its bytes came from the content of which message (through concatenation, trimming,
 * slicing, splitting, replacing, joining, macros), so the rendered text tells its template text from data. */
#ifndef NB_DATA_JINJA_H
#define NB_DATA_JINJA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "core/mem.h"
#include "core/status.h"

typedef struct nb_jinja nb_jinja;

/* Parses text[0..n) (at most 1 MiB of UTF-8). Errors name the template's line and column. */
nb_status nb_jinja_parse(nb_jinja **out, const char *text, size_t n);
void nb_jinja_free(nb_jinja *j); /* NULL is harmless */

typedef struct nb_jinja_limits {
    int64_t steps;        /* evaluated nodes, and strings by their length */
    size_t memory, output; /* bytes */
    int depth;            /* nested expressions, blocks and macro calls */
} nb_jinja_limits;
extern const nb_jinja_limits nb_jinja_default_limits;

typedef struct nb_jinja_input {
    const json_t *variables;       /* an object; the texts in "messages", "tools" and "documents" are kept track of */
    const struct tm *now;          /* NULL: strftime_now is undefined, so that equal rows render equally every day */
    const nb_jinja_limits *limits; /* NULL: the default ones */
} nb_jinja_input;

/* Bytes [begin, end) of the output with a common origin: a message (its content, or whatever else it holds besides its
 * role), the tools and documents, or -1 for the template's own text; and whether a {% generation %} block wrote them.
 * Empty runs stand where a message's content is empty. */
enum { NB_JINJA_DATA = (1 << 30) - 2 }; /* in the place of a message: of tools or documents */
typedef struct nb_jinja_run {
    size_t begin, end;
    int message;
    bool generation;
} nb_jinja_run;

typedef struct nb_jinja_output {
    nb_text text;
    nb_jinja_run *runs; /* ascending; what no run covers is template text outside of {% generation %} */
    int n_runs;
} nb_jinja_output;
/* May be called by several threads with the same template. *out is overwritten; free it with nb_jinja_output_free. What
 * the template refuses by raise_exception, and every error of evaluation, is NB_EINPUT. */
nb_status nb_jinja_render(const nb_jinja *j, const nb_jinja_input *in, nb_jinja_output *out);
void nb_jinja_output_free(nb_jinja_output *out);

#endif
