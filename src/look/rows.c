#include "look/rows.h"

#include <assert.h>

#include "core/mem.h"
#include "form/source.h"
#include "io/file.h"
#include "kern/kern.h"

#define PART ((size_t)16 << 20)

int mgr_rows_open(mgr_rows *rows, const mgr_view *view, mgr_err *err)
{
    *rows = (mgr_rows){.view = view, .fd = -1, .part_bytes = PART};
    return mgr_alloc_aligned(&rows->part, PART, err);
}

void mgr_rows_close(mgr_rows *rows)
{
    if (rows->fetcher)
        mgr_source_find(rows->view->format)->fetched(rows->fetcher);
    if (rows->view && rows->fd >= 0)
        mgr_close(rows->fd);
    mgr_free_aligned(rows->part);
    *rows = (mgr_rows){.fd = -1};
}

static int open_file(mgr_rows *rows, uint32_t file, mgr_err *err)
{
    if (rows->fd >= 0 && rows->file == file)
        return MGR_OK;
    if (rows->fd >= 0)
        mgr_close(rows->fd);
    rows->fd = -1;
    rows->file = file;
    return mgr_open_read(rows->view->cat.files[file].path, &rows->fd, err);
}

static int read_bytes(mgr_rows *rows, const mgr_stored *stored, uint64_t offset, void *out,
                      size_t bytes, mgr_err *err)
{
    const mgr_catalogue *const cat = &rows->view->cat;
    if (offset >= MGR_VIRTUAL_OFFSET)
        return mgr_source_find(rows->view->format)
            ->fetch(&rows->fetcher, cat, stored->file, offset, out, bytes, err);
    MGR_TRY(open_file(rows, stored->file, err));
    return mgr_pread_full(rows->fd, cat->files[stored->file].path, out, bytes, offset, err);
}

/* `n` elements of a box from (row, col) on, along its stored rows, to every `stride`-th byte. */
static int read_run(mgr_rows *rows, const mgr_box *box, uint64_t row, uint64_t col, uint64_t n,
                    size_t stride, unsigned char *into, mgr_err *err)
{
    const mgr_stored *const stored = &rows->view->cat.stored[box->stored];
    const size_t element = mgr_dtype_size(stored->dtype);
    const uint64_t most = rows->part_bytes / element;
    for (uint64_t i = 0; i < n; i += most) {
        const size_t count = (size_t)(n - i < most ? n - i : most);
        const uint64_t offset =
            mgr_box_offset(&rows->view->layout, box, box->transposed ? row + i : row,
                           box->transposed ? col : col + i);
        MGR_TRY(read_bytes(rows, stored, offset, rows->part, count * element, err));
        mgr_copy_2d(into + i * stride, stride, rows->part, element, element, count);
    }
    return MGR_OK;
}

/* Rows [from, to) of a box whose rows lie one behind the other, as few reads as fit. */
static int read_rows(mgr_rows *rows, const mgr_box *box, uint64_t from, uint64_t to, size_t stride,
                     unsigned char *into, mgr_err *err)
{
    const mgr_stored *const stored = &rows->view->cat.stored[box->stored];
    const size_t element = mgr_dtype_size(stored->dtype), row_bytes = box->cols * element;
    if (row_bytes > rows->part_bytes) {
        for (uint64_t r = from; r < to; r++)
            MGR_TRY(read_run(rows, box, r, box->col, box->cols, element, into + (r - from) * stride,
                             err));
        return MGR_OK;
    }
    const uint64_t fit = box->row_stride == box->cols ? rows->part_bytes / row_bytes : 1;
    for (uint64_t r = from; r < to; r += fit) {
        const size_t count = (size_t)(to - r < fit ? to - r : fit);
        MGR_TRY(read_bytes(rows, stored, mgr_box_offset(&rows->view->layout, box, r, box->col),
                           rows->part, count * row_bytes, err));
        mgr_copy_2d(into + (r - from) * stride, stride, rows->part, row_bytes, row_bytes, count);
    }
    return MGR_OK;
}

/* What `box` has of rows [row, row+n), to its place among all columns. */
static int read_box(mgr_rows *rows, const mgr_box *box, uint64_t cols, uint64_t row, uint64_t n,
                    unsigned char *out, mgr_err *err)
{
    const size_t element = mgr_dtype_size(rows->view->cat.stored[box->stored].dtype);
    const size_t stride = cols * element;
    const uint64_t from = box->row > row ? box->row : row, box_end = box->row + box->rows;
    const uint64_t to = box_end < row + n ? box_end : row + n;
    if (from >= to)
        return MGR_OK;
    unsigned char *const into = out + (from - row) * stride + box->col * element;
    if (!box->transposed)
        return read_rows(rows, box, from, to, stride, into, err);
    for (uint64_t col = 0; col < box->cols; col++) /* logical rows lie along a stored row */
        MGR_TRY(read_run(rows, box, from, box->col + col, to - from, stride, into + col * element,
                         err));
    return MGR_OK;
}

int mgr_rows_logical(mgr_rows *rows, uint32_t tensor, uint64_t row, uint64_t n, void *out,
                     mgr_err *err)
{
    const mgr_layout *const l = &rows->view->layout;
    const mgr_tensor *const t = &l->tensors->list[tensor];
    assert(row <= t->rows && n <= t->rows - row);
    for (size_t b = l->first_box[tensor]; b < l->first_box[tensor + 1]; b++)
        if (l->boxes[b].copy == 0)
            MGR_TRY(read_box(rows, &l->boxes[b], t->cols, row, n, out, err));
    return MGR_OK;
}

/* By name only what lies row by row in its file, in a type of known size, can be read. */
static int check_plain(const mgr_view *view, const mgr_stored *stored, mgr_err *err)
{
    uint64_t stride = 1;
    bool plain = mgr_dtype_size(stored->dtype) > 0;
    for (uint32_t d = stored->ndim; d-- > 0; stride *= stored->shape[d])
        plain = plain && (stored->shape[d] <= 1 || stored->stride[d] == stride);
    if (plain)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "cannot read tensor '%s' in '%s' by itself: it is transposed, or of an "
                    "unusual type",
                    stored->name, view->cat.files[stored->file].path);
}

int mgr_rows_stored(mgr_rows *rows, uint32_t stored, uint64_t row, uint64_t n, void *out,
                    mgr_err *err)
{
    const mgr_stored *const s = &rows->view->cat.stored[stored];
    MGR_TRY(check_plain(rows->view, s, err));
    const size_t row_bytes = mgr_stored_columns(s) * mgr_dtype_size(s->dtype);
    return read_bytes(rows, s, s->offset + row * row_bytes, out, n * row_bytes, err);
}

uint64_t mgr_stored_columns(const mgr_stored *s)
{
    return s->ndim >= 2 ? s->shape[s->ndim - 1] : 1;
}

uint64_t mgr_stored_rows(const mgr_stored *s)
{
    const uint64_t cols = mgr_stored_columns(s);
    return cols ? mgr_view_elements(s) / cols : 0;
}
