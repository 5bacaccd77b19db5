#include "train/optimizer.h"

#include <math.h>

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a) {
    size_t bytes = (size_t)a->n * sizeof(float);
    *o = (nb_optimizer){.adapter = a};
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&o->m, bytes, "the optimizer's state"));
    return a->dev->be->alloc(a->dev, (void **)&o->v, bytes, "the optimizer's state");
}

void nb_optimizer_close(nb_optimizer *o) {
    if (!o->adapter) return;
    size_t bytes = (size_t)o->adapter->n * sizeof(float);
    if (o->m) o->adapter->dev->be->free(o->adapter->dev, o->m, bytes);
    if (o->v) o->adapter->dev->be->free(o->adapter->dev, o->v, bytes);
    *o = (nb_optimizer){0};
}

void nb_optimizer_begin(nb_optimizer *o) {
    for (int i = 0; i < o->adapter->n_params; i++) o->adapter->params[i].grad_written = false;
}

nb_status nb_optimizer_norm(nb_optimizer *o, double *norm) {
    nb_adapter *a = o->adapter;
    for (int i = 0; i < a->n_params; i++)
        if (!a->params[i].grad_written)
            NB_TRY(a->dev->k->fill(a->dev, a->params[i].grad, 0, nb_tensor_size(&a->params[i])));
    double sum;
    NB_TRY(a->dev->k->sum_squares(a->dev, &sum, a->grad, a->n));
    *norm = sqrt(sum);
    return NB_OK;
}

nb_status nb_optimizer_update(nb_optimizer *o, int64_t step, double rate, double norm) {
    nb_adapter *a = o->adapter;
    /* torch's clip_grad_norm_ adds 1e-6 to the norm */
    double clip = o->max_grad_norm > 0 ? o->max_grad_norm / (norm + 1e-6) : 1;
    if (clip > 1) clip = 1;
    for (int i = 0; i < a->n_params;) { /* runs of parameters that decay alike are updated in one call */
        bool decays = a->params[i].n_dims > 1;
        int j = i + 1;
        while (j < a->n_params && (a->params[j].n_dims > 1) == decays) j++;
        int64_t at = a->params[i].data - a->data, end = j < a->n_params ? a->params[j].data - a->data : a->n;
        NB_TRY(a->dev->k->adamw(a->dev, a->data + at, o->m + at, o->v + at, a->grad + at, end - at, (float)rate,
                                (float)o->beta1, (float)o->beta2, (float)o->epsilon,
                                decays ? (float)o->weight_decay : 0, step, (float)clip));
        i = j;
    }
    return NB_OK;
}
