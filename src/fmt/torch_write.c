#include "fmt/torch_write.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "core/crc.h"
#include "core/mem.h"
#include "fmt/pickle_write.h"
#include "fmt/zip.h"

/*
 *   archive := <folder>/data.pkl <folder>/byteorder [ <folder>/data/0 ... ] <folder>/version
 */
#define ALIGN 64
#define MOST_MEMBERS (3 + MGR_TORCH_STORAGES)
#define NAME_BYTES 64

typedef struct archive {
    const mgr_buf *pickle;
    mgr_zip_entry entries[MOST_MEMBERS];
    const char *bytes[MOST_MEMBERS]; /* NULL for the elements */
    char names[MOST_MEMBERS][NAME_BYTES];
    size_t n;
    uint64_t directory, total;
} archive;

/* The longest name of ours and a folder must fit. */
static void add(archive *a, const char *folder, const char *name, const char *bytes, uint64_t size,
                uint32_t crc)
{
    snprintf(a->names[a->n], NAME_BYTES, "%.40s/%s", folder, name);
    a->entries[a->n] = (mgr_zip_entry){.name = a->names[a->n], .size = size, .crc32 = crc};
    a->bytes[a->n++] = bytes;
}

static void add_bytes(archive *a, const char *folder, const char *name, const char *bytes,
                      size_t size)
{
    add(a, folder, name, bytes, size, mgr_crc32(0, bytes, size));
}

static void begin(archive *a, const char *folder, const mgr_buf *pickle)
{
    *a = (archive){.pickle = pickle};
    add_bytes(a, folder, "data.pkl", pickle->data, pickle->len);
    add_bytes(a, folder, "byteorder", "little", 6);
}

static int end(archive *a, const char *folder, mgr_err *err)
{
    add_bytes(a, folder, "version", "3\n", 2);
    return mgr_zip_layout(a->entries, a->n, ALIGN, &a->directory, &a->total, err);
}

static int make(archive *a, const char *folder, const mgr_buf *pickle, const uint64_t *elements,
                uint32_t crc, mgr_err *err)
{
    begin(a, folder, pickle);
    if (elements)
        add(a, folder, "data/0", NULL, *elements, crc);
    return end(a, folder, err);
}

static int put_member(const archive *a, size_t i, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_zip_local_header(&a->entries[i], ALIGN, out, err));
    return a->bytes[i] ? mgr_buf_add(out, a->bytes[i], (size_t)a->entries[i].size, err) : MGR_OK;
}

static int put_members(const archive *a, size_t from, size_t to, mgr_buf *out, mgr_err *err)
{
    for (size_t i = from; i < to; i++)
        MGR_TRY(put_member(a, i, out, err));
    return MGR_OK;
}

int mgr_torch_archive(const char *folder, const mgr_buf *pickle, mgr_buf *out, mgr_err *err)
{
    archive a;
    MGR_TRY(make(&a, folder, pickle, NULL, 0, err));
    MGR_TRY(put_members(&a, 0, a.n, out, err));
    return mgr_zip_directory(a.entries, a.n, a.directory, out, err);
}

#define ELEMENTS 2 /* the entry of data/0 */

int mgr_torch_archive_with(const char *folder, const mgr_buf *pickle,
                           const mgr_torch_bytes *storages, size_t n, mgr_buf *out, mgr_err *err)
{
    char name[32];
    archive a;
    assert(n <= MGR_TORCH_STORAGES);
    begin(&a, folder, pickle);
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "data/%zu", i);
        add_bytes(&a, folder, name, storages[i].bytes, storages[i].len);
    }
    MGR_TRY(end(&a, folder, err));
    MGR_TRY(put_members(&a, 0, a.n, out, err));
    return mgr_zip_directory(a.entries, a.n, a.directory, out, err);
}

/* ---- one tensor ---- */

#define FOLDER "archive" /* of everything that torch saves into a stream */

static int make_tensor(archive *a, const mgr_torch_tensor *t, uint32_t crc, mgr_buf *pickle,
                       mgr_err *err)
{
    uint64_t bytes = mgr_dtype_size(t->dtype);
    for (uint32_t d = 0; d < t->ndim; d++)
        if (mgr_mul_overflow(bytes, t->shape[d], &bytes))
            return mgr_fail(err, MGR_ERR_INTERNAL, "a tensor is too large for a file");
    MGR_TRY(mgr_pickle_begin(pickle, err));
    MGR_TRY(mgr_pickle_tensor(pickle, "0", t->dtype, t->ndim, t->shape, err));
    MGR_TRY(mgr_pickle_end(pickle, err));
    return make(a, FOLDER, pickle, &bytes, crc, err);
}

int mgr_torch_item_layout(const mgr_torch_tensor *tensor, mgr_torch_item *item, mgr_err *err)
{
    archive a;
    mgr_buf pickle = {0};
    const int rc = make_tensor(&a, tensor, 0, &pickle, err);
    if (rc == MGR_OK)
        *item =
            (mgr_torch_item){a.entries[ELEMENTS].offset, a.entries[ELEMENTS + 1].header, a.total};
    mgr_buf_clear(&pickle);
    return rc;
}

int mgr_torch_item_bytes(const mgr_torch_tensor *tensor, uint32_t crc, mgr_buf *head, mgr_buf *tail,
                         mgr_err *err)
{
    archive a;
    mgr_buf pickle = {0};
    int rc = make_tensor(&a, tensor, crc, &pickle, err);
    if (rc == MGR_OK)
        rc = put_members(&a, 0, ELEMENTS + 1, head, err);
    if (rc == MGR_OK)
        rc = put_members(&a, ELEMENTS + 1, a.n, tail, err);
    if (rc == MGR_OK)
        rc = mgr_zip_directory(a.entries, a.n, a.directory, tail, err);
    mgr_buf_clear(&pickle);
    return rc;
}
