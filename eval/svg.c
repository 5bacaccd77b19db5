#include "eval/svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void nb_html_escape(nb_text *out, const char *s, size_t max) {
    size_t n = strlen(s), end = n;
    if (max && n > max)
        for (end = max; end > 0 && ((unsigned char)s[end] & 0xC0) == 0x80;) end--;
    for (size_t i = 0; i < end; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '&') nb_text_puts(out, "&amp;");
        else if (c == '<') nb_text_puts(out, "&lt;");
        else if (c == '>') nb_text_puts(out, "&gt;");
        else if (c == '"') nb_text_puts(out, "&quot;");
        else if (c == '\'') nb_text_puts(out, "&#39;");
        else if ((c < 32 && c != '\n' && c != '\t') || c == 127) nb_text_puts(out, "\xEF\xBF\xBD");
        else nb_text_add(out, s + i, 1);
    }
    if (end < n) nb_text_puts(out, " ...");
}

/* ---- line charts ---- */

enum { W = 420, H = 220, LEFT = 50, RIGHT = 12, TOP = 10, BOTTOM = 26, POINTS = 240 };

typedef struct axis {
    double low, high, step; /* of the ticks */
} axis;

/* About `ticks` round steps over low..high. */
static axis round_axis(double low, double high, int ticks, bool whole) {
    if (!(high > low)) {
        double pad = fabs(low) > 0 ? fabs(low) * 0.1 : 1;
        low -= low - pad < 0 && low >= 0 ? low : pad, high += pad;
    }
    double raw = (high - low) / ticks, power = pow(10, floor(log10(raw))), f = raw / power;
    double step = (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10) * power;
    if (whole && step < 1) step = 1;
    return (axis){floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step, step};
}

static void tick_text(char buf[32], double v) {
    double size = fabs(v);
    if (size < 1e-12) snprintf(buf, 32, "0");
    else if (size >= 1e6) snprintf(buf, 32, "%.4gM", v / 1e6);
    else if (size >= 1e4) snprintf(buf, 32, "%.4gk", v / 1e3);
    else if (size < 1e-3) snprintf(buf, 32, "%.1e", v);
    else snprintf(buf, 32, "%.4g", v);
    char *e = strstr(buf, "e-0");
    if (e) memmove(e + 2, e + 3, strlen(e + 3) + 1); /* 5.0e-04 -> 5.0e-4 */
}

static double place_x(const axis *a, double v) { return LEFT + (v - a->low) / (a->high - a->low) * (W - LEFT - RIGHT); }
static double place_y(const axis *a, double v) {
    return H - BOTTOM - (v - a->low) / (a->high - a->low) * (H - TOP - BOTTOM);
}

/* Ticks inside the range alone: on x the lines fill the whole width, whatever its ends. */
static void draw_axes(nb_text *out, const axis *x, const axis *y) {
    char buf[32];
    for (double v = y->low; v <= y->high + y->step / 2; v += y->step) {
        double at = place_y(y, v);
        tick_text(buf, v);
        nb_text_printf(out,
                       "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                       "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                       LEFT, W - RIGHT, at, at, LEFT - 6, at + 4, buf);
    }
    for (double v = ceil(x->low / x->step - 1e-9) * x->step; v <= x->high + x->step * 1e-9; v += x->step) {
        tick_text(buf, v);
        nb_text_printf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>", place_x(x, v), H - 8, buf);
    }
}

static void draw_line(nb_text *out, const nb_svg_line *l, const axis *x, const axis *y) {
    int bucket = (l->n + POINTS - 1) / POINTS;
    bool dots = l->n == 1 || strstr(l->class, "dots");
    nb_text_printf(out, "<polyline class=\"%s\" points=\"", l->class);
    for (int i = 0; i < l->n; i += bucket) {
        int m = i + bucket < l->n ? bucket : l->n - i;
        double sx = 0, sy = 0;
        for (int j = 0; j < m; j++) sx += l->x[i + j], sy += l->y[i + j];
        nb_text_printf(out, "%s%.1f,%.1f", i ? " " : "", place_x(x, sx / m), place_y(y, sy / m));
    }
    nb_text_puts(out, "\"/>");
    for (int i = 0; dots && i < l->n; i += bucket)
        nb_text_printf(out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>", l->class, place_x(x, l->x[i]),
                       place_y(y, l->y[i]));
}

void nb_svg_lines(nb_text *out, const char *label, const nb_svg_line *lines, int n) {
    double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < lines[i].n; k++) {
            x0 = fmin(x0, lines[i].x[k]), x1 = fmax(x1, lines[i].x[k]);
            y0 = fmin(y0, lines[i].y[k]), y1 = fmax(y1, lines[i].y[k]);
        }
    if (!(x0 <= x1)) return;
    if (y0 > 0 && y0 < 0.5 * y1) y0 = 0;
    axis x = round_axis(x0, x1, 5, true), y = round_axis(y0, y1, 4, false);
    x.low = x0 <= x.step ? 0 : x0, x.high = x1 > x.low ? x1 : x.low + 1;
    nb_text_printf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", W, H);
    nb_html_escape(out, label, 0);
    nb_text_puts(out, "\">");
    draw_axes(out, &x, &y);
    for (int i = 0; i < n; i++)
        if (lines[i].n) draw_line(out, &lines[i], &x, &y);
    nb_text_puts(out, "</svg>\n");
}

/* ---- bars ---- */

void nb_svg_draw_bars(nb_text *out, const char *label, const nb_svg_bars *b) {
    enum { width = 320, bar = 18, gap = 7, text = 64, label_w = 58 };
    double scale = b->max > 0 ? (width - text - label_w) / b->max : 0;
    int height = b->has_adapter ? 2 * bar + gap + 2 : bar + 2;
    nb_text_printf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", width, height);
    nb_html_escape(out, label, 0);
    nb_text_puts(out, "\">");
    for (int i = 0; i < 1 + b->has_adapter; i++) {
        double value = i ? b->adapter : b->base, w = fmax(value * scale, 1), y = 1 + i * (bar + gap);
        nb_text_printf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>", label_w - 8, y + bar - 5,
                       i ? "adapter" : "base");
        nb_text_printf(out, "<rect class=\"track\" x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%d\" rx=\"3\"/>", label_w,
                       y, width - text - label_w, bar);
        nb_text_printf(out, "<rect class=\"%s\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"3\"/>",
                       i ? "adapter" : "base", label_w, y, w, bar);
        nb_text_printf(out, "<text class=\"value\" x=\"%d\" y=\"%.1f\">", width - text + 8, y + bar - 5);
        nb_html_escape(out, i ? b->adapter_text : b->base_text, 0);
        nb_text_puts(out, "</text>");
        if (!i) continue;
        double low = label_w + fmin(fmax(b->low, 0), b->max) * scale,
               high = label_w + fmin(fmax(b->high, 0), b->max) * scale;
        double mid = y + bar / 2.0;
        nb_text_printf(out, "<path class=\"whisker\" d=\"M%.1f %.1fH%.1fM%.1f %.1fv8M%.1f %.1fv8\"/>", low, mid, high,
                       low, mid - 4, high, mid - 4);
    }
    nb_text_puts(out, "</svg>\n");
}
