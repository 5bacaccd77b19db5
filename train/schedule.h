/* Learning rate by optimizer step, as transformers' get_scheduler gives it: step 0 of a warm-up has rate 0. */
#ifndef NB_TRAIN_SCHEDULE_H
#define NB_TRAIN_SCHEDULE_H

#include <stdint.h>

#include "configs/config.h"

typedef struct nb_schedule {
    int kind;              /* NB_LR_* */
    double peak, min_ratio; /* cosine ends at peak * min_ratio */
    int64_t warmup, total; /* steps */
} nb_schedule;

nb_schedule nb_schedule_of(const nb_config *c, int64_t total_steps);
double nb_schedule_rate(const nb_schedule *s, int64_t step); /* step counts from 0 */

#endif
