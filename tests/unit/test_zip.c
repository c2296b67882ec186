/* fmt/zip.c and fmt/zip_write.c: layout, every refusal by its exact words, truncation, no memory.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <libdeflate.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/zip.h"
#include "support/check.h"

/* Two members in an archive of this shape; the offsets below follow from it:
 *   0 local, 64 "abc"; 67 local, 128 "defg"; 132 entry, 181 entry, 230 zip64 end record,
 *   286 locator, 306 end record; 328 bytes */
enum { L0 = 0, P0 = 64, L1 = 67, P1 = 128, C0 = 132, C1 = 181, E64 = 230, LOC = 286, END = 306 };

static mgr_err err;

static void write_member(mgr_buf *file, const mgr_zip_entry *entry, const void *payload)
{
    CHECK_INT(file->len, entry->header);
    CHECK_INT(mgr_zip_local_header(entry, 64, file, &err), MGR_OK);
    CHECK_INT(file->len, entry->offset);
    CHECK_INT(mgr_buf_add(file, payload, (size_t)entry->size, &err), MGR_OK);
}

static mgr_buf two_members(void)
{
    mgr_zip_entry e[2] = {{.name = "a/x", .size = 3}, {.name = "a/y", .size = 4}};
    uint64_t directory, total;
    mgr_buf file = {0};
    CHECK_INT(mgr_zip_layout(e, 2, 64, &directory, &total, &err), MGR_OK);
    e[0].crc32 = libdeflate_crc32(0, "abc", 3);
    e[1].crc32 = libdeflate_crc32(0, "defg", 4);
    write_member(&file, &e[0], "abc");
    write_member(&file, &e[1], "defg");
    CHECK_INT(file.len, directory);
    CHECK_INT(mgr_zip_directory(e, 2, directory, &file, &err), MGR_OK);
    CHECK_INT(file.len, total);
    return file;
}

/* Open, and read member 0 if that succeeds. */
static int open_and_read(const void *bytes, size_t len)
{
    mgr_zip zip;
    mgr_reader reader;
    unsigned char *content;
    err = (mgr_err)MGR_ERR_INIT;
    mgr_reader_memory(&reader, "f.pt", bytes, len);
    int rc = mgr_zip_open(&zip, &reader, &err);
    if (rc)
        return rc;
    rc = mgr_zip_read(&zip, &reader, &zip.members[0], 100, &content, &err);
    if (!rc)
        mgr_free(content);
    mgr_zip_clear(&zip);
    return rc;
}

static void test_round_trip(void)
{
    mgr_buf file = two_members();
    mgr_zip zip;
    mgr_reader reader;
    unsigned char *content;
    mgr_reader_memory(&reader, "f.pt", file.data, file.len);
    CHECK_INT(file.len, 328);
    CHECK_INT(mgr_zip_open(&zip, &reader, &err), MGR_OK);
    CHECK_INT(zip.n_members, 2);
    CHECK_TEXT(zip.folder, "a");
    CHECK(!mgr_zip_find(&zip, "z"));
    CHECK(!mgr_zip_find(&zip, "X"));
    const mgr_zip_member *const y = mgr_zip_find(&zip, "y");
    CHECK(y == &zip.members[1]);
    CHECK_TEXT(y->name, "a/y");
    CHECK_INT(y->header, L1);
    CHECK_INT(y->offset, P1);
    CHECK_INT(y->size, 4);
    CHECK_INT(mgr_zip_read(&zip, &reader, y, 4, &content, &err), MGR_OK);
    CHECK(memcmp(content, "defg", 4) == 0);
    mgr_free(content);
    CHECK_INT(mgr_zip_read(&zip, &reader, y, 3, &content, &err), MGR_ERR_UNSUPPORTED);
    CHECK_TEXT(err.msg, "member 'a/y' of 'f.pt' has 4 bytes, the limit is 3");
    mgr_zip_clear(&zip);
    mgr_buf_clear(&file);
}

typedef struct patch {
    int at;
    int len;
    const char *bytes;
} patch;

typedef struct lie {
    patch patches[4];
    int code;
    const char *message;
} lie;

static const lie lies[] = {
    {{{L0, 1, "Q"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: no local header where the central directory points"},
    {{{L0 + 32, 1, "z"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header has another name than the central directory"},
    {{{L0 + 26, 1, "\2"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header has another name than the central directory"},
    {{{L0 + 8, 1, "\10"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header has another method than the central "
     "directory"},
    {{{L0 + 6, 1, "\1"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header says encrypted, the central directory does "
     "not"},
    {{{L0 + 18, 1, "\2"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header has another size than the central directory"},
    {{{L0 + 22, 1, "\2"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 0: local header has another size than the central directory"},
    {{{L1 + 14, 1, "\0"}},
     MGR_ERR_FORMAT,
     "member 'a/y' of 'f.pt' at byte 67: local header has another CRC-32 than the central "
     "directory"},
    {{{L0 + 8, 1, "\10"}, {C0 + 10, 1, "\10"}},
     MGR_ERR_UNSUPPORTED,
     "member 'a/x' of 'f.pt' at byte 0: is compressed (deflate)"},
    {{{L0 + 8, 1, "\14"}, {C0 + 10, 1, "\14"}},
     MGR_ERR_UNSUPPORTED,
     "member 'a/x' of 'f.pt' at byte 0: is compressed"},
    {{{C1 + 8, 1, "\1"}}, MGR_ERR_UNSUPPORTED, "member 'a/y' of 'f.pt' at byte 181: is encrypted"},
    {{{C1 + 9, 1, "\40"}}, MGR_ERR_UNSUPPORTED, "member 'a/y' of 'f.pt' at byte 181: is encrypted"},
    {{{C0 + 34, 1, "\1"}},
     MGR_ERR_UNSUPPORTED,
     "member 'a/x' of 'f.pt' at byte 132: lies on another disk"},
    {{{C0 + 20, 1, "\2"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 132: is stored, yet its two sizes differ"},
    {{{C0 + 44, 1, "\1"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 132: local header lies outside the file"},
    {{{C0 + 42, 4, "\377\377\377\377"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 132: damaged extra field"},
    {{{C0 + 20, 4, "\377\377\377\377"}, {C0 + 24, 4, "\377\377\377\377"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 132: damaged extra field"},
    {{{C0 + 28, 4, "\1\0\2\0"}},
     MGR_ERR_FORMAT,
     "member 'a' of 'f.pt' at byte 132: damaged extra field"},
    {{{L0 + 18, 1, "\10"}, {L0 + 22, 1, "\10"}, {C0 + 20, 1, "\10"}, {C0 + 24, 1, "\10"}},
     MGR_ERR_FORMAT,
     "member 'a/y' of 'f.pt' at byte 67: overlaps the member before it"},
    {{{L1 + 18, 1, "\5"}, {L1 + 22, 1, "\5"}, {C1 + 20, 1, "\5"}, {C1 + 24, 1, "\5"}},
     MGR_ERR_FORMAT,
     "member 'a/y' of 'f.pt' at byte 67: payload passes the end of the file"},
    {{{L1 + 32, 1, "x"}, {C1 + 48, 1, "x"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 67: occurs twice"},
    {{{L1 + 32, 1, "X"}, {C1 + 48, 1, "X"}},
     MGR_ERR_FORMAT,
     "member 'a/X' of 'f.pt' at byte 67: differs from another name only in case"},
    {{{L1 + 30, 1, "b"}, {C1 + 46, 1, "b"}},
     MGR_ERR_FORMAT,
     "member 'b/y' of 'f.pt' at byte 181: lies outside the folder of the first member"},
    {{{L0 + 31, 1, "-"}, {C0 + 47, 1, "-"}},
     MGR_ERR_FORMAT,
     "member 'a-x' of 'f.pt' at byte 132: is not in a folder"},
    {{{L0 + 30, 1, "/"}, {C0 + 46, 1, "/"}},
     MGR_ERR_FORMAT,
     "member '//x' of 'f.pt' at byte 132: is not in a folder"},
    {{{C0 + 48, 1, "\0"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 132: member name is empty or holds a NUL"},
    {{{C1, 1, "Q"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 181: no entry of the central directory"},
    {{{C1 + 32, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 181: entry passes the end of the central directory"},
    {{{END + 4, 1, "\1"}}, MGR_ERR_UNSUPPORTED, "zip archive 'f.pt' spans several disks"},
    {{{END + 6, 1, "\1"}}, MGR_ERR_UNSUPPORTED, "zip archive 'f.pt' spans several disks"},
    {{{E64 + 16, 1, "\1"}}, MGR_ERR_UNSUPPORTED, "zip archive 'f.pt' spans several disks"},
    {{{LOC + 4, 1, "\1"}}, MGR_ERR_UNSUPPORTED, "zip archive 'f.pt' spans several disks"},
    {{{LOC + 16, 1, "\2"}}, MGR_ERR_UNSUPPORTED, "zip archive 'f.pt' spans several disks"},
    {{{END + 8, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: entry counts of the end record differ"},
    {{{E64 + 24, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 230: entry counts of the zip64 end record differ"},
    {{{E64 + 24, 1, "\1"}, {E64 + 32, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: end record and zip64 end record differ"},
    {{{E64 + 40, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: end record and zip64 end record differ"},
    {{{E64 + 48, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: end record and zip64 end record differ"},
    {{{E64 + 24, 1, "\1"}, {E64 + 32, 1, "\1"}, {END + 8, 1, "\1"}, {END + 10, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 181: bytes behind the last directory entry"},
    {{{E64 + 24, 1, "\3"}, {E64 + 32, 1, "\3"}, {END + 8, 1, "\3"}, {END + 10, 1, "\3"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: central directory is too short for its entries"},
    {{{E64 + 24, 1, "\0"}, {E64 + 32, 1, "\0"}, {END + 8, 1, "\0"}, {END + 10, 1, "\0"}},
     MGR_ERR_FORMAT,
     "zip archive 'f.pt' is empty"},
    {{{E64 + 55, 1, "\377"}, {END + 16, 4, "\377\377\377\377"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 306: central directory lies outside the file"},
    {{{E64 + 31, 1, "\1"}, {E64 + 39, 1, "\1"}, {END + 8, 4, "\377\377\377\377"}},
     MGR_ERR_UNSUPPORTED,
     "zip archive 'f.pt': central directory of 72057594037927938 entries in 98 bytes is too "
     "large"},
    {{{E64, 1, "Q"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 230: no zip64 end record where the locator points"},
    {{{LOC + 10, 1, "\1"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 286: zip64 end record lies outside the file"},
    {{{LOC + 8, 8, "\377\377\377\377\377\377\377\377"}},
     MGR_ERR_FORMAT,
     "damaged zip archive 'f.pt' at byte 286: zip64 end record lies outside the file"},
    {{{END + 20, 1, "\1"}},
     MGR_ERR_FORMAT,
     "zip archive 'f.pt' of 328 bytes has no end record: it is truncated"},
    {{{P0, 1, "x"}},
     MGR_ERR_FORMAT,
     "member 'a/x' of 'f.pt' at byte 64: CRC-32 is 26d3d93d, the directory says 352441c2"},
};

static void test_lies(void)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        mgr_buf file = two_members();
        for (size_t k = 0; k < 4 && lies[i].patches[k].bytes; k++)
            memcpy(file.data + lies[i].patches[k].at, lies[i].patches[k].bytes,
                   (size_t)lies[i].patches[k].len);
        CHECK_INT(open_and_read(file.data, file.len), lies[i].code);
        CHECK_TEXT(err.msg, lies[i].message);
        mgr_buf_clear(&file);
    }
}

static void test_truncation(void)
{
    mgr_buf file = two_members();
    for (size_t len = 0; len < file.len; len++) {
        /* on the heap with its exact size, so that a sanitizer sees a read past the end */
        char *copy = malloc(len ? len : 1);
        CHECK(copy != NULL);
        if (!copy)
            break;
        memcpy(copy, file.data, len);
        CHECK_INT(open_and_read(copy, len), MGR_ERR_FORMAT);
        CHECK_HAS(err.msg, "f.pt");
        free(copy);
    }
    mgr_buf_clear(&file);
}

/* Any one byte wrong: refused, or read as before; never a crash. */
static void test_bit_flips(void)
{
    mgr_buf file = two_members();
    for (size_t i = 0; i < 8 * file.len; i++) {
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
        const int rc = open_and_read(file.data, file.len);
        CHECK(rc == MGR_OK || rc == MGR_ERR_FORMAT || rc == MGR_ERR_UNSUPPORTED);
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
    }
    mgr_buf_clear(&file);
}

/* What other writers do and we take: no zip64 records, a comment, bytes in front of the end. */
static void test_other_writers(void)
{
    mgr_buf file = two_members();
    memmove(file.data + E64, file.data + END, 22);
    file.len -= 76;
    CHECK_INT(open_and_read(file.data, file.len), MGR_OK);
    CHECK_INT(mgr_buf_add(&file, "hello", 5, &err), MGR_OK);
    CHECK_INT(open_and_read(file.data, file.len), MGR_ERR_FORMAT);
    file.data[E64 + 20] = 5;
    CHECK_INT(open_and_read(file.data, file.len), MGR_OK);
    mgr_buf_clear(&file);

    /* torch: CRC and sizes of the local header are zero, bit 3 says a descriptor follows */
    file = two_members();
    memset(file.data + L0 + 14, 0, 12);
    CHECK_INT(open_and_read(file.data, file.len), MGR_ERR_FORMAT);
    file.data[L0 + 6] = 8;
    CHECK_INT(open_and_read(file.data, file.len), MGR_OK);
    /* compute_crc32=False: every CRC of the directory is zero, then none is checked */
    memset(file.data + C0 + 16, 0, 4);
    CHECK_INT(open_and_read(file.data, file.len), MGR_ERR_FORMAT);
    CHECK_HAS(err.msg, "the directory says 00000000");
    memset(file.data + C1 + 16, 0, 4);
    memset(file.data + L1 + 14, 0, 4);
    CHECK_INT(open_and_read(file.data, file.len), MGR_OK);
    mgr_buf_clear(&file);
}

static void test_no_memory(void)
{
    mgr_buf file = two_members();
    int rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc == MGR_ERR_NOMEM && k < 100; k++) {
        mgr_alloc_fail_at(k);
        rc = open_and_read(file.data, file.len);
    }
    mgr_alloc_fail_at(0);
    CHECK_INT(rc, MGR_OK);
    mgr_buf_clear(&file);
}

static int pwrite_buf(int fd, const mgr_buf *buf, uint64_t at)
{
    return pwrite(fd, buf->data, buf->len, (off_t)at) == (ssize_t)buf->len;
}

/* Members of 4 GiB and beyond 4 GiB, in a sparse file. */
static void test_zip64(void)
{
    char path[] = "/tmp/test_zip_"
                  "XX"
                  "XX"
                  "XX";
    const int fd = mkstemp(path);
    const uint64_t sizes[] = {UINT64_C(0xfffffffe), UINT64_C(0xffffffff), 7, 0};
    mgr_zip_entry e[] = {{.name = "a/0"}, {.name = "a/1"}, {.name = "a/2"}, {.name = "a/\xc3\xa9"}};
    uint64_t directory, total;
    mgr_buf out = {0};
    mgr_zip zip;
    mgr_reader reader;
    CHECK(fd >= 0);
    for (int i = 0; i < 4; i++)
        e[i].size = sizes[i];
    CHECK_INT(mgr_zip_layout(e, 4, 4096, &directory, &total, &err), MGR_OK);
    for (int i = 0; i < 4; i++) {
        out.len = 0;
        CHECK_INT(e[i].offset % 4096, 0);
        CHECK_INT(mgr_zip_local_header(&e[i], 4096, &out, &err), MGR_OK);
        CHECK_INT(e[i].header + out.len, e[i].offset);
        CHECK(pwrite_buf(fd, &out, e[i].header));
    }
    out.len = 0;
    CHECK_INT(mgr_zip_directory(e, 4, directory, &out, &err), MGR_OK);
    CHECK_INT(directory + out.len, total);
    CHECK(pwrite_buf(fd, &out, directory));
    CHECK_INT(mgr_reader_open(&reader, path, &err), MGR_OK);
    CHECK_INT(mgr_zip_open(&zip, &reader, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    for (size_t i = 0; i < 4 && zip.n_members == 4; i++) {
        CHECK_TEXT(zip.members[i].name, e[i].name);
        CHECK_INT(zip.members[i].size, e[i].size);
        CHECK_INT(zip.members[i].header, e[i].header);
        CHECK_INT(zip.members[i].offset, e[i].offset);
    }
    mgr_zip_clear(&zip);
    mgr_reader_close(&reader);
    mgr_buf_clear(&out);
    close(fd);
    unlink(path);
}

static void test_writer_refusals(void)
{
    mgr_zip_entry e = {.name = "a/x", .size = 3};
    uint64_t directory, total;
    mgr_buf out = {0};
    CHECK_INT(mgr_zip_layout(&e, 1, 48, &directory, &total, &err), MGR_ERR_INTERNAL);
    CHECK_INT(mgr_zip_layout(&e, 1, 32, &directory, &total, &err), MGR_ERR_INTERNAL);
    CHECK_INT(mgr_zip_layout(&e, 1, 8192, &directory, &total, &err), MGR_ERR_INTERNAL);
    CHECK_INT(mgr_zip_local_header(&e, 64, &out, &err), MGR_ERR_INTERNAL);
    e.name = "";
    CHECK_INT(mgr_zip_layout(&e, 1, 64, &directory, &total, &err), MGR_ERR_INTERNAL);
    e = (mgr_zip_entry){.name = "a/x", .size = UINT64_MAX};
    CHECK_INT(mgr_zip_layout(&e, 1, 64, &directory, &total, &err), MGR_ERR_INTERNAL);
    CHECK_INT(out.len, 0);
}

static uint32_t crc_of_zeros(uint64_t n)
{
    static const unsigned char zeros[1 << 16];
    uint32_t crc = 0;
    for (uint64_t done = 0; done < n; done += sizeof zeros)
        crc = libdeflate_crc32(crc, zeros, n - done < sizeof zeros ? n - done : sizeof zeros);
    return crc;
}

/* A sparse archive with 4 GiB and 5 bytes of zeros and two members behind them, for other programs
 * to read (tests/interop/test_reshard.py). */
static int write_large(const char *path)
{
    const char *const contents[] = {NULL, "behind", "3\n"};
    const uint64_t size = (UINT64_C(1) << 32) + 5;
    mgr_zip_entry e[] = {{.name = "large/data/0", .size = size, .crc32 = crc_of_zeros(size)},
                         {.name = "large/data/1", .size = 6},
                         {.name = "large/version", .size = 2}};
    uint64_t directory, total;
    mgr_buf out = {0};
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    CHECK_INT(mgr_zip_layout(e, 3, 64, &directory, &total, &err), MGR_OK);
    for (int i = 0; i < 3; i++) {
        if (contents[i])
            e[i].crc32 = libdeflate_crc32(0, contents[i], (size_t)e[i].size);
        out.len = 0;
        CHECK_INT(mgr_zip_local_header(&e[i], 64, &out, &err), MGR_OK);
        if (contents[i])
            CHECK_INT(mgr_buf_add(&out, contents[i], (size_t)e[i].size, &err), MGR_OK);
        CHECK(pwrite_buf(fd, &out, e[i].header));
    }
    out.len = 0;
    CHECK_INT(mgr_zip_directory(e, 3, directory, &out, &err), MGR_OK);
    CHECK(pwrite_buf(fd, &out, directory));
    mgr_buf_clear(&out);
    CHECK(close(fd) == 0);
    return CHECK_DONE();
}

int main(int argc, char **argv)
{
    if (argc == 2)
        return write_large(argv[1]);
    test_round_trip();
    test_lies();
    test_truncation();
    test_bit_flips();
    test_other_writers();
    test_no_memory();
    test_zip64();
    test_writer_refusals();
    return CHECK_DONE();
}
