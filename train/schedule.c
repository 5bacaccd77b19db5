#include "train/schedule.h"

#include <math.h>

nb_schedule nb_schedule_of(const nb_config *c, int64_t total_steps) {
    nb_schedule s = {c->lr_scheduler, c->learning_rate, c->cosine_min_lr_ratio, 0, total_steps};
    s.warmup = nb_is_set(c, warmup_steps) ? c->warmup_steps : (int64_t)ceil((double)total_steps * c->warmup_ratio);
    return s;
}

double nb_schedule_rate(const nb_schedule *s, int64_t step) {
    if (step < s->warmup) return s->peak * (double)step / (double)(s->warmup > 1 ? s->warmup : 1);
    double span = (double)(s->total - s->warmup > 1 ? s->total - s->warmup : 1);
    double progress = (double)(step - s->warmup) / span;
    if (progress > 1) progress = 1;
    switch (s->kind) {
    case NB_LR_LINEAR: return s->peak * (1 - progress);
    case NB_LR_COSINE: return s->peak * (s->min_ratio + (1 - s->min_ratio) * 0.5 * (1 + cos(M_PI * progress)));
    default: return s->peak;
    }
}
