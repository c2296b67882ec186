/*
 * Zip archives as torch.save writes them: stored members, zip64, 64-byte aligned payloads.
 * Byte-level facts: src/fmt/README.md.
 */
#ifndef MGR_FMT_ZIP_H
#define MGR_FMT_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "io/reader.h"
#include "mgr/err.h"

typedef struct mgr_zip_member {
    const char *name;      /* whole name, "archive/data/0" */
    uint64_t header;       /* offset of the local header */
    uint64_t offset, size; /* payload */
    uint32_t crc32;        /* of the central directory */
    uint16_t method;       /* 0 is stored; others are listed, and refused when used */
} mgr_zip_member;

typedef struct mgr_zip {
    mgr_zip_member *members; /* in central directory order */
    size_t n_members;
    const char *folder; /* common top folder, without '/' */
    mgr_arena arena;
} mgr_zip;

/* Read the directory and every local header. Refused with MGR_ERR_FORMAT or MGR_ERR_UNSUPPORTED:
 * truncation, encryption, several disks, names outside the common folder, names equal or differing
 * only in ASCII case, ranges that overlap or leave the file, local and central names that differ.
 * The error names the member and the byte. Local. Free with mgr_zip_clear. */
int mgr_zip_open(mgr_zip *zip, const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;
void mgr_zip_clear(mgr_zip *zip);

/* The member "<folder>/<name>", or NULL. */
const mgr_zip_member *mgr_zip_find(const mgr_zip *zip, const char *name);

/* Read a whole stored member of at most `limit` bytes and check its CRC-32. A deflated member is
 * MGR_ERR_UNSUPPORTED. The caller frees *out with mgr_free. Local. */
int mgr_zip_read(const mgr_zip *zip, const mgr_reader *reader, const mgr_zip_member *member,
                 uint64_t limit, unsigned char **out, mgr_err *err) MGR_NODISCARD;

/*
 * Writing. Every offset is a function of names and sizes alone, so payloads can be written by many
 * ranks before any CRC is known; the headers and the directory follow when they are.
 */
typedef struct mgr_zip_entry {
    const char *name; /* whole name; borrowed */
    uint64_t size;
    uint32_t crc32;  /* needed by the emit functions only */
    uint64_t header; /* set by mgr_zip_layout: local header */
    uint64_t offset; /* set by mgr_zip_layout: payload, a multiple of `align` */
} mgr_zip_entry;

/* Place all entries one behind the other; `align` is a power of two, 64 .. 4096. *directory is
 * where the central directory starts, *total the size of the file. Pure. */
int mgr_zip_layout(mgr_zip_entry *entries, size_t n, uint32_t align, uint64_t *directory,
                   uint64_t *total, mgr_err *err) MGR_NODISCARD;

/* The bytes from entries[idx].header to its payload: local header, zip64 and pad fields. */
int mgr_zip_local_header(const mgr_zip_entry *entry, uint32_t align, mgr_buf *out,
                         mgr_err *err) MGR_NODISCARD;

/* The bytes from the central directory to the end of the file. */
int mgr_zip_directory(const mgr_zip_entry *entries, size_t n, uint64_t directory, mgr_buf *out,
                      mgr_err *err) MGR_NODISCARD;

#endif
