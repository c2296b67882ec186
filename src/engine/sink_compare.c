#include "engine/sink_compare.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/file.h"

int mgr_compare_init(mgr_compare *c, const mgr_layout *layout, const mgr_source_format *format,
                     mgr_err *err)
{
    *c = (mgr_compare){.layout = layout, .format = format};
    MGR_TRY(mgr_open_files_init(&c->files, layout->cat, NULL, false, err));
    MGR_TRY(mgr_alloc_aligned(&c->buffer, MGR_COMPARE_BYTES, err));
    return mgr_alloc(&c->found, layout->cat->n_stored, sizeof *c->found, err);
}

void mgr_compare_clear(mgr_compare *c)
{
    mgr_err ignored = MGR_ERR_INIT;
    if (c->fetcher)
        c->format->fetched(c->fetcher);
    if (c->files.list && mgr_open_files_close(&c->files, true, &ignored) != MGR_OK)
        c->files.n_open = 0; /* nothing was written */
    mgr_free(c->files.list);
    mgr_free_aligned(c->buffer);
    mgr_free(c->found);
    *c = (mgr_compare){0};
}

static int read_there(mgr_compare *c, uint32_t file, uint64_t offset, size_t len, mgr_err *err)
{
    const mgr_catalogue *const cat = c->layout->cat;
    int fd;
    if (offset >= MGR_VIRTUAL_OFFSET)
        return c->format->fetch(&c->fetcher, cat, file, offset, c->buffer, len, err);
    MGR_TRY(mgr_open_files_get(&c->files, file, &fd, err));
    return mgr_pread_full(fd, cat->files[file].path, c->buffer, len, offset, err);
}

/* Some byte differs: which is the first, and in how many elements? `at` is the place in the
 * tensor, and the pieces are cut at elements. */
static void count_odd(mgr_difference *d, const unsigned char *a, const unsigned char *b, size_t len,
                      uint64_t at, size_t element)
{
    for (size_t i = 0; i < len; i += element) {
        size_t k = 0;
        while (k < element && a[i + k] == b[i + k])
            k++;
        if (k == element)
            continue;
        if (d->elements++ == 0 || at + i + k < d->first)
            d->first = at + i + k;
    }
}

int mgr_compare_put(void *context, const mgr_stretch *stretch, mgr_err *err)
{
    mgr_compare *const c = context;
    const mgr_stored *const s = &c->layout->cat->stored[stretch->stored];
    const unsigned char *const made = stretch->bytes;
    for (size_t at = 0; at < stretch->len; at += MGR_COMPARE_BYTES) {
        const size_t left = stretch->len - at;
        const size_t len = left < MGR_COMPARE_BYTES ? left : MGR_COMPARE_BYTES;
        MGR_TRY(read_there(c, s->file, stretch->offset + at, len, err));
        if (memcmp(c->buffer, made + at, len) != 0)
            count_odd(&c->found[stretch->stored], made + at, c->buffer, len,
                      stretch->offset - s->offset + at, mgr_dtype_size(s->dtype));
    }
    return MGR_OK;
}

static int pack(const mgr_compare *c, mgr_buf *out, mgr_err *err)
{
    for (size_t i = 0; i < c->layout->cat->n_stored; i++) {
        mgr_difference d = c->found[i];
        d.stored = (uint32_t)i;
        d.file = c->layout->cat->stored[i].file;
        d.tensor_at = c->layout->cat->stored[i].offset;
        if (d.elements)
            MGR_TRY(mgr_buf_add(out, &d, sizeof d, err));
    }
    return MGR_OK;
}

static int by_place(const void *x, const void *y)
{
    const mgr_difference *const a = x, *const b = y;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    if (a->tensor_at != b->tensor_at)
        return a->tensor_at < b->tensor_at ? -1 : 1;
    return a->stored < b->stored ? -1 : a->stored > b->stored;
}

/* Where the same tensor lies in several lists, its numbers together; *n becomes smaller. */
static void merge(mgr_difference *list, size_t *n)
{
    size_t kept = 0;
    for (size_t i = 0; i < *n; i++) {
        mgr_difference *const last = kept ? &list[kept - 1] : NULL;
        if (!last || last->stored != list[i].stored) {
            list[kept++] = list[i];
            continue;
        }
        last->elements += list[i].elements;
        last->first = list[i].first < last->first ? list[i].first : last->first;
    }
    *n = kept;
}

int mgr_compare_gather(const mgr_compare *c, mgr_comm *comm, mgr_difference **out, size_t *n,
                       mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    *out = NULL;
    *n = 0;
    int rc = mgr_agree(comm, pack(c, &mine, err), err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(comm, &mine, &all, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(out, all.len / sizeof **out, sizeof **out, err);
    if (rc == MGR_OK && all.len) {
        memcpy(*out, all.data, all.len);
        *n = all.len / sizeof **out;
        qsort(*out, *n, sizeof **out, by_place);
        merge(*out, n);
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return mgr_agree(comm, rc, err);
}
