#include "core/rng.h"

#include <math.h>

nb_rng nb_rng_open(uint64_t seed, nb_stream_id stream, uint64_t index) {
    nb_rng r = {0};
    r.key[0] = (uint32_t)seed;
    r.key[1] = (uint32_t)(seed >> 32) ^ ((uint32_t)stream << 24);
    r.counter[2] = (uint32_t)index;
    r.counter[3] = (uint32_t)(index >> 32);
    return r;
}

uint32_t nb_rng_u32(nb_rng *r) {
    if (!r->left) {
        nb_philox(r->buf, r->counter, r->key);
        if (!++r->counter[0]) ++r->counter[1];
        r->left = 4;
    }
    return r->buf[4 - r->left--];
}

uint64_t nb_rng_u64(nb_rng *r) {
    uint64_t hi = nb_rng_u32(r);
    return hi << 32 | nb_rng_u32(r);
}

uint64_t nb_rng_below(nb_rng *r, uint64_t n) {
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do x = nb_rng_u64(r);
    while (x >= limit);
    return x % n;
}

double nb_rng_uniform(nb_rng *r) { return (double)(nb_rng_u64(r) >> 11) * 0x1p-53; }

double nb_rng_normal(nb_rng *r) {
    double u = 1.0 - nb_rng_uniform(r), v = nb_rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void nb_rng_shuffle(nb_rng *r, int64_t *items, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)nb_rng_below(r, (uint64_t)i + 1), t = items[i];
        items[i] = items[j];
        items[j] = t;
    }
}
