#include "mgr/layout.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

/* Stored tensors by (file, name): an open hash table, rebuilt by nobody; sources only. */
typedef struct mgr_name_index {
    uint32_t *slots;
    size_t mask;
} mgr_name_index;

static size_t hash_name(uint32_t file, const char *name)
{
    uint64_t h = UINT64_C(1469598103934665603) ^ file; /* FNV-1a */
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * UINT64_C(1099511628211);
    return (size_t)(h ^ h >> 29);
}

static uint32_t index_find(const mgr_layout *layout, uint32_t file, const char *name)
{
    const mgr_name_index *const index = layout->index;
    for (size_t i = hash_name(file, name) & index->mask;; i = (i + 1) & index->mask) {
        const uint32_t at = index->slots[i];
        if (at == MGR_NONE)
            return MGR_NONE;
        const mgr_stored *const s = &layout->cat->stored[at];
        if (s->file == file && strcmp(s->name, name) == 0)
            return at;
    }
}

static int index_build(mgr_layout *layout, mgr_err *err)
{
    size_t n = 16;
    while (n < layout->cat->n_stored * 2 + 2)
        n *= 2;
    MGR_TRY(mgr_alloc(&layout->index, 1, sizeof *layout->index, err));
    MGR_TRY(mgr_alloc(&layout->index->slots, n, sizeof(uint32_t), err));
    memset(layout->index->slots, 0xff, n * sizeof(uint32_t));
    layout->index->mask = n - 1;
    for (size_t k = 0; k < layout->cat->n_stored; k++) {
        const mgr_stored *const s = &layout->cat->stored[k];
        if (index_find(layout, s->file, s->name) != MGR_NONE)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' holds tensor '%s' twice",
                            layout->cat->files[s->file].path, s->name);
        size_t i = hash_name(s->file, s->name) & layout->index->mask;
        while (layout->index->slots[i] != MGR_NONE)
            i = (i + 1) & layout->index->mask;
        layout->index->slots[i] = (uint32_t)k;
    }
    return MGR_OK;
}

/* Trainers keep the selection bias in float32 whatever the weights are (transformer/moe/router.py,
 * _maintain_float32_expert_bias; transformers' _keep_in_fp32_modules_strict). */
static mgr_dtype type_in_target(const mgr_tensor *t, mgr_dtype dtype)
{
    return t->role == MGR_ROLE_SELECTION_BIAS || t->plane != MGR_PLANE_WEIGHT ? MGR_DTYPE_F32
                                                                              : dtype;
}

int mgr_layout_init(mgr_layout *layout, const mgr_tensors *tensors, mgr_catalogue *cat,
                    bool declare, mgr_dtype dtype, mgr_err *err)
{
    *layout = (mgr_layout){.tensors = tensors, .cat = cat, .declare = declare, .dtype = dtype};
    int rc = mgr_alloc(&layout->types, tensors->n, sizeof *layout->types, err);
    for (uint32_t i = 0; rc == MGR_OK && i < tensors->n; i++)
        layout->types[i] = declare ? type_in_target(&tensors->list[i], dtype) : MGR_DTYPE_NONE;
    if (rc == MGR_OK && !declare)
        rc = mgr_alloc(&layout->used, cat->n_stored, 1, err);
    if (rc == MGR_OK && !declare)
        rc = index_build(layout, err);
    if (rc != MGR_OK)
        mgr_layout_clear(layout);
    return rc;
}

void mgr_layout_clear(mgr_layout *layout)
{
    if (layout->index)
        mgr_free(layout->index->slots);
    mgr_free(layout->index);
    mgr_free(layout->used);
    mgr_free(layout->types);
    mgr_free(layout->copies);
    mgr_free(layout->links);
    mgr_free(layout->boxes);
    mgr_free(layout->fills);
    mgr_free(layout->objects);
    mgr_free(layout->first_box);
    mgr_free(layout->in_file);
    mgr_free(layout->first_in_file);
    mgr_free(layout->file_owner);
    *layout = (mgr_layout){0};
}

static const char *shape_text(uint32_t ndim, const uint64_t *shape, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (uint32_t d = 0; d < ndim && used < size; d++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", d ? ", " : "",
                                 (unsigned long long)shape[d]);
    if (used < size)
        snprintf(out + used, size - used, "]");
    return out;
}

static int declare_tensor(mgr_layout *layout, uint32_t file, const char *name, uint32_t ndim,
                          const uint64_t *shape, mgr_err *err)
{
    mgr_stored s = {
        .name = name, .file = file, .record = MGR_NONE, .dtype = MGR_DTYPE_NONE, .ndim = ndim};
    uint64_t stride = 1;
    for (uint32_t d = ndim; d-- > 0;) {
        s.shape[d] = shape[d];
        s.stride[d] = stride;
        stride *= shape[d];
    }
    return mgr_catalogue_add_stored(layout->cat, &s, err);
}

/* All leading axes fold into one row axis, and rows are dense along the last axis. */
static bool is_plain(const mgr_stored *s)
{
    bool plain = s->ndim < 2 || s->shape[s->ndim - 1] <= 1 || s->stride[s->ndim - 1] == 1;
    for (uint32_t d = 0; d + 2 < s->ndim; d++)
        plain = plain && (s->shape[d] <= 1 || s->stride[d] == s->stride[d + 1] * s->shape[d + 1]);
    return plain;
}

/* A view of a matrix whose columns lie one behind the other, as torch's t() makes it. */
static bool is_transposed(const mgr_stored *s)
{
    return s->ndim == 2 && !is_plain(s) && s->stride[0] == 1 && s->stride[1] >= s->shape[0];
}

static int fail_strides(const mgr_layout *layout, const mgr_stored *s, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "tensor '%s' in '%s' is stored transposed", s->name,
                    layout->cat->files[s->file].path);
}

/* A box of a transposed view is the transposed box of what lies there. */
static int turn(const mgr_layout *layout, mgr_box *b, mgr_err *err)
{
    const mgr_stored *const s = &layout->cat->stored[b->stored];
    const uint64_t row = b->stored_row;
    if (!is_transposed(s))
        return MGR_OK;
    if (b->row_stride || b->transposed || layout->tensors->list[b->tensor].ndim != 2)
        return fail_strides(layout, s, err);
    b->stored_row = b->stored_col;
    b->stored_col = row;
    b->row_stride = s->stride[1];
    b->transposed = true;
    return MGR_OK;
}

static int find_tensor(mgr_layout *layout, uint32_t file, const char *name, uint32_t ndim,
                       const uint64_t *shape, uint32_t *stored, mgr_err *err)
{
    const uint32_t at = index_find(layout, file, name);
    const char *const path = layout->cat->files[file].path;
    char is[128], wanted[128];
    if (at == MGR_NONE)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' is missing in '%s'", name, path);
    const mgr_stored *const s = &layout->cat->stored[at];
    if (s->ndim != ndim || memcmp(s->shape, shape, ndim * sizeof *shape) != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' in '%s': shape %s, expected %s", name,
                        path, shape_text(s->ndim, s->shape, is, sizeof is),
                        shape_text(ndim, shape, wanted, sizeof wanted));
    if (!mgr_dtype_is_weight(s->dtype))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "tensor '%s' in '%s' has type %s; weights are bfloat16, float16 or float32",
                        name, path,
                        mgr_dtype_name(s->dtype) ? mgr_dtype_name(s->dtype) : "of another kind");
    layout->used[at] = 1;
    *stored = at;
    return is_plain(s) || is_transposed(s) ? MGR_OK : fail_strides(layout, s, err);
}

int mgr_layout_tensor(mgr_layout *layout, uint32_t file, const char *name, uint32_t ndim,
                      const uint64_t *shape, uint32_t *stored, mgr_err *err)
{
    if (!layout->declare)
        return find_tensor(layout, file, name, ndim, shape, stored, err);
    MGR_TRY(declare_tensor(layout, file, name, ndim, shape, err));
    *stored = (uint32_t)layout->cat->n_stored - 1;
    return MGR_OK;
}

bool mgr_layout_has(const mgr_layout *layout, uint32_t file, const char *name)
{
    return !layout->declare && index_find(layout, file, name) != MGR_NONE;
}

/* The pieces and copies of a source's tensor are of one type, which is the tensor's. */
static int take_type(mgr_layout *layout, const mgr_box *box, mgr_err *err)
{
    mgr_dtype *const type = &layout->types[box->tensor];
    const mgr_stored *const s = &layout->cat->stored[box->stored];
    char label[96];
    if (layout->declare)
        return MGR_OK;
    if (*type == MGR_DTYPE_NONE)
        *type = s->dtype;
    if (*type == s->dtype)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "tensor '%s' in '%s' has type %s, but another part or copy of %s is %s",
                    s->name, layout->cat->files[s->file].path, mgr_dtype_name(s->dtype),
                    mgr_tensor_label(&layout->tensors->list[box->tensor], label, sizeof label),
                    mgr_dtype_name(*type));
}

int mgr_layout_box(mgr_layout *layout, const mgr_box *box, mgr_err *err)
{
    if (box->rows == 0 || box->cols == 0)
        return MGR_OK;
    MGR_TRY(take_type(layout, box, err));
    MGR_TRY(mgr_grow(&layout->boxes, &layout->cap_boxes, layout->n_boxes + 1, sizeof *box, err));
    mgr_box *const b = &layout->boxes[layout->n_boxes++];
    *b = *box;
    MGR_TRY(turn(layout, b, err));
    const mgr_stored *const s = &layout->cat->stored[b->stored];
    const bool matrix = layout->tensors->list[b->tensor].ndim == 2;
    layout->transposed = layout->transposed || b->transposed;
    if (b->row_stride == 0)
        b->row_stride = s->ndim < 2 ? s->stride[0] : s->stride[matrix ? s->ndim - 2 : s->ndim - 1];
    return MGR_OK;
}

/* The boxes of one tensor, as tensor `to`. */
static int join_tensor(mgr_layout *layout, const mgr_layout *from, uint32_t idx, uint32_t to,
                       uint32_t first_stored, uint32_t copy, mgr_err *err)
{
    const size_t first = from->first_box[idx], end = from->first_box[idx + 1];
    MGR_TRY(mgr_grow(&layout->boxes, &layout->cap_boxes, layout->n_boxes + (end - first),
                     sizeof *layout->boxes, err));
    for (size_t i = first; i < end; i++) {
        mgr_box box = from->boxes[i];
        box.tensor = to;
        box.stored += first_stored;
        box.copy += copy;
        MGR_TRY(take_type(layout, &box, err));
        layout->boxes[layout->n_boxes++] = box;
    }
    return MGR_OK;
}

int mgr_layout_join(mgr_layout *layout, const mgr_layout *from, const uint32_t *place,
                    uint32_t first_stored, uint32_t *copies, mgr_err *err)
{
    layout->transposed = layout->transposed || from->transposed;
    memset(layout->used + first_stored, 1, from->cat->n_stored); /* `from` has seen to that */
    for (uint32_t i = 0; i < from->tensors->n; i++) {
        if (place[i] == MGR_NONE)
            continue;
        MGR_TRY(join_tensor(layout, from, i, place[i], first_stored, copies[place[i]], err));
        copies[place[i]] += from->boxes[from->first_box[i + 1] - 1].copy + 1;
    }
    return MGR_OK;
}

int mgr_layout_compose(mgr_layout *layout, const mgr_layout *from, const uint32_t *place,
                       const uint64_t *row, const uint64_t *col, mgr_err *err)
{
    layout->transposed = from->transposed;
    memset(layout->used, 1, from->cat->n_stored); /* `from` has seen to that */
    for (uint32_t i = 0; i < from->tensors->n; i++) {
        const size_t first = layout->n_boxes;
        if (place[i] == MGR_NONE)
            continue;
        MGR_TRY(join_tensor(layout, from, i, place[i], 0, 0, err));
        for (size_t b = first; b < layout->n_boxes; b++) {
            layout->boxes[b].row += row[i];
            layout->boxes[b].col += col[i];
        }
    }
    return MGR_OK;
}

int mgr_layout_fill(mgr_layout *layout, uint32_t stored, uint64_t row, uint64_t rows, mgr_err *err)
{
    if (!layout->declare || rows == 0)
        return MGR_OK;
    MGR_TRY(mgr_grow(&layout->fills, &layout->cap_fills, layout->n_fills + 1, sizeof *layout->fills,
                     err));
    layout->fills[layout->n_fills++] = (mgr_fill){stored, row, rows};
    return MGR_OK;
}

int mgr_layout_object(mgr_layout *layout, uint32_t file, const char *name, mgr_err *err)
{
    if (!layout->declare)
        return MGR_OK;
    MGR_TRY(mgr_grow(&layout->objects, &layout->cap_objects, layout->n_objects + 1,
                     sizeof *layout->objects, err));
    MGR_TRY(mgr_catalogue_own(layout->cat, &name, err));
    layout->objects[layout->n_objects++] = (mgr_object){name, file};
    return MGR_OK;
}

int mgr_layout_link(mgr_layout *layout, uint32_t a, uint32_t b, mgr_err *err)
{
    if (!layout->declare || a == b)
        return MGR_OK;
    MGR_TRY(mgr_grow(&layout->links, &layout->cap_links, layout->n_links + 1, sizeof *layout->links,
                     err));
    layout->links[layout->n_links++] = (mgr_type_link){a, b};
    return MGR_OK;
}

/* ---- element types ---- */

/* Both become the narrowest type that holds all values of either; true if one was another before.
 */
static bool unify(mgr_dtype *a, mgr_dtype *b)
{
    const mgr_dtype x = *a, y = *b;
    const mgr_dtype both = x == MGR_DTYPE_NONE || x == y ? y
                           : y == MGR_DTYPE_NONE         ? x
                                                         : MGR_DTYPE_F32;
    *a = *b = both;
    return both != x || both != y;
}

/* Types only widen, from one of two to float32, so that this ends: after the first round where no
 * types are mixed. What holds padding alone is of the model's type. */
static void settle_types(mgr_layout *layout)
{
    mgr_stored *const stored = layout->cat->stored;
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < layout->n_boxes; i++)
            changed |= unify(&layout->types[layout->boxes[i].tensor],
                             &stored[layout->boxes[i].stored].dtype);
        for (size_t i = 0; i < layout->n_links; i++)
            changed |= unify(&stored[layout->links[i].a].dtype, &stored[layout->links[i].b].dtype);
    }
    for (size_t i = 0; i < layout->cat->n_stored; i++)
        if (stored[i].dtype == MGR_DTYPE_NONE)
            stored[i].dtype = layout->dtype;
}

mgr_dtype mgr_layout_type(const mgr_layout *layout, uint32_t tensor)
{
    const mgr_dtype copy = layout->copies ? layout->copies[tensor] : MGR_DTYPE_NONE;
    return copy != MGR_DTYPE_NONE ? copy : layout->types[tensor];
}

/* The type that most elements have; what was said of the model where that is one of them. */
static mgr_dtype most_common(const mgr_layout *layout)
{
    uint64_t elements[MGR_DTYPE_COUNT] = {0};
    mgr_dtype most = layout->dtype;
    for (uint32_t i = 0; i < layout->tensors->n_weights; i++)
        elements[mgr_layout_type(layout, i)] +=
            layout->tensors->list[i].rows * layout->tensors->list[i].cols;
    for (int d = 0; d < MGR_DTYPE_COUNT; d++)
        if (mgr_dtype_is_weight((mgr_dtype)d) && elements[d] > elements[most])
            most = (mgr_dtype)d;
    return most;
}

uint64_t mgr_layout_row_bytes(const mgr_layout *layout, uint32_t tensor)
{
    return layout->tensors->list[tensor].cols * mgr_dtype_size(layout->types[tensor]);
}

uint64_t mgr_layout_tensor_bytes(const mgr_layout *layout, uint32_t tensor)
{
    return layout->tensors->list[tensor].rows * mgr_layout_row_bytes(layout, tensor);
}

uint64_t mgr_layout_bytes(const mgr_layout *layout)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < layout->tensors->n; i++)
        sum += mgr_layout_tensor_bytes(layout, i);
    return sum;
}

/* ---- the proof ---- */

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static int by_place(const void *x, const void *y)
{
    const mgr_box *const a = x, *const b = y;
    int c = compare_u64(a->tensor, b->tensor);
    if (c == 0)
        c = compare_u64(a->copy, b->copy);
    if (c == 0)
        c = compare_u64(a->row, b->row);
    return c ? c : compare_u64(a->col, b->col);
}

/* Do boxes[0..n) of one copy tile the tensor? Sorted by row, then column: bands of equal rows, each
 * tiled from column 0 to the end. */
static bool tiles(const mgr_box *boxes, size_t n, uint64_t rows, uint64_t cols)
{
    uint64_t next_row = 0;
    for (size_t i = 0; i < n;) {
        const uint64_t row = boxes[i].row, height = boxes[i].rows;
        uint64_t next_col = 0;
        if (row != next_row || height > rows - row)
            return false;
        for (; i < n && boxes[i].row == row; i++) {
            if (boxes[i].rows != height || boxes[i].col != next_col)
                return false;
            next_col += boxes[i].cols;
        }
        if (next_col != cols)
            return false;
        next_row = row + height;
    }
    return next_row == rows;
}

static bool inside(const mgr_box *box, const mgr_tensor *t)
{
    return box->row <= t->rows && box->rows <= t->rows - box->row && box->col <= t->cols &&
           box->cols <= t->cols - box->col;
}

/* Replicas may be of a part alone: not every rank of a checkpoint needs to have saved its own. */
static int check_tensor(const mgr_layout *layout, uint32_t idx, mgr_err *err)
{
    const mgr_tensor *const t = &layout->tensors->list[idx];
    const mgr_box *const boxes = &layout->boxes[layout->first_box[idx]];
    const size_t n = layout->first_box[idx + 1] - layout->first_box[idx];
    size_t first = 0;
    while (first < n && boxes[first].copy == 0)
        first++;
    bool good = tiles(boxes, first, t->rows, t->cols);
    for (size_t i = first; i < n; i++)
        good = good && inside(&boxes[i], t);
    char label[96];
    return good ? MGR_OK
                : mgr_fail(err, layout->declare ? MGR_ERR_INTERNAL : MGR_ERR_FORMAT,
                           "%s is not covered exactly once by the stored tensors",
                           mgr_tensor_label(t, label, sizeof label));
}

static int check_left_over(const mgr_layout *layout, mgr_err *err)
{
    for (size_t i = 0; !layout->declare && i < layout->cat->n_stored; i++) {
        const mgr_stored *const s = &layout->cat->stored[i];
        if (!layout->used[i]) {
            mgr_fail(err, MGR_ERR_FORMAT, "unknown tensor '%s' in '%s'", s->name,
                     layout->cat->files[s->file].path);
            return mgr_hint(err, "the model of this checkpoint has a part that is not supported; "
                                 "nothing is dropped in silence");
        }
    }
    return MGR_OK;
}

/* So that whoever writes a file need not look through the tensors of all. */
static int sort_by_file(mgr_layout *layout, mgr_err *err)
{
    const mgr_catalogue *const cat = layout->cat;
    for (size_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].file >= layout->n_in_file)
            layout->n_in_file = cat->stored[i].file + (size_t)1;
    MGR_TRY(mgr_alloc(&layout->in_file, cat->n_stored, sizeof *layout->in_file, err));
    MGR_TRY(mgr_alloc(&layout->first_in_file, layout->n_in_file + 2, sizeof(size_t), err));
    for (size_t i = 0; i < cat->n_stored; i++)
        layout->first_in_file[cat->stored[i].file + 2]++;
    for (size_t f = 2; f < layout->n_in_file + 2; f++)
        layout->first_in_file[f] += layout->first_in_file[f - 1];
    for (uint32_t i = 0; i < cat->n_stored; i++) /* shifts every start by one place: now it fits */
        layout->in_file[layout->first_in_file[cat->stored[i].file + 1]++] = i;
    return MGR_OK;
}

const uint32_t *mgr_layout_in_file(const mgr_layout *layout, uint32_t file, size_t *n)
{
    *n = file < layout->n_in_file ? layout->first_in_file[file + 1] - layout->first_in_file[file]
                                  : 0;
    return *n ? layout->in_file + layout->first_in_file[file] : NULL;
}

int mgr_layout_finish(mgr_layout *layout, mgr_err *err)
{
    const uint32_t n = layout->tensors->n;
    if (layout->declare)
        settle_types(layout);
    else
        layout->dtype = most_common(layout);
    if (layout->n_boxes)
        qsort(layout->boxes, layout->n_boxes, sizeof *layout->boxes, by_place);
    MGR_TRY(mgr_alloc(&layout->first_box, (size_t)n + 1, sizeof *layout->first_box, err));
    size_t at = 0;
    for (uint32_t i = 0; i <= n; i++) {
        while (at < layout->n_boxes && layout->boxes[at].tensor < i)
            at++;
        layout->first_box[i] = at;
    }
    layout->first_box[n] = layout->n_boxes;
    MGR_TRY(check_left_over(layout, err));
    for (uint32_t i = 0; i < n; i++)
        MGR_TRY(check_tensor(layout, i, err));
    return layout->declare ? sort_by_file(layout, err) : MGR_OK;
}

uint64_t mgr_box_offset(const mgr_layout *layout, const mgr_box *box, uint64_t row, uint64_t col)
{
    const mgr_stored *const s = &layout->cat->stored[box->stored];
    const uint64_t r = box->transposed ? col - box->col : row - box->row;
    const uint64_t c = box->transposed ? row - box->row : col - box->col;
    assert(row - box->row < box->rows && col - box->col < box->cols);
    const uint64_t element = (box->stored_row + r) * box->row_stride + box->stored_col + c;
    return s->offset + element * mgr_dtype_size(s->dtype);
}
