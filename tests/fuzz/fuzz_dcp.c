/* Any bytes as `.metadata`; what is accepted is tiled by its chunks, each with one place. */
#include <stdlib.h>
#include <string.h>

#include "core/str.h"
#include "fmt/dcp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Some of everything: tensors, objects and what is skipped. */
static mgr_skip sort_key(const char *name, bool tensor)
{
    if (mgr_has_prefix(name, "optimizer"))
        return MGR_SKIP_OPTIMIZER;
    return tensor || mgr_has_prefix(name, "common_state") ? MGR_SKIP_COUNT : MGR_SKIP_OTHER;
}

static uint64_t volume(uint32_t ndim, const uint64_t *size)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < ndim; d++)
        n *= size[d];
    return n;
}

static void check_entry(const mgr_dcp *dcp, const mgr_dcp_entry *e)
{
    uint64_t sum = 0;
    if (e->n_chunks > dcp->n_chunks || e->first_chunk > dcp->n_chunks - e->n_chunks)
        abort();
    for (size_t k = 0; k < e->n_chunks; k++) {
        const mgr_dcp_chunk *const c = &dcp->chunks[e->first_chunk + k];
        for (uint32_t d = 0; d < e->ndim; d++)
            if (c->size[d] == 0 || c->offset[d] + c->size[d] > e->shape[d])
                abort();
        sum += volume(e->ndim, c->size);
    }
    if (e->tensor && sum != volume(e->ndim, e->shape))
        abort();
}

static void check_items(const mgr_dcp *dcp)
{
    size_t seen = 0;
    for (size_t p = 0; p < dcp->n_paths; p++) {
        size_t first, n;
        mgr_dcp_items_of(dcp, dcp->paths[p], &first, &n);
        if (n == 0 || strchr(dcp->paths[p], '/'))
            abort();
        for (size_t i = first; i < first + n; i++) {
            const mgr_dcp_item *const item = &dcp->items[i];
            if (item->path != p || item->entry >= dcp->n_entries ||
                item->offset + item->length < item->offset)
                abort();
            if (dcp->entries[item->entry].tensor != (item->chunk != SIZE_MAX))
                abort();
        }
        seen += n;
    }
    if (seen != dcp->n_items || dcp->n_items < dcp->n_chunks)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_reader reader;
    mgr_dcp dcp;
    mgr_reader_memory(&reader, ".metadata", data, size);
    const int rc = mgr_dcp_read(&dcp, &reader, sort_key, &err);
    if (rc != MGR_OK) {
        if (err.code != rc || !err.msg[0])
            abort();
        return 0;
    }
    for (size_t i = 0; i < dcp.n_entries; i++)
        check_entry(&dcp, &dcp.entries[i]);
    check_items(&dcp);
    mgr_dcp_clear(&dcp);
    return 0;
}
