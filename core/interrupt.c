#include "core/interrupt.h"

#include <signal.h>

static volatile sig_atomic_t came;
static bool held;

static void note(int sig) { came = sig; }

void nb_interrupt_install(void) {
    struct sigaction act = {.sa_handler = note, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&act.sa_mask);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
}

int nb_interrupted(void) { return held ? 0 : came; }
void nb_interrupt_hold(bool on) { held = on; }
void nb_interrupt_note(int sig) { came = sig; }
