#include "train/optimizer.h"

#include <math.h>

nb_status nb_optimizer_open(nb_optimizer *o, nb_adapter *a) {
    size_t bytes = (size_t)a->n * sizeof(float);
    *o = (nb_optimizer){.adapter = a};
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&o->m, bytes, "the optimizer's state"));
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&o->v, bytes, "the optimizer's state"));
    NB_TRY(a->dev->be->alloc(a->dev, (void **)&o->update, sizeof *o->update, "the optimizer's state"));
    return nb_dev_reserve(a->dev, a->dev->be->rows_ws(a->dev, 1, a->n));
}

void nb_optimizer_close(nb_optimizer *o) {
    if (!o->adapter) return;
    size_t bytes = (size_t)o->adapter->n * sizeof(float);
    if (o->m) o->adapter->dev->be->free(o->adapter->dev, o->m, bytes);
    if (o->update) o->adapter->dev->be->free(o->adapter->dev, o->update, sizeof *o->update);
    if (o->v) o->adapter->dev->be->free(o->adapter->dev, o->v, bytes);
    *o = (nb_optimizer){0};
}

void nb_optimizer_begin(nb_optimizer *o) {
    for (int i = 0; i < o->adapter->n_params; i++) o->adapter->params[i].grad_written = false;
}

/* Runs of parameters that decay alike are updated in one call; vectors (norm weights, biases) do not decay. */
static nb_status update_all(nb_optimizer *o) {
    nb_adapter *a = o->adapter;
    for (int i = 0; i < a->n_params;) {
        bool decays = a->params[i].n_dims > 1;
        int j = i + 1;
        while (j < a->n_params && (a->params[j].n_dims > 1) == decays) j++;
        int64_t at = (float *)a->params[i].data - a->data,
                end = j < a->n_params ? (float *)a->params[j].data - a->data : a->n;
        NB_TRY(a->dev->k->adamw(a->dev, a->data + at, o->m + at, o->v + at, a->grad + at, end - at, o->update,
                                (float)o->beta1, (float)o->beta2, (float)o->epsilon,
                                decays ? (float)o->weight_decay : 0));
        i = j;
    }
    return NB_OK;
}

nb_status nb_optimizer_step(nb_optimizer *o, int64_t step, double rate, double *norm) {
    nb_adapter *a = o->adapter;
    nb_dev *d = a->dev;
    for (int i = 0; i < a->n_params; i++)
        if (!a->params[i].grad_written)
            NB_TRY(d->k->fill(d, a->params[i].grad, NB_F32, 0, nb_tensor_size(&a->params[i])));
    nb_update u = {.bias1 = 1 - pow((double)(float)o->beta1, (double)step),
                   .bias2 = 1 - pow((double)(float)o->beta2, (double)step), .lr = (float)rate,
                   .max_norm = (float)o->max_grad_norm};
    NB_TRY(d->be->put(d, o->update, &u, sizeof u));
    NB_TRY(d->k->sum_squares(d, o->update, a->grad, a->n));
    NB_TRY(update_all(o));
    NB_TRY(d->be->get(d, &u, o->update, sizeof u));
    *norm = sqrt(u.sum_squares);
    return NB_OK;
}
