#include "look/scan.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "form/source.h"
#include "io/file.h"
#include "kern/kern.h"
#include "look/view.h"

#define BLOCK ((uint64_t)8 << 20)

typedef struct mgr_span {
    uint32_t file; /* of the sums */
    uint64_t begin, end;
    uint64_t reach; /* the furthest end so far in the file: tensors may share bytes */
    uint64_t stored;
} mgr_span;

bool mgr_scan_is_plain(const mgr_stored *s)
{
    uint64_t stride = 1;
    bool plain = mgr_dtype_is_weight(s->dtype) && s->offset < MGR_VIRTUAL_OFFSET;
    for (uint32_t d = s->ndim; d-- > 0; stride *= s->shape[d])
        plain = plain && (s->shape[d] <= 1 || s->stride[d] == stride);
    return plain;
}

/* ---- which tensors lie in a piece ---- */

typedef struct named {
    const char *path;
    uint32_t index;
} named;

static int by_path(const void *a, const void *b)
{
    return strcmp(((const named *)a)->path, ((const named *)b)->path);
}

static int by_place(const void *a, const void *b)
{
    const mgr_span *const x = a, *const y = b;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* The catalogue's files in the list of sums: MGR_NONE for one that is not there. */
static int match_files(const mgr_catalogue *cat, const char *directory, const mgr_file_sums *sums,
                       uint32_t **out, mgr_err *err)
{
    const size_t root = strlen(directory);
    named *list = NULL;
    MGR_TRY(mgr_alloc(out, cat->n_files, sizeof **out, err));
    MGR_TRY(mgr_alloc(&list, sums->n, sizeof *list, err));
    for (uint32_t i = 0; i < sums->n; i++)
        list[i] = (named){sums->list[i].path, i};
    qsort(list, sums->n, sizeof *list, by_path);
    for (size_t f = 0; f < cat->n_files; f++) {
        const char *const path = cat->files[f].path;
        const bool below = strncmp(path, directory, root) == 0 && path[root] == '/';
        const named key = {below ? path + root + 1 : "", 0};
        const named *const found = bsearch(&key, list, sums->n, sizeof *list, by_path);
        (*out)[f] = found ? found->index : MGR_NONE;
    }
    mgr_free(list);
    return MGR_OK;
}

static int add_spans(mgr_scan *scan, const uint32_t *files, mgr_err *err)
{
    const mgr_catalogue *const cat = scan->cat;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const uint64_t bytes = mgr_view_bytes(s);
        if (!mgr_scan_is_plain(s) || files[s->file] == MGR_NONE || bytes == 0)
            continue;
        MGR_TRY(
            mgr_grow(&scan->spans, &scan->capacity, scan->n_spans + 1, sizeof *scan->spans, err));
        scan->spans[scan->n_spans++] =
            (mgr_span){files[s->file], s->offset, s->offset + bytes, 0, i};
    }
    return MGR_OK;
}

int mgr_scan_begin(mgr_scan *scan, const mgr_catalogue *cat, const char *directory,
                   const mgr_file_sums *sums, mgr_err *err)
{
    uint32_t *files = NULL;
    scan->cat = cat;
    int rc = match_files(cat, directory, sums, &files, err);
    if (rc == MGR_OK)
        rc = add_spans(scan, files, err);
    mgr_free(files);
    if (rc != MGR_OK || scan->n_spans == 0)
        return rc;
    qsort(scan->spans, scan->n_spans, sizeof *scan->spans, by_place);
    for (size_t i = 0; i < scan->n_spans; i++) {
        mgr_span *const s = &scan->spans[i];
        const bool behind = i > 0 && s[-1].file == s->file && s[-1].reach > s->end;
        s->reach = behind ? s[-1].reach : s->end;
    }
    return MGR_OK;
}

/* The first span that may have bytes of `file` behind `offset`. */
static size_t first_span(const mgr_scan *scan, uint32_t file, uint64_t offset)
{
    size_t low = 0, high = scan->n_spans;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const mgr_span *const s = &scan->spans[middle];
        if (s->file < file || (s->file == file && s->reach <= offset))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- values ---- */

/* The first value that is no number, or `n`. */
static size_t first_odd(const void *values, mgr_dtype dtype, size_t n)
{
    if (mgr_largest_magnitude(values, dtype, n) < mgr_infinity_bits(dtype))
        return n;
    return mgr_find_magnitude(values, dtype, n, mgr_infinity_bits(dtype), UINT32_MAX);
}

static int note(mgr_scan *scan, uint64_t stored, uint64_t offset, mgr_err *err)
{
    const mgr_odd o = {stored, offset};
    return mgr_buf_add(&scan->odd, &o, sizeof o, err);
}

/* The part of a tensor that lies in a piece of its file. */
static int see_span(mgr_scan *scan, const mgr_span *s, uint64_t offset, const unsigned char *bytes,
                    size_t len, mgr_err *err)
{
    const mgr_dtype dtype = scan->cat->stored[s->stored].dtype;
    const size_t element = mgr_dtype_size(dtype);
    uint64_t from = s->begin > offset ? s->begin : offset;
    const uint64_t to = s->end < offset + len ? s->end : offset + len;
    from += (element - (from - s->begin) % element) % element;
    if (from >= to)
        return MGR_OK;
    const uint64_t n = (to - from) / element;
    const uint64_t at = first_odd(bytes + (from - offset), dtype, (size_t)n);
    return at == n ? MGR_OK : note(scan, s->stored, from + at * element, err);
}

int mgr_scan_piece(void *context, uint32_t file, uint64_t offset, const void *bytes, size_t len,
                   mgr_err *err)
{
    mgr_scan *const scan = context;
    for (size_t i = first_span(scan, file, offset); i < scan->n_spans; i++) {
        const mgr_span *const s = &scan->spans[i];
        if (s->file != file || s->begin >= offset + len)
            break;
        MGR_TRY(see_span(scan, s, offset, bytes, len, err));
    }
    return MGR_OK;
}

/* ---- what a library keeps ---- */

static int read_rows(const mgr_scan *scan, void **fetcher, const mgr_stored *s, uint64_t offset,
                     unsigned char *buffer, size_t bytes, mgr_err *err)
{
    const char *const path = scan->cat->files[s->file].path;
    int fd;
    if (offset >= MGR_VIRTUAL_OFFSET)
        return mgr_source_find("hdf5")->fetch(fetcher, scan->cat, s->file, offset, buffer, bytes,
                                              err);
    MGR_TRY(mgr_open_read(path, &fd, err));
    const int rc = mgr_pread_full(fd, path, buffer, bytes, offset, err);
    mgr_close(fd);
    return rc;
}

static int see_kept(mgr_scan *scan, void **fetcher, size_t stored, unsigned char *buffer,
                    mgr_err *err)
{
    const mgr_stored *const s = &scan->cat->stored[stored];
    const size_t element = mgr_dtype_size(s->dtype);
    const uint64_t row = s->stride[0] * element;
    if (!mgr_dtype_is_weight(s->dtype) || row == 0 || row > BLOCK)
        return MGR_OK;
    const uint64_t fit = BLOCK / row;
    for (uint64_t r = 0; r < s->shape[0]; r += fit) {
        const uint64_t n = s->shape[0] - r < fit ? s->shape[0] - r : fit;
        const uint64_t offset = s->offset + r * row, all = n * row / element;
        MGR_TRY(read_rows(scan, fetcher, s, offset, buffer, n * row, err));
        const uint64_t at = first_odd(buffer, s->dtype, all);
        if (at < all)
            return note(scan, stored, offset + at * element, err);
    }
    return MGR_OK;
}

int mgr_scan_kept(mgr_scan *scan, size_t first, size_t step, mgr_err *err)
{
    void *fetcher = NULL;
    unsigned char *buffer = NULL;
    int rc = mgr_alloc_aligned(&buffer, BLOCK, err);
    for (size_t i = first; rc == MGR_OK && i < scan->cat->n_stored; i += step)
        rc = see_kept(scan, &fetcher, i, buffer, err);
    if (fetcher)
        mgr_source_find("hdf5")->fetched(fetcher);
    mgr_free_aligned(buffer);
    return rc;
}

void mgr_scan_clear(mgr_scan *scan)
{
    mgr_free(scan->spans);
    mgr_buf_clear(&scan->odd);
    *scan = (mgr_scan){0};
}
