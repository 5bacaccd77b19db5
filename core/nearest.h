/* "Did you mean ...?": the nearest of a list of names. */
#ifndef NB_CORE_NEAREST_H
#define NB_CORE_NEAREST_H

/* The candidate with the fewest insertions, deletions, changes and swaps of neighbours (letters
 * compare without case, '-' equals '_'), or NULL when even the best is further than a third of the
 * name's length (at least 1, at most 4). The first of equals wins. Candidates may be NULL. */
const char *nb_nearest(const char *name, const char *const *candidates, int n);

#endif
