/*
 * HDF5 files to write: what of the library the project uses. Reading them is fmt/h5_read.h.
 *
 * A data set is a row-major array of one of our element types; rows are its first axis. Types are
 * written as they are in memory: HDF5 never converts (its float to bfloat16 does not round to
 * nearest even). bfloat16 and float16 are custom floats that h5py and h5dump show as numbers. Files
 * do not depend on when or by whom they were made: no times are kept, nothing is filled in.
 *
 * Sharing: one rank makes a file with all its metadata, alone; then all ranks write rows and pieces
 * at the places that the library has given them, with calls of our own. The library's driver for
 * MPI-IO is not used: it loses errors of writing, and waits for ranks that failed.
 */
#ifndef MGR_FMT_H5_H
#define MGR_FMT_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/catalogue.h"
#include "mgr/dtype.h"
#include "mgr/err.h"

typedef struct mgr_h5 mgr_h5;

/* The shape of a data set; with `chunk_rows` it is cut after that many rows, each piece shuffled by
 * bytes and deflated at `level`. */
typedef struct mgr_h5_shape {
    mgr_dtype dtype;
    uint32_t ndim; /* at least 1 */
    uint64_t shape[MGR_MAX_NDIM];
    uint64_t chunk_rows; /* 0: in one piece, its place in the file fixed at creation */
    unsigned level;
} mgr_h5_shape;

/* Create `path`, which must not exist, with data sets that begin at multiples of a page where they
 * are large. Local. Errors: MGR_ERR_CREATE. */
int mgr_h5_create(mgr_h5 **out, const char *path, mgr_err *err) MGR_NODISCARD;

/* Open a file that is made, to compare it, or to write rows of the data sets that are there, which
 * any number of ranks may. Local. Errors: MGR_ERR_FORMAT. */
int mgr_h5_open(mgr_h5 **out, const char *path, mgr_err *err) MGR_NODISCARD;
int mgr_h5_open_rows(mgr_h5 **out, const char *path, mgr_err *err) MGR_NODISCARD;

/* Close; what was written is durable if this succeeds, and errors of making the file may show only
 * here. NULL-safe. Local. */
int mgr_h5_close(mgr_h5 *file, mgr_err *err);

/* Add a data set; '/' in its name makes groups. Local. */
int mgr_h5_add(mgr_h5 *file, const char *name, const mgr_h5_shape *shape,
               mgr_err *err) MGR_NODISCARD;

/* Add a scalar of text. Local. */
int mgr_h5_add_text(mgr_h5 *file, const char *name, const char *text, size_t len,
                    mgr_err *err) MGR_NODISCARD;

/* Add a list of texts, padded with zeros to the longest. Local. */
int mgr_h5_add_texts(mgr_h5 *file, const char *name, const char *const *texts, size_t n,
                     mgr_err *err) MGR_NODISCARD;

/* Give data set or group `name` an attribute of text. Local. */
int mgr_h5_add_note(mgr_h5 *file, const char *name, const char *key, const char *text,
                    mgr_err *err) MGR_NODISCARD;

/* Make `name` stand for the data set of the same name in `other`, a file beside this one. Local. */
int mgr_h5_add_link(mgr_h5 *file, const char *name, const char *other, mgr_err *err) MGR_NODISCARD;

/* Where the bytes of a data set in one piece begin. Only where the file is made. Local. */
int mgr_h5_offset(mgr_h5 *file, const char *name, uint64_t *offset, mgr_err *err) MGR_NODISCARD;

/* Write rows row .. row+rows-1 of a data set in one piece. Local. */
int mgr_h5_write(mgr_h5 *file, const char *name, uint64_t row, uint64_t rows, const void *bytes,
                 mgr_err *err) MGR_NODISCARD;

/* Give the piece of a compressed data set that begins with `row` a place for the `len` bytes that
 * mgr_h5_pack made of it; they are the caller's to write there. Only where the file is made. Local.
 */
int mgr_h5_place(mgr_h5 *file, const char *name, uint64_t row, size_t len, uint64_t *offset,
                 mgr_err *err) MGR_NODISCARD;

/* Are rows row .. row+rows-1, or a text, what they were meant to be? Errors: MGR_ERR_IO. Local. */
int mgr_h5_compare(mgr_h5 *file, const char *name, uint64_t row, uint64_t rows, const void *bytes,
                   mgr_err *err) MGR_NODISCARD;
int mgr_h5_compare_text(mgr_h5 *file, const char *name, const char *text, size_t len,
                        mgr_err *err) MGR_NODISCARD;

/* The version of the library that this runs with. Returns out. */
const char *mgr_h5_library(char *out, size_t size);

#endif
