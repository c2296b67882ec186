#include "core/mem.h"
#include "fmt/safetensors.h"
#include "form/container.h"

/* Header and tensors start at multiples of a page, so that large writes are aligned. */
#define ALIGN 4096

static int header(const mgr_layout *layout, uint32_t file, mgr_buf *out, mgr_err *err)
{
    const mgr_catalogue *const cat = layout->cat;
    mgr_safetensors_entry *entries = NULL;
    size_t n;
    uint64_t at = 0;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &n);
    MGR_TRY(mgr_alloc(&entries, n, sizeof *entries, err));
    for (size_t i = 0; i < n; i++) {
        const mgr_stored *const s = &cat->stored[list[i]];
        const uint64_t bytes = mgr_stored_bytes(s);
        entries[i] = (mgr_safetensors_entry){s->name, s->dtype, s->ndim, s->shape, at, at + bytes};
        at += bytes;
    }
    const int rc = mgr_safetensors_header(entries, n, ALIGN, out, err);
    mgr_free(entries);
    return rc;
}

static int place_safetensors_container(mgr_layout *layout, uint32_t file, const void *context,
                                       mgr_err *err)
{
    (void)context;
    mgr_buf text = {0};
    size_t n;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &n);
    const int rc = header(layout, file, &text, err);
    uint64_t at = text.len;
    for (size_t i = 0; rc == MGR_OK && i < n; i++) {
        mgr_stored *const s = &layout->cat->stored[list[i]];
        s->offset = at;
        at += mgr_stored_bytes(s);
    }
    layout->cat->files[file].bytes = at;
    mgr_buf_clear(&text);
    return rc;
}

static int finish_safetensors_container(const mgr_layout *layout, uint32_t file,
                                        const void *context, const uint32_t *crc,
                                        const mgr_blob_sink *sink, mgr_err *err)
{
    (void)context;
    (void)crc;
    mgr_buf text = {0};
    int rc = header(layout, file, &text, err);
    if (rc == MGR_OK) {
        const mgr_blob blob = {0, text.data, text.len};
        rc = sink->put(sink->context, &blob, err);
    }
    mgr_buf_clear(&text);
    return rc;
}

const mgr_container mgr_container_safetensors = {.place = place_safetensors_container,
                                                 .finish = finish_safetensors_container};
