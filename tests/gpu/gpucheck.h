/* gpucheck: what nibble's kernels and a whole training step do on the card at hand. tests/gpu/README.md says how to run
 * it and what its rows mean. Each result is one JSON object on a line of standard output, written as soon as it is
 * known, so that a run cut short leaves what it has. */
#ifndef NB_TESTS_GPU_GPUCHECK_H
#define NB_TESTS_GPU_GPUCHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"

/* What the command line says; each command reads its part. */
typedef struct gc_options {
    const char *device;
    const char *compute; /* "f32", "bf16"; correct: also "both" */
    uint64_t seed;
    const char *only;    /* correct: checks; bench and large: kernels that begin so */
    const char *products; /* bench: ways of making products, parted by commas; NULL: the device's own choice */
    bool quick;          /* correct: the first check of each row */
    bool tiny;           /* bench: sizes the emulator can do */
    /* step */
    const char *model, *out, *format; /* format: "nf4", or "as-is" */
    const char *name;                 /* what rows call the model; NULL: its folder's name */
    const char *cache;                /* folder for the quantized base; NULL: nibble's own */
    int64_t tokens, docs, steps, rank;
    double lr;
    bool checkpoint, profile, reinit; /* reinit: random weights, whatever the folder has */
} gc_options;

int gc_correct(const gc_options *o);
int gc_large(const gc_options *o);
int gc_bench(const gc_options *o);
int gc_step(const gc_options *o);

/* A row: begin, values, end. A number that is not finite becomes null. */
void gc_row(const char *kind);
void gc_str(const char *key, const char *value);
void gc_num(const char *key, double value);
void gc_end(void);
/* Ends the program with the message of a call that failed, which becomes a row too. */
void gc_must(nb_status st, const char *what);

/* device.c: what the table of kernels does not answer. */
/* "NVIDIA H200, 132 multiprocessors, 139.8 GiB, driver 13.0, runtime 13.0"; of the processor for cpu and emu. */
const char *gc_describe(const nb_dev *d);
/* Seconds on the device between the two marks, by events in its stream (else by the clock). stop waits. */
nb_status gc_start(nb_dev *d);
nb_status gc_stop(nb_dev *d, double *seconds);
/* Waits for all that was launched. */
nb_status gc_wait(nb_dev *d);
/* Counts what `d` allocates from now on: every allocation of a run, of which *peak is the most at one time. The numbers
 * are of the last device this was called for. */
void gc_count_memory(nb_dev *d);
size_t gc_memory_peak(void);

#endif
