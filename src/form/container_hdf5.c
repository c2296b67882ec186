/*
 * HDF5 files with one data set per tensor, under its name in the root group.
 *
 * Rank 0 makes each file with all its metadata, alone, under a name of its own, and renames it; so
 * a file that is there is whole but for the tensors' bytes. In one piece, a data set's place in the
 * file is fixed then, and the engine writes there as into any other file. Compressed, a data set
 * lies in pieces of rows, whose places are known when their sizes are: such a file is written
 * plain, proven, and then packed (hdf5_pack.c).
 */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "fmt/h5_read.h"
#include "form/container.h"
#include "form/hdf5_files.h"
#include "io/file.h"

#define ALIGN 4096
/* What the library keeps beside tensors, a block at a time, each enough for about so many. */
#define META_BLOCK ((uint64_t)1 << 20)
#define SETS_OF_A_BLOCK 1500
#define CHUNK_BYTES ((uint64_t)1 << 20)
/* Smaller ones stay plain: there is nothing to gain. */
#define PACK_MIN ((uint64_t)64 << 10)

uint64_t mgr_hdf5_row_bytes(const mgr_stored *s)
{
    return s->stride[0] * mgr_dtype_size(s->dtype);
}

uint64_t mgr_hdf5_bytes(const mgr_stored *s)
{
    return s->shape[0] * mgr_hdf5_row_bytes(s);
}

/* A good guess, for the plan; the library places them when the files are made. */
static int place_hdf5_container(mgr_layout *layout, uint32_t file, const void *context,
                                mgr_err *err)
{
    uint64_t at = ALIGN, sets = 0;
    (void)context, (void)err;
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        mgr_stored *const s = &layout->cat->stored[i];
        if (s->file != file)
            continue;
        s->offset = at;
        at += (mgr_hdf5_bytes(s) + ALIGN - 1) / ALIGN * ALIGN;
        sets++;
    }
    layout->cat->files[file].bytes = at + (sets / SETS_OF_A_BLOCK + 1) * META_BLOCK;
    return MGR_OK;
}

/* Plain and packed files are there at the same time. */
static int place_twice(mgr_layout *layout, uint32_t file, const void *context, mgr_err *err)
{
    MGR_TRY(place_hdf5_container(layout, file, context, err));
    layout->cat->files[file].bytes *= 2;
    return MGR_OK;
}

uint64_t mgr_hdf5_piece_rows(const mgr_stored *s)
{
    const uint64_t fit = CHUNK_BYTES / mgr_hdf5_row_bytes(s);
    return fit < 1 ? 1 : fit < s->shape[0] ? fit : s->shape[0];
}

bool mgr_hdf5_is_packed(const mgr_stored *s)
{
    return mgr_hdf5_bytes(s) >= PACK_MIN;
}

static mgr_h5_shape shape_of(const mgr_stored *s, bool deflate)
{
    mgr_h5_shape shape = {.dtype = s->dtype, .ndim = s->ndim};
    memcpy(shape.shape, s->shape, sizeof shape.shape);
    if (deflate && mgr_hdf5_is_packed(s)) {
        shape.chunk_rows = mgr_hdf5_piece_rows(s);
        shape.level = MGR_HDF5_LEVEL;
    }
    return shape;
}

static int add_sets(mgr_h5 *h, const mgr_catalogue *cat, uint32_t file, bool deflate, mgr_err *err)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        if (s->file != file)
            continue;
        const mgr_h5_shape shape = shape_of(s, deflate);
        MGR_TRY(mgr_check_stop(err));
        MGR_TRY(mgr_h5_add(h, s->name, &shape, err));
        MGR_TRY(mgr_h5_add_note(h, s->name, "dtype", mgr_dtype_name(s->dtype), err));
    }
    return MGR_OK;
}

int mgr_hdf5_make(mgr_h5 **out, const mgr_catalogue *cat, uint32_t file, const char *path,
                  bool deflate, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_h5 *h;
    MGR_TRY(mgr_h5_create(&h, path, err));
    const int rc = add_sets(h, cat, file, deflate, err);
    if (rc != MGR_OK)
        mgr_h5_close(h, &ignored);
    else
        *out = h;
    return rc;
}

/* ---- what is not tensors ---- */

static int by_offset(const void *x, const void *y)
{
    const mgr_stored *const *const a = x, *const *const b = y;
    return (*a)->offset < (*b)->offset ? -1 : (*a)->offset > (*b)->offset;
}

/* Bytes that the library wrote go back to where they are: for the checksum, and as the proof that
 * nothing else is in the file. */
static int put_gap(int fd, const char *path, uint64_t at, uint64_t end, const mgr_blob_sink *sink,
                   mgr_err *err)
{
    unsigned char bytes[65536];
    while (at < end) {
        const size_t n = end - at < sizeof bytes ? (size_t)(end - at) : sizeof bytes;
        const mgr_blob blob = {at, bytes, n};
        MGR_TRY(mgr_pread_full(fd, path, bytes, n, at, err));
        MGR_TRY(sink->put(sink->context, &blob, err));
        at += n;
    }
    return MGR_OK;
}

static int put_gaps(int fd, const char *path, const mgr_stored *const *sorted, size_t n,
                    uint64_t total, const mgr_blob_sink *sink, mgr_err *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_check_stop(err));
        MGR_TRY(put_gap(fd, path, at, sorted[i]->offset, sink, err));
        at = sorted[i]->offset + mgr_hdf5_bytes(sorted[i]);
    }
    return put_gap(fd, path, at, total, sink, err);
}

/* All bytes of the file `path` that are not tensors. */
static int put_rest(const mgr_catalogue *cat, uint32_t file, const char *path,
                    const mgr_blob_sink *sink, mgr_err *err)
{
    const mgr_stored **sorted = NULL;
    size_t n = 0;
    int fd = -1;
    MGR_TRY(mgr_alloc(&sorted, cat->n_stored, sizeof *sorted, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].file == file)
            sorted[n++] = &cat->stored[i];
    qsort(sorted, n, sizeof *sorted, by_offset);
    int rc = mgr_open_read(path, &fd, err);
    if (rc == MGR_OK)
        rc = put_gaps(fd, path, sorted, n, cat->files[file].bytes, sink, err);
    if (fd >= 0)
        mgr_close(fd);
    mgr_free(sorted);
    return rc;
}

static int finish_hdf5_container(const mgr_layout *layout, uint32_t file, const void *context,
                                 const uint32_t *crc, const mgr_blob_sink *sink, mgr_err *err)
{
    const mgr_hdf5_context *const c = context;
    mgr_buf path = {0};
    (void)crc;
    int rc = mgr_buf_fmt(&path, err, "%s/%s", c->directory.data, layout->cat->files[file].path);
    if (rc == MGR_OK)
        rc = put_rest(layout->cat, file, path.data, sink, err);
    mgr_buf_clear(&path);
    return rc;
}

/* ---- making the files: rank 0 ---- */

/* Where the library put the tensors; of a packed file, those that are not in pieces. */
static int find_places(mgr_catalogue *cat, uint32_t file, const mgr_reader *in, bool packed,
                       mgr_err *err)
{
    mgr_h5_index index;
    int rc = mgr_h5_index_make(&index, in, err);
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++) {
        mgr_stored *const s = &cat->stored[i];
        mgr_h5_set set;
        if (s->file != file || (packed && mgr_hdf5_is_packed(s)))
            continue;
        rc = mgr_h5_index_set(&index, s->name, &set, err);
        if (rc == MGR_OK && set.offset == UINT64_MAX)
            rc = mgr_fail(err, MGR_ERR_INTERNAL, "no place of '%s' in '%s'", s->name, in->name);
        if (rc == MGR_OK)
            s->offset = set.offset;
    }
    mgr_h5_index_clear(&index);
    return rc;
}

static int read_places(mgr_catalogue *cat, uint32_t file, const char *path, bool packed,
                       mgr_err *err)
{
    mgr_reader in;
    MGR_TRY(mgr_reader_open(&in, path, err));
    cat->files[file].bytes = in.size;
    const int rc = find_places(cat, file, &in, packed, err);
    mgr_reader_close(&in);
    return rc;
}

static int make_draft(mgr_catalogue *cat, uint32_t file, const char *draft, mgr_err *err)
{
    mgr_h5 *h = NULL;
    MGR_TRY(mgr_hdf5_make(&h, cat, file, draft, false, err));
    MGR_TRY(mgr_h5_close(h, err));
    return read_places(cat, file, draft, false, err);
}

typedef struct leftover {
    int fd;
    const char *path;
} leftover;

static int put_into_leftover(void *context, const mgr_blob *blob, mgr_err *err)
{
    const leftover *const l = context;
    return mgr_pwrite_full(l->fd, l->path, blob->bytes, blob->len, blob->offset, err);
}

/* The library writes the same again: a leftover gets what is not tensors from a new file. */
static int renew(const mgr_catalogue *cat, uint32_t file, const char *path, const char *draft,
                 mgr_err *err)
{
    leftover l = {-1, path};
    const mgr_blob_sink sink = {put_into_leftover, &l};
    MGR_TRY(mgr_open_write(path, &l.fd, err));
    const int rc = put_rest(cat, file, draft, &sink, err);
    if (rc == MGR_OK)
        MGR_TRY(mgr_sync_close(l.fd, path, err));
    else
        mgr_close(l.fd);
    return rc == MGR_OK ? mgr_remove_tree(draft, err) : rc;
}

static int create_file(mgr_catalogue *cat, uint32_t file, const char *path, mgr_err *err)
{
    mgr_buf draft = {0};
    uint64_t bytes = 0;
    const bool there = mgr_path_exists(path);
    int rc = mgr_buf_fmt(&draft, err, "%s.draft", path);
    if (rc == MGR_OK)
        rc = make_draft(cat, file, draft.data, err);
    if (rc == MGR_OK && there)
        rc = mgr_file_bytes(path, &bytes, err);
    if (rc == MGR_OK)
        rc = there && bytes == cat->files[file].bytes ? renew(cat, file, path, draft.data, err)
                                                      : mgr_rename(draft.data, path, err);
    mgr_buf_clear(&draft);
    return rc;
}

static int create_files(mgr_layout *layout, void *context, const char *directory, mgr_err *err)
{
    mgr_hdf5_context *const c = context;
    mgr_catalogue *const cat = layout->cat;
    int rc = mgr_buf_text(&c->directory, directory, err);
    mgr_say_work("files", cat->n_files, 1);
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        mgr_buf path = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, cat->files[f].path);
        if (rc == MGR_OK)
            rc = create_file(cat, f, path.data, err);
        if (rc == MGR_OK)
            rc = mgr_say_step(1, err);
        mgr_buf_clear(&path);
    }
    return rc;
}

/* ---- packing ---- */

static int seal(mgr_layout *layout, uint32_t file, void *context, const char *from,
                const char *path, mgr_comm *comm, mgr_sealed_sum *sum, mgr_err *err)
{
    mgr_hdf5_context *const c = context;
    return mgr_hdf5_pack(layout->cat, file, from, path, comm, &c->room, sum, err);
}

static int sealed(mgr_layout *layout, uint32_t file, const char *path, mgr_err *err)
{
    return read_places(layout->cat, file, path, true, err);
}

const mgr_container mgr_container_hdf5 = {
    .place = place_hdf5_container,
    .finish = finish_hdf5_container,
    .create = create_files,
};

const mgr_container mgr_container_hdf5_deflate = {
    .place = place_twice,
    .finish = finish_hdf5_container,
    .create = create_files,
    .seal = seal,
    .sealed = sealed,
};
