#include "model/pieces.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "model/megatron_dist.h"

#define HOLDER "model." /* accelerate's and torchtitan's dict with the model's state in it */

/* ---- the view ---- */

/* Two of one name are neighbours; names are compared without their offsets. */
typedef struct named {
    const char *name;
    size_t len;
    mgr_piece piece;
} named;

static int by_name(const void *a, const void *b)
{
    const named *const x = a, *const y = b;
    const size_t least = x->len < y->len ? x->len : y->len;
    const int c = memcmp(x->name, y->name, least);
    return c                  ? c
           : x->len != y->len ? (x->len < y->len ? -1 : 1)
                              : (x->piece.stored < y->piece.stored ? -1 : 1);
}

static int list_pieces(const mgr_catalogue *cat, named *list, mgr_err *err)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        mgr_piece *const p = &list[i].piece;
        p->stored = (uint32_t)i;
        if (!mgr_megatron_dist_parse(s, &p->key_len, p->offset))
            return mgr_fail(err, MGR_ERR_INTERNAL, "'%s' is no name of a piece", s->name);
        list[i].name = s->name;
        list[i].len = p->key_len;
    }
    qsort(list, cat->n_stored, sizeof *list, by_name);
    return MGR_OK;
}

/* Does each name begin with the holder's, and one with it twice or with it before the head's? */
static bool is_held(const named *list, size_t n)
{
    bool twice = false;
    for (size_t i = 0; i < n; i++) {
        if (!mgr_has_prefix(list[i].name, HOLDER))
            return false;
        twice = twice || mgr_has_prefix(list[i].name, HOLDER "model.") ||
                mgr_has_prefix(list[i].name, HOLDER "lm_head.");
    }
    return twice;
}

/* A tensor is as large as its pieces reach: what lies between them is looked at with the boxes. */
static int reach(const mgr_catalogue *cat, const named *p, mgr_stored *whole, mgr_err *err)
{
    const mgr_stored *const s = &cat->stored[p->piece.stored];
    if (s->ndim != whole->ndim || s->dtype != whole->dtype)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%.*s' has pieces of several types or numbers of axes, one in '%s'",
                        (int)p->len, p->name, cat->files[s->file].path);
    for (uint32_t d = 0; d < s->ndim; d++) {
        const uint64_t end = p->piece.offset[d] + s->shape[d];
        if (end < s->shape[d] || end >= UINT64_C(1) << 48)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "a piece of tensor '%.*s' in '%s' lies too far out", (int)p->len,
                            p->name, cat->files[s->file].path);
        whole->shape[d] = end > whole->shape[d] ? end : whole->shape[d];
    }
    return MGR_OK;
}

static int add_whole(mgr_pieces *ps, const named *p, bool held, mgr_stored *whole, uint64_t *at,
                     mgr_err *err)
{
    mgr_buf name = {0};
    uint64_t elements = 1;
    for (uint32_t d = whole->ndim; d-- > 0;) {
        whole->stride[d] = elements;
        if (mgr_mul_overflow(elements, whole->shape[d], &elements) || elements >= UINT64_C(1) << 48)
            return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%.*s' is too large", (int)p->len,
                            p->name);
    }
    const size_t cut = held ? strlen(HOLDER) : 0;
    whole->offset = *at;
    *at += elements * mgr_dtype_size(whole->dtype) + 1; /* no two at one place */
    int rc = mgr_buf_fmt(&name, err, "%.*s", (int)(p->len - cut), p->name + cut);
    whole->name = name.data;
    if (rc == MGR_OK)
        rc = mgr_catalogue_add_stored(&ps->view, whole, err);
    mgr_buf_clear(&name);
    return rc;
}

static int add_tensors(const mgr_catalogue *cat, const named *list, mgr_pieces *ps, mgr_err *err)
{
    const bool held = is_held(list, cat->n_stored);
    uint64_t at = 0;
    for (size_t i = 0, next; i < cat->n_stored; i = next) {
        const mgr_stored *const s = &cat->stored[list[i].piece.stored];
        mgr_stored whole = {.file = 1, .record = MGR_NONE, .dtype = s->dtype, .ndim = s->ndim};
        ps->first[ps->view.n_stored] = i;
        for (next = i; next < cat->n_stored && list[next].len == list[i].len &&
                       memcmp(list[next].name, list[i].name, list[i].len) == 0;
             next++) {
            MGR_TRY(reach(cat, &list[next], &whole, err));
            ps->list[next] = list[next].piece;
            ps->list[next].whole = (uint32_t)ps->view.n_stored;
        }
        MGR_TRY(add_whole(ps, &list[i], held, &whole, &at, err));
    }
    ps->first[ps->view.n_stored] = ps->n;
    return MGR_OK;
}

static int start_view(const mgr_catalogue *cat, mgr_pieces *ps, mgr_err *err)
{
    uint32_t file;
    for (uint32_t f = 0; f < 2; f++)
        MGR_TRY(mgr_catalogue_add_file(&ps->view, cat->files[f].path, 0, &file, err));
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].file == 0)
            MGR_TRY(mgr_catalogue_add_attr(&ps->view, &cat->attrs[i], err));
    return MGR_OK;
}

int mgr_pieces_view(const mgr_catalogue *cat, mgr_pieces *ps, mgr_err *err)
{
    named *list = NULL;
    ps->n = cat->n_stored;
    ps->hf = (mgr_huggingface){.config = 0, .first_file = 1, .n_files = 1};
    if (ps->n == 0 || cat->n_files < 2)
        return mgr_fail(err, MGR_ERR_FORMAT, "no tensors beside '%s'", cat->files[0].path);
    MGR_TRY(mgr_alloc(&ps->list, ps->n, sizeof *ps->list, err));
    MGR_TRY(mgr_alloc(&ps->first, ps->n + 1, sizeof *ps->first, err));
    MGR_TRY(start_view(cat, ps, err));
    int rc = mgr_alloc(&list, ps->n, sizeof *list, err);
    if (rc == MGR_OK)
        rc = list_pieces(cat, list, err);
    if (rc == MGR_OK)
        rc = add_tensors(cat, list, ps, err);
    mgr_free(list);
    return rc;
}

/* ---- boxes ---- */

/* Rows r0..r1 and columns c0..c1 of the whole tensor, which lie in a piece from (row, col) on. */
typedef struct window {
    uint32_t stored;
    uint64_t r0, r1, c0, c1, row, col;
} window;

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What of a window lies in the box of the view; a vector runs along the columns of both. */
static int cut(mgr_layout *into, const mgr_box *b, const window *w, bool vector, mgr_err *err)
{
    const uint64_t rows = vector ? 1 : b->rows, cols = vector ? b->rows : b->cols;
    const uint64_t top = vector ? 0 : b->stored_row, left = vector ? b->stored_row : b->stored_col;
    const uint64_t r0 = most(w->r0, top), r1 = least(w->r1, top + rows);
    const uint64_t c0 = most(w->c0, left), c1 = least(w->c1, left + cols);
    mgr_box part = {.tensor = b->tensor, .copy = b->copy, .stored = w->stored};
    if (r0 >= r1 || c0 >= c1)
        return MGR_OK;
    part.row = b->row + (vector ? c0 - left : r0 - top);
    part.col = vector ? 0 : b->col + (c0 - left);
    part.rows = vector ? c1 - c0 : r1 - r0;
    part.cols = vector ? 1 : c1 - c0;
    part.stored_row = vector ? w->col + (c0 - w->c0) : w->row + (r0 - w->r0);
    part.stored_col = vector ? 0 : w->col + (c0 - w->c0);
    return mgr_layout_box(into, &part, err);
}

/* The piece's matrix number `i`, of those of its last two axes, as a window of the whole seen as
 * all leading axes by the last one. */
static window window_of(const mgr_stored *whole, const mgr_stored *s, const mgr_piece *p,
                        uint64_t i)
{
    const uint32_t n = s->ndim;
    const uint64_t cols = n ? s->shape[n - 1] : 1, rows = n > 1 ? s->shape[n - 2] : 1;
    uint64_t row = n > 1 ? p->offset[n - 2] : 0, stride = n > 1 ? whole->shape[n - 2] : 1;
    const uint64_t col = n ? p->offset[n - 1] : 0, number = i;
    for (uint32_t d = n > 2 ? n - 2 : 0; d-- > 0;) {
        row += (p->offset[d] + i % s->shape[d]) * stride;
        i /= s->shape[d];
        stride *= whole->shape[d];
    }
    return (window){p->stored, row, row + rows, col, col + cols, number * rows, 0};
}

static uint64_t matrices_of(const mgr_stored *s)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d + 2 < s->ndim; d++)
        n *= s->shape[d];
    return n;
}

static int place(const mgr_pieces *ps, mgr_layout *into, const mgr_box *box, mgr_err *err)
{
    const mgr_stored *const whole = &ps->view.stored[box->stored];
    const bool vector = into->tensors->list[box->tensor].ndim != 2;
    assert(!box->transposed);
    for (size_t i = ps->first[box->stored]; i < ps->first[box->stored + 1]; i++) {
        const mgr_piece *const p = &ps->list[i];
        const mgr_stored *const s = &into->cat->stored[p->stored];
        into->used[p->stored] = 1;
        for (uint64_t k = 0; k < matrices_of(s); k++) {
            const window w = window_of(whole, s, p, k);
            MGR_TRY(cut(into, box, &w, vector, err));
        }
    }
    return MGR_OK;
}

int mgr_pieces_layout(mgr_layout *layout, const mgr_pieces *ps, mgr_err *err)
{
    mgr_catalogue cat = ps->view; /* a layout of a source does not change it */
    mgr_layout view;
    MGR_TRY(mgr_layout_init(&view, layout->tensors, &cat, false, layout->dtype, err));
    int rc = mgr_huggingface_layout(&view, &ps->hf, err);
    if (rc == MGR_OK)
        rc = mgr_layout_finish(&view, err);
    for (size_t i = 0; rc == MGR_OK && i < view.n_boxes; i++)
        rc = place(ps, layout, &view.boxes[i], err);
    mgr_layout_clear(&view);
    return rc;
}

void mgr_pieces_clear(mgr_pieces *ps)
{
    mgr_catalogue_clear(&ps->view);
    mgr_free(ps->list);
    mgr_free(ps->first);
    *ps = (mgr_pieces){0};
}
