/* `nibble bench`: the machine's limits, then how near a prompt, generation and a training step come to them. */
#ifndef NB_MEASURE_BENCH_H
#define NB_MEASURE_BENCH_H

#include "configs/config.h"
#include "core/json.h"
#include "kernels/weight.h"
#include "measure/random_base.h"

typedef struct nb_bench_options {
    nb_config *config;        /* whose model is measured; NULL: random weights of `shape` */
    const char *device;       /* these seven: without a configuration */
    nb_shape shape;
    nb_format format;         /* of the linear layers */
    nb_head_quant head;
    const char *dtype;        /* "f32", "bf16"; NULL: bf16 where the device has it */
    const char *checkpointing; /* "false", "smart", "true" */
    int64_t tokens, rank;     /* of a training step */
    int64_t prompt, generate; /* tokens read at once; tokens generated. 0: not measured */
    bool step;                /* measure training */
    double seconds;           /* for each part */
} nb_bench_options;

/* Everything in one object:
 *   machine     {cpu, threads, cores, memory, nibble}
 *   limits      one object a number of threads (1, 2, 4, ..., all): {threads, f32_gflops, bf16_gflops, read_gb_s}
 *   model       {name, format, head, compute, parameters, weight_bytes}
 *   prompt      {tokens, runs, ms, median_ms, tokens_per_second, peak_memory, gflops, percent}
 *   generation  {the same, with gb_s and read_gb_s (measured beside it) for gflops}
 *   step        {the same as prompt, and rank, checkpointing, activation_bytes, optimizer_ms,
 *                operations: [{name, times, share, forward, backward: {ms, gflops, gb_s, percent}}]}
 * A part that was not measured is absent, a limit that is not known null, and so is a percentage of it. Percentages are
 * of the multiply-adds' peak in the type that products compute in, or of reading memory; of an operation, of whichever
 * takes it longer (more than 100: its data came from a cache). ms is the fastest run. */
nb_status nb_bench_run(json_t **out, const nb_bench_options *o);

#endif
