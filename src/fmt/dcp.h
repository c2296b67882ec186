/*
 * The `.metadata` of a torch.distributed.checkpoint: which tensors a checkpoint holds, how they are
 * cut into chunks, and where in which file each chunk's item lies. Parsed, never run.
 * Byte-level facts: src/fmt/README.md.
 */
#ifndef MGR_FMT_DCP_H
#define MGR_FMT_DCP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/dtype.h"
#include "mgr/err.h"

/* A key of state_dict_metadata: a tensor, or an object of any kind. */
typedef struct mgr_dcp_entry {
    const char *name;
    bool tensor;
    bool found;      /* an object: storage_data has it */
    bool fp8;        /* a tensor of one of torch's float8 types */
    mgr_dtype dtype; /* MGR_DTYPE_OTHER for types that are no weights */
    uint32_t ndim;
    uint64_t shape[MGR_MAX_NDIM]; /* of the whole tensor */
    size_t first_chunk, n_chunks; /* sorted by offset */
} mgr_dcp_entry;

/* A part of a tensor: the box from `offset` with the extent `size`. */
typedef struct mgr_dcp_chunk {
    uint64_t offset[MGR_MAX_NDIM], size[MGR_MAX_NDIM];
    bool found; /* storage_data has it */
} mgr_dcp_chunk;

/* Bytes of a file: a torch.save archive of one chunk or of one object. */
typedef struct mgr_dcp_item {
    uint32_t entry, path;
    size_t chunk; /* SIZE_MAX for an object */
    uint64_t offset, length;
} mgr_dcp_item;

typedef struct mgr_dcp {
    mgr_dcp_entry *entries; /* sorted by name */
    size_t n_entries, cap_entries;
    mgr_dcp_chunk *chunks;
    size_t n_chunks, cap_chunks;
    mgr_dcp_item *items; /* sorted by path, then offset; chunks without elements have none */
    size_t n_items, cap_items;
    const char **paths; /* of the files of these items, sorted; names without a folder */
    size_t n_paths, cap_paths;
    uint64_t skipped[MGR_SKIP_COUNT];
    mgr_arena arena; /* owns the strings */
} mgr_dcp;

/* What becomes of a key: an mgr_skip, or MGR_SKIP_COUNT to take it. */
typedef mgr_skip mgr_dcp_sort(const char *name, bool tensor);

/* Read `.metadata` (at most 512 MiB). Keys that `sort` does not take are counted and not looked at.
 * Every tensor that is taken must be tiled by its chunks exactly once, and each chunk and object
 * have one place in storage_data. Refused: what is not so (MGR_ERR_FORMAT, naming tensor and
 * offset); transform_descriptors, folders in relative_path, more than MGR_MAX_NDIM axes
 * (MGR_ERR_UNSUPPORTED). Local. Free with mgr_dcp_clear; a failure leaves nothing to free. */
int mgr_dcp_read(mgr_dcp *dcp, const mgr_reader *reader, mgr_dcp_sort *sort,
                 mgr_err *err) MGR_NODISCARD;
void mgr_dcp_clear(mgr_dcp *dcp);

/* The items of the file `path`: items[*first .. *first + *n); none if no item is there. */
void mgr_dcp_items_of(const mgr_dcp *dcp, const char *path, size_t *first, size_t *n);

/* "[0, 80, 0]" into a caller's buffer; returns it. */
const char *mgr_dcp_place(uint32_t ndim, const uint64_t *at, char *out, size_t size);

#endif
