#include "fmt/dcp_write.h"

#include "fmt/pickle_write.h"

/*
 * What is written (src/fmt/README.md), "h<n>" for a global from the memo:
 *
 *   file     := 80 02 { global 'q' n '0' } Metadata '.'
 *   object   := 'h' n ')' 81 '}' '(' { text value } 'u' 'b'
 *   size     := 'h' n '(' { int } 't' 85 'R'                      torch.Size((...))
 *   property := 'h' n ')' 81 '(' dtype layout 89 format 89 't' 'b'
 *
 * TensorProperties and its enum go by the module that had them until torch 2.3 and still has
 * classes of the same names, because torch reads its old checkpoints. StorageMeta, `version` and
 * transform_descriptors, which older releases do not know, are left to their defaults.
 */
typedef enum class {
    METADATA,
    TENSOR,
    BYTES,
    CHUNK,
    INDEX,
    PROPERTIES,
    STORAGE_INFO,
    MEMORY_FORMAT,
    LAYOUT,
    SIZE,
    N_CLASSES
} class;

#define CHECKPOINT "torch.distributed.checkpoint."
#define SHARDED "torch.distributed._shard.sharded_tensor.metadata"

static const struct {
    const char *module, *name;
} classes[N_CLASSES] = {
    [METADATA] = {CHECKPOINT "metadata", "Metadata"},
    [TENSOR] = {CHECKPOINT "metadata", "TensorStorageMetadata"},
    [BYTES] = {CHECKPOINT "metadata", "BytesStorageMetadata"},
    [CHUNK] = {CHECKPOINT "metadata", "ChunkStorageMetadata"},
    [INDEX] = {CHECKPOINT "metadata", "MetadataIndex"},
    [PROPERTIES] = {SHARDED, "TensorProperties"},
    [STORAGE_INFO] = {CHECKPOINT "filesystem", "_StorageInfo"},
    [MEMORY_FORMAT] = {SHARDED, "MEM_FORMAT_ENCODING"},
    [LAYOUT] = {"torch.serialization", "_get_layout"},
    [SIZE] = {"torch", "Size"},
};

static int put(mgr_buf *out, const char *opcodes, size_t n, mgr_err *err)
{
    return mgr_buf_add(out, opcodes, n, err);
}

/* Each class is looked up once, not for every chunk. */
static int put_classes(mgr_buf *out, mgr_err *err)
{
    for (int i = 0; i < N_CLASSES; i++) {
        const char memo[3] = {'q', (char)i, '0'};
        MGR_TRY(mgr_pickle_global(out, classes[i].module, classes[i].name, err));
        MGR_TRY(put(out, memo, sizeof memo, err));
    }
    return MGR_OK;
}

static int put_class(mgr_buf *out, class what, mgr_err *err)
{
    const char get[2] = {'h', (char)what};
    return put(out, get, sizeof get, err);
}

static int open_object(mgr_buf *out, class what, mgr_err *err)
{
    MGR_TRY(put_class(out, what, err));
    return put(out, ")\x81}(", 4, err);
}

static int close_object(mgr_buf *out, mgr_err *err)
{
    return put(out, "ub", 2, err);
}

static int put_size(mgr_buf *out, uint32_t ndim, const uint64_t *size, mgr_err *err)
{
    MGR_TRY(put_class(out, SIZE, err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    for (uint32_t d = 0; d < ndim; d++)
        MGR_TRY(mgr_pickle_int(out, (int64_t)size[d], err));
    MGR_TRY(mgr_pickle_tuple_close(out, err));
    return put(out, "\x85R", 2, err);
}

/* ---- state_dict_metadata ---- */

static int put_properties(mgr_buf *out, mgr_dtype dtype, mgr_err *err)
{
    MGR_TRY(put_class(out, PROPERTIES, err));
    MGR_TRY(put(out, ")\x81(", 3, err));
    MGR_TRY(mgr_pickle_global(out, "torch", mgr_dtype_name(dtype), err));
    MGR_TRY(put_class(out, LAYOUT, err));
    MGR_TRY(mgr_pickle_text(out, "torch.strided", err));
    MGR_TRY(put(out, "\x85R", 2, err));
    MGR_TRY(mgr_pickle_bool(out, 0, err)); /* requires_grad */
    MGR_TRY(put_class(out, MEMORY_FORMAT, err));
    MGR_TRY(mgr_pickle_int(out, 0, err)); /* TORCH_CONTIGUOUS_FORMAT */
    MGR_TRY(put(out, "\x85R", 2, err));
    MGR_TRY(mgr_pickle_bool(out, 0, err)); /* pin_memory */
    return put(out, "tb", 2, err);
}

static int put_chunk(mgr_buf *out, uint32_t ndim, const mgr_dcp_chunk *chunk, mgr_err *err)
{
    MGR_TRY(open_object(out, CHUNK, err));
    MGR_TRY(mgr_pickle_text(out, "offsets", err));
    MGR_TRY(put_size(out, ndim, chunk->offset, err));
    MGR_TRY(mgr_pickle_text(out, "sizes", err));
    MGR_TRY(put_size(out, ndim, chunk->size, err));
    return close_object(out, err);
}

static int put_tensor(mgr_buf *out, const mgr_dcp *dcp, const mgr_dcp_entry *e, mgr_err *err)
{
    if (!mgr_dtype_name(e->dtype))
        return mgr_fail(err, MGR_ERR_INTERNAL, "tensor '%s' has no element type", e->name);
    MGR_TRY(open_object(out, TENSOR, err));
    MGR_TRY(mgr_pickle_text(out, "properties", err));
    MGR_TRY(put_properties(out, e->dtype, err));
    MGR_TRY(mgr_pickle_text(out, "size", err));
    MGR_TRY(put_size(out, e->ndim, e->shape, err));
    MGR_TRY(mgr_pickle_text(out, "chunks", err));
    MGR_TRY(mgr_pickle_list_open(out, err));
    for (size_t i = 0; i < e->n_chunks; i++)
        MGR_TRY(put_chunk(out, e->ndim, &dcp->chunks[e->first_chunk + i], err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    return close_object(out, err);
}

static int put_entries(mgr_buf *out, const mgr_dcp *dcp, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "state_dict_metadata", err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    for (size_t i = 0; i < dcp->n_entries; i++) {
        const mgr_dcp_entry *const e = &dcp->entries[i];
        MGR_TRY(mgr_pickle_text(out, e->name, err));
        if (e->tensor)
            MGR_TRY(put_tensor(out, dcp, e, err));
        else { /* a dataclass without attributes has no state */
            MGR_TRY(put_class(out, BYTES, err));
            MGR_TRY(put(out, ")\x81", 2, err));
        }
    }
    return mgr_pickle_dict_close(out, err);
}

/* ---- storage_data ---- */

/* The key of a dict: its hash is taken when it is set, by then it has its attributes. */
static int put_index(mgr_buf *out, const mgr_dcp *dcp, const mgr_dcp_item *item, mgr_err *err)
{
    const mgr_dcp_entry *const e = &dcp->entries[item->entry];
    MGR_TRY(open_object(out, INDEX, err));
    MGR_TRY(mgr_pickle_text(out, "fqn", err));
    MGR_TRY(mgr_pickle_text(out, e->name, err));
    MGR_TRY(mgr_pickle_text(out, "index", err));
    if (!e->tensor) {
        MGR_TRY(mgr_pickle_none(out, err));
        return close_object(out, err);
    }
    MGR_TRY(mgr_pickle_int(out, (int64_t)(item->chunk - e->first_chunk), err));
    MGR_TRY(mgr_pickle_text(out, "offset", err));
    MGR_TRY(put_size(out, e->ndim, dcp->chunks[item->chunk].offset, err));
    return close_object(out, err);
}

static int put_item(mgr_buf *out, const mgr_dcp *dcp, const mgr_dcp_item *item, mgr_err *err)
{
    MGR_TRY(put_index(out, dcp, item, err));
    MGR_TRY(open_object(out, STORAGE_INFO, err));
    MGR_TRY(mgr_pickle_text(out, "relative_path", err));
    MGR_TRY(mgr_pickle_text(out, dcp->paths[item->path], err));
    MGR_TRY(mgr_pickle_text(out, "offset", err));
    MGR_TRY(mgr_pickle_int(out, (int64_t)item->offset, err));
    MGR_TRY(mgr_pickle_text(out, "length", err));
    MGR_TRY(mgr_pickle_int(out, (int64_t)item->length, err));
    return close_object(out, err);
}

static int put_items(mgr_buf *out, const mgr_dcp *dcp, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "storage_data", err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    for (size_t i = 0; i < dcp->n_items; i++)
        MGR_TRY(put_item(out, dcp, &dcp->items[i], err));
    return mgr_pickle_dict_close(out, err);
}

int mgr_dcp_write(const mgr_dcp *dcp, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_begin(out, err));
    MGR_TRY(put_classes(out, err));
    MGR_TRY(open_object(out, METADATA, err));
    MGR_TRY(put_entries(out, dcp, err));
    MGR_TRY(mgr_pickle_text(out, "planner_data", err));
    MGR_TRY(mgr_pickle_none(out, err));
    MGR_TRY(put_items(out, dcp, err));
    MGR_TRY(close_object(out, err));
    return mgr_pickle_end(out, err);
}
