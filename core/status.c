#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char message[4096];

nb_status nb_fail(nb_status code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char next[sizeof message]; /* arguments may point into `message` */
    vsnprintf(next, sizeof next, fmt, ap);
    va_end(ap);
    memcpy(message, next, sizeof message);
    NB_ASSERT(code != NB_OK);
    return code;
}

nb_status nb_prefix(nb_status code, const char *fmt, ...) {
    char next[sizeof message];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(next, sizeof next, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof next)
        snprintf(next + n, sizeof next - (size_t)n, ": %s", message);
    memcpy(message, next, sizeof message);
    return code;
}

const char *nb_message(void) { return message; }

void nb_assert_failed(const char *cond, const char *file, int line) {
    fprintf(stderr, "nibble: internal error at %s:%d: %s\n", file, line, cond);
    abort();
}
