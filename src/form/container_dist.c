#include "fmt/pickle_write.h"
#include "fmt/torch_write.h"
#include "form/container.h"

/* torch.save([None]): what Megatron stores for the extra state of a module that has none. */
static int nothing(mgr_buf *out, mgr_err *err)
{
    mgr_buf pickle = {0};
    int rc = mgr_pickle_begin(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_list_open(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_none(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_list_close(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_end(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_torch_archive("archive", &pickle, out, err);
    mgr_buf_clear(&pickle);
    return rc;
}

static bool has_objects(const mgr_layout *layout, uint32_t file)
{
    for (size_t i = 0; i < layout->n_objects; i++)
        if (layout->objects[i].file == file)
            return true;
    return false;
}

static mgr_torch_tensor tensor_of(const mgr_stored *s)
{
    return (mgr_torch_tensor){s->dtype, s->ndim, s->shape};
}

int mgr_container_dist_item(const mgr_stored *stored, uint64_t *offset, uint64_t *length,
                            mgr_err *err)
{
    const mgr_torch_tensor tensor = tensor_of(stored);
    mgr_torch_item item;
    MGR_TRY(mgr_torch_item_layout(&tensor, &item, err));
    *offset = stored->offset - item.data;
    *length = item.total;
    return MGR_OK;
}

int mgr_container_dist_object(uint64_t *offset, uint64_t *length, mgr_err *err)
{
    mgr_buf bytes = {0};
    const int rc = nothing(&bytes, err);
    *offset = 0;
    *length = bytes.len;
    mgr_buf_clear(&bytes);
    return rc;
}

static int place_dist_container(mgr_layout *layout, uint32_t file, const void *context,
                                mgr_err *err)
{
    (void)context;
    mgr_catalogue *const cat = layout->cat;
    uint64_t first = 0, at = 0;
    size_t n;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &n);
    if (has_objects(layout, file))
        MGR_TRY(mgr_container_dist_object(&first, &at, err));
    for (size_t i = 0; i < n; i++) {
        mgr_stored *const s = &cat->stored[list[i]];
        const mgr_torch_tensor tensor = tensor_of(s);
        mgr_torch_item item;
        MGR_TRY(mgr_torch_item_layout(&tensor, &item, err));
        s->offset = at + item.data;
        at += item.total;
    }
    cat->files[file].bytes = at;
    return MGR_OK;
}

static int put(const mgr_blob_sink *sink, uint64_t offset, const mgr_buf *bytes, mgr_err *err)
{
    const mgr_blob blob = {offset, bytes->data, bytes->len};
    return sink->put(sink->context, &blob, err);
}

static int put_item(const mgr_stored *s, uint32_t crc, const mgr_blob_sink *sink, mgr_err *err)
{
    const mgr_torch_tensor tensor = tensor_of(s);
    mgr_torch_item item;
    mgr_buf head = {0}, tail = {0};
    int rc = mgr_torch_item_layout(&tensor, &item, err);
    if (rc == MGR_OK)
        rc = mgr_torch_item_bytes(&tensor, crc, &head, &tail, err);
    if (rc == MGR_OK)
        rc = put(sink, s->offset - item.data, &head, err);
    if (rc == MGR_OK)
        rc = put(sink, s->offset - item.data + item.tail, &tail, err);
    mgr_buf_clear(&head);
    mgr_buf_clear(&tail);
    return rc;
}

static int put_objects(const mgr_blob_sink *sink, mgr_err *err)
{
    mgr_buf bytes = {0};
    int rc = nothing(&bytes, err);
    if (rc == MGR_OK)
        rc = put(sink, 0, &bytes, err);
    mgr_buf_clear(&bytes);
    return rc;
}

static int finish_dist_container(const mgr_layout *layout, uint32_t file, const void *context,
                                 const uint32_t *crc, const mgr_blob_sink *sink, mgr_err *err)
{
    (void)context;
    const mgr_catalogue *const cat = layout->cat;
    size_t n;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &n);
    if (has_objects(layout, file))
        MGR_TRY(put_objects(sink, err));
    for (size_t i = 0; i < n; i++)
        MGR_TRY(put_item(&cat->stored[list[i]], crc[list[i]], sink, err));
    return MGR_OK;
}

const mgr_container mgr_container_dist = {.place = place_dist_container,
                                          .finish = finish_dist_container};
