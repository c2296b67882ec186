/*
 * The bytes of HDF5's metadata (private to fmt/h5_*.c): what HDF5 1.8 calls the new format, which
 * is what we write. Every size and place is checked before it is used, and every block that carries
 * a checksum is held against it.
 */
#ifndef MGR_FMT_H5_PARSE_H
#define MGR_FMT_H5_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/reader.h"
#include "mgr/err.h"

#define MGR_H5_NOWHERE UINT64_MAX
#define MGR_H5_NAME_BYTES 256

/* Bytes that are taken from the front. */
typedef struct mgr_h5_bytes {
    const unsigned char *at;
    size_t left;
    bool over; /* more was taken than there was; what was taken is 0 then */
} mgr_h5_bytes;

/* A little-endian number of `n` <= 8 bytes. */
uint64_t mgr_h5_take(mgr_h5_bytes *bytes, size_t n);
void mgr_h5_skip(mgr_h5_bytes *bytes, size_t n);

/* Fail: `what` is wrong at byte `at`. */
int mgr_h5_damaged(const mgr_reader *in, uint64_t at, const char *what, mgr_err *err);

/* The block of `len` bytes at `at`, which begins with `signature` and ends with its checksum;
 * *out is the caller's to free. */
int mgr_h5_block(const mgr_reader *in, uint64_t at, uint64_t len, const char *signature,
                 unsigned char **out, mgr_err *err) MGR_NODISCARD;

/* HDF5's checksum: Jenkins' lookup3. */
uint32_t mgr_h5_checksum(const unsigned char *bytes, size_t len);

/* The object that is the root group. */
int mgr_h5_root(const mgr_reader *in, uint64_t *object, mgr_err *err) MGR_NODISCARD;

enum mgr_h5_type {
    MGR_H5_DATASPACE = 1,
    MGR_H5_LINK_INFO = 2,
    MGR_H5_DATATYPE = 3,
    MGR_H5_LINK = 6,
    MGR_H5_EXTERNAL = 7,
    MGR_H5_LAYOUT = 8,
    MGR_H5_FILTERS = 11,
    MGR_H5_CONTINUED = 16,
    MGR_H5_SYMBOLS = 17
};

/* One message of an object header. */
typedef struct mgr_h5_message {
    unsigned type, flags;
    mgr_h5_bytes body;
    uint64_t at; /* of the body in the file */
} mgr_h5_message;

typedef int mgr_h5_on_message(void *context, const mgr_h5_message *message, mgr_err *err);

/* All messages of an object, in their order. */
int mgr_h5_walk_object(const mgr_reader *in, uint64_t object, mgr_h5_on_message *on, void *context,
                       mgr_err *err) MGR_NODISCARD;

/* A link of a group; borrowed for the call. */
typedef struct mgr_h5_link {
    char name[MGR_H5_NAME_BYTES];
    bool hard;       /* to an object of this file */
    uint64_t object; /* which, then */
} mgr_h5_link;

typedef int mgr_h5_on_link(void *context, const mgr_h5_link *link, mgr_err *err);

/* All links of a group, in no order that means anything. */
int mgr_h5_walk_links(const mgr_reader *in, uint64_t group, mgr_h5_on_link *on, void *context,
                      mgr_err *err) MGR_NODISCARD;

#endif
