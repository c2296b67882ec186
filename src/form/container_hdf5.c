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
#include "core/stop.h"
#include "fmt/h5.h"
#include "form/container.h"
#include "io/file.h"

#define ALIGN 4096
#define CHUNK_BYTES ((uint64_t)1 << 20)
/* Most of what deflate can do for weights it does at its fastest level. */
#define LEVEL 1

/* Smaller ones stay plain: there is nothing to gain, and each costs a call of all ranks. */
#define PACK_MIN ((uint64_t)64 << 10)
/* After so many bytes ranks ask each other whether all is well. */
#define AGREE_BYTES ((uint64_t)1 << 30)
/* Pieces that a rank takes at a time. */
#define PIECES ((uint64_t)8)

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

/* Plain and packed files are there at the same time. */
static int place_twice(mgr_layout *layout, uint32_t file, const void *context, mgr_err *err)
{
    MGR_TRY(place(layout, file, context, err));
    layout->cat->files[file].bytes *= 2;
    return MGR_OK;
}

static uint64_t piece_rows(const mgr_stored *s)
{
    const uint64_t fit = CHUNK_BYTES / row_bytes(s);
    return fit < 1 ? 1 : fit < s->shape[0] ? fit : s->shape[0];
}

static bool is_packed(const mgr_stored *s)
{
    return stored_bytes(s) >= PACK_MIN;
}

static mgr_h5_shape shape_of(const mgr_stored *s, bool deflate)
{
    mgr_h5_shape shape = {.dtype = s->dtype, .ndim = s->ndim};
    memcpy(shape.shape, s->shape, sizeof shape.shape);
    if (deflate && is_packed(s)) {
        shape.chunk_rows = piece_rows(s);
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

/* A file with its data sets, durable. */
static int make_draft(const mgr_catalogue *cat, uint32_t file, const char *draft, bool deflate,
                      mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(mgr_h5_create(&h, draft, err));
    const int rc = add_sets(h, cat, file, deflate, err);
    const int closed = mgr_h5_close(h, err);
    MGR_TRY(rc != MGR_OK ? rc : closed);
    return sync_file(draft, err);
}

static int make_file(const mgr_catalogue *cat, uint32_t file, const char *path, mgr_err *err)
{
    mgr_buf draft = {0};
    MGR_TRY(mgr_buf_fmt(&draft, err, "%s.draft", path));
    int rc = make_draft(cat, file, draft.data, false, err);
    if (rc == MGR_OK)
        rc = mgr_rename(draft.data, path, err);
    mgr_buf_clear(&draft);
    return rc;
}

/* Where the library put the tensors. A file has no places for them if a run was killed in the
 * moment in which it put packed files into place. */
static int read_places(mgr_catalogue *cat, uint32_t file, const char *path, mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(mgr_h5_open(&h, path, err));
    int rc = mgr_file_bytes(path, &cat->files[file].bytes, err);
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        if (cat->stored[i].file == file)
            rc = mgr_h5_offset(h, cat->stored[i].name, &cat->stored[i].offset, err);
    if (rc != MGR_OK)
        mgr_hint(err, "begin anew with --force");
    const int closed = mgr_h5_close(h, err);
    return rc != MGR_OK ? rc : closed;
}

static int create_files(mgr_layout *layout, void *context, const char *directory, mgr_err *err)
{
    mgr_hdf5_context *const c = context;
    mgr_catalogue *const cat = layout->cat;
    int rc = mgr_buf_text(&c->directory, directory, err);
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        mgr_buf path = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, cat->files[f].path);
        if (rc == MGR_OK && !mgr_path_exists(path.data))
            rc = make_file(cat, f, path.data, err);
        if (rc == MGR_OK)
            rc = read_places(cat, f, path.data, err);
        mgr_buf_clear(&path);
    }
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
    mgr_h5 **files;
} writer;

static void discard(writer *w)
{
    mgr_free(w->files);
    mgr_free(w);
}

static int make_writer(writer **out, const mgr_layout *layout, mgr_err *err)
{
    writer *w;
    MGR_TRY(mgr_alloc(&w, 1, sizeof *w, err));
    w->layout = layout;
    *out = w;
    return mgr_alloc(&w->files, layout->cat->n_files, sizeof *w->files, err);
}

/* Opening is collective: a file that is open on one rank is open on all. */
static int open_files(void **out, const mgr_layout *layout, const char *directory, mgr_comm *comm,
                      mgr_err *err)
{
    writer *w = NULL;
    mgr_err ignored = MGR_ERR_INIT;
    int rc = mgr_agree(comm, make_writer(&w, layout, err), err);
    uint32_t n = 0;
    if (!w) /* here, or all had room for it */
        return rc;
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
    for (uint32_t f = 0; w->files && f + 1 < n; f++)
        mgr_h5_close(w->files[f], &ignored);
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

static int write_rows(void *opaque, uint32_t stored, uint64_t at, const void *bytes, size_t len,
                      mgr_err *err)
{
    writer *const w = opaque;
    const mgr_stored *const s = &w->layout->cat->stored[stored];
    const uint64_t row = row_bytes(s);
    if (at % row || len % row)
        return mgr_fail(err, MGR_ERR_INTERNAL, "'%s' is written by parts of a row", s->name);
    return mgr_h5_write(w->files[s->file], s->name, at / row, len / row, bytes, err);
}

/* ---- packing: all ranks ---- */

/* One file on its way from plain to packed. */
typedef struct packing {
    const mgr_catalogue *cat;
    mgr_comm *comm;
    mgr_h5 *to;
    int from; /* the plain file */
    const char *path;
    unsigned char *rows; /* PIECES of any tensor */
} packing;

/* The pieces of a tensor that each rank takes in a round: the same for all, and no more than there
 * are left. */
static uint64_t share_of(const packing *p, uint64_t rows_left, uint64_t piece)
{
    const uint64_t pieces = (rows_left + piece - 1) / piece;
    const uint64_t ranks = (uint64_t)mgr_comm_size(p->comm), even = (pieces + ranks - 1) / ranks;
    return even < PIECES ? even : PIECES;
}

/* A round for tensor `s`: each rank packs its share of the rows from `first` on. A rank that has
 * none, or has failed, takes part with nothing. `turn` says whose the first share is. */
static int pack_round(packing *p, const mgr_stored *s, uint64_t first, uint64_t share,
                      uint64_t turn, int rc, mgr_err *err)
{
    const uint64_t place =
        ((uint64_t)mgr_comm_rank(p->comm) + turn) % (uint64_t)mgr_comm_size(p->comm);
    const uint64_t row = first + place * share;
    uint64_t rows = row >= s->shape[0] ? 0 : s->shape[0] - row < share ? s->shape[0] - row : share;
    if (rc == MGR_OK && rows)
        rc = mgr_pread_full(p->from, p->path, p->rows, rows * row_bytes(s),
                            s->offset + row * row_bytes(s), err);
    rows = rc == MGR_OK ? rows : 0;
    const int wrote = mgr_h5_write_together(p->to, s->name, rows ? row : 0, rows, p->rows, err);
    return rc != MGR_OK ? rc : wrote;
}

static int pack_tensor(packing *p, const mgr_stored *s, uint64_t turn, int rc, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(p->comm), piece = piece_rows(s);
    for (uint64_t first = 0; first < s->shape[0];) {
        const uint64_t share = piece * share_of(p, s->shape[0] - first, piece);
        rc = pack_round(p, s, first, share, turn, rc, err);
        first += share * ranks;
    }
    return rc;
}

/* Small ones are rank 0's. */
static int copy_tensor(packing *p, const mgr_stored *s, mgr_err *err)
{
    if (mgr_comm_rank(p->comm) != 0)
        return MGR_OK;
    MGR_TRY(mgr_pread_full(p->from, p->path, p->rows, stored_bytes(s), s->offset, err));
    return mgr_h5_write(p->to, s->name, 0, s->shape[0], p->rows, err);
}

/* A rank that fails goes on with nothing to write, so that no other waits for it; all learn of it
 * after some tensors. Collective. */
static int pack_tensors(packing *p, uint32_t file, mgr_err *err)
{
    int rc = MGR_OK;
    uint64_t since = 0;
    for (size_t i = 0; i < p->cat->n_stored; i++) {
        const mgr_stored *const s = &p->cat->stored[i];
        if (s->file != file)
            continue;
        if (is_packed(s))
            rc = pack_tensor(p, s, i, rc, err);
        else if (rc == MGR_OK)
            rc = copy_tensor(p, s, err);
        since += stored_bytes(s);
        if (since < AGREE_BYTES)
            continue;
        since = 0;
        MGR_TRY(mgr_agree(p->comm, rc, err));
    }
    return mgr_agree(p->comm, rc, err);
}

static uint64_t most_rows_bytes(const mgr_catalogue *cat)
{
    uint64_t most = PACK_MIN;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const uint64_t bytes = PIECES * piece_rows(&cat->stored[i]) * row_bytes(&cat->stored[i]);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* What each rank needs to take part, or on rank 0 the draft that it goes to. */
static int begin(packing *p, uint32_t file, const char *draft, mgr_err *err)
{
    MGR_TRY(mgr_check_stop(err));
    if (mgr_comm_rank(p->comm) == 0)
        MGR_TRY(make_draft(p->cat, file, draft, true, err));
    MGR_TRY(mgr_alloc_aligned(&p->rows, most_rows_bytes(p->cat), err));
    return mgr_open_read(p->path, &p->from, err);
}

static int pack_file(const mgr_catalogue *cat, uint32_t file, const char *path, const char *draft,
                     mgr_comm *comm, mgr_err *err)
{
    packing p = {.cat = cat, .comm = comm, .path = path, .from = -1};
    int rc = mgr_agree(comm, begin(&p, file, draft, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, mgr_h5_open_shared(&p.to, draft, mgr_comm_mpi(comm), err), err);
    if (rc == MGR_OK) {
        rc = pack_tensors(&p, file, err);
        const int closed = mgr_h5_close(p.to, err);
        rc = rc != MGR_OK ? rc : mgr_agree(comm, closed, err);
    }
    if (rc == MGR_OK) /* what this node wrote */
        rc = mgr_agree(comm, sync_file(draft, err), err);
    mgr_free_aligned(p.rows);
    if (p.from >= 0)
        mgr_close(p.from);
    return rc;
}

/* What is still plain lies elsewhere now. */
static int read_plain_places(mgr_catalogue *cat, uint32_t file, const char *path, mgr_err *err)
{
    mgr_h5 *h;
    MGR_TRY(mgr_file_bytes(path, &cat->files[file].bytes, err));
    MGR_TRY(mgr_h5_open(&h, path, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        if (cat->stored[i].file == file && !is_packed(&cat->stored[i]))
            rc = mgr_h5_offset(h, cat->stored[i].name, &cat->stored[i].offset, err);
    const int closed = mgr_h5_close(h, err);
    return rc != MGR_OK ? rc : closed;
}

/* Rank 0: the packed files take the places of the plain ones. */
static int replace_files(mgr_catalogue *cat, const char *directory, mgr_err *err)
{
    int rc = MGR_OK;
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        mgr_buf path = {0}, draft = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, cat->files[f].path);
        if (rc == MGR_OK)
            rc = mgr_buf_fmt(&draft, err, "%s.draft", path.data);
        if (rc == MGR_OK)
            rc = mgr_rename(draft.data, path.data, err);
        if (rc == MGR_OK)
            rc = read_plain_places(cat, f, path.data, err);
        mgr_buf_clear(&path);
        mgr_buf_clear(&draft);
    }
    return rc;
}

static int seal(mgr_layout *layout, const char *directory, mgr_comm *comm, mgr_err *err)
{
    mgr_catalogue *const cat = layout->cat;
    int rc = MGR_OK;
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        mgr_buf path = {0}, draft = {0};
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, cat->files[f].path);
        if (rc == MGR_OK)
            rc = mgr_buf_fmt(&draft, err, "%s.draft", path.data);
        rc = mgr_agree(comm, rc, err);
        if (rc == MGR_OK)
            rc = pack_file(cat, f, path.data, draft.data, comm, err);
        mgr_buf_clear(&path);
        mgr_buf_clear(&draft);
    }
    if (rc == MGR_OK) {
        rc = mgr_comm_rank(comm) == 0 ? replace_files(cat, directory, err) : MGR_OK;
        rc = mgr_agree(comm, rc, err);
    }
    return rc;
}

const mgr_container mgr_container_hdf5 = {
    .place = place,
    .finish = finish,
    .create = create_files,
    .open = open_files,
    .write = write_rows,
    .close = close_files,
};

const mgr_container mgr_container_hdf5_deflate = {
    .place = place_twice,
    .finish = finish,
    .create = create_files,
    .open = open_files,
    .write = write_rows,
    .close = close_files,
    .seal = seal,
};
