/*
 * Bytes of HDF5 files by our own descriptors, as a driver of the HDF5 library (private to fmt/h5).
 *
 * The library does not survive a file system that fails: what it could not write it keeps, tries
 * again when it closes the file and at exit, and may crash there; through MPI-IO an error can even
 * get lost. So it never sees one. The channel keeps the first call that failed, writes nothing from
 * then on and tells the library that all is well; whoever closes the file asks for `trouble`.
 */
#ifndef MGR_FMT_H5_DRIVER_H
#define MGR_FMT_H5_DRIVER_H

#ifndef H5_USE_110_API
#define H5_USE_110_API /* the names and structures of 1.10, in whatever is newer */
#endif
#include <hdf5.h>
#include <stdbool.h>
#include <stdint.h>

#include "mgr/err.h"

typedef struct mgr_h5_channel {
    const char *path; /* for messages */
    int fd;
    uint64_t allocated; /* what the library has given away, from the start of the file */
    uint64_t size;      /* of the file, as far as the library knows */
    int rc;             /* MGR_OK, or that of `trouble` */
    mgr_err trouble;
    /* while a piece is given its place: raw data is not written, only where it would be is noted */
    bool placing;
    uint64_t place, place_bytes;
} mgr_h5_channel;

/* Have files that are opened with this list of access properties use `channel`, which must live as
 * long as the file and whose descriptor stays the caller's. Negative on failure. Local. */
herr_t mgr_h5_set_channel(hid_t access, mgr_h5_channel *channel);

#endif
