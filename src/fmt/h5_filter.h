/*
 * Pieces of compressed HDF5 data sets: the filters shuffle and deflate, as the library has them.
 * Ranks pack pieces by themselves; the library's own way is one call of all ranks per data set.
 */
#ifndef MGR_FMT_H5_FILTER_H
#define MGR_FMT_H5_FILTER_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

/* The most that `len` bytes become, and what it takes to pack them. */
size_t mgr_h5_packed_bound(size_t len);
size_t mgr_h5_pack_scratch(size_t len);

/* Shuffle the bytes of elements of `element` bytes each, and deflate. *out holds
 * mgr_h5_packed_bound(len) bytes; scratch, aligned to 8 bytes, holds
 * mgr_h5_pack_scratch(len). Local. */
int mgr_h5_pack(const void *bytes, size_t len, size_t element, unsigned level, void *scratch,
                void *out, size_t *out_len, mgr_err *err) MGR_NODISCARD;

/* The other way. Exactly `len` bytes must come out; `name` and `at` are for messages. Local. */
int mgr_h5_inflate(const void *packed, size_t packed_len, void *out, size_t len, const char *name,
                   uint64_t at, mgr_err *err) MGR_NODISCARD;
void mgr_h5_unshuffle(const void *bytes, size_t len, size_t element, void *out);

#endif
