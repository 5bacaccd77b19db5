/* The command `large`: every kernel that `bench` times, once at the same shapes, against the cpu backend on the same
 * numbers. The rows' own checks (tests/rows.h) are small enough for an emulator; what only large grids and offsets can
 * get wrong shows here. */
#include "tests/gpu/bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "core/mem.h"

/* Buffer i as f32, whatever it is on that device. */
static nb_status fetch(const gc_job *j, int i, float **out, int64_t *n) {
    const struct gc_buf *b = &j->buf[i];
    *n = (int64_t)b->bytes / nb_dtype_size(b->dtype);
    *out = nb_malloc((size_t)*n * sizeof **out + 1);
    NB_TRY(j->d->be->get(j->d, *out, gc_at(j, i, 0), b->bytes));
    for (int64_t e = *n; b->dtype == NB_BF16 && e-- > 0;) { /* widened in place, from the end */
        uint16_t half;
        memcpy(&half, (const char *)*out + e * 2, 2);
        (*out)[e] = nb_bf16_to_f32(half);
    }
    return NB_OK;
}

/* The largest ||device - cpu|| / ||cpu|| of the outputs (what began as zeros, and is f32 or an activation). */
static nb_status difference(const gc_job *ours, const gc_job *cpu, double *worst) {
    *worst = 0;
    for (int i = 0; i < ours->n; i++) {
        const struct gc_buf *b = &ours->buf[i];
        if (b->fill != GC_ZERO || (b->dtype != NB_F32 && b->dtype != NB_BF16)) continue;
        float *x = NULL, *y = NULL;
        int64_t n, m;
        double diff = 0, norm = 0;
        nb_status st = fetch(ours, i, &x, &n);
        if (st == NB_OK) st = fetch(cpu, i, &y, &m);
        NB_ASSERT(st != NB_OK || n == m);
        for (int64_t e = 0; st == NB_OK && e < n; e++)
            diff += ((double)x[e] - y[e]) * ((double)x[e] - y[e]), norm += (double)y[e] * y[e];
        free(x), free(y);
        NB_TRY(st);
        double part = sqrt(diff) / (norm > 0 ? sqrt(norm) : 1);
        if (!(part <= *worst)) *worst = part;
        if (isnan(part)) return NB_OK;
    }
    return NB_OK;
}

static nb_status run(gc_job *j, const gc_kernel *k) {
    k->declare(j);
    NB_TRY(gc_make_buffers(j));
    NB_TRY(k->launch(j, 0));
    return gc_wait(j->d);
}

static bool compare(nb_dev *d, nb_dev *cpu, const gc_shape *s, const gc_kernel *k, int64_t variant) {
    gc_job ours = {.d = d, .s = s, .variant = variant, .logits = d->be->logits_chunk, .sets = 1}, theirs = ours;
    const double tol = d->compute == NB_BF16 ? 1e-2 : 1e-4, start = nb_now();
    double worst = NAN;
    theirs.d = cpu;
    nb_status st = run(&ours, k);
    if (st == NB_OK) st = run(&theirs, k);
    if (st == NB_OK) st = difference(&ours, &theirs, &worst);
    gc_free_buffers(&ours), gc_free_buffers(&theirs);
    const bool right = st == NB_OK && worst <= tol;
    gc_row("large");
    gc_str("model", s->name);
    gc_str("kernel", k->name);
    gc_str("shape", ours.shape);
    gc_str("compute", nb_dtype_name(d->compute));
    gc_str("status", right ? "ok" : "failed");
    gc_num("error", worst);
    gc_num("ms", (nb_now() - start) * 1e3);
    if (st != NB_OK) gc_str("why", nb_message());
    gc_end();
    if (!right)
        fprintf(stderr, "%s %s: %g from the processor's; %s\n", k->name, ours.shape, worst, st ? nb_message() : "");
    return right;
}

int gc_large(const gc_options *o) {
    const nb_dtype compute = strcmp(o->compute, "f32") ? NB_BF16 : NB_F32;
    int failed = 0, ran = 0, n_shapes;
    const gc_shape *s = gc_shapes(o->tiny, &n_shapes);
    nb_dev *d, *cpu;
    gc_must(nb_dev_open(&d, o->device, compute), o->device);
    gc_must(nb_dev_open(&cpu, "cpu", compute), "cpu");
    for (int i = 0; i < n_shapes; i++)
        for (int k = 0; k < gc_n_kernels; k++)
            for (int64_t v = 0; gc_meant(o->only, gc_kernels[k].name) && v < gc_kernels[k].variants; v++) {
                failed += !compare(d, cpu, &s[i], &gc_kernels[k], v);
                ran++;
            }
    nb_dev_close(d);
    nb_dev_close(cpu);
    fprintf(stderr, "%d kernels at large shapes, %d failed\n", ran, failed);
    return failed || !ran;
}
