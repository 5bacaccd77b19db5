#include "core/log.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "core/mem.h"
#include "core/utf8.h"

static nb_log_level log_level = NB_LOG_INFO;
static nb_progress *current; /* the bar on the screen, if any */

void nb_log_set_level(nb_log_level level) { log_level = level; }

bool nb_stderr_is_tty(void) { return isatty(2); }
bool nb_stdout_is_tty(void) { return isatty(1); }

bool nb_use_color(int fd) {
    const char *term = getenv("TERM"), *no = getenv("NO_COLOR");
    return isatty(fd) && !(no && *no) && term && strcmp(term, "dumb") != 0;
}

static void bar_clear(void) {
    if (current && current->shown && isatty(2)) fputs("\r\033[K", stderr);
}

static void bar_draw(nb_progress *p);

/* Text may hold what stood in a file: a terminal is shown its control characters, and does not obey them. */
static void put(const char *prefix, const char *text, const char *suffix) {
    nb_text line = {0};
    char shown[8];
    nb_text_puts(&line, prefix);
    for (int n; (n = nb_utf8_show(shown, &text)) > 0;) nb_text_add(&line, shown, (size_t)n);
    nb_text_puts(&line, suffix);
    fputs(line.s, stderr);
    nb_text_free(&line);
}

static void say(const char *prefix, const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    char *text = nb_malloc((size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, fmt, ap);
    bar_clear();
    put(prefix, text, "\n");
    free(text);
    if (current && current->shown && isatty(2)) bar_draw(current);
}

#define SAY(name, level, prefix)              \
    void name(const char *fmt, ...) {         \
        if (log_level < (level)) return;      \
        va_list ap;                           \
        va_start(ap, fmt);                    \
        say(prefix, fmt, ap);                 \
        va_end(ap);                           \
    }
SAY(nb_info, NB_LOG_INFO, "")
SAY(nb_warn, NB_LOG_WARN, "warning: ")
SAY(nb_debug, NB_LOG_DEBUG, "debug: ")

double nb_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

char *nb_duration(double s, char buf[16]) {
    if (!(s >= 0) || s > 1e8) snprintf(buf, 16, "?");
    else if (s < 60) snprintf(buf, 16, "%.0fs", s);
    else if (s < 3600) snprintf(buf, 16, "%dm%02ds", (int)s / 60, (int)s % 60);
    else snprintf(buf, 16, "%dh%02dm", (int)s / 3600, (int)s % 3600 / 60);
    return buf;
}

char *nb_bytes(double b, char buf[16]) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int u = 0;
    while (b >= 1024 && u < 4) b /= 1024, u++;
    snprintf(buf, 16, u == 0 || b >= 100 ? "%.0f %s" : b >= 10 ? "%.1f %s" : "%.2f %s", b, unit[u]);
    return buf;
}

void nb_progress_begin(nb_progress *p, const char *label, double total, const char *unit) {
    *p = (nb_progress){.label = label, .unit = unit, .total = total, .start = nb_now(), .active = true};
    p->drawn = p->start;
}

static void bar_draw(nb_progress *p) {
    double now = nb_now(), f = p->total > 0 ? p->done / p->total : 0;
    if (f > 1) f = 1;
    char left[16], took[16];
    nb_duration(p->done > 0 ? (now - p->start) * (p->total - p->done) / p->done : INFINITY, left);
    nb_duration(now - p->start, took);
    char line[512];
    if (!isatty(2)) {
        snprintf(line, sizeof line, "%s %.0f/%.0f %s (%.0f%%), %s elapsed, %s left%s%s", p->label, p->done, p->total,
                 p->unit, 100 * f, took, left, p->note[0] ? ", " : "", p->note);
        put("", line, "\n");
        return;
    }
    struct winsize w = {0};
    int cols = ioctl(2, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80;
    int n = snprintf(line, sizeof line, "%s [", p->label), width = 24;
    for (int i = 0; i < width && n < (int)sizeof line - 1; i++) line[n++] = i < (int)(f * width + 0.5) ? '#' : '.';
    n += snprintf(line + n, sizeof line - (size_t)n, "] %3.0f%% %.0f/%.0f %s, %s left%s%s", 100 * f, p->done,
                  p->total, p->unit, left, p->note[0] ? ", " : "", p->note);
    if (n >= cols) line[cols - 1] = 0;
    put("\r\033[K", line, "");
    fflush(stderr);
}

void nb_progress_set(nb_progress *p, double done, const char *note) {
    p->done = done;
    if (note) snprintf(p->note, sizeof p->note, "%s", note);
    if (log_level < NB_LOG_INFO) return;
    double now = nb_now();
    if (now - p->start < 0.5 || now - p->drawn < (isatty(2) ? 0.1 : 10.0)) return;
    p->drawn = now;
    p->shown = true;
    current = p;
    bar_draw(p);
}

void nb_progress_end(nb_progress *p) {
    if (current == p) {
        bar_clear();
        current = NULL;
    }
    p->active = p->shown = false;
}
