/* Status codes and the one error message a failing call leaves behind.
 *
 * Every nibble function that can fail returns nb_status. The place that knows what went wrong
 * calls nb_fail() once, with facts first (file:line or file:offset of the input, what is wrong)
 * and then what to do; callers only pass the code on with NB_TRY. cli/ alone prints the message
 * and exits. The message is per thread: a worker thread that fails must hand its message to the
 * thread that started it (nb_message() there, nb_fail("%s") here). */
#ifndef NB_CORE_STATUS_H
#define NB_CORE_STATUS_H

typedef enum nb_status {
    NB_OK = 0,
    NB_EINPUT,       /* the user's file, config or argument is wrong */
    NB_EUNSUPPORTED, /* valid input that nibble does not handle */
    NB_EIO,          /* the operating system refused: open, read, write, disk full */
    NB_ENOMEM,       /* more memory than there is or than memory_limit allows */
    NB_ESHAPE,       /* tensor shapes or dtypes that do not fit together */
    NB_ENUMERIC,     /* NaN or infinity where none may be */
    NB_EINTERRUPTED  /* stopped by SIGINT or SIGTERM after a clean save */
} nb_status;

/* Stores the message (truncated at 4 KiB, control characters made visible) and returns `code`. Never NB_OK. */
nb_status nb_fail(nb_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "context: " in front of the message already stored; returns `code` unchanged. */
nb_status nb_prefix(nb_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The last message of this thread, "" if none. Valid until the next nb_fail of this thread. */
const char *nb_message(void);

#define NB_TRY(expr)                          \
    do {                                      \
        nb_status nb_try_ = (expr);           \
        if (nb_try_ != NB_OK) return nb_try_; \
    } while (0)

/* For `goto` clean-up: sets `st` and jumps. */
#define NB_GO(st, expr, label)      \
    do {                            \
        (st) = (expr);              \
        if ((st) != NB_OK) goto label; \
    } while (0)

/* Our own mistakes only, never input. Always on. */
#define NB_ASSERT(cond)                                             \
    do {                                                            \
        if (!(cond)) nb_assert_failed(#cond, __FILE__, __LINE__);   \
    } while (0)
void nb_assert_failed(const char *cond, const char *file, int line) __attribute__((noreturn));

#define NB_LEN(array) ((int)(sizeof(array) / sizeof((array)[0])))

#endif
