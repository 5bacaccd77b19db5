/* Two kinds of drawing for the HTML page, as inline SVG whose colours are the page's CSS classes (c0, c1, ...: a series
 * of lines; base, adapter: bars), so that they follow light and dark. */
#ifndef NB_EVAL_SVG_H
#define NB_EVAL_SVG_H

#include <stdbool.h>

#include "core/mem.h"

/* Text as HTML: & < > " ' escaped, control characters but tab and newline replaced by U+FFFD. Cut, with " ...", at a
 * character's boundary behind max bytes (0: never). */
void nb_html_escape(nb_text *out, const char *s, size_t max);

typedef struct nb_svg_line {
    const char *class;    /* "c0", "c0 faint", "c1 dots" */
    const double *x, *y;  /* [n], x ascending */
    int n;
} nb_svg_line;
/* A chart with both axes labelled. Lines of more than some hundred points are thinned by averaging neighbours. */
void nb_svg_lines(nb_text *out, const char *label, const nb_svg_line *lines, int n);

typedef struct nb_svg_bars {
    double base, adapter, low, high; /* low..high: where the adapter's true value may lie */
    double max;                      /* of the scale, which begins at 0 */
    const char *base_text, *adapter_text;
    bool has_adapter;
} nb_svg_bars;
void nb_svg_draw_bars(nb_text *out, const char *label, const nb_svg_bars *b);

#endif
