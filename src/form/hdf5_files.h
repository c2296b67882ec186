/*
 * How tensors lie in our HDF5 files, for those that make and pack them.
 */
#ifndef MGR_FORM_HDF5_FILES_H
#define MGR_FORM_HDF5_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "fmt/h5.h"
#include "form/container.h"
#include "mgr/layout.h"
#include "par/comm.h"

/* Most of what deflate can do for weights it does at its fastest level. */
#define MGR_HDF5_LEVEL 1

uint64_t mgr_hdf5_row_bytes(const mgr_stored *s);
uint64_t mgr_hdf5_bytes(const mgr_stored *s);

/* Is a tensor compressed where its file is? Then so many of its rows are a piece. */
bool mgr_hdf5_is_packed(const mgr_stored *s);
uint64_t mgr_hdf5_piece_rows(const mgr_stored *s);

/* Make `path` with the data sets of `file`, and leave it open. Local. */
int mgr_hdf5_make(mgr_h5 **out, const mgr_catalogue *cat, uint32_t file, const char *path,
                  bool deflate, mgr_err *err) MGR_NODISCARD;

/* Make `path`, durable and there only when it is whole, of the file `plain`: it holds the same
 * packed. *room is what that takes on this rank, made if it is empty. *sum, on rank 0, is that of
 * the pieces as they were packed, and of what the library wrote between them, read back.
 * Collective. */
int mgr_hdf5_pack(const mgr_catalogue *cat, uint32_t file, const char *plain, const char *path,
                  mgr_comm *comm, mgr_hdf5_room *room, mgr_sealed_sum *sum,
                  mgr_err *err) MGR_NODISCARD;
void mgr_hdf5_room_clear(mgr_hdf5_room *room);

#endif
