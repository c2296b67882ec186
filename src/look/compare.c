#include "look/compare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/say.h"
#include "kern/kern.h"
#include "look/fields.h"
#include "look/rows.h"
#include "look/view.h"

#define BLOCK ((uint64_t)16 << 20)

/* One side: rows of a tensor on demand, as float32 or, of equal types, as they are. */
typedef struct side {
    mgr_view view;
    mgr_rows reading;
    unsigned char *rows; /* BLOCK, or one row */
} side;

/* The largest difference, and the largest in relation to the larger of two values. */
typedef struct extremes {
    double absolute, relative;
} extremes;

/* The tensors of a layer, or those outside of layers. */
typedef struct group {
    uint64_t tensors, differ;
    extremes most;
} group;

typedef struct comparison {
    side a, b;
    group *groups; /* outside of layers, layer 0, layer 1, ...; NULL without models */
    group *here;   /* of the tensor at hand, or NULL */
    unsigned most, shown;
    uint64_t tensors, differ;
    unsigned fields; /* that differ */
} comparison;

/* A matrix of one side: a logical tensor, or a stored one by itself. */
typedef struct matrix {
    const char *name;
    uint32_t tensor; /* MGR_NONE: `stored` is meant */
    const mgr_stored *stored;
    mgr_dtype dtype;
    uint64_t rows, cols;
} matrix;

static int read_rows(side *s, const matrix *m, uint64_t row, uint64_t n, mgr_err *err)
{
    if (m->tensor != MGR_NONE)
        return mgr_rows_logical(&s->reading, m->tensor, row, n, s->rows, err);
    const uint32_t stored = (uint32_t)(m->stored - s->view.cat.stored);
    return mgr_rows_stored(&s->reading, stored, row, n, s->rows, err);
}

static float value_at(const side *s, mgr_dtype dtype, uint64_t i)
{
    float value = 0;
    if (mgr_dtype_is_weight(dtype))
        mgr_cast(&value, MGR_DTYPE_F32, s->rows + i * mgr_dtype_size(dtype), dtype, 1);
    return value;
}

static void widen(extremes *most, double x, double y)
{
    const double ax = x < 0 ? -x : x, ay = y < 0 ? -y : y;
    const double by = x > y ? x - y : y - x, larger = ax > ay ? ax : ay;
    most->absolute = by > most->absolute ? by : most->absolute;
    if (larger > 0 && by / larger > most->relative)
        most->relative = by / larger;
}

static void join(extremes *most, const extremes *more)
{
    most->absolute = more->absolute > most->absolute ? more->absolute : most->absolute;
    most->relative = more->relative > most->relative ? more->relative : most->relative;
}

/* Elements that differ in a block, and the first of them. */
static uint64_t count_different(const comparison *c, const matrix *a, const matrix *b, uint64_t n,
                                uint64_t *first, extremes *most)
{
    const size_t element = mgr_dtype_size(a->dtype);
    uint64_t count = 0;
    const bool same_type = a->dtype == b->dtype;
    if (same_type && memcmp(c->a.rows, c->b.rows, n * element) == 0)
        return 0;
    for (uint64_t i = 0; i < n; i++) {
        bool equal =
            same_type && memcmp(c->a.rows + i * element, c->b.rows + i * element, element) == 0;
        if (!equal && mgr_dtype_is_weight(a->dtype) && mgr_dtype_is_weight(b->dtype)) {
            const float x = value_at(&c->a, a->dtype, i), y = value_at(&c->b, b->dtype, i);
            equal = x == y || (x != x && y != y);
            widen(most, (double)x, (double)y);
        }
        if (!equal && count++ == 0)
            *first = i;
    }
    return count;
}

static void report(comparison *c, const char *format, const char *name)
{
    c->differ++;
    if (c->here)
        c->here->differ++;
    if (c->shown++ < c->most)
        mgr_say(stdout, "  %-9s %s\n", format, name);
}

static int compare_values(comparison *c, const matrix *a, const matrix *b, mgr_err *err)
{
    const size_t widest = mgr_dtype_size(a->dtype) > mgr_dtype_size(b->dtype)
                              ? mgr_dtype_size(a->dtype)
                              : mgr_dtype_size(b->dtype);
    const uint64_t fit = BLOCK / (a->cols * widest), step = fit ? fit : 1;
    uint64_t count = 0, place = 0;
    extremes largest = {0};
    float x = 0, y = 0;
    for (uint64_t row = 0; row < a->rows; row += step) {
        const uint64_t n = a->rows - row < step ? a->rows - row : step;
        uint64_t first = 0;
        MGR_TRY(read_rows(&c->a, a, row, n, err));
        MGR_TRY(read_rows(&c->b, b, row, n, err));
        const uint64_t here = count_different(c, a, b, n * a->cols, &first, &largest);
        if (here && count == 0) {
            place = row * a->cols + first;
            x = value_at(&c->a, a->dtype, first);
            y = value_at(&c->b, b->dtype, first);
        }
        count += here;
    }
    if (count == 0)
        return MGR_OK;
    char text[400];
    snprintf(text, sizeof text,
             "%s: %llu of %llu elements, first at [%llu, %llu]: %.9g and %.9g; at most %.3g apart "
             "(%.3g of the value)",
             a->name, (unsigned long long)count, (unsigned long long)(a->rows * a->cols),
             (unsigned long long)(place / a->cols), (unsigned long long)(place % a->cols),
             (double)x, (double)y, largest.absolute, largest.relative);
    report(c, "differs", text);
    if (c->here)
        join(&c->here->most, &largest);
    return MGR_OK;
}

static int compare_matrices(comparison *c, const matrix *a, const matrix *b, mgr_err *err)
{
    c->tensors++;
    if (a->rows == b->rows && a->cols == b->cols &&
        (a->dtype == b->dtype || (mgr_dtype_is_weight(a->dtype) && mgr_dtype_is_weight(b->dtype))))
        return a->rows > 0 && a->cols > 0 ? compare_values(c, a, b, err) : MGR_OK;
    char text[400];
    snprintf(text, sizeof text, "%s: [%llu, %llu] %s and [%llu, %llu] %s", a->name,
             (unsigned long long)a->rows, (unsigned long long)a->cols, mgr_dtype_name(a->dtype),
             (unsigned long long)b->rows, (unsigned long long)b->cols, mgr_dtype_name(b->dtype));
    report(c, "shape", text);
    return MGR_OK;
}

static matrix logical(const side *s, uint32_t idx, const char *name)
{
    const mgr_tensor *const t = &s->view.tensors.list[idx];
    return (matrix){name, idx, NULL, s->view.layout.types[idx], t->rows, t->cols};
}

/* A stored tensor as rows of its last axis. */
static matrix stored_matrix(const mgr_stored *s)
{
    const uint64_t cols = mgr_stored_columns(s);
    return (matrix){s->name, MGR_NONE, s, s->dtype, mgr_stored_rows(s), cols ? cols : 1};
}

static void enter(comparison *c, const mgr_tensor *t)
{
    c->here = &c->groups[t->layer == MGR_NONE ? 0 : 1 + t->layer];
    c->here->tensors++;
}

/* Where the differences are, whatever part of them was shown. */
static void print_groups(const comparison *c, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const group *const g = &c->groups[i];
        char name[32] = "no layer";
        if (g->differ == 0)
            continue;
        if (i > 0)
            snprintf(name, sizeof name, "layer %llu", (unsigned long long)(i - 1));
        mgr_say(stdout, "%-9s %llu of %llu tensors differ", name, (unsigned long long)g->differ,
                (unsigned long long)g->tensors);
        if (g->most.absolute > 0)
            mgr_say(stdout, ", at most %.3g apart (%.3g of the value)", g->most.absolute,
                    g->most.relative);
        mgr_say(stdout, "\n");
    }
}

static int compare_tensors(comparison *c, mgr_err *err)
{
    const mgr_tensors *const ta = &c->a.view.tensors, *const tb = &c->b.view.tensors;
    char name[96];
    for (uint32_t i = 0; i < ta->n; i++) {
        const mgr_tensor *const t = &ta->list[i];
        const uint32_t j = mgr_tensors_match(tb, t);
        mgr_tensor_label(t, name, sizeof name);
        enter(c, t);
        if (j == MGR_NONE) {
            report(c, "only in 1", name);
            continue;
        }
        const matrix a = logical(&c->a, i, name), b = logical(&c->b, j, name);
        MGR_TRY(compare_matrices(c, &a, &b, err));
    }
    for (uint32_t j = 0; j < tb->n; j++) {
        const mgr_tensor *const t = &tb->list[j];
        if (mgr_tensors_match(ta, t) != MGR_NONE)
            continue;
        enter(c, t);
        report(c, "only in 2", mgr_tensor_label(t, name, sizeof name));
    }
    return MGR_OK;
}

static int compare_logical(comparison *c, mgr_err *err)
{
    const uint64_t la = c->a.view.tensors.model.layers, lb = c->b.view.tensors.model.layers;
    const uint64_t n = 1 + (la > lb ? la : lb);
    MGR_TRY(mgr_alloc(&c->groups, n, sizeof *c->groups, err));
    const int rc = compare_tensors(c, err);
    if (c->shown > c->most)
        mgr_say(stdout, "  and %u more\n", c->shown - c->most);
    if (rc == MGR_OK)
        print_groups(c, n);
    mgr_free(c->groups);
    c->groups = c->here = NULL;
    c->shown = 0;
    return rc;
}

static int by_name(const void *x, const void *y)
{
    const mgr_stored *const *a = x, *const *b = y;
    const int order = strcmp((*a)->name, (*b)->name);
    return order ? order : (*a)->file < (*b)->file ? -1 : (*a)->file > (*b)->file;
}

static int sorted(const mgr_catalogue *cat, const mgr_stored ***out, mgr_err *err)
{
    MGR_TRY(mgr_alloc(out, cat->n_stored, sizeof **out, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        (*out)[i] = &cat->stored[i];
    qsort(*out, cat->n_stored, sizeof **out, by_name);
    return MGR_OK;
}

static int merge(comparison *c, const mgr_stored **a, const mgr_stored **b, mgr_err *err)
{
    const size_t na = c->a.view.cat.n_stored, nb = c->b.view.cat.n_stored;
    for (size_t i = 0, j = 0; i < na || j < nb;) {
        const int order = i == na ? 1 : j == nb ? -1 : strcmp(a[i]->name, b[j]->name);
        if (order < 0) {
            report(c, "only in 1", a[i++]->name);
        } else if (order > 0) {
            report(c, "only in 2", b[j++]->name);
        } else {
            const matrix x = stored_matrix(a[i++]), y = stored_matrix(b[j++]);
            MGR_TRY(compare_matrices(c, &x, &y, err));
        }
    }
    return MGR_OK;
}

static int compare_names(comparison *c, mgr_err *err)
{
    const mgr_stored **a = NULL, **b = NULL;
    int rc = sorted(&c->a.view.cat, &a, err);
    if (rc == MGR_OK)
        rc = sorted(&c->b.view.cat, &b, err);
    if (rc == MGR_OK)
        rc = merge(c, a, b, err);
    mgr_free(a);
    mgr_free(b);
    return rc;
}

/* Buffers for a block, or for the widest row if that is larger. */
static int make_buffers(side *s, mgr_err *err)
{
    uint64_t bytes = BLOCK;
    for (uint32_t i = 0; i < s->view.tensors.n; i++) {
        const uint64_t row = s->view.has_model ? mgr_layout_row_bytes(&s->view.layout, i) : 0;
        bytes = row > bytes ? row : bytes;
    }
    for (size_t i = 0; !s->view.has_model && i < s->view.cat.n_stored; i++) {
        const matrix m = stored_matrix(&s->view.cat.stored[i]);
        const uint64_t row = m.cols * mgr_dtype_size(m.dtype);
        bytes = row > bytes ? row : bytes;
    }
    return mgr_alloc_aligned(&s->rows, bytes, err);
}

static int open_side(side *s, const char *path, mgr_err *err)
{
    MGR_TRY(mgr_view_open(&s->view, path, false, err));
    MGR_TRY(mgr_rows_open(&s->reading, &s->view, err));
    return make_buffers(s, err);
}

static void close_side(side *s)
{
    mgr_free_aligned(s->rows);
    mgr_rows_close(&s->reading);
    mgr_view_close(&s->view);
}

/* What the two compute with beside the tensors, and what of it cannot be held side by side. */
static int compare_fields(comparison *c, mgr_err *err)
{
    mgr_fields_diff diff = {0};
    const int rc = mgr_fields_compare(&c->a.view, &c->b.view, &diff, err);
    if (rc == MGR_OK && diff.differ)
        mgr_say_lines(stdout, diff.lines.data);
    if (rc == MGR_OK)
        mgr_say(stdout, "%u fields compared, %u differ\n", diff.compared, diff.differ);
    if (diff.inert)
        mgr_say(stdout, "%u args of training, logging and paths differ\n", diff.inert);
    mgr_say(stdout, "not compared: tokenizers, optimizers and what else is skipped%s\n",
            diff.args_on_one_side ? ", and the args that only one side has" : "");
    c->fields += diff.differ;
    mgr_buf_clear(&diff.lines);
    return rc;
}

int mgr_compare(const char *path_a, const char *path_b, unsigned most, bool *same, mgr_err *err)
{
    comparison c = {.most = most};
    int rc = open_side(&c.a, path_a, err);
    if (rc == MGR_OK)
        rc = open_side(&c.b, path_b, err);
    if (rc == MGR_OK) {
        const bool models = c.a.view.has_model && c.b.view.has_model;
        mgr_say(stdout, "1  %s  %s\n2  %s  %s\n", c.a.view.format, path_a, c.b.view.format, path_b);
        if (models)
            rc = compare_fields(&c, err);
        if (rc == MGR_OK)
            rc = models ? compare_logical(&c, err) : compare_names(&c, err);
        if (c.shown > c.most)
            mgr_say(stdout, "  and %u more\n", c.shown - c.most);
        if (rc == MGR_OK)
            mgr_say(stdout, "%llu %s tensors compared, %llu differ\n",
                    (unsigned long long)c.tensors, models ? "logical" : "stored",
                    (unsigned long long)c.differ);
        *same = c.differ == 0 && c.fields == 0;
    }
    close_side(&c.a);
    close_side(&c.b);
    return rc;
}
