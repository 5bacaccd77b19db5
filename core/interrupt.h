/* SIGINT and SIGTERM as a request: long work looks at nb_interrupted() between steps, saves and
 * returns NB_EINTERRUPTED. A second signal ends the program at once, as if nothing was installed. */
#ifndef NB_CORE_INTERRUPT_H
#define NB_CORE_INTERRUPT_H

void nb_interrupt_install(void);
int nb_interrupted(void); /* 0, or the number of the signal that came */

#endif
