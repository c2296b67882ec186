/*
 * Packing: from a plain HDF5 file to one whose tensors lie in compressed pieces.
 *
 * A file is a list of pieces, and ranks meet in rounds: each compresses a stretch of the list, rank
 * 0 has the library give each piece its place, in the order of the list, and each rank writes its
 * own there. So the file does not depend on the number of ranks, and the library neither writes
 * weights nor waits for anyone.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/say_run.h"
#include "fmt/h5_filter.h"
#include "form/hdf5_files.h"
#include "io/file.h"

/* Pieces that a rank takes in a round. */
#define PIECES ((uint64_t)16)

/* What ranks tell each other of a piece. */
typedef struct placing {
    uint64_t bytes, offset;
    uint32_t crc32, pad;
} placing;

/* A tensor of the file, and which of the file's pieces is its first. */
typedef struct cut {
    const mgr_stored *stored;
    uint64_t first;
} cut;

/* One file on its way from plain to packed. */
typedef struct packing {
    mgr_hdf5_room *room;
    mgr_comm *comm;
    mgr_h5 *made;   /* rank 0 */
    mgr_buf placed; /* there: of all pieces */
    const char *plain, *draft;
    int from, to;
    cut *cuts;
    size_t n_cuts;
    uint64_t pieces;
} packing;

/* Rows of a tensor. */
typedef struct piece {
    const mgr_stored *stored;
    uint64_t row, rows;
    bool packed;
} piece;

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
    size_t low = 0, high = p->n_cuts;
    assert(n < p->pieces);
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (p->cuts[middle].first <= n)
            low = middle;
        else
            high = middle;
    }
    const mgr_stored *const s = p->cuts[low].stored;
    const uint64_t rows = rows_of_piece(s), row = (n - p->cuts[low].first) * rows;
    const uint64_t left = s->shape[0] - row;
    return (piece){s, row, left < rows ? left : rows, mgr_hdf5_is_packed(s)};
}

/* Read one piece, and pack it to `out`. The last piece of a tensor is filled up with zeros. */
static int pack_piece(packing *p, uint64_t n, unsigned char *out, size_t *packed, mgr_err *err)
{
    const piece at = piece_at(p, n);
    const uint64_t row_bytes = mgr_hdf5_row_bytes(at.stored), len = at.rows * row_bytes;
    const uint64_t whole = rows_of_piece(at.stored) * row_bytes;
    *packed = len;
    MGR_TRY(mgr_say_step(len, err));
    MGR_TRY(mgr_pread_full(p->from, p->plain, at.packed ? p->room->rows : out, len,
                           at.stored->offset + at.row * row_bytes, err));
    if (at.packed) {
        memset(p->room->rows + len, 0, whole - len);
        MGR_TRY(mgr_h5_pack(p->room->rows, whole, mgr_dtype_size(at.stored->dtype), MGR_HDF5_LEVEL,
                            p->room->scratch, out, packed, err));
    }
    return MGR_OK;
}

/* Rank 0: the places of all pieces of a round, which begins with piece `first`. */
static int place_pieces(packing *p, uint64_t first, const mgr_buf *all, mgr_err *err)
{
    placing *const list = (placing *)(void *)all->data;
    for (uint64_t i = 0; i < all->len / sizeof *list; i++) {
        const piece at = piece_at(p, first + i);
        MGR_TRY(at.packed ? mgr_h5_place(p->made, at.stored->name, at.row, list[i].bytes,
                                         &list[i].offset, err)
                          : mgr_h5_offset(p->made, at.stored->name, &list[i].offset, err));
    }
    return mgr_buf_add(&p->placed, all->data, all->len, err);
}

/* Packed pieces lie close to each other: what is not needed of their room is never touched. */
static int pack_share(packing *p, uint64_t first, uint64_t n, mgr_buf *sizes, mgr_err *err)
{
    unsigned char *out = p->room->packed;
    for (uint64_t k = 0; k < n; k++) {
        size_t packed;
        MGR_TRY(pack_piece(p, first + k, out, &packed, err));
        const placing one = {packed, 0, mgr_crc32(0, out, packed), 0};
        MGR_TRY(mgr_buf_add(sizes, &one, sizeof one, err));
        out += packed;
    }
    return MGR_OK;
}

static int write_pieces(const packing *p, const placing *mine, uint64_t n, mgr_err *err)
{
    const unsigned char *at = p->room->packed;
    for (uint64_t k = 0; k < n; k++) {
        MGR_TRY(mgr_pwrite_full(p->to, p->draft, at, mine[k].bytes, mine[k].offset, err));
        at += mine[k].bytes;
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

/* What has gone wrong on this rank, or on all. Collective. */
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
    return rc == MGR_OK ? local : rc;
}

/* Rank 0: the draft with all its data sets; one that a killed run left is of no use. */
static int make_draft(packing *p, const mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    MGR_TRY(mgr_remove_tree(p->draft, err));
    return mgr_hdf5_make(&p->made, cat, file, p->draft, true, err);
}

/* Enough for all files, so that they have the same memory in turn. */
static int make_room(mgr_hdf5_room *room, const mgr_catalogue *cat, mgr_err *err)
{
    uint64_t most = 0;
    if (room->packed)
        return MGR_OK;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const uint64_t bytes = rows_of_piece(s) * mgr_hdf5_row_bytes(s);
        most = bytes > most ? bytes : most;
    }
    MGR_TRY(mgr_alloc_aligned(&room->rows, most, err));
    MGR_TRY(mgr_alloc_aligned(&room->scratch, mgr_h5_pack_scratch(most), err));
    return mgr_alloc_aligned(&room->packed, PIECES * mgr_h5_packed_bound(most), err);
}

void mgr_hdf5_room_clear(mgr_hdf5_room *room)
{
    mgr_free_aligned(room->rows);
    mgr_free_aligned(room->scratch);
    mgr_free_aligned(room->packed);
    *room = (mgr_hdf5_room){0};
}

static int begin(packing *p, const mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    MGR_TRY(make_room(p->room, cat, err));
    MGR_TRY(mgr_alloc(&p->cuts, cat->n_stored, sizeof *p->cuts, err));
    for (size_t i = 0; i < cat->n_stored; i++) {
        if (cat->stored[i].file != file)
            continue;
        p->cuts[p->n_cuts++] = (cut){&cat->stored[i], p->pieces};
        p->pieces += pieces_of(&cat->stored[i]);
    }
    MGR_TRY(mgr_open_read(p->plain, &p->from, err));
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
    mgr_free(p->cuts);
    return rc;
}

static int by_offset(const void *x, const void *y)
{
    const placing *const a = x, *const b = y;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Read what the library wrote, up to `end`. */
static int sum_gap(int fd, const char *path, uint64_t end, mgr_sealed_sum *sum, mgr_err *err)
{
    unsigned char bytes[65536];
    if (end < sum->bytes)
        return mgr_fail(err, MGR_ERR_INTERNAL, "'%s' at byte %llu: two pieces in one place", path,
                        (unsigned long long)end);
    while (sum->bytes < end) {
        const uint64_t left = end - sum->bytes;
        const size_t n = left < sizeof bytes ? (size_t)left : sizeof bytes;
        MGR_TRY(mgr_pread_full(fd, path, bytes, n, sum->bytes, err));
        sum->crc32 = mgr_crc32(sum->crc32, bytes, n);
        sum->bytes += n;
    }
    return MGR_OK;
}

/* Rank 0: the checksum of the draft that is whole, of pieces as they were meant to be written. */
static int sum_draft(const packing *p, int fd, mgr_sealed_sum *sum, mgr_err *err)
{
    placing *const list = (placing *)(void *)p->placed.data;
    const size_t n = p->placed.len / sizeof *list;
    uint64_t bytes;
    *sum = (mgr_sealed_sum){0};
    MGR_TRY(mgr_file_bytes(p->draft, &bytes, err));
    if (n)
        qsort(list, n, sizeof *list, by_offset);
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(sum_gap(fd, p->draft, list[i].offset, sum, err));
        sum->crc32 = (uint32_t)crc32_combine64(sum->crc32, list[i].crc32, (z_off64_t)list[i].bytes);
        sum->bytes += list[i].bytes;
    }
    return sum_gap(fd, p->draft, bytes, sum, err);
}

/* Rank 0, when all ranks have written what is theirs. */
static int publish(const packing *p, const char *path, mgr_sealed_sum *sum, mgr_err *err)
{
    int fd;
    MGR_TRY(mgr_open_read(p->draft, &fd, err));
    const int rc = sum_draft(p, fd, sum, err);
    mgr_close(fd);
    return rc == MGR_OK ? mgr_rename(p->draft, path, err) : rc;
}

int mgr_hdf5_pack(const mgr_catalogue *cat, uint32_t file, const char *plain, const char *path,
                  mgr_comm *comm, mgr_hdf5_room *room, mgr_sealed_sum *sum, mgr_err *err)
{
    const bool root = mgr_comm_rank(comm) == 0;
    packing p = {.room = room, .comm = comm, .plain = plain, .from = -1, .to = -1};
    mgr_buf draft = {0};
    int rc = mgr_buf_fmt(&draft, err, "%s.draft", path);
    p.draft = draft.data;
    if (rc == MGR_OK && root)
        rc = make_draft(&p, cat, file, err);
    rc = mgr_agree(comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, begin(&p, cat, file, err), err);
    if (rc == MGR_OK)
        rc = pack_all(&p, err);
    rc = mgr_agree(comm, finish(&p, rc, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, root ? publish(&p, path, sum, err) : MGR_OK, err);
    mgr_buf_clear(&p.placed);
    mgr_buf_clear(&draft);
    return rc;
}
