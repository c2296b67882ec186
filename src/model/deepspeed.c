#include "model/deepspeed.h"

#include <assert.h>
#include <stdio.h>

#include "core/mem.h"

/* Elements first .. first + n of a parameter, from element `at` of a stored tensor on. */
typedef struct stretch {
    uint32_t stored;
    uint64_t first, n, at;
} stretch;

/* A box of the view while its elements are looked for. */
typedef struct cutting {
    mgr_layout *into;
    const mgr_box *box;
    uint64_t begin, end; /* its elements in the parameter */
} cutting;

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What of a stretch lies in the box: a part of a row, rows, a part of a row. */
static int cut(const cutting *c, const stretch *s, mgr_err *err)
{
    const uint64_t cols = c->box->cols, end = least(s->first + s->n, c->end);
    uint64_t at = s->first > c->begin ? s->first : c->begin;
    while (at < end) {
        const uint64_t row = (at - c->begin) / cols, col = (at - c->begin) % cols;
        const uint64_t rows = col == 0 && end - at >= cols ? (end - at) / cols : 1;
        const mgr_box b = {.tensor = c->box->tensor,
                           .copy = c->box->copy,
                           .stored = s->stored,
                           .row = c->box->row + row,
                           .col = col,
                           .rows = rows,
                           .cols = rows > 1 ? cols : least(cols - col, end - at),
                           .stored_col = s->at + (at - s->first),
                           .row_stride = cols};
        MGR_TRY(mgr_layout_box(c->into, &b, err));
        at += b.rows * b.cols;
    }
    return MGR_OK;
}

static mgr_plane plane_of(const cutting *c)
{
    return c->into->tensors->list[c->box->tensor].plane;
}

/* The flat tensor of the plane that the box is of. */
static uint32_t use_flat(const mgr_deepspeed *ds, const cutting *c, uint32_t rank, uint32_t group)
{
    const uint32_t stored = ds->flat[plane_of(c)][(size_t)rank * ds->groups + group];
    if (!c->into->declare)
        c->into->used[stored] = 1;
    return stored;
}

/* Each rank has its own part. */
static int cut_parts(const mgr_deepspeed *ds, const mgr_zero_part *p, const cutting *c,
                     mgr_err *err)
{
    const uint64_t part = p->numel / ds->ranks + (p->numel % ds->ranks != 0);
    for (uint32_t r = 0; r < ds->ranks; r++) {
        const uint64_t first = r * part;
        const stretch s = {use_flat(ds, c, r, p->group), first,
                           first < p->numel ? least(part, p->numel - first) : 0, p->at};
        MGR_TRY(cut(c, &s, err));
    }
    return MGR_OK;
}

/* The parameter lies in a vector that is cut among the ranks: as the masters are, behind which the
 * last rank's moments have padding. */
static int cut_vector(const mgr_deepspeed *ds, const mgr_zero_part *p, const cutting *c,
                      mgr_err *err)
{
    uint64_t start = 0; /* of a rank's piece in the vector */
    for (uint32_t r = 0; r < ds->ranks; r++) {
        const uint32_t stored = use_flat(ds, c, r, p->group);
        const uint32_t master = ds->flat[MGR_PLANE_WEIGHT][(size_t)r * ds->groups + p->group];
        const uint64_t n = c->into->cat->stored[master].shape[0];
        const uint64_t begin = p->at > start ? p->at : start;
        const uint64_t end = least(p->at + p->numel, start + n);
        if (begin < end)
            MGR_TRY(cut(c, &(stretch){stored, begin - p->at, end - begin, begin - start}, err));
        start += n;
    }
    return MGR_OK;
}

/* ZeRO-3 has a piece, flat, in the file of each rank; others have the whole in the only file. */
static int cut_frozen(const mgr_deepspeed *ds, const mgr_zero_part *p, const mgr_stored *param,
                      const cutting *c, mgr_err *err)
{
    const uint64_t part = p->numel / ds->ranks + (p->numel % ds->ranks != 0);
    char name[1200];
    uint32_t stored;
    snprintf(name, sizeof name, "frozen.%s", p->name);
    if (!ds->zero3) {
        MGR_TRY(mgr_layout_tensor(c->into, ds->model_file, name, param->ndim, param->shape, &stored,
                                  err));
        return cut(c, &(stretch){stored, 0, p->numel, 0}, err);
    }
    for (uint32_t r = 0; r < ds->ranks; r++) {
        const uint64_t first = r * part;
        MGR_TRY(mgr_layout_tensor(c->into, ds->model_file + r, name, 1, &part, &stored, err));
        MGR_TRY(cut(
            c, &(stretch){stored, first, first < p->numel ? least(part, p->numel - first) : 0, 0},
            err));
    }
    return MGR_OK;
}

/* Parameters that are frozen, or were never stepped, have no moments. */
static int check_plane(const mgr_deepspeed *ds, const mgr_zero_part *p, mgr_plane plane,
                       mgr_err *err)
{
    const bool there = p->kind == MGR_ZERO_GROUP   ? ds->flat[plane] != NULL
                       : p->kind == MGR_ZERO_WHOLE ? p->stored[plane] != MGR_NONE
                                                   : plane == MGR_PLANE_WEIGHT;
    if (there)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "the checkpoint has no %s of parameter '%.200s'",
             mgr_plane_name(plane), p->name);
    return mgr_hint(err, "leave out target.optimizer: weights alone are written");
}

static int place(const mgr_deepspeed *ds, mgr_layout *into, const mgr_box *box, mgr_err *err)
{
    const mgr_zero_part *const p = &ds->parts[box->stored];
    const uint64_t begin = box->stored_row * box->row_stride + box->stored_col;
    const cutting c = {into, box, begin, begin + box->rows * box->cols};
    assert(!box->transposed && box->col == 0 && (box->rows == 1 || box->cols == box->row_stride));
    MGR_TRY(check_plane(ds, p, plane_of(&c), err));
    switch (p->kind) {
    case MGR_ZERO_GROUP:
        return ds->zero3 ? cut_parts(ds, p, &c, err) : cut_vector(ds, p, &c, err);
    case MGR_ZERO_FROZEN:
        return cut_frozen(ds, p, &ds->view.stored[box->stored], &c, err);
    case MGR_ZERO_WHOLE:
        break;
    }
    const uint32_t stored = p->stored[plane_of(&c)];
    if (!into->declare)
        into->used[stored] = 1;
    return cut(&c, &(stretch){stored, 0, p->numel, 0}, err);
}

int mgr_deepspeed_place(const mgr_deepspeed *ds, mgr_layout *into, const mgr_box *box, mgr_err *err)
{
    for (int p = 0; p < MGR_PLANE_COUNT; p++) {
        mgr_box b = *box;
        b.tensor = mgr_tensors_plane(into->tensors, box->tensor, (mgr_plane)p);
        if (b.tensor != MGR_NONE)
            MGR_TRY(place(ds, into, &b, err));
    }
    return MGR_OK;
}

static void skip_unneeded(const mgr_deepspeed *ds, mgr_layout *into)
{
    for (size_t i = 0; i < into->cat->n_stored; i++)
        if (ds->unneeded[i] && !into->used[i]) {
            into->used[i] = 1;
            into->cat->skipped[MGR_SKIP_OTHER]++;
        }
}

int mgr_deepspeed_layout(mgr_layout *layout, const mgr_deepspeed *ds, mgr_err *err)
{
    mgr_catalogue cat = ds->view; /* a layout of a source does not change it */
    const mgr_tensors weights = mgr_tensors_weights(layout->tensors);
    mgr_layout view;
    MGR_TRY(mgr_layout_init(&view, &weights, &cat, false, layout->dtype, err));
    int rc = mgr_huggingface_layout(&view, &ds->hf, err);
    if (rc == MGR_OK)
        rc = mgr_layout_finish(&view, err);
    for (size_t i = 0; rc == MGR_OK && i < view.n_boxes; i++)
        rc = mgr_deepspeed_place(ds, layout, &view.boxes[i], err);
    if (rc == MGR_OK)
        skip_unneeded(ds, layout);
    mgr_layout_clear(&view);
    return rc;
}

void mgr_deepspeed_clear(mgr_deepspeed *ds)
{
    mgr_catalogue_clear(&ds->view);
    mgr_free(ds->parts);
    for (int p = 0; p < MGR_PLANE_COUNT; p++)
        mgr_free(ds->flat[p]);
    mgr_free(ds->unneeded);
    *ds = (mgr_deepspeed){0};
}
