#include "core/nearest.h"

#include <ctype.h>
#include <stddef.h>
#include <string.h>

enum { MAX_NAME = 64 };

static int letter(char c) { return c == '-' ? '_' : tolower((unsigned char)c); }

static int min3(int x, int y, int z) {
    int m = x < y ? x : y;
    return m < z ? m : z;
}

/* Optimal string alignment distance: Levenshtein's plus the swap of two neighbours. */
static int distance(const char *x, const char *y) {
    int nx = (int)strlen(x), ny = (int)strlen(y);
    int rows[3][MAX_NAME + 1], *prev2 = rows[0], *prev = rows[1], *row = rows[2];
    for (int j = 0; j <= ny; j++) prev[j] = j;
    for (int i = 1; i <= nx; i++) {
        row[0] = i;
        for (int j = 1; j <= ny; j++) {
            int cx = letter(x[i - 1]), cy = letter(y[j - 1]);
            row[j] = min3(prev[j] + 1, row[j - 1] + 1, prev[j - 1] + (cx != cy));
            if (i > 1 && j > 1 && cx == letter(y[j - 2]) && letter(x[i - 2]) == cy && prev2[j - 2] + 1 < row[j])
                row[j] = prev2[j - 2] + 1;
        }
        int *t = prev2;
        prev2 = prev, prev = row, row = t;
    }
    return prev[ny];
}

const char *nb_nearest(const char *name, const char *const *candidates, int n) {
    size_t len = strlen(name);
    if (len == 0 || len > MAX_NAME) return NULL;
    int limit = (int)len / 3;
    limit = limit < 1 ? 1 : limit > 4 ? 4 : limit;
    const char *best = NULL;
    for (int i = 0; i < n; i++) {
        if (!candidates[i] || strlen(candidates[i]) > MAX_NAME) continue;
        int d = distance(name, candidates[i]);
        if (d <= limit) best = candidates[i], limit = d - 1;
    }
    return best;
}
