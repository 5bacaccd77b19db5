#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

static _Thread_local char message[4096];

/* File names, keys and values in a message are whatever a file holds. */
static void store(const char *text) {
    char shown[8];
    size_t n = 0;
    for (int len; (len = nb_utf8_show(shown, &text)) > 0 && n + (size_t)len < sizeof message; n += (size_t)len)
        memcpy(message + n, shown, (size_t)len);
    message[n] = 0;
}

nb_status nb_fail(nb_status code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char next[sizeof message]; /* arguments may point into `message` */
    vsnprintf(next, sizeof next, fmt, ap);
    va_end(ap);
    store(next);
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
    store(next);
    return code;
}

const char *nb_message(void) { return message; }

void nb_assert_failed(const char *cond, const char *file, int line) {
    fprintf(stderr, "nibble: internal error at %s:%d: %s\n", file, line, cond);
    abort();
}
