/*
 * HDF5 files to read, by a parser of our own: of what the format can say it knows what this program
 * writes, and refuses the rest by name. The library, which trusts its files, never sees one that it
 * has not made itself, and no failing read (fmt/h5_driver.h says why).
 *
 * Only what lies in the file itself is read: no other file is opened, whatever a link or a data set
 * names. Nothing is filled in: every byte of a data set must have been stored.
 */
#ifndef MGR_FMT_H5_READ_H
#define MGR_FMT_H5_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "core/mem.h"
#include "core/str.h"
#include "io/reader.h"
#include "mgr/catalogue.h"

/* A data set. */
typedef struct mgr_h5_set {
    bool text;       /* of `element` bytes each, padded with zeros; else numbers: */
    mgr_dtype dtype; /* MGR_DTYPE_OTHER for those that we do not write */
    uint32_t element, ndim;
    uint64_t shape[MGR_MAX_NDIM];
    uint64_t bytes;  /* of all elements */
    uint64_t offset; /* where they are, UINT64_MAX if in pieces: */
    uint64_t tree, piece_rows;
    uint32_t n_filters;
    uint16_t filters[2]; /* in the order in which they were applied */
} mgr_h5_set;

/* The root group of a file, its links sorted by name. */
typedef struct mgr_h5_index {
    const mgr_reader *in;
    mgr_arena arena;
    struct mgr_h5_entry {
        const char *name;
        uint64_t object; /* UINT64_MAX: elsewhere */
    } * list;
    size_t n, cap;
} mgr_h5_index;

/* List the root of `in`, which must outlive the index. Free it also after an error. Local. */
int mgr_h5_index_make(mgr_h5_index *index, const mgr_reader *in, mgr_err *err) MGR_NODISCARD;
void mgr_h5_index_clear(mgr_h5_index *index);

/* The numbers under a name of the root. Errors: MGR_ERR_FORMAT, also if there are none. Local. */
int mgr_h5_index_set(const mgr_h5_index *index, const char *name, mgr_h5_set *set,
                     mgr_err *err) MGR_NODISCARD;

/* The data set at a path of names with '/' between them. MGR_ERR_NOT_FOUND if there is none. Local.
 */
int mgr_h5_find(const mgr_reader *in, const char *path, mgr_h5_set *set,
                mgr_err *err) MGR_NODISCARD;

/* A text of at most `limit` bytes, appended to *out. MGR_ERR_NOT_FOUND if there is none. Local. */
int mgr_h5_read_text(const mgr_reader *in, const char *path, uint64_t limit, mgr_buf *out,
                     mgr_err *err) MGR_NODISCARD;

/* Add every data set of the root to the catalogue: those in one piece with their offset, the others
 * with one from MGR_VIRTUAL_OFFSET on. Groups are counted as skipped. Local. */
int mgr_h5_catalogue(const mgr_reader *in, mgr_catalogue *cat, uint32_t idx,
                     mgr_err *err) MGR_NODISCARD;

/* Bytes of the row-major image of a data set, wherever they are. Three pieces, of at most 16 MiB
 * each, are in memory meanwhile. */
typedef struct mgr_h5_image mgr_h5_image;
int mgr_h5_image_open(mgr_h5_image **out, const mgr_reader *in, const mgr_h5_set *set,
                      mgr_err *err) MGR_NODISCARD;
int mgr_h5_image_read(mgr_h5_image *image, uint64_t at, void *out, size_t len,
                      mgr_err *err) MGR_NODISCARD;
void mgr_h5_image_close(mgr_h5_image *image); /* NULL-safe */

#endif
