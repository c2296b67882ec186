#include "look/file_sums.h"

#include <string.h>
#include <zlib.h>

#include "core/crc.h"
#include "core/say_run.h"
#include "core/str.h"
#include "io/file.h"

/* Where shares and visitors may be cut: multiples of every element. */
#define PIECE ((uint64_t)8 << 20) /* is read at once */
#define STEP ((size_t)256 << 10)  /* stays in a core's cache until all have looked at it */

/* What one rank has of one file. Ranks have stretches of the list of all bytes, so that those of a
 * file come in order. */
typedef struct stretch {
    uint32_t file, crc32;
    uint64_t bytes;
} stretch;

int mgr_file_sums_add(mgr_file_sums *sums, const char *path, uint64_t bytes, mgr_err *err)
{
    mgr_file_sum f = {.bytes = bytes};
    MGR_TRY(mgr_arena_strndup(&sums->arena, &f.path, path, strlen(path), err));
    MGR_TRY(mgr_grow(&sums->list, &sums->capacity, sums->n + 1, sizeof f, err));
    sums->list[sums->n++] = f;
    return MGR_OK;
}

void mgr_file_sums_clear(mgr_file_sums *sums)
{
    mgr_free(sums->list);
    mgr_arena_clear(&sums->arena);
    *sums = (mgr_file_sums){0};
}

static int pack(const mgr_file_sums *sums, mgr_buf *out, mgr_err *err)
{
    for (size_t i = 0; i < sums->n; i++) {
        MGR_TRY(mgr_buf_add(out, &sums->list[i], sizeof sums->list[i], err));
        MGR_TRY(mgr_buf_add(out, sums->list[i].path, strlen(sums->list[i].path) + 1, err));
    }
    return MGR_OK;
}

static int unpack(mgr_file_sums *sums, const mgr_buf *in, mgr_err *err)
{
    for (const char *at = in->data; at < in->data + in->len;) {
        mgr_file_sum f;
        memcpy(&f, at, sizeof f);
        at += sizeof f;
        MGR_TRY(mgr_file_sums_add(sums, at, f.bytes, err));
        sums->list[sums->n - 1].known = f.known;
        sums->list[sums->n - 1].crc32 = f.crc32;
        at += strlen(at) + 1;
    }
    return MGR_OK;
}

int mgr_file_sums_share(mgr_comm *comm, mgr_file_sums *sums, mgr_err *err)
{
    mgr_buf text = {0};
    const bool root = mgr_comm_rank(comm) == 0;
    int rc = mgr_agree(comm, root ? pack(sums, &text, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(comm, &text, err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, root ? MGR_OK : unpack(sums, &text, err), err);
    mgr_buf_clear(&text);
    return rc;
}

static int see_piece(const unsigned char *bytes, size_t len, uint64_t at,
                     const mgr_sum_visitor *visitor, stretch *out, mgr_err *err)
{
    for (size_t i = 0; i < len; i += STEP) {
        const size_t n = len - i < STEP ? len - i : STEP;
        out->crc32 = mgr_crc32(out->crc32, bytes + i, n);
        if (visitor)
            MGR_TRY(visitor->see(visitor->context, out->file, at + i, bytes + i, n, err));
    }
    out->bytes += len;
    return MGR_OK;
}

static int read_stretch(int fd, const char *path, uint64_t from, uint64_t to, unsigned char *buffer,
                        const mgr_sum_visitor *visitor, stretch *out, mgr_err *err)
{
    for (uint64_t at = from; at < to;) {
        const uint64_t next = (at / PIECE + 1) * PIECE, end = next < to ? next : to;
        MGR_TRY(mgr_say_step(end - at, err));
        MGR_TRY(mgr_pread_full(fd, path, buffer, (size_t)(end - at), at, err));
        MGR_TRY(see_piece(buffer, (size_t)(end - at), at, visitor, out, err));
        at = end;
    }
    return MGR_OK;
}

static int read_part(const char *directory, const mgr_file_sum *file, uint64_t from, uint64_t to,
                     unsigned char *buffer, const mgr_sum_visitor *visitor, stretch *out,
                     mgr_err *err)
{
    mgr_buf path = {0};
    int fd = -1;
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, file->path);
    if (rc == MGR_OK)
        rc = mgr_open_read(path.data, &fd, err);
    if (rc == MGR_OK)
        rc = read_stretch(fd, path.data, from, to, buffer, visitor, out, err);
    if (fd >= 0)
        mgr_close(fd);
    mgr_buf_clear(&path);
    return rc;
}

/* Where rank `rank`'s share of `all` bytes begins: at a piece, so that no element is cut. */
static uint64_t share(uint64_t all, uint64_t rank, uint64_t ranks)
{
    const uint64_t pieces = (all + PIECE - 1) / PIECE;
    const uint64_t at = pieces * rank / ranks * PIECE;
    return at < all ? at : all;
}

/* Files follow each other at multiples of a piece. */
static int read_mine(const mgr_comm *comm, const char *directory, const mgr_file_sums *sums,
                     const mgr_sum_visitor *visitor, mgr_buf *mine, mgr_err *err)
{
    const uint64_t rank = (uint64_t)mgr_comm_rank(comm), ranks = (uint64_t)mgr_comm_size(comm);
    unsigned char *buffer = NULL;
    uint64_t all = 0, begin = 0;
    for (size_t i = 0; i < sums->n; i++)
        all += sums->list[i].known ? 0 : (sums->list[i].bytes + PIECE - 1) / PIECE * PIECE;
    mgr_say_work(NULL, all, (uint32_t)ranks);
    const uint64_t first = share(all, rank, ranks), end = share(all, rank + 1, ranks);
    int rc = mgr_alloc_aligned(&buffer, PIECE, err);
    for (uint32_t i = 0; rc == MGR_OK && i < sums->n; i++) {
        const mgr_file_sum *const f = &sums->list[i];
        stretch part = {.file = i};
        if (f->known)
            continue;
        const uint64_t from = first > begin ? first - begin : 0;
        const uint64_t to = end <= begin ? 0 : end - begin < f->bytes ? end - begin : f->bytes;
        begin += (f->bytes + PIECE - 1) / PIECE * PIECE;
        if (from >= to)
            continue;
        rc = read_part(directory, f, from, to, buffer, visitor, &part, err);
        if (rc == MGR_OK)
            rc = mgr_buf_add(mine, &part, sizeof part, err);
    }
    mgr_free_aligned(buffer);
    return rc;
}

int mgr_file_sums_take(mgr_comm *comm, const char *directory, mgr_file_sums *sums,
                       const mgr_sum_visitor *visitor, mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    int rc = mgr_agree(comm, read_mine(comm, directory, sums, visitor, &mine, err), err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(comm, &mine, &all, err);
    for (size_t at = 0; rc == MGR_OK && at < all.len; at += sizeof(stretch)) {
        stretch part;
        memcpy(&part, all.data + at, sizeof part);
        mgr_file_sum *const f = &sums->list[part.file];
        f->crc32 = (uint32_t)crc32_combine64(f->crc32, part.crc32, (z_off64_t)part.bytes);
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}
