#include "fmt/dcp.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/pickle.h"

/*
 * Metadata is a dataclass, as are its parts (src/fmt/README.md):
 *
 *   Metadata              := state_dict_metadata {key: TensorStorageMetadata
 *                                                  | BytesStorageMetadata},
 *                            storage_data {MetadataIndex: _StorageInfo}
 *   TensorStorageMetadata := properties, size, chunks [ChunkStorageMetadata]
 *   ChunkStorageMetadata  := offsets, sizes
 *   MetadataIndex         := fqn, offset
 *   _StorageInfo          := relative_path, offset, length[, transform_descriptors]
 *
 * Nodes of a pickle may be shared, so a small file can hold a large tree: fields, names and numbers
 * of chunks are bounded.
 */
#define METADATA_LIMIT (UINT64_C(512) << 20)
#define MAX_FIELDS 64          /* attributes of one object */
#define MAX_NAME 1024          /* bytes of a key */
#define MAX_PATH 255           /* bytes of a file's name */
#define MAX_ENTRIES (1u << 22) /* keys that are taken */
#define MAX_CHUNKS (1u << 22)  /* of all tensors that are taken */
#define MAX_STEPS (1u << 28)   /* comparisons in the search for overlaps of one tensor */
#define MAX_SEARCH 4096        /* chunks of a tensor in which a hole is looked for */
#define PLACE (24 * MGR_MAX_NDIM)
#define NAME_SHOWN 200

typedef struct metadata {
    mgr_dcp *dcp;
    const char *name; /* of the file */
    mgr_pickle pickle;
    mgr_err *err;
} metadata;

/* ---- nodes ---- */

static int damaged(metadata *m, const mgr_node *node, const char *what)
{
    return mgr_fail(m->err, MGR_ERR_FORMAT, "damaged metadata in '%s' at byte %" PRIu64 ": %s",
                    m->name, node ? node->at : 0, what);
}

static int bad_entry(metadata *m, mgr_code code, const char *entry, const char *what)
{
    char shown[NAME_SHOWN];
    return mgr_fail(m->err, code, "'%s' of '%s': %s",
                    mgr_printable(entry, strlen(entry), shown, sizeof shown), m->name, what);
}

static int bad_chunk(metadata *m, const mgr_dcp_entry *e, const uint64_t *at, const char *what)
{
    char shown[NAME_SHOWN], place[PLACE];
    return mgr_fail(m->err, MGR_ERR_FORMAT, "tensor '%s' of '%s': the chunk at %s %s",
                    mgr_printable(e->name, strlen(e->name), shown, sizeof shown), m->name,
                    mgr_dcp_place(e->ndim, at, place, sizeof place), what);
}

const char *mgr_dcp_place(uint32_t ndim, const uint64_t *at, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (uint32_t d = 0; d < ndim && used < size; d++)
        used += (size_t)snprintf(out + used, size - used, "%s%" PRIu64, d ? ", " : "", at[d]);
    if (used < size)
        snprintf(out + used, size - used, "]");
    return out;
}

/* Text of at most `most` bytes, or NULL. */
static const char *text_of(const mgr_node *node, size_t most)
{
    return node && node->kind == MGR_NODE_TEXT && node->u.s.len <= most ? mgr_node_text(node)
                                                                        : NULL;
}

/* Attribute `key` of a dataclass; NULL where it has none or is None. */
static const mgr_node *field(const mgr_node *object, const char *key)
{
    const mgr_node *const state = mgr_node_state(object);
    const size_t n = mgr_node_n_pairs(state);
    for (size_t i = n > MAX_FIELDS ? 0 : n; i-- > 0;) {
        const char *const text = text_of(mgr_node_key(state, i), MAX_FIELDS);
        if (!text || strcmp(text, key) != 0)
            continue;
        const mgr_node *const value = mgr_node_value(state, i);
        return value->kind == MGR_NODE_NONE ? NULL : value;
    }
    return NULL;
}

/* The name of a node's class, whatever module it has moved to; "" for other nodes. */
static const char *class_of(const mgr_node *node)
{
    const mgr_node *const class = mgr_node_callable(node);
    return class && class->kind == MGR_NODE_GLOBAL ? class->u.g.name : "";
}

/* A torch.Size, tuple or list of numbers that are not negative. */
static bool sizes_of(const mgr_node *node, uint32_t *ndim, uint64_t *out)
{
    mgr_node *const *items;
    size_t n;
    if (!mgr_node_elements(node, &items, &n) || n > MGR_MAX_NDIM)
        return false;
    for (size_t d = 0; d < n; d++) {
        int64_t value;
        if (!mgr_node_int(items[d], &value) || value < 0)
            return false;
        out[d] = (uint64_t)value;
    }
    *ndim = (uint32_t)n;
    return true;
}

static bool whole_of(const mgr_node *node, uint64_t *out)
{
    int64_t value;
    if (!mgr_node_int(node, &value) || value < 0)
        return false;
    *out = (uint64_t)value;
    return true;
}

/* ---- state_dict_metadata ---- */

static bool is_empty(const mgr_dcp_chunk *c, uint32_t ndim)
{
    for (uint32_t d = 0; d < ndim; d++)
        if (c->size[d] == 0)
            return true;
    return false;
}

static int read_chunk(metadata *m, const mgr_dcp_entry *e, const mgr_node *node)
{
    mgr_dcp *const d = m->dcp;
    mgr_dcp_chunk c = {.found = false};
    uint32_t ndim[2];
    if (!sizes_of(field(node, "offsets"), &ndim[0], c.offset) ||
        !sizes_of(field(node, "sizes"), &ndim[1], c.size) || ndim[0] != e->ndim ||
        ndim[1] != e->ndim)
        return damaged(m, node, "a chunk without offsets and sizes of its tensor's axes");
    for (uint32_t k = 0; k < e->ndim; k++)
        if (c.offset[k] > e->shape[k] || c.size[k] > e->shape[k] - c.offset[k])
            return bad_chunk(m, e, c.offset, "reaches outside of the tensor");
    if (d->n_chunks == MAX_CHUNKS)
        return mgr_fail(m->err, MGR_ERR_UNSUPPORTED, "'%s' holds more than %u chunks", m->name,
                        MAX_CHUNKS);
    if (is_empty(&c, e->ndim)) /* of a tensor that was cut into more parts than it has rows */
        return MGR_OK;
    MGR_TRY(mgr_grow(&d->chunks, &d->cap_chunks, d->n_chunks + 1, sizeof c, m->err));
    d->chunks[d->n_chunks++] = c;
    return MGR_OK;
}

/* TensorProperties: its state is (dtype, layout, requires_grad, memory format, pin_memory). */
static int read_properties(metadata *m, mgr_dcp_entry *e, const mgr_node *node)
{
    const mgr_node *const state = mgr_node_state(node);
    const mgr_node *const dtype = state && state->kind == MGR_NODE_TUPLE && state->u.c.n > 0
                                      ? state->u.c.items[0]
                                      : field(node, "dtype");
    if (!dtype || dtype->kind != MGR_NODE_GLOBAL || strcmp(dtype->u.g.module, "torch") != 0)
        return bad_entry(m, MGR_ERR_FORMAT, e->name, "the tensor has no element type");
    e->dtype = mgr_dtype_from_name(dtype->u.g.name);
    if (e->dtype == MGR_DTYPE_NONE)
        e->dtype = MGR_DTYPE_OTHER;
    e->fp8 = mgr_has_prefix(dtype->u.g.name, "float8") || mgr_has_prefix(dtype->u.g.name, "float4");
    return MGR_OK;
}

static int read_tensor(metadata *m, mgr_dcp_entry *e, const mgr_node *node)
{
    mgr_node *const *chunks;
    size_t n;
    const mgr_node *const size = field(node, "size");
    if (!sizes_of(size, &e->ndim, e->shape)) {
        if (mgr_node_elements(size, &chunks, &n) && n > MGR_MAX_NDIM)
            return bad_entry(m, MGR_ERR_UNSUPPORTED, e->name, "the tensor has too many axes");
        return bad_entry(m, MGR_ERR_FORMAT, e->name, "the tensor has no size");
    }
    MGR_TRY(read_properties(m, e, field(node, "properties")));
    if (!mgr_node_elements(field(node, "chunks"), &chunks, &n))
        return bad_entry(m, MGR_ERR_FORMAT, e->name, "the tensor has no list of chunks");
    e->first_chunk = m->dcp->n_chunks;
    if (n > MAX_CHUNKS)
        return bad_entry(m, MGR_ERR_UNSUPPORTED, e->name, "the tensor has too many chunks");
    for (size_t i = 0; i < n; i++)
        MGR_TRY(read_chunk(m, e, chunks[i]));
    e->n_chunks = m->dcp->n_chunks - e->first_chunk;
    return MGR_OK;
}

static int read_entry(metadata *m, const mgr_node *key, const mgr_node *value, mgr_dcp_sort *sort)
{
    mgr_dcp *const d = m->dcp;
    const char *const name = text_of(key, MAX_NAME);
    const bool tensor = strcmp(class_of(value), "TensorStorageMetadata") == 0;
    char kind[NAME_SHOWN + 40];
    if (!name || !*name)
        return damaged(m, key, "a key that is no text of at most 1024 bytes");
    if (!tensor && strcmp(class_of(value), "BytesStorageMetadata") != 0) {
        mgr_node_describe(value, kind, sizeof kind);
        return bad_entry(m, MGR_ERR_UNSUPPORTED, name, kind);
    }
    const mgr_skip skip = sort(name, tensor);
    if (skip != MGR_SKIP_COUNT) {
        d->skipped[skip]++;
        return MGR_OK;
    }
    /* the name is the pickle's until keep_names; a pickle may say one name a million times */
    mgr_dcp_entry e = {.name = name, .tensor = tensor};
    if (d->n_entries == MAX_ENTRIES)
        return bad_entry(m, MGR_ERR_UNSUPPORTED, name, "there are too many keys");
    MGR_TRY(mgr_grow(&d->entries, &d->cap_entries, d->n_entries + 1, sizeof e, m->err));
    if (tensor)
        MGR_TRY(read_tensor(m, &e, value));
    d->entries[d->n_entries++] = e;
    return MGR_OK;
}

/* ---- order ---- */

static int by_name(const void *a, const void *b)
{
    const mgr_dcp_entry *const x = a;
    const mgr_dcp_entry *const y = b;
    return strcmp(x->name, y->name);
}

/* Unused axes are 0 everywhere. */
static int compare_offsets(const uint64_t *a, const uint64_t *b)
{
    for (uint32_t d = 0; d < MGR_MAX_NDIM; d++)
        if (a[d] != b[d])
            return a[d] < b[d] ? -1 : 1;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const mgr_dcp_chunk *const x = a;
    const mgr_dcp_chunk *const y = b;
    return compare_offsets(x->offset, y->offset);
}

static int sort_entries(metadata *m)
{
    mgr_dcp *const d = m->dcp;
    if (d->n_entries)
        qsort(d->entries, d->n_entries, sizeof *d->entries, by_name);
    for (size_t i = 1; i < d->n_entries; i++)
        if (strcmp(d->entries[i - 1].name, d->entries[i].name) == 0)
            return bad_entry(m, MGR_ERR_FORMAT, d->entries[i].name, "the key occurs twice");
    for (size_t i = 0; i < d->n_entries; i++) {
        const mgr_dcp_entry *const e = &d->entries[i];
        mgr_dcp_chunk *const c = d->chunks + e->first_chunk;
        if (e->n_chunks)
            qsort(c, e->n_chunks, sizeof *c, by_offset);
        for (size_t k = 1; k < e->n_chunks; k++)
            if (compare_offsets(c[k - 1].offset, c[k].offset) == 0)
                return bad_chunk(m, e, c[k].offset, "occurs twice");
    }
    return MGR_OK;
}

/* ---- tiling ---- */

static bool overlap(const mgr_dcp_chunk *a, const mgr_dcp_chunk *b, uint32_t ndim)
{
    for (uint32_t d = 0; d < ndim; d++)
        if (a->offset[d] >= b->offset[d] + b->size[d] || b->offset[d] >= a->offset[d] + a->size[d])
            return false;
    return true;
}

/* A sweep along the first axis: a chunk is compared with those before it that reach as far. */
static int check_overlaps(metadata *m, const mgr_dcp_entry *e)
{
    const mgr_dcp_chunk *const c = m->dcp->chunks + e->first_chunk;
    size_t *active = NULL;
    size_t n = 0;
    uint64_t steps = 0;
    int rc = mgr_alloc(&active, e->n_chunks, sizeof *active, m->err);
    for (size_t i = 0; rc == MGR_OK && i < e->n_chunks; i++) {
        size_t kept = 0;
        for (size_t k = 0; k < n; k++) {
            const mgr_dcp_chunk *const other = &c[active[k]];
            if (e->ndim && other->offset[0] + other->size[0] <= c[i].offset[0])
                continue;
            active[kept++] = active[k];
            if (rc == MGR_OK && overlap(other, &c[i], e->ndim))
                rc = bad_chunk(m, e, c[i].offset, "overlaps another");
        }
        steps += n;
        active[kept] = i;
        n = kept + 1;
        if (rc == MGR_OK && steps > MAX_STEPS)
            rc = bad_entry(m, MGR_ERR_UNSUPPORTED, e->name, "the tensor is cut too finely");
    }
    mgr_free(active);
    return rc;
}

static bool is_covered(const mgr_dcp_chunk *c, size_t n, uint32_t ndim, const uint64_t *at)
{
    mgr_dcp_chunk point = {.found = false};
    for (uint32_t d = 0; d < ndim; d++) {
        point.offset[d] = at[d];
        point.size[d] = 1;
    }
    for (size_t i = 0; i < n; i++)
        if (overlap(&c[i], &point, ndim))
            return true;
    return false;
}

/* Where the first missing chunk would begin: at the tensor's origin, or behind another chunk. */
static bool find_hole(const mgr_dcp_chunk *c, const mgr_dcp_entry *e, uint64_t *hole)
{
    bool found = !is_covered(c, e->n_chunks, e->ndim, hole);
    for (size_t i = 0; i < e->n_chunks && !found; i++)
        for (uint32_t d = 0; d < e->ndim && !found; d++) {
            memcpy(hole, c[i].offset, sizeof c[i].offset);
            hole[d] += c[i].size[d];
            found = hole[d] < e->shape[d] && !is_covered(c, e->n_chunks, e->ndim, hole);
        }
    return found;
}

static bool volume(uint32_t ndim, const uint64_t *size, uint64_t *out)
{
    *out = 1;
    for (uint32_t d = 0; d < ndim; d++)
        if (size[d] == 0) {
            *out = 0;
            return true;
        }
    for (uint32_t d = 0; d < ndim; d++)
        if (mgr_mul_overflow(*out, size[d], out))
            return false;
    return true;
}

/* Chunks inside the tensor that do not overlap and have as many elements as it tile it. */
static int check_tiling(metadata *m, const mgr_dcp_entry *e)
{
    const mgr_dcp_chunk *const c = m->dcp->chunks + e->first_chunk;
    uint64_t wanted, sum = 0, hole[MGR_MAX_NDIM] = {0};
    if (!volume(e->ndim, e->shape, &wanted))
        return bad_entry(m, MGR_ERR_FORMAT, e->name, "the tensor's size overflows 64 bits");
    MGR_TRY(check_overlaps(m, e));
    for (size_t i = 0; i < e->n_chunks; i++) {
        uint64_t part;
        (void)volume(e->ndim, c[i].size, &part); /* less than the whole */
        sum += part;
    }
    if (sum == wanted)
        return MGR_OK;
    if (e->n_chunks <= MAX_SEARCH && find_hole(c, e, hole))
        return bad_chunk(m, e, hole, "is missing");
    return bad_entry(m, MGR_ERR_FORMAT, e->name, "the tensor's chunks do not cover it");
}

/* ---- storage_data ---- */

static mgr_dcp_entry *find_entry(const mgr_dcp *d, const char *name)
{
    const mgr_dcp_entry key = {.name = name};
    return d->n_entries ? bsearch(&key, d->entries, d->n_entries, sizeof key, by_name) : NULL;
}

/* Files lie beside `.metadata`; nothing else is opened, whatever a path says. */
static int check_path(metadata *m, const mgr_node *node)
{
    const char *const path = text_of(node, MAX_PATH);
    if (!path || !*path || strcmp(path, ".") == 0 || strcmp(path, "..") == 0)
        return damaged(m, node, "relative_path is no name of a file");
    if (strchr(path, '/'))
        return mgr_fail(m->err, MGR_ERR_UNSUPPORTED,
                        "'%s' at byte %" PRIu64 ": relative_path leads to another folder", m->name,
                        node->at);
    return MGR_OK;
}

/* transform_descriptors name what the item's bytes went through: compression, encryption. */
static bool is_transformed(const mgr_node *info)
{
    const mgr_node *const list = field(info, "transform_descriptors");
    mgr_node *const *items;
    size_t n;
    return list && !(mgr_node_elements(list, &items, &n) && n == 0);
}

static int find_chunk(metadata *m, const mgr_node *index, mgr_dcp_entry *e, size_t *chunk)
{
    mgr_dcp *const d = m->dcp;
    mgr_dcp_chunk key = {.found = false};
    uint32_t ndim = 0;
    const mgr_node *const offset = field(index, "offset");
    *chunk = SIZE_MAX;
    if (!e->tensor && e->found)
        return bad_entry(m, MGR_ERR_FORMAT, e->name, "it occurs twice in storage_data");
    e->found = true;
    if (!e->tensor)
        return MGR_OK;
    if (!sizes_of(offset, &ndim, key.offset) || ndim != e->ndim)
        return damaged(m, index, "a chunk without an offset of its tensor's axes");
    mgr_dcp_chunk *const c =
        e->n_chunks ? bsearch(&key, d->chunks + e->first_chunk, e->n_chunks, sizeof key, by_offset)
                    : NULL;
    if (!c)
        return MGR_OK; /* without elements; all others are in the list, or a hole is found */
    if (c->found)
        return bad_chunk(m, e, c->offset, "occurs twice in storage_data");
    c->found = true;
    *chunk = (size_t)(c - d->chunks);
    return MGR_OK;
}

static int read_info(metadata *m, const mgr_node *info, const char *name, mgr_dcp_item *item)
{
    mgr_dcp *const d = m->dcp;
    uint64_t end;
    const mgr_node *const path = field(info, "relative_path");
    if (!whole_of(field(info, "offset"), &item->offset) ||
        !whole_of(field(info, "length"), &item->length) ||
        mgr_add_overflow(item->offset, item->length, &end))
        return damaged(m, info, "an item without a valid offset and length");
    if (is_transformed(info)) {
        bad_entry(m, MGR_ERR_UNSUPPORTED, name,
                  "its bytes are transformed (transform_descriptors)");
        return mgr_hint(m->err, "save the checkpoint without extensions of the stream");
    }
    MGR_TRY(check_path(m, path));
    MGR_TRY(mgr_grow(&d->paths, &d->cap_paths, d->n_paths + 1, sizeof *d->paths, m->err));
    d->paths[d->n_paths++] = path->u.s.bytes; /* of the pickle, until keep_names */
    return MGR_OK;
}

static int read_item(metadata *m, const mgr_node *index, const mgr_node *info)
{
    mgr_dcp *const d = m->dcp;
    mgr_dcp_item item = {0};
    const char *const name = text_of(field(index, "fqn"), MAX_NAME);
    if (!name)
        return damaged(m, index, "a key of storage_data without a name");
    mgr_dcp_entry *const e = find_entry(d, name);
    if (!e)
        return MGR_OK; /* of a key that is skipped */
    MGR_TRY(find_chunk(m, index, e, &item.chunk));
    if (e->tensor && item.chunk == SIZE_MAX)
        return MGR_OK;
    item.entry = (uint32_t)(e - d->entries);
    MGR_TRY(read_info(m, info, name, &item));
    MGR_TRY(mgr_grow(&d->items, &d->cap_items, d->n_items + 1, sizeof item, m->err));
    d->items[d->n_items++] = item;
    return MGR_OK;
}

static int by_text(const void *a, const void *b)
{
    const char *const *const x = a;
    const char *const *const y = b;
    return strcmp(*x, *y);
}

static int by_place(const void *a, const void *b)
{
    const mgr_dcp_item *const x = a;
    const mgr_dcp_item *const y = b;
    if (x->path != y->path)
        return x->path < y->path ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->entry > y->entry) - (x->entry < y->entry);
}

/* So far there is one path for each item, in their order: give each file one number. */
static int name_files(metadata *m)
{
    mgr_dcp *const d = m->dcp;
    const char **of_item;
    size_t n = 0;
    if (d->n_items == 0)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&of_item, d->n_items, sizeof *of_item, m->err));
    memcpy(of_item, d->paths, d->n_items * sizeof *of_item);
    qsort(d->paths, d->n_items, sizeof *d->paths, by_text);
    for (size_t i = 0; i < d->n_items; i++)
        if (n == 0 || strcmp(d->paths[n - 1], d->paths[i]) != 0)
            d->paths[n++] = d->paths[i];
    d->n_paths = n;
    for (size_t i = 0; i < d->n_items; i++) {
        const char **const at = bsearch(&of_item[i], d->paths, n, sizeof *at, by_text);
        d->items[i].path = (uint32_t)(at - d->paths);
    }
    mgr_free(of_item);
    qsort(d->items, d->n_items, sizeof *d->items, by_place);
    return MGR_OK;
}

/* ---- the whole ---- */

static int check_found(metadata *m)
{
    const mgr_dcp *const d = m->dcp;
    for (size_t i = 0; i < d->n_entries; i++) {
        const mgr_dcp_entry *const e = &d->entries[i];
        if (!e->tensor && !e->found)
            return bad_entry(m, MGR_ERR_FORMAT, e->name, "it has no place in storage_data");
        for (size_t k = e->first_chunk; k < e->first_chunk + e->n_chunks; k++)
            if (!d->chunks[k].found)
                return bad_chunk(m, e, d->chunks[k].offset, "has no place in storage_data");
    }
    return MGR_OK;
}

static int keep_names(metadata *m)
{
    mgr_dcp *const d = m->dcp;
    for (size_t i = 0; i < d->n_entries; i++)
        MGR_TRY(mgr_arena_strndup(&d->arena, &d->entries[i].name, d->entries[i].name,
                                  strlen(d->entries[i].name), m->err));
    for (size_t i = 0; i < d->n_paths; i++)
        MGR_TRY(
            mgr_arena_strndup(&d->arena, &d->paths[i], d->paths[i], strlen(d->paths[i]), m->err));
    return MGR_OK;
}

static int read_root(metadata *m, mgr_dcp_sort *sort)
{
    const mgr_node *const root = m->pickle.root;
    const mgr_node *const tensors = field(root, "state_dict_metadata");
    const mgr_node *const places = field(root, "storage_data");
    if (!mgr_node_is_dict(tensors) || !mgr_node_is_dict(places))
        return damaged(m, root, "no Metadata with state_dict_metadata and storage_data");
    MGR_TRY(mgr_grow(&m->dcp->chunks, &m->dcp->cap_chunks, 1, sizeof *m->dcp->chunks, m->err));
    for (size_t i = 0; i < mgr_node_n_pairs(tensors); i++)
        MGR_TRY(read_entry(m, mgr_node_key(tensors, i), mgr_node_value(tensors, i), sort));
    MGR_TRY(sort_entries(m));
    for (size_t i = 0; i < m->dcp->n_entries; i++)
        if (m->dcp->entries[i].tensor)
            MGR_TRY(check_tiling(m, &m->dcp->entries[i]));
    for (size_t i = 0; i < mgr_node_n_pairs(places); i++)
        MGR_TRY(read_item(m, mgr_node_key(places, i), mgr_node_value(places, i)));
    MGR_TRY(check_found(m));
    MGR_TRY(name_files(m));
    return keep_names(m);
}

static int read_pickle(metadata *m, const mgr_reader *reader)
{
    char *bytes;
    const mgr_pickle_limits limits = {.base = reader->base};
    if (reader->size > METADATA_LIMIT)
        return mgr_fail(m->err, MGR_ERR_UNSUPPORTED,
                        "'%s' has %" PRIu64 " bytes, the limit is %" PRIu64, m->name, reader->size,
                        METADATA_LIMIT);
    MGR_TRY(mgr_alloc(&bytes, (size_t)reader->size, 1, m->err));
    int rc = mgr_reader_read(reader, 0, bytes, (size_t)reader->size, m->err);
    if (rc == MGR_OK)
        rc = mgr_pickle_read(&m->pickle, m->name, bytes, (size_t)reader->size, &limits, m->err);
    mgr_free(bytes);
    return rc;
}

int mgr_dcp_read(mgr_dcp *dcp, const mgr_reader *reader, mgr_dcp_sort *sort, mgr_err *err)
{
    *dcp = (mgr_dcp){0};
    metadata m = {.dcp = dcp, .name = reader->name, .err = err};
    int rc = read_pickle(&m, reader);
    if (rc != MGR_OK)
        return rc;
    rc = read_root(&m, sort);
    mgr_pickle_clear(&m.pickle);
    if (rc != MGR_OK)
        mgr_dcp_clear(dcp);
    return rc;
}

void mgr_dcp_clear(mgr_dcp *dcp)
{
    mgr_free(dcp->entries);
    mgr_free(dcp->chunks);
    mgr_free(dcp->items);
    mgr_free(dcp->paths);
    mgr_arena_clear(&dcp->arena);
    *dcp = (mgr_dcp){0};
}

void mgr_dcp_items_of(const mgr_dcp *dcp, const char *path, size_t *first, size_t *n)
{
    const char **const at =
        dcp->n_paths ? bsearch(&path, dcp->paths, dcp->n_paths, sizeof path, by_text) : NULL;
    *first = *n = 0;
    if (!at)
        return;
    const uint32_t number = (uint32_t)(at - dcp->paths);
    size_t low = 0, high = dcp->n_items;
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        if (dcp->items[mid].path < number)
            low = mid + 1;
        else
            high = mid;
    }
    *first = low;
    while (low + *n < dcp->n_items && dcp->items[low + *n].path == number)
        ++*n;
}
