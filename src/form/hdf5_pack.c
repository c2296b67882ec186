/*
 * Packing: from a plain HDF5 file to one whose tensors lie in compressed pieces.
 *
 * A file is a list of pieces, and ranks meet in rounds: each compresses a stretch of the list, rank
 * 0 has the library give each piece its place, in the order of the list, and each rank writes its
 * own there. So the file does not depend on the number of ranks, and the library neither writes
 * weights nor waits for anyone.
 */
#include <assert.h>
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "fmt/h5_filter.h"
#include "form/hdf5_files.h"
#include "io/file.h"

/* Pieces that a rank takes in a round. */
#define PIECES ((uint64_t)16)

/* One file on its way from plain to packed. */
typedef struct packing {
    const mgr_catalogue *cat;
    uint32_t file;
    mgr_comm *comm;
    mgr_h5 *made; /* rank 0 */
    const char *path, *draft;
    int from, to;
    uint64_t pieces;                        /* of the whole file */
    size_t room;                            /* that a packed piece may need */
    unsigned char *rows, *scratch, *packed; /* a piece, a piece, PIECES packed ones */
    uint64_t bytes[PIECES];                 /* of the packed ones */
} packing;

/* Rows of a tensor. */
typedef struct piece {
    const mgr_stored *stored;
    uint64_t row, rows;
    bool packed;
} piece;

/* What ranks tell each other of a piece. */
typedef struct placing {
    uint64_t bytes, offset;
} placing;

/* Small tensors stay plain, and are a piece each. */
static uint64_t rows_of_piece(const mgr_stored *s)
{
    return mgr_hdf5_is_packed(s) ? mgr_hdf5_piece_rows(s) : s->shape[0];
}

static uint64_t pieces_of(const mgr_stored *s)
{
    const uint64_t rows = rows_of_piece(s);
    return (s->shape[0] + rows - 1) / rows;
}

/* Piece `n` of the file. */
static piece piece_at(const packing *p, uint64_t n)
{
    for (size_t i = 0; i < p->cat->n_stored; i++) {
        const mgr_stored *const s = &p->cat->stored[i];
        if (s->file != p->file)
            continue;
        if (n >= pieces_of(s)) {
            n -= pieces_of(s);
            continue;
        }
        const uint64_t rows = rows_of_piece(s), left = s->shape[0] - n * rows;
        return (piece){s, n * rows, left < rows ? left : rows, mgr_hdf5_is_packed(s)};
    }
    return (piece){0};
}

/* Read one piece, and pack it as the k-th of this round. The last piece of a tensor is filled up
 * with zeros. */
static int pack_piece(packing *p, uint64_t n, uint64_t k, mgr_err *err)
{
    const piece at = piece_at(p, n);
    const uint64_t row_bytes = mgr_hdf5_row_bytes(at.stored), len = at.rows * row_bytes;
    const uint64_t whole = rows_of_piece(at.stored) * row_bytes;
    unsigned char *const out = p->packed + k * p->room;
    size_t packed = len;
    MGR_TRY(mgr_say_step(len, err));
    MGR_TRY(mgr_pread_full(p->from, p->path, at.packed ? p->rows : out, len,
                           at.stored->offset + at.row * row_bytes, err));
    if (at.packed) {
        memset(p->rows + len, 0, whole - len);
        MGR_TRY(mgr_h5_pack(p->rows, whole, mgr_dtype_size(at.stored->dtype), MGR_HDF5_LEVEL,
                            p->scratch, out, &packed, err));
    }
    p->bytes[k] = packed;
    return MGR_OK;
}

/* Rank 0: the places of all pieces of a round, which begins with piece `first`. */
static int place_pieces(packing *p, uint64_t first, const mgr_buf *all, mgr_err *err)
{
    placing *const list = (placing *)(void *)all->data;
    for (uint64_t i = 0; i < all->len / sizeof *list; i++) {
        const piece at = piece_at(p, first + i);
        assert(at.stored);
        MGR_TRY(at.packed ? mgr_h5_place(p->made, at.stored->name, at.row, list[i].bytes,
                                         &list[i].offset, err)
                          : mgr_h5_offset(p->made, at.stored->name, &list[i].offset, err));
    }
    return MGR_OK;
}

static int write_pieces(const packing *p, const placing *mine, uint64_t n, mgr_err *err)
{
    for (uint64_t k = 0; k < n; k++)
        MGR_TRY(mgr_pwrite_full(p->to, p->draft, p->packed + k * p->room, mine[k].bytes,
                                mine[k].offset, err));
    return MGR_OK;
}

static int pack_share(packing *p, uint64_t first, uint64_t n, mgr_buf *sizes, mgr_err *err)
{
    for (uint64_t k = 0; k < n; k++) {
        MGR_TRY(pack_piece(p, first + k, k, err));
        const placing one = {p->bytes[k], 0};
        MGR_TRY(mgr_buf_add(sizes, &one, sizeof one, err));
    }
    return MGR_OK;
}

/* The pieces from `first` on, `share` for each rank; *local is what has gone wrong on this rank.
 * Collective. */
static int pack_round(packing *p, uint64_t first, uint64_t share, int *local, mgr_err *err)
{
    const uint64_t rank = (uint64_t)mgr_comm_rank(p->comm), skip = rank * share;
    const uint64_t left = p->pieces - first < skip ? 0 : p->pieces - first - skip;
    const uint64_t n = left < share ? left : share;
    mgr_buf mine = {0}, all = {0};
    if (*local == MGR_OK)
        *local = pack_share(p, first + skip, n, &mine, err);
    int rc = mgr_agree(p->comm, *local, err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(p->comm, &mine, &all, err);
    if (rc == MGR_OK)
        rc = mgr_agree(p->comm, rank == 0 ? place_pieces(p, first, &all, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(p->comm, &all, err);
    if (rc == MGR_OK && n)
        *local = write_pieces(p, (const placing *)(const void *)all.data + skip, n, err);
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}

/* Collective. */
static int pack_all(packing *p, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(p->comm);
    int rc = MGR_OK, local = MGR_OK;
    for (uint64_t first = 0; rc == MGR_OK && first < p->pieces;) {
        const uint64_t even = (p->pieces - first + ranks - 1) / ranks;
        const uint64_t share = even < PIECES ? even : PIECES;
        rc = pack_round(p, first, share, &local, err);
        first += share * ranks;
    }
    return rc == MGR_OK ? mgr_agree(p->comm, local, err) : rc;
}

/* Rank 0: the draft with all its data sets; one that a killed run left is of no use. */
static int make_draft(packing *p, mgr_err *err)
{
    MGR_TRY(mgr_remove_tree(p->draft, err));
    return mgr_hdf5_make(&p->made, p->cat, p->file, p->draft, true, err);
}

static int begin(packing *p, mgr_err *err)
{
    uint64_t most = 0;
    for (size_t i = 0; i < p->cat->n_stored; i++) {
        const mgr_stored *const s = &p->cat->stored[i];
        const uint64_t bytes = rows_of_piece(s) * mgr_hdf5_row_bytes(s);
        if (s->file != p->file)
            continue;
        p->pieces += pieces_of(s);
        most = bytes > most ? bytes : most;
    }
    p->room = mgr_h5_packed_bound(most);
    MGR_TRY(mgr_alloc_aligned(&p->rows, most, err));
    MGR_TRY(mgr_alloc_aligned(&p->scratch, mgr_h5_pack_scratch(most), err));
    MGR_TRY(mgr_alloc_aligned(&p->packed, PIECES * p->room, err));
    MGR_TRY(mgr_open_read(p->path, &p->from, err));
    return mgr_open_write(p->draft, &p->to, err);
}

/* What this rank wrote becomes durable, and, on rank 0, what the library did; after a failure
 * everything is only closed. */
static int finish(packing *p, int failure, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    int rc = failure;
    const int closed = mgr_h5_close(p->made, rc == MGR_OK ? err : &ignored);
    rc = rc != MGR_OK ? rc : closed;
    if (rc == MGR_OK)
        rc = mgr_sync_close(p->to, p->draft, err);
    else if (p->to >= 0)
        mgr_close(p->to);
    if (p->from >= 0)
        mgr_close(p->from);
    mgr_free_aligned(p->rows);
    mgr_free_aligned(p->scratch);
    mgr_free_aligned(p->packed);
    return rc;
}

int mgr_hdf5_pack(const mgr_catalogue *cat, uint32_t file, const char *path, const char *draft,
                  mgr_comm *comm, mgr_err *err)
{
    packing p = {
        .cat = cat, .file = file, .comm = comm, .path = path, .draft = draft, .from = -1, .to = -1};
    int rc = mgr_agree(comm, mgr_comm_rank(comm) == 0 ? make_draft(&p, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, begin(&p, err), err);
    if (rc == MGR_OK)
        rc = pack_all(&p, err);
    const int ended = finish(&p, rc, err);
    return rc == MGR_OK ? mgr_agree(comm, ended, err) : rc;
}
