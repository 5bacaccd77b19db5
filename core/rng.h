/* Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011). A draw is a pure function of key and counter, so there is no state to save:
 * a recompute, a resume, another micro-batch split and any thread count see the same numbers. */
#ifndef NB_CORE_RNG_H
#define NB_CORE_RNG_H

#include <stdint.h>

/* out[4] = Philox4x32-10(counter[4], key[2]). */
static inline void nb_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* What a stream of numbers is for; part of the key, so that two uses never share numbers. */
typedef enum nb_stream_id {
    NB_RNG_INIT = 1,  /* adapter and weight initialization */
    NB_RNG_DROPOUT,   /* lora_dropout masks */
    NB_RNG_SHUFFLE,   /* order of samples in an epoch */
    NB_RNG_SPLIT,     /* val_set_size */
    NB_RNG_WEIGHT,    /* fractional dataset weights */
    NB_RNG_SAMPLE,    /* token sampling */
    NB_RNG_BOOTSTRAP, /* resampling in evaluation */
    NB_RNG_TEST
} nb_stream_id;

/* A sequential view of one stream: (seed, stream, index) name it, draws count up inside it. */
typedef struct nb_rng {
    uint32_t key[2], counter[4], buf[4];
    int left;
} nb_rng;
nb_rng nb_rng_open(uint64_t seed, nb_stream_id stream, uint64_t index);
uint32_t nb_rng_u32(nb_rng *r);
uint64_t nb_rng_u64(nb_rng *r);
uint64_t nb_rng_below(nb_rng *r, uint64_t n); /* 0 .. n-1, unbiased; n > 0 */
double nb_rng_uniform(nb_rng *r);             /* [0, 1) with 53 bits */
double nb_rng_normal(nb_rng *r);              /* N(0, 1) */
/* Fisher-Yates shuffle of items[0..n). */
void nb_rng_shuffle(nb_rng *r, int64_t *items, int64_t n);

#endif
