/*
 * HDF5 files with one data set per tensor, under its name in the root group.
 *
 * Rank 0 makes each file with all its metadata, alone, under a name of its own, and renames it; so
 * a file that is there is whole but for the tensors' bytes. In one piece, a data set's place in the
 * file is fixed then, and every rank writes its rows independently through MPI-IO. Compressed, a
 * data set lies in pieces of rows, and HDF5 writes those only in calls that all ranks make
 * together: ranks meet in rounds, in which each says what it has.
 */
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/h5.h"
#include "io/file.h"
#include "run/container.h"

#define ALIGN 4096
#define CHUNK_BYTES ((uint64_t)1 << 20)
/* Most of what deflate can do for weights it does at its fastest level. */
#define LEVEL 1

/* What ranks say in a round, in the place of a stored tensor. */
#define IDLE (MGR_NONE - 1)
#define FAILED (MGR_NONE - 2)

static uint64_t row_bytes(const mgr_stored *s)
{
    return s->stride[0] * mgr_dtype_size(s->dtype);
}

static uint64_t stored_bytes(const mgr_stored *s)
{
    return s->shape[0] * row_bytes(s);
}

/* A good guess, for the plan; the library places them when the files are made. */
static int place(mgr_layout *layout, uint32_t file, const void *context, mgr_err *err)
{
    uint64_t at = ALIGN;
    (void)context, (void)err;
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        mgr_stored *const s = &layout->cat->stored[i];
        if (s->file != file)
            continue;
        s->offset = at;
        at += (stored_bytes(s) + ALIGN - 1) / ALIGN * ALIGN;
    }
    layout->cat->files[file].bytes = at;
    return MGR_OK;
}

/* ---- making the files: rank 0 ---- */

static mgr_h5_shape shape_of(const mgr_stored *s, bool deflate)
{
    mgr_h5_shape shape = {.dtype = s->dtype, .ndim = s->ndim};
    memcpy(shape.shape, s->shape, sizeof shape.shape);
    if (deflate) {
        const uint64_t fit = CHUNK_BYTES / row_bytes(s);
        shape.chunk_rows = fit < 1 ? 1 : fit < s->shape[0] ? fit : s->shape[0];
        shape.level = LEVEL;
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
        MGR_TRY(mgr_h5_add(h, s->name, &shape, err));
        MGR_TRY(mgr_h5_add_note(h, s->name, "dtype", mgr_dtype_name(s->dtype), err));
    }
    return MGR_OK;
}

static int sync_file(const char *path, mgr_err *err)
{
    int fd;
    MGR_TRY(mgr_open_write(path, &fd, err));
    return mgr_sync_close(fd, path, err);
}

static int make_file(const mgr_catalogue *cat, uint32_t file, const char *path, bool deflate,
                     mgr_err *err)
{
    mgr_h5 *h;
    mgr_buf draft = {0};
    MGR_TRY(mgr_buf_fmt(&draft, err, "%s.draft", path));
    int rc = mgr_h5_create(&h, draft.data, err);
    if (rc == MGR_OK) {
        rc = add_sets(h, cat, file, deflate, err);
        const int closed = mgr_h5_close(h, err);
        rc = rc != MGR_OK ? rc : closed;
    }
    if (rc == MGR_OK)
        rc = sync_file(draft.data, err);
    if (rc == MGR_OK)
        rc = mgr_rename(draft.data, path, err);
    mgr_buf_clear(&draft);
    return rc;
}

/* Where the library put the tensors. */
static int read_places(mgr_catalogue *cat, uint32_t file, const char *path, mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(mgr_h5_open(&h, path, err));
    int rc = mgr_file_bytes(path, &cat->files[file].bytes, err);
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        if (cat->stored[i].file == file)
            rc = mgr_h5_offset(h, cat->stored[i].name, &cat->stored[i].offset, err);
    const int closed = mgr_h5_close(h, err);
    return rc != MGR_OK ? rc : closed;
}

static int create_files(mgr_layout *layout, void *context, const char *directory, bool deflate,
                        mgr_err *err)
{
    mgr_hdf5_context *const c = context;
    mgr_catalogue *const cat = layout->cat;
    int rc = mgr_buf_text(&c->directory, directory, err);
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        mgr_buf path = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, cat->files[f].path);
        if (rc == MGR_OK && !mgr_path_exists(path.data))
            rc = make_file(cat, f, path.data, deflate, err);
        if (rc == MGR_OK && !deflate)
            rc = read_places(cat, f, path.data, err);
        mgr_buf_clear(&path);
    }
    return rc;
}

static int create_plain(mgr_layout *layout, void *context, const char *directory, mgr_err *err)
{
    return create_files(layout, context, directory, false, err);
}

static int create_deflate(mgr_layout *layout, void *context, const char *directory, mgr_err *err)
{
    return create_files(layout, context, directory, true, err);
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
        MGR_TRY(put_gap(fd, path, at, sorted[i]->offset, sink, err));
        at = sorted[i]->offset + stored_bytes(sorted[i]);
    }
    return put_gap(fd, path, at, total, sink, err);
}

static int finish(const mgr_layout *layout, uint32_t file, const void *context, const uint32_t *crc,
                  const mgr_blob_sink *sink, mgr_err *err)
{
    const mgr_hdf5_context *const c = context;
    const mgr_catalogue *const cat = layout->cat;
    const mgr_stored **sorted = NULL;
    mgr_buf path = {0};
    size_t n = 0;
    int fd = -1;
    (void)crc;
    MGR_TRY(mgr_alloc(&sorted, cat->n_stored, sizeof *sorted, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].file == file)
            sorted[n++] = &cat->stored[i];
    qsort(sorted, n, sizeof *sorted, by_offset);
    int rc = mgr_buf_fmt(&path, err, "%s/%s", c->directory.data, cat->files[file].path);
    if (rc == MGR_OK)
        rc = mgr_open_read(path.data, &fd, err);
    if (rc == MGR_OK)
        rc = put_gaps(fd, path.data, sorted, n, cat->files[file].bytes, sink, err);
    if (fd >= 0)
        mgr_close(fd);
    mgr_buf_clear(&path);
    mgr_free(sorted);
    return rc;
}

/* ---- writing: all ranks ---- */

typedef struct writer {
    const mgr_layout *layout;
    mgr_comm *comm;
    mgr_h5 **files;
    uint32_t *said; /* by each rank in this round */
    bool failed;    /* this rank told the others */
    bool stopped;   /* some rank failed: there are no more rounds */
} writer;

static void discard(writer *w)
{
    mgr_free(w->files);
    mgr_free(w->said);
    mgr_free(w);
}

static int make_writer(writer **out, const mgr_layout *layout, mgr_comm *comm, mgr_err *err)
{
    writer *w;
    MGR_TRY(mgr_alloc(&w, 1, sizeof *w, err));
    *w = (writer){.layout = layout, .comm = comm};
    *out = w;
    MGR_TRY(mgr_alloc(&w->files, layout->cat->n_files, sizeof *w->files, err));
    return mgr_alloc(&w->said, (size_t)mgr_comm_size(comm), sizeof *w->said, err);
}

/* Opening is collective: a file that is open on one rank is open on all. */
static int open_files(void **out, const mgr_layout *layout, const char *directory, mgr_comm *comm,
                      mgr_err *err)
{
    writer *w = NULL;
    mgr_err ignored = MGR_ERR_INIT;
    int rc = mgr_agree(comm, make_writer(&w, layout, comm, err), err);
    uint32_t n = 0;
    for (; rc == MGR_OK && n < layout->cat->n_files; n++) {
        mgr_buf path = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, layout->cat->files[n].path);
        rc = mgr_agree(comm, rc, err);
        if (rc == MGR_OK)
            rc = mgr_h5_open_shared(&w->files[n], path.data, mgr_comm_mpi(comm), err);
        rc = mgr_agree(comm, rc, err);
        mgr_buf_clear(&path);
    }
    if (rc == MGR_OK) {
        *out = w;
        return MGR_OK;
    }
    for (uint32_t f = 0; w && w->files && f + 1 < n; f++)
        mgr_h5_close(w->files[f], &ignored);
    if (w)
        discard(w);
    return rc;
}

static int close_files(void *opaque, mgr_err *err)
{
    writer *const w = opaque;
    int rc = MGR_OK;
    for (size_t f = 0; f < w->layout->cat->n_files; f++) {
        const int closed = mgr_h5_close(w->files[f], err);
        rc = rc != MGR_OK ? rc : closed;
    }
    discard(w);
    return rc;
}

static int write_alone(void *opaque, uint32_t stored, uint64_t at, const void *bytes, size_t len,
                       mgr_err *err)
{
    writer *const w = opaque;
    const mgr_stored *const s = &w->layout->cat->stored[stored];
    const uint64_t row = row_bytes(s);
    if (at % row || len % row)
        return mgr_fail(err, MGR_ERR_INTERNAL, "'%s' is written by parts of a row", s->name);
    return mgr_h5_write(w->files[s->file], s->name, at / row, len / row, bytes, err);
}

/* One call for `stored`, with this rank's rows if it has some. */
static int write_part(writer *w, uint32_t stored, uint64_t at, const void *bytes, size_t len,
                      mgr_err *err)
{
    const mgr_stored *const s = &w->layout->cat->stored[stored];
    const uint64_t row = row_bytes(s);
    return mgr_h5_write_together(w->files[s->file], s->name, at / row, len / row, bytes, err);
}

/* The least tensor above `last` that any rank has in this round; MGR_NONE if there is none. */
static uint32_t next_said(const writer *w, uint32_t last)
{
    uint32_t least = MGR_NONE;
    for (int r = 0; r < mgr_comm_size(w->comm); r++)
        if (w->said[r] < FAILED && w->said[r] < least && (last == MGR_NONE || w->said[r] > last))
            least = w->said[r];
    return least;
}

/* A round: all say what they have, and write it, tensor after tensor. *more tells whether some rank
 * had something. Collective. */
static int round_of(writer *w, uint32_t mine, uint64_t at, const void *bytes, size_t len,
                    bool *more, mgr_err *err)
{
    int rc = MGR_OK;
    mgr_allgather_u32(w->comm, mine, w->said);
    for (int r = 0; r < mgr_comm_size(w->comm); r++)
        w->stopped = w->stopped || w->said[r] == FAILED;
    *more = false;
    if (w->stopped)
        return MGR_OK;
    for (uint32_t s = next_said(w, MGR_NONE); s != MGR_NONE; s = next_said(w, s)) {
        const int part =
            s == mine ? write_part(w, s, at, bytes, len, err) : write_part(w, s, 0, NULL, 0, err);
        rc = rc != MGR_OK ? rc : part;
        *more = true;
    }
    return rc;
}

static int write_together(void *opaque, uint32_t stored, uint64_t at, const void *bytes, size_t len,
                          mgr_err *err)
{
    writer *const w = opaque;
    bool more;
    if (!w->stopped)
        MGR_TRY(round_of(w, stored, at, bytes, len, &more, err));
    /* the rank that failed has the message; joining takes this one back */
    return w->stopped ? mgr_fail(err, MGR_ERR_INTERRUPTED, "another rank failed") : MGR_OK;
}

static int join(void *opaque, int local, mgr_err *err)
{
    writer *const w = opaque;
    bool more = true;
    if (w->stopped) {
        if (!w->failed)
            *err = (mgr_err)MGR_ERR_INIT;
        return w->failed ? local : MGR_OK;
    }
    while (more && !w->stopped) {
        w->failed = local != MGR_OK;
        const int rc = round_of(w, w->failed ? FAILED : IDLE, 0, NULL, 0, &more, err);
        local = local != MGR_OK ? local : rc;
    }
    return local;
}

const mgr_container mgr_container_hdf5 = {
    .place = place,
    .finish = finish,
    .create = create_plain,
    .open = open_files,
    .write = write_alone,
    .close = close_files,
};

const mgr_container mgr_container_hdf5_deflate = {
    .place = place,
    .create = create_deflate,
    .open = open_files,
    .write = write_together,
    .join = join,
    .close = close_files,
};
