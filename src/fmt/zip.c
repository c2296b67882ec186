#include "fmt/zip.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc.h"
#include "core/le.h"
#include "core/mem.h"

/*
 * A zip file, as far as it is read here (src/fmt/README.md):
 *
 *   { local header  name  extra  payload  [descriptor] }*
 *   { central entry  name  extra  comment }*
 *   [ zip64 end record  zip64 locator ]
 *   end record  comment
 *
 * The central directory is what counts: torch leaves CRC and sizes of local headers zero.
 */
#define LOCAL_SIG 0x04034b50u
#define LOCAL_SIZE 30u
#define ENTRY_SIG 0x02014b50u
#define ENTRY_SIZE 46u
#define END_SIG 0x06054b50u
#define END_SIZE 22u
#define LOCATOR_SIG 0x07064b50u
#define LOCATOR_SIZE 20u
#define END64_SIG 0x06064b50u
#define END64_SIZE 56u

#define FLAG_ENCRYPTED 0x0001u
#define FLAG_DESCRIPTOR 0x0008u
#define FLAG_STRONG 0x0040u
#define FLAG_MASKED 0x2000u
#define METHOD_STORED 0
#define METHOD_DEFLATED 8
#define EXTRA_ZIP64 0x0001u

/* Our own limits: more is no checkpoint. */
#define MAX_MEMBERS 10000000u
#define MAX_DIRECTORY (UINT64_C(1) << 30)
#define NAME_SHOWN 200

typedef struct directory {
    uint64_t n, size, offset;
} directory;

static int damaged(const mgr_reader *reader, uint64_t at, const char *what, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_FORMAT, "damaged zip archive '%s' at byte %" PRIu64 ": %s", reader->name,
             reader->base + at, what);
    return MGR_ERR_FORMAT;
}

static int bad_member(const mgr_reader *reader, mgr_code code, const char *name, size_t len,
                      uint64_t at, const char *what, mgr_err *err)
{
    char shown[NAME_SHOWN];
    mgr_fail(err, code, "member '%s' of '%s' at byte %" PRIu64 ": %s",
             mgr_printable(name, len, shown, sizeof shown), reader->name, reader->base + at, what);
    return (int)code;
}

/* A field of the end record says the same as its zip64 twin, or that there is one. */
static bool agrees(uint64_t small, uint64_t saturated, uint64_t big)
{
    return small == saturated || small == big;
}

/* The zip64 end record, found through the locator `at` bytes into the file.
 *   0 sig, 4 size, 12 made by, 14 needed, 16 disk, 20 directory's disk, 24 entries here,
 *   32 entries, 40 directory size, 48 directory offset */
static int read_end64(const mgr_reader *reader, const unsigned char *locator, uint64_t at,
                      directory *dir, uint64_t *limit, mgr_err *err)
{
    const uint64_t where = mgr_load_u64(locator + 8);
    unsigned char end[END64_SIZE];
    uint64_t behind;
    if (mgr_load_u32(locator + 4) != 0 || mgr_load_u32(locator + 16) > 1)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "zip archive '%s' spans several disks",
                        reader->name);
    if (mgr_add_overflow(where, END64_SIZE, &behind) || behind > at)
        return damaged(reader, at, "zip64 end record lies outside the file", err);
    MGR_TRY(mgr_reader_read(reader, where, end, sizeof end, err));
    if (mgr_load_u32(end) != END64_SIG)
        return damaged(reader, where, "no zip64 end record where the locator points", err);
    if (mgr_load_u32(end + 16) != 0 || mgr_load_u32(end + 20) != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "zip archive '%s' spans several disks",
                        reader->name);
    dir->n = mgr_load_u64(end + 32);
    dir->size = mgr_load_u64(end + 40);
    dir->offset = mgr_load_u64(end + 48);
    if (mgr_load_u64(end + 24) != dir->n)
        return damaged(reader, where, "entry counts of the zip64 end record differ", err);
    *limit = where;
    return MGR_OK;
}

/* The end record and, if there is one, its zip64 twin.
 *   0 sig, 4 disk, 6 directory's disk, 8 entries here, 10 entries, 12 directory size,
 *   16 directory offset, 20 comment length */
static int read_end(const mgr_reader *reader, const unsigned char *end, uint64_t at, directory *dir,
                    mgr_err *err)
{
    const uint64_t n = mgr_load_u16(end + 10), size = mgr_load_u32(end + 12),
                   offset = mgr_load_u32(end + 16);
    uint64_t limit = at;
    if (mgr_load_u16(end + 4) != 0 || mgr_load_u16(end + 6) != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "zip archive '%s' spans several disks",
                        reader->name);
    if (mgr_load_u16(end + 8) != n)
        return damaged(reader, at, "entry counts of the end record differ", err);
    *dir = (directory){n, size, offset};
    unsigned char locator[LOCATOR_SIZE] = {0};
    if (at >= LOCATOR_SIZE)
        MGR_TRY(mgr_reader_read(reader, at - LOCATOR_SIZE, locator, sizeof locator, err));
    if (mgr_load_u32(locator) == LOCATOR_SIG) {
        MGR_TRY(read_end64(reader, locator, at - LOCATOR_SIZE, dir, &limit, err));
        if (!agrees(n, 0xffff, dir->n) || !agrees(size, 0xffffffff, dir->size) ||
            !agrees(offset, 0xffffffff, dir->offset))
            return damaged(reader, at, "end record and zip64 end record differ", err);
    }
    uint64_t behind;
    if (mgr_add_overflow(dir->offset, dir->size, &behind) || behind > limit)
        return damaged(reader, at, "central directory lies outside the file", err);
    if (dir->n > MAX_MEMBERS || dir->size > MAX_DIRECTORY)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "zip archive '%s': central directory of %" PRIu64 " entries in %" PRIu64
                        " bytes is too large",
                        reader->name, dir->n, dir->size);
    if (dir->n * ENTRY_SIZE > dir->size)
        return damaged(reader, at, "central directory is too short for its entries", err);
    return MGR_OK;
}

/* The end record is searched backwards; its comment must reach exactly to the end of the file.
 * *found says whether the last `most` bytes held one. */
static int search_end(const mgr_reader *reader, size_t most, directory *dir, bool *found,
                      mgr_err *err)
{
    const size_t tail_size = reader->size < most ? (size_t)reader->size : most;
    unsigned char *tail = NULL;
    int rc = mgr_alloc(&tail, tail_size, 1, err);
    if (rc)
        return rc;
    rc = mgr_reader_read(reader, reader->size - tail_size, tail, tail_size, err);
    if (rc)
        goto out;
    for (size_t i = tail_size; i >= END_SIZE; i--) {
        const unsigned char *const end = tail + (i - END_SIZE);
        if (mgr_load_u32(end) != END_SIG || mgr_load_u16(end + 20) != tail_size - i)
            continue;
        rc = read_end(reader, end, reader->size - tail_size + (i - END_SIZE), dir, err);
        *found = true;
        goto out;
    }
out:
    mgr_free(tail);
    return rc;
}

/* torch writes no comment: mostly the last bytes are the end record, which matters where a
 * checkpoint is a hundred thousand small archives. */
static int find_directory(const mgr_reader *reader, directory *dir, mgr_err *err)
{
    bool found = false;
    MGR_TRY(search_end(reader, END_SIZE, dir, &found, err));
    if (!found)
        MGR_TRY(search_end(reader, END_SIZE + 0xffff, dir, &found, err));
    if (found)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "zip archive '%s' of %" PRIu64 " bytes has no end record: it is truncated",
                    reader->name, reader->size);
}

typedef struct entry {
    const unsigned char *raw; /* 46 bytes and more */
    uint64_t at;              /* of the entry in the file */
    const char *name;
    size_t name_len;
    uint64_t csize, usize, header;
} entry;

/* Walk the extra fields (u16 id, u16 length, bytes) and take the 64-bit values whose 32-bit fields
 * are saturated, in the order usize, csize, header. */
static bool read_extra(const unsigned char *extra, size_t len, entry *e)
{
    const unsigned char *zip64 = NULL;
    size_t zip64_len = 0;
    while (len >= 4) {
        const size_t field = mgr_load_u16(extra + 2);
        if (field > len - 4)
            return false;
        if (mgr_load_u16(extra) == EXTRA_ZIP64 && !zip64) {
            zip64 = extra + 4;
            zip64_len = field;
        }
        extra += 4 + field;
        len -= 4 + field;
    }
    uint64_t *const values[] = {&e->usize, &e->csize, &e->header};
    for (size_t i = 0; i < 3; i++) {
        if (*values[i] != 0xffffffff)
            continue;
        if (zip64_len < 8)
            return false;
        *values[i] = mgr_load_u64(zip64);
        zip64 += 8;
        zip64_len -= 8;
    }
    return len == 0;
}

/* One entry of the directory:
 *   0 sig, 4 made by, 6 needed, 8 flags, 10 method, 12 time, 14 date, 16 crc, 20 csize, 24 usize,
 *   28 name length, 30 extra length, 32 comment length, 34 disk, 36 attributes, 42 header offset */
static int read_entry(const mgr_reader *reader, const unsigned char *raw, size_t left, uint64_t at,
                      entry *e, mgr_err *err)
{
    if (left < ENTRY_SIZE || mgr_load_u32(raw) != ENTRY_SIG)
        return damaged(reader, at, "no entry of the central directory", err);
    const size_t name_len = mgr_load_u16(raw + 28), extra_len = mgr_load_u16(raw + 30);
    *e = (entry){.raw = raw,
                 .at = at,
                 .name = (const char *)raw + ENTRY_SIZE,
                 .name_len = name_len,
                 .csize = mgr_load_u32(raw + 20),
                 .usize = mgr_load_u32(raw + 24),
                 .header = mgr_load_u32(raw + 42)};
    if (left - ENTRY_SIZE < name_len + extra_len + mgr_load_u16(raw + 32))
        return damaged(reader, at, "entry passes the end of the central directory", err);
    if (name_len == 0 || memchr(e->name, 0, name_len))
        return damaged(reader, at, "member name is empty or holds a NUL", err);
    if (!read_extra(raw + ENTRY_SIZE + name_len, extra_len, e))
        return bad_member(reader, MGR_ERR_FORMAT, e->name, name_len, at, "damaged extra field",
                          err);
    if (mgr_load_u16(raw + 8) & (FLAG_ENCRYPTED | FLAG_STRONG | FLAG_MASKED))
        return bad_member(reader, MGR_ERR_UNSUPPORTED, e->name, name_len, at, "is encrypted", err);
    if (mgr_load_u16(raw + 34) != 0)
        return bad_member(reader, MGR_ERR_UNSUPPORTED, e->name, name_len, at,
                          "lies on another disk", err);
    if (mgr_load_u16(raw + 10) == METHOD_STORED && e->csize != e->usize)
        return bad_member(reader, MGR_ERR_FORMAT, e->name, name_len, at,
                          "is stored, yet its two sizes differ", err);
    return MGR_OK;
}

/* What a local header says against what the directory says. CRC and sizes count only if no
 * descriptor follows (bit 3) and no zip64 field stands in for them.
 *   0 sig, 4 needed, 6 flags, 8 method, 10 time, 12 date, 14 crc, 18 csize, 22 usize,
 *   26 name length, 28 extra length */
static const char *compare_local(const unsigned char *local, const entry *e)
{
    const uint32_t flags = mgr_load_u16(local + 6);
    const uint32_t csize = mgr_load_u32(local + 18), usize = mgr_load_u32(local + 22);
    if (mgr_load_u32(local) != LOCAL_SIG)
        return "no local header where the central directory points";
    if (mgr_load_u16(local + 26) != e->name_len ||
        memcmp(local + LOCAL_SIZE, e->name, e->name_len) != 0)
        return "local header has another name than the central directory";
    if (mgr_load_u16(local + 8) != mgr_load_u16(e->raw + 10))
        return "local header has another method than the central directory";
    if (flags & (FLAG_ENCRYPTED | FLAG_STRONG))
        return "local header says encrypted, the central directory does not";
    if (flags & FLAG_DESCRIPTOR)
        return NULL;
    if ((csize != 0xffffffff && csize != e->csize) || (usize != 0xffffffff && usize != e->usize))
        return "local header has another size than the central directory";
    if (mgr_load_u32(local + 14) != mgr_load_u32(e->raw + 16))
        return "local header has another CRC-32 than the central directory";
    return NULL;
}

/* Read the local header of `e`; `limit` is where the directory starts. */
static int read_member(const mgr_reader *reader, const entry *e, uint64_t limit,
                       mgr_zip_member *member, mgr_err *err)
{
    unsigned char local[LOCAL_SIZE + 0xffff];
    const size_t size = LOCAL_SIZE + e->name_len;
    uint64_t payload, behind;
    if (mgr_add_overflow(e->header, size, &payload) || payload > limit)
        return bad_member(reader, MGR_ERR_FORMAT, e->name, e->name_len, e->at,
                          "local header lies outside the file", err);
    MGR_TRY(mgr_reader_read(reader, e->header, local, size, err));
    const char *const lie = compare_local(local, e);
    if (lie)
        return bad_member(reader, MGR_ERR_FORMAT, e->name, e->name_len, e->header, lie, err);
    payload += mgr_load_u16(local + 28);
    if (mgr_add_overflow(payload, e->csize, &behind) || behind > limit)
        return bad_member(reader, MGR_ERR_FORMAT, e->name, e->name_len, e->header,
                          "payload passes the end of the file", err);
    member->header = e->header;
    member->offset = payload;
    member->size = e->csize;
    member->crc32 = mgr_load_u32(e->raw + 16);
    member->method = mgr_load_u16(e->raw + 10);
    return MGR_OK;
}

/* torch's rule: the folder is what precedes the first '/' of entry 0; all others lie below it. */
static int check_folder(mgr_zip *zip, const mgr_reader *reader, const entry *e, mgr_err *err)
{
    if (!zip->folder) {
        const char *const slash = memchr(e->name, '/', e->name_len);
        if (!slash || slash == e->name)
            return bad_member(reader, MGR_ERR_FORMAT, e->name, e->name_len, e->at,
                              "is not in a folder", err);
        MGR_TRY(
            mgr_arena_strndup(&zip->arena, &zip->folder, e->name, (size_t)(slash - e->name), err));
    }
    const size_t len = strlen(zip->folder);
    if (e->name_len <= len || memcmp(e->name, zip->folder, len) != 0 || e->name[len] != '/')
        return bad_member(reader, MGR_ERR_FORMAT, e->name, e->name_len, e->at,
                          "lies outside the folder of the first member", err);
    return MGR_OK;
}

static int read_members(mgr_zip *zip, const mgr_reader *reader, const directory *dir,
                        const unsigned char *raw, mgr_err *err)
{
    size_t done = 0;
    for (uint64_t i = 0; i < dir->n; i++) {
        mgr_zip_member *const member = &zip->members[zip->n_members];
        entry e;
        MGR_TRY(
            read_entry(reader, raw + done, (size_t)dir->size - done, dir->offset + done, &e, err));
        MGR_TRY(check_folder(zip, reader, &e, err));
        MGR_TRY(read_member(reader, &e, dir->offset, member, err));
        MGR_TRY(mgr_arena_strndup(&zip->arena, &member->name, e.name, e.name_len, err));
        zip->n_members++;
        done += ENTRY_SIZE + e.name_len + mgr_load_u16(e.raw + 30) + mgr_load_u16(e.raw + 32);
    }
    if (done != dir->size)
        return damaged(reader, dir->offset + done, "bytes behind the last directory entry", err);
    return MGR_OK;
}

static int fold(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : (unsigned char)c;
}

/* Order of names with ASCII letters folded: the members torch cannot tell apart are equal. */
static int compare_folded(const char *a, const char *b)
{
    while (*a && fold(*a) == fold(*b)) {
        a++;
        b++;
    }
    return fold(*a) - fold(*b);
}

static int by_name(const void *a, const void *b)
{
    const mgr_zip_member *const *const ma = a;
    const mgr_zip_member *const *const mb = b;
    return compare_folded((*ma)->name, (*mb)->name);
}

static int by_header(const void *a, const void *b)
{
    const mgr_zip_member *const *const ma = a;
    const mgr_zip_member *const *const mb = b;
    return ((*ma)->header > (*mb)->header) - ((*ma)->header < (*mb)->header);
}

/* Names that torch takes for one, and ranges that overlap, have no honest use. */
static int check_members(const mgr_zip *zip, const mgr_reader *reader, mgr_err *err)
{
    const mgr_zip_member **sorted = NULL;
    int rc = mgr_alloc(&sorted, zip->n_members, sizeof *sorted, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < zip->n_members; i++)
        sorted[i] = &zip->members[i];
    qsort(sorted, zip->n_members, sizeof *sorted, by_name);
    for (size_t i = 1; i < zip->n_members && !rc; i++)
        if (compare_folded(sorted[i - 1]->name, sorted[i]->name) == 0)
            rc = bad_member(reader, MGR_ERR_FORMAT, sorted[i]->name, strlen(sorted[i]->name),
                            sorted[i]->header,
                            strcmp(sorted[i - 1]->name, sorted[i]->name) == 0
                                ? "occurs twice"
                                : "differs from another name only in case",
                            err);
    qsort(sorted, zip->n_members, sizeof *sorted, by_header);
    for (size_t i = 1; i < zip->n_members && !rc; i++)
        if (sorted[i - 1]->offset + sorted[i - 1]->size > sorted[i]->header)
            rc = bad_member(reader, MGR_ERR_FORMAT, sorted[i]->name, strlen(sorted[i]->name),
                            sorted[i]->header, "overlaps the member before it", err);
    mgr_free(sorted);
    return rc;
}

int mgr_zip_open(mgr_zip *zip, const mgr_reader *reader, mgr_err *err)
{
    directory dir = {0};
    unsigned char *raw = NULL;
    *zip = (mgr_zip){0};
    int rc = find_directory(reader, &dir, err);
    if (rc)
        return rc;
    if (dir.n == 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "zip archive '%s' is empty", reader->name);
    rc = mgr_alloc(&raw, (size_t)dir.size, 1, err);
    if (rc)
        goto out;
    rc = mgr_reader_read(reader, dir.offset, raw, (size_t)dir.size, err);
    if (rc)
        goto out;
    rc = mgr_alloc(&zip->members, (size_t)dir.n, sizeof *zip->members, err);
    if (rc)
        goto out;
    rc = read_members(zip, reader, &dir, raw, err);
    if (rc)
        goto out;
    rc = check_members(zip, reader, err);
out:
    mgr_free(raw);
    if (rc)
        mgr_zip_clear(zip);
    return rc;
}

void mgr_zip_clear(mgr_zip *zip)
{
    mgr_free(zip->members);
    mgr_arena_clear(&zip->arena);
    *zip = (mgr_zip){0};
}

const mgr_zip_member *mgr_zip_find(const mgr_zip *zip, const char *name)
{
    const size_t folder = zip->folder ? strlen(zip->folder) : 0;
    for (size_t i = 0; i < zip->n_members; i++)
        if (strcmp(zip->members[i].name + folder + 1, name) == 0)
            return &zip->members[i];
    return NULL;
}

/* torch.utils.serialization.config.save.compute_crc32 = False leaves every CRC zero, also those of
 * members whose bytes are known not to have that CRC: then there is nothing to check. One zero
 * among others is an ordinary, wrong CRC. */
static bool has_crcs(const mgr_zip *zip)
{
    for (size_t i = 0; i < zip->n_members; i++)
        if (zip->members[i].crc32 != 0)
            return true;
    return false;
}

int mgr_zip_read(const mgr_zip *zip, const mgr_reader *reader, const mgr_zip_member *member,
                 uint64_t limit, unsigned char **out, mgr_err *err)
{
    const size_t len = strlen(member->name);
    unsigned char *bytes = NULL;
    if (member->method != METHOD_STORED)
        return bad_member(
            reader, MGR_ERR_UNSUPPORTED, member->name, len, member->header,
            member->method == METHOD_DEFLATED ? "is compressed (deflate)" : "is compressed", err);
    if (member->size > limit || member->size > SIZE_MAX / 2)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "member '%s' of '%s' has %" PRIu64 " bytes, the limit is %" PRIu64,
                        member->name, reader->name, member->size, limit);
    MGR_TRY(mgr_alloc(&bytes, (size_t)member->size, 1, err));
    int rc = mgr_reader_read(reader, member->offset, bytes, (size_t)member->size, err);
    if (rc)
        goto out;
    const uint32_t crc = mgr_crc32(0, bytes, (size_t)member->size);
    if (crc != member->crc32 && has_crcs(zip)) {
        rc =
            mgr_fail(err, MGR_ERR_FORMAT,
                     "member '%s' of '%s' at byte %" PRIu64 ": CRC-32 is %08" PRIx32
                     ", the directory says %08" PRIx32,
                     member->name, reader->name, reader->base + member->offset, crc, member->crc32);
        goto out;
    }
    *out = bytes;
    return MGR_OK;
out:
    mgr_free(bytes);
    return rc;
}
