/* SIGINT and SIGTERM as a request: long work looks at nb_interrupted() between steps, saves and
 * returns NB_EINTERRUPTED. A second signal ends the program at once, as if nothing was installed. */
#ifndef NB_CORE_INTERRUPT_H
#define NB_CORE_INTERRUPT_H

#include <stdbool.h>

void nb_interrupt_install(void);
int nb_interrupted(void); /* 0, or the number of the signal that came */
void nb_interrupt_hold(bool on); /* while on, nb_interrupted() is 0: for work that several processes do in step */
void nb_interrupt_note(int sig); /* the same, for a signal that came to another process of ours */

#endif
