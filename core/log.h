/* What nibble says while it works. Everything here goes to stderr; results go to stdout. */
#ifndef NB_CORE_LOG_H
#define NB_CORE_LOG_H

#include <stdbool.h>
#include <stdint.h>

typedef enum nb_log_level { NB_LOG_QUIET, NB_LOG_WARN, NB_LOG_INFO, NB_LOG_DEBUG } nb_log_level;
void nb_log_set_level(nb_log_level level); /* default NB_LOG_INFO */

void nb_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nb_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* "warning: ..." */
void nb_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

double nb_now(void); /* seconds, monotonic */

/* One piece of long work: on a terminal a bar that is redrawn in place with the time left, else a
 * plain line at most every 10 s. Work shorter than 0.5 s stays silent. Text printed with nb_info
 * meanwhile scrolls above the bar. Not for use from several threads. */
typedef struct nb_progress {
    const char *label, *unit;
    double total, done, start, drawn, rate;
    char note[128];
    bool active, shown;
} nb_progress;
void nb_progress_begin(nb_progress *p, const char *label, double total, const char *unit);
/* `note` is free text behind the bar ("loss 1.234"), may be NULL. */
void nb_progress_set(nb_progress *p, double done, const char *note);
void nb_progress_end(nb_progress *p);

/* "1h02m", "3m07s", "12s" into buf[16]; returns buf. */
char *nb_duration(double seconds, char buf[16]);
/* "1.2 GiB", "34.5 MiB", "12 KiB" into buf[16]; returns buf. */
char *nb_bytes(double bytes, char buf[16]);

bool nb_stderr_is_tty(void);
bool nb_stdout_is_tty(void);
bool nb_use_color(int fd); /* a terminal, NO_COLOR unset, TERM not dumb */

#endif
