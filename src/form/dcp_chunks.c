#include "form/dcp_chunks.h"

#include <inttypes.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/torch_file.h"
#include "model/megatron_dist.h"

void mgr_dcp_forget(void *held)
{
    if (held)
        mgr_dcp_clear(held);
    mgr_free(held);
}

static int parse_metadata(mgr_dcp *dcp, const char *directory, mgr_dcp_sort *sort, mgr_err *err)
{
    mgr_buf path = {0};
    mgr_reader reader;
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_DCP_METADATA, directory);
    if (rc == MGR_OK)
        rc = mgr_reader_open(&reader, path.data, err);
    if (rc == MGR_OK) {
        rc = mgr_dcp_read(dcp, &reader, sort, err);
        mgr_reader_close(&reader);
    }
    mgr_buf_clear(&path);
    return rc;
}

int mgr_dcp_hold(void **held, const char *directory, mgr_dcp_sort *sort, const mgr_dcp **out,
                 mgr_err *err)
{
    mgr_dcp *dcp = *held;
    if (!dcp) {
        MGR_TRY(mgr_alloc(&dcp, 1, sizeof *dcp, err));
        const int rc = parse_metadata(dcp, directory, sort, err);
        if (rc != MGR_OK) {
            mgr_dcp_forget(dcp);
            return rc;
        }
        *held = dcp;
    }
    *out = dcp;
    return MGR_OK;
}

void mgr_dcp_count_skipped(const mgr_dcp *dcp, mgr_catalogue *cat)
{
    for (int k = 0; k < MGR_SKIP_COUNT; k++)
        cat->skipped[k] += dcp->skipped[k];
}

/* An item must be what .metadata says of its chunk, and plain: the elements one behind the other.
 */
static int check_item(const mgr_reader *reader, const mgr_dcp_entry *e, const mgr_dcp_chunk *c,
                      const mgr_stored *s, mgr_err *err)
{
    char is[128], said[128];
    uint64_t stride = 1;
    if (s->ndim != e->ndim || memcmp(s->shape, c->size, s->ndim * sizeof *s->shape) != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' in '%s' has shape %s, .metadata says %s",
                        s->name, reader->name, mgr_dcp_place(s->ndim, s->shape, is, sizeof is),
                        mgr_dcp_place(e->ndim, c->size, said, sizeof said));
    if (s->dtype != e->dtype)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%s' in '%s' has type %s, .metadata says another", s->name,
                        reader->name, mgr_dtype_name(s->dtype));
    for (uint32_t d = s->ndim; d-- > 0; stride *= s->shape[d])
        if (s->shape[d] > 1 && s->stride[d] != stride)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED, "tensor '%s' in '%s' is not contiguous",
                            s->name, reader->name);
    return MGR_OK;
}

int mgr_dcp_read_chunk(const mgr_dcp *dcp, const mgr_dcp_item *item, mgr_catalogue *cat,
                       uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    const mgr_dcp_entry *const e = &dcp->entries[item->entry];
    const mgr_dcp_chunk *const c = &dcp->chunks[item->chunk];
    mgr_buf name = {0};
    mgr_reader window;
    if (e->fp8)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "tensor '%s' of '%s': FP8 parameters are not supported", e->name,
                        reader->name);
    int rc = mgr_megatron_dist_name(&name, e->name, e->ndim, c->offset, err);
    if (rc == MGR_OK)
        rc = mgr_reader_window(&window, reader, item->offset, item->length, err);
    if (rc == MGR_OK)
        rc = mgr_torch_file_read_tensor(cat, file, &window, name.data, err);
    if (rc != MGR_OK && name.data)
        rc = mgr_wrap(err, "chunk '%.300s' at byte %" PRIu64, name.data, item->offset);
    if (rc == MGR_OK)
        rc = check_item(reader, e, c, &cat->stored[cat->n_stored - 1], err);
    mgr_buf_clear(&name);
    return rc;
}
