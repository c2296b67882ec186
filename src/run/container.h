/*
 * Containers: how a file holds its tensors, beside the tensors' bytes.
 */
#ifndef MGR_RUN_CONTAINER_H
#define MGR_RUN_CONTAINER_H

#include <stdint.h>

#include "core/str.h"
#include "mgr/layout.h"

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

typedef struct mgr_container {
    /* Give every tensor of `file` its offset, and the file its size. `context` is the target
     * format's own. Pure. */
    int (*place)(mgr_layout *layout, uint32_t file, const void *context, mgr_err *err);

    /* All bytes of `file` that are not tensors, to `sink`; crc[i] is the CRC-32 of stored tensor i.
     * Together with the tensors they fill the file without a hole. Local. */
    int (*finish)(const mgr_layout *layout, uint32_t file, const void *context, const uint32_t *crc,
                  const mgr_blob_sink *sink, mgr_err *err);
} mgr_container;

extern const mgr_container mgr_container_safetensors;

/* torch.save archives of a Megatron state dict; `context` is an mgr_torch_context. */
extern const mgr_container mgr_container_torch;

typedef struct mgr_torch_context {
    /* Emit the pickled args Namespace's keys and values (between open and close). */
    int (*args)(const void *data, mgr_buf *out, mgr_err *err);
    const void *data;
    uint64_t iteration;
    uint32_t chunks; /* of the virtual pipeline */
} mgr_torch_context;

/* The .distcp files of torch.distributed.checkpoint: one archive behind the other, of a tensor
 * each. All objects of a file share one in front, torch.save([None]). No context. */
extern const mgr_container mgr_container_dist;

/* Where a placed tensor's archive lies in its file, and that of the file's objects. Local. */
int mgr_container_dist_item(const mgr_stored *stored, uint64_t *offset, uint64_t *length,
                            mgr_err *err) MGR_NODISCARD;
int mgr_container_dist_object(uint64_t *offset, uint64_t *length, mgr_err *err) MGR_NODISCARD;

#endif
