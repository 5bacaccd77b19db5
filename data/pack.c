#include "data/pack.h"

#include "core/status.h"

int64_t nb_pack(const int32_t *length, int64_t n, int64_t capacity, int64_t *bin) {
    struct {
        int64_t bin, left;
    } open[NB_PACK_WINDOW];
    int n_open = 0;
    int64_t n_bins = 0;
    for (int64_t i = 0; i < n; i++) {
        NB_ASSERT(length[i] >= 0 && length[i] <= capacity);
        int best = -1, fullest = 0;
        for (int k = 0; k < n_open; k++) {
            if (open[k].left >= length[i] && (best < 0 || open[k].left < open[best].left)) best = k;
            if (open[k].left < open[fullest].left) fullest = k;
        }
        if (best < 0) {
            best = n_open < NB_PACK_WINDOW ? n_open++ : fullest;
            open[best].bin = n_bins++;
            open[best].left = capacity;
        }
        bin[i] = open[best].bin;
        open[best].left -= length[i];
    }
    return n_bins;
}
