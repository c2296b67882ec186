/*
 * Containers: how a file holds its tensors, beside the tensors' bytes.
 */
#ifndef MGR_FORM_CONTAINER_H
#define MGR_FORM_CONTAINER_H

#include <stdint.h>

#include "core/str.h"
#include "mgr/layout.h"
#include "par/comm.h"

/* A piece of a file that is not a tensor: a header, a directory. */
typedef struct mgr_blob {
    uint64_t offset;
    const void *bytes;
    size_t len;
} mgr_blob;

/* Takes one blob of a file; borrowed for the call. */
typedef struct mgr_blob_sink {
    int (*put)(void *context, const mgr_blob *blob, mgr_err *err);
    void *context;
} mgr_blob_sink;

/* A sealed file's size and checksum. */
typedef struct mgr_sealed_sum {
    uint64_t bytes;
    uint32_t crc32;
} mgr_sealed_sum;

typedef struct mgr_container {
    /* Give every tensor of `file` its offset, and the file its size. `context` is the target
     * format's own. Pure. */
    int (*place)(mgr_layout *layout, uint32_t file, const void *context, mgr_err *err);

    /* All bytes of `file` that are not tensors, to `sink`; crc[i] is the CRC-32 of stored tensor i.
     * Together with the tensors they fill the file without a hole. NULL where where a tensor lies
     * is the container's own affair. Local. */
    int (*finish)(const mgr_layout *layout, uint32_t file, const void *context, const uint32_t *crc,
                  const mgr_blob_sink *sink, mgr_err *err);

    /* NULL: files are made empty at the size that `place` gave them. Or, for files that a library
     * makes: make the files below `directory`, and give each tensor its true offset and each file
     * its size. One that a stopped run left is taken over if it has the size; what is not tensors
     * is made anew. Rank 0 only. */
    int (*create)(mgr_layout *layout, void *context, const char *directory, mgr_err *err);

    /* NULL, or: when all is written and proven, make `path` of the plain file `from`, which stays:
     * the same in another form, durable, under its name only when it is whole; *sum, on rank 0, is
     * of the bytes that were meant to be written. Collective. */
    int (*seal)(mgr_layout *layout, uint32_t file, void *context, const char *from,
                const char *path, mgr_comm *comm, mgr_sealed_sum *sum, mgr_err *err);

    /* Then, or when a run before this one did that: what the sealed file `path` says of its size
     * and places, into the catalogue. Rank 0 only. */
    int (*sealed)(mgr_layout *layout, uint32_t file, const char *path, mgr_err *err);
} mgr_container;

extern const mgr_container mgr_container_safetensors;

/* HDF5 files with a data set per tensor; `context` is an mgr_hdf5_context. In one piece each, or in
 * compressed pieces of rows. */
extern const mgr_container mgr_container_hdf5, mgr_container_hdf5_deflate;

/* Buffers of packing, the same for each file. */
typedef struct mgr_hdf5_room {
    unsigned char *rows, *scratch, *packed; /* a piece, what packing takes, some packed pieces */
} mgr_hdf5_room;

typedef struct mgr_hdf5_context {
    mgr_buf directory; /* where the files are, once they are made; rank 0 */
    mgr_hdf5_room room;
} mgr_hdf5_context;

/* torch.save archives of a Megatron state dict, or of what the context says; `context` is an
 * mgr_torch_context. */
extern const mgr_container mgr_container_torch;

typedef struct mgr_torch_context {
    /* Emit the pickled args Namespace's keys and values (between open and close). */
    int (*args)(const void *data, mgr_buf *out, mgr_err *err);
    const void *data;
    uint64_t iteration;
    uint32_t chunks; /* of the virtual pipeline */
    /* NULL, or in the place of all that: emit the one object of a file, whose tensors are storages
     * "0", "1", ... in the order in which they stand in the catalogue. */
    int (*content)(const mgr_layout *layout, uint32_t file, const void *data, mgr_buf *out,
                   mgr_err *err);
} mgr_torch_context;

/* The .distcp files of torch.distributed.checkpoint: one archive behind the other, of a tensor
 * each. All objects of a file share one in front, torch.save([None]). No context. */
extern const mgr_container mgr_container_dist;

/* Where a placed tensor's archive lies in its file, and that of the file's objects. Local. */
int mgr_container_dist_item(const mgr_stored *stored, uint64_t *offset, uint64_t *length,
                            mgr_err *err) MGR_NODISCARD;
int mgr_container_dist_object(uint64_t *offset, uint64_t *length, mgr_err *err) MGR_NODISCARD;

#endif
