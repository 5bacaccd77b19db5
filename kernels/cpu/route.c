/* Mixture of experts: which tokens go where, and what comes back. Every token is treated alone, but for the order of the
 * rows, which is the tokens'. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { MAX_E = 1024, MAX_K = 32 };

/* p[E] = softmax(x); returns log of the sum of exp(x). */
static float softmax(float *p, const float *x, int64_t E) {
    float best = x[0], sum = 0;
    for (int64_t e = 1; e < E; e++) best = x[e] > best ? x[e] : best;
    for (int64_t e = 0; e < E; e++) sum += p[e] = expf(x[e] - best);
    for (int64_t e = 0; e < E; e++) p[e] /= sum;
    return best + logf(sum);
}

/* The k largest of p, largest first, the lower number first of equals; NaN counts as smallest. Different ones always. */
static void choose(int32_t *choice, const float *p, int64_t E, int64_t k) {
    bool taken[MAX_E] = {false};
    for (int64_t j = 0; j < k; j++) {
        int64_t best = -1;
        for (int64_t e = 0; e < E; e++)
            if (!taken[e] && (best < 0 || p[e] > p[best] || (isnan(p[best]) && !isnan(p[e])))) best = e;
        taken[best] = true;
        choice[j] = (int32_t)best;
    }
}

nb_status nb_cpu_route(nb_dev *d, float *weights, int32_t *tokens, int32_t *places, int32_t *choices, int32_t *offsets,
                       const nb_elem *logits_, int64_t T, int64_t E, int64_t k, bool renorm) {
    const float *logits = logits_;
    int32_t next[MAX_E];
    (void)d;
    NB_ASSERT(k >= 1 && k <= E && k <= MAX_K && E <= MAX_E);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        float p[MAX_E];
        softmax(p, logits + t * E, E);
        choose(choices + t * k, p, E, k);
    }
    memset(offsets, 0, (size_t)(E + 1) * sizeof *offsets); /* counting sort */
    for (int64_t i = 0; i < T * k; i++) offsets[choices[i] + 1]++;
    for (int64_t e = 0; e < E; e++) offsets[e + 1] += offsets[e];
    memcpy(next, offsets, (size_t)E * sizeof *next);
    for (int64_t i = 0; i < T * k; i++) {
        places[i] = next[choices[i]]++;
        tokens[places[i]] = (int32_t)(i / k);
    }
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        float p[MAX_E], sum = 0;
        softmax(p, logits + t * E, E);
        for (int64_t j = 0; j < k; j++) sum += p[choices[t * k + j]];
        for (int64_t j = 0; j < k; j++) weights[places[t * k + j]] = p[choices[t * k + j]] / (renorm ? sum : 1);
    }
    return NB_OK;
}

/* dp[E] of one token: what its chosen experts' weights and the shares of all say. */
static void from_weights(float *dp, const float *p, const float *dweights, const float *dshare, const int32_t *choice,
                         const int32_t *place, int64_t T, int64_t E, int64_t k, bool renorm) {
    float sum = 0, mean = 0;
    for (int64_t e = 0; e < E; e++) dp[e] = dshare ? dshare[e] / (float)T : 0;
    for (int64_t j = 0; j < k; j++) sum += p[choice[j]];
    for (int64_t j = 0; j < k && renorm; j++) mean += dweights[place[j]] * p[choice[j]] / sum;
    for (int64_t j = 0; j < k; j++) dp[choice[j]] += (dweights[place[j]] - mean) / (renorm ? sum : 1);
}

nb_status nb_cpu_route_bwd(nb_dev *d, nb_elem *dlogits_, float beta, const float *dweights, const float *dshare,
                           const nb_elem *logits_, const int32_t *choices, const int32_t *places, int64_t T, int64_t E,
                           int64_t k, bool renorm) {
    float *dlogits = dlogits_;
    const float *logits = logits_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        float p[MAX_E], dp[MAX_E], mean = 0, *out = dlogits + t * E;
        softmax(p, logits + t * E, E);
        from_weights(dp, p, dweights, dshare, choices + t * k, places + t * k, T, E, k, renorm);
        for (int64_t e = 0; e < E; e++) mean += p[e] * dp[e];
        for (int64_t e = 0; e < E; e++) out[e] = p[e] * (dp[e] - mean) + (beta != 0 ? beta * out[e] : 0);
    }
    return NB_OK;
}

nb_status nb_cpu_route_share(nb_dev *d, float *share, float *lse, const nb_elem *logits_, int64_t T, int64_t E) {
    const float *logits = logits_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        float p[MAX_E];
        lse[t] = softmax(p, logits + t * E, E);
    }
#pragma omp parallel for schedule(static)
    for (int64_t e = 0; e < E; e++) {
        double sum = 0;
        for (int64_t t = 0; t < T; t++) sum += (double)expf(logits[t * E + e] - lse[t]);
        share[e] = (float)(sum / (double)T);
    }
    return NB_OK;
}

nb_status nb_cpu_sum_rows(nb_dev *d, nb_elem *y_, const nb_elem *x_, const int32_t *index, int64_t T, int64_t k,
                          int64_t C, float beta) {
    float *y = y_;
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        float *yt = y + t * C;
        for (int64_t c = 0; c < C; c++) {
            float sum = 0;
            for (int64_t j = 0; j < k; j++) sum += x[index[t * k + j] * C + c];
            yt[c] = beta != 0 ? sum + beta * yt[c] : sum;
        }
    }
    return NB_OK;
}

nb_status nb_cpu_gather_words(nb_dev *d, uint32_t *y, const uint32_t *x, const int32_t *index, int64_t n) {
    (void)d;
    for (int64_t i = 0; i < n; i++) y[i] = x[index[i]];
    return NB_OK;
}

nb_status nb_cpu_row_dots(nb_dev *d, float *y, const nb_elem *x1_, const nb_elem *x2_, int64_t T, int64_t C,
                          float beta) {
    const float *x1 = x1_, *x2 = x2_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        double sum = 0;
        for (int64_t c = 0; c < C; c++) sum += (double)x1[t * C + c] * (double)x2[t * C + c];
        y[t] = (float)sum + (beta != 0 ? beta * y[t] : 0);
    }
    return NB_OK;
}

nb_status nb_cpu_sigmoid_fwd(nb_dev *d, float *y, const nb_elem *x_, int64_t n) {
    const float *x = x_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) y[i] = 1 / (1 + expf(-x[i]));
    return NB_OK;
}

nb_status nb_cpu_sigmoid_bwd(nb_dev *d, nb_elem *dx_, float beta, const float *dy, const float *y, int64_t n) {
    float *dx = dx_;
    (void)d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * y[i] * (1 - y[i]) + (beta != 0 ? beta * dx[i] : 0);
    return NB_OK;
}
