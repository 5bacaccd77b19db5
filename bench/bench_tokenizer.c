/* Encoding and decoding speed on one core, by its own clock: other programs may share it.
 *   bench_tokenizer [TOKENIZER [TEXT]]   default: the sample base's tokenizer on a generated English-like text */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/file.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "data/tokenizer.h"

/* Words of a Zipf-like distribution with spaces, punctuation and line ends: about 3 MB. */
static char *make_text(size_t *n) {
    nb_rng rng = nb_rng_open(1, NB_RNG_TEST, 0);
    nb_text out = {0};
    char words[4000][16];
    for (int i = 0; i < NB_LEN(words); i++) {
        int len = 1 + (int)nb_rng_below(&rng, 9);
        for (int k = 0; k < len; k++)
            words[i][k] = "etaoinshrdlucmfwypvbgk"[nb_rng_below(&rng, 11) + nb_rng_below(&rng, 12)];
        words[i][len] = 0;
    }
    for (int i = 1; out.n < 3u << 20; i++) {
        double u = nb_rng_uniform(&rng);
        nb_text_puts(&out, words[(int)((double)NB_LEN(words) * u * u * u)]);
        nb_text_puts(&out, i % 71 == 0 ? ".\n" : i % 11 == 0 ? ", " : " ");
    }
    *n = out.n;
    return out.s;
}

static double cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : "data/samples/base";
    nb_tokenizer *t;
    char *text = NULL;
    size_t n;
    double start = cpu();
    if (nb_tokenizer_load(&t, dir) != NB_OK || (argc > 2 && nb_file_read(argv[2], &text, &n) != NB_OK)) {
        fprintf(stderr, "bench_tokenizer: %s\n", nb_message());
        return 1;
    }
    double loaded = cpu() - start, best_encode = 1e9, best_decode = 1e9;
    if (!text) text = make_text(&n);
    nb_ids ids = {0};
    nb_text back = {0};
    for (int i = 0; i < 5; i++) {
        ids.n = 0, back.n = 0;
        start = cpu();
        if (nb_tokenizer_encode(t, text, n, 0, &ids) != NB_OK) return 1;
        double middle = cpu();
        if (nb_tokenizer_decode(t, ids.id, ids.n, false, &back) != NB_OK) return 1;
        double end = cpu();
        if (middle - start < best_encode) best_encode = middle - start;
        if (end - middle < best_decode) best_decode = end - middle;
    }
    printf("%s: load %.0f ms; %.2f MB -> %lld tokens; encode %.1f MB/s, decode %.1f MB/s\n", dir, loaded * 1e3,
           (double)n / 1e6, (long long)ids.n, (double)n / 1e6 / best_encode, (double)n / 1e6 / best_decode);
    nb_ids_free(&ids);
    nb_text_free(&back);
    nb_tokenizer_free(t);
    free(text);
    return 0;
}
