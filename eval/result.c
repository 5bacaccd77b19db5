/* Results of an evaluation, apart from how they came about. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/heldout.h"

void nb_heldout_summarize(nb_heldout_result *r) {
    double loss = 0, sum[NB_METRIC_COUNT] = {0};
    r->tokens = r->bytes = r->answer_tokens = 0;
    memset(r->stopped, 0, sizeof r->stopped);
    for (int64_t i = 0; i < r->rows; i++) {
        nb_row_result *row = &r->row[i];
        row->score[NB_METRIC_LOSS] = row->tokens ? row->loss_sum / (double)row->tokens : NAN;
        loss += row->loss_sum;
        r->tokens += row->tokens, r->bytes += row->bytes, r->answer_tokens += row->answer_tokens;
        r->stopped[row->stop]++;
        for (int m = 1; m < NB_METRIC_COUNT; m++) sum[m] += row->score[m];
    }
    r->loss = r->tokens ? loss / (double)r->tokens : NAN;
    r->perplexity = exp(r->loss);
    r->bits_per_byte = r->bytes ? loss / M_LN2 / (double)r->bytes : NAN;
    for (int m = 1; m < NB_METRIC_COUNT; m++) r->score[m] = r->metrics & 1u << m ? sum[m] / (double)r->rows : NAN;
    r->score[NB_METRIC_LOSS] = r->loss;
}

void nb_heldout_result_free(nb_heldout_result *r) {
    for (int64_t i = 0; i < r->rows && r->row; i++) {
        free(r->row[i].prompt);
        free(r->row[i].reference);
        free(r->row[i].answer);
    }
    free(r->row);
    free(r->name);
    *r = (nb_heldout_result){0};
}
