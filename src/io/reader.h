/*
 * Bytes to read from: a file, a piece of memory, or a window of another reader. Parsers take one
 * of these, so the same code serves files, zip items inside files, and fuzz targets.
 */
#ifndef MGR_IO_READER_H
#define MGR_IO_READER_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

typedef struct mgr_reader {
    const char *name;   /* for messages; borrowed */
    uint64_t size;      /* bytes that can be read */
    int fd;             /* -1 for memory */
    const void *memory; /* used when fd is -1 */
    uint64_t base;      /* first byte of the window */
    uint64_t modified;  /* of a file: when it was last changed, in nanoseconds; else 0 */
    uint64_t inode;     /* of a file; 0 where the file system makes them up anew for each mount */
} mgr_reader;

/* Open `path` read-only. Errors: MGR_ERR_NOT_FOUND, MGR_ERR_IO. Local. */
int mgr_reader_open(mgr_reader *reader, const char *path, mgr_err *err) MGR_NODISCARD;

/* Read from `len` bytes of memory, which stay the caller's. */
void mgr_reader_memory(mgr_reader *reader, const char *name, const void *memory, size_t len);

/* A window of another reader, which must outlive it. Errors: MGR_ERR_FORMAT if it does not fit. */
int mgr_reader_window(mgr_reader *reader, const mgr_reader *whole, uint64_t offset, uint64_t len,
                      mgr_err *err) MGR_NODISCARD;

/* Exactly `len` bytes at `offset`. Errors: MGR_ERR_FORMAT if that passes the end (the file is
 * truncated), MGR_ERR_IO. Thread-safe. Local. */
int mgr_reader_read(const mgr_reader *reader, uint64_t offset, void *out, size_t len,
                    mgr_err *err) MGR_NODISCARD;

/* Close a reader that mgr_reader_open opened; harmless on the other kinds. */
void mgr_reader_close(mgr_reader *reader);

#endif
