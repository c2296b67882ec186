/*
 * A torch.save archive {"args": Namespace, "checkpoint_version": 3.0, "iteration": n, "model":
 * {name: tensor}}, with "model0", "model1", ... for the chunks of a virtual pipeline. Members:
 * data.pkl, byteorder, data/0 .. data/n-1, version. Keys are numbered in the order of the file's
 * tensors; every tensor is all of its storage. A context may say another object than that dict.
 */
#include <stdio.h>
#include <string.h>

#include "core/crc.h"
#include "core/mem.h"
#include "fmt/pickle_write.h"
#include "fmt/zip.h"
#include "form/container.h"

#define ALIGN 64
#define FOLDER "model_optim_rng/"
#define NAME_BYTES 48

/* The members of one file. Names live in `names`. */
typedef struct archive {
    mgr_buf pickle;
    mgr_zip_entry *entries; /* data.pkl, byteorder, the tensors, version */
    uint32_t *stored;       /* of each entry; MGR_NONE for the others */
    char (*names)[NAME_BYTES];
    size_t n;
    uint64_t directory, total;
} archive;

/* Our stored names carry "model." or "model<chunk>." in front, as the catalogue of a source does.
 */
static const char *key_of(const char *name)
{
    return strchr(name, '.') + 1;
}

static bool is_of(const char *name, const char *model)
{
    const size_t n = strlen(model);
    return strncmp(name, model, n) == 0 && name[n] == '.';
}

/* The state dict `model` of a file; *n counts the file's tensors so far. */
static int emit_model(const mgr_layout *layout, uint32_t file, const char *model, unsigned *n,
                      mgr_buf *out, mgr_err *err)
{
    char key[24];
    MGR_TRY(mgr_pickle_text(out, model, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    size_t tensors;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &tensors);
    for (size_t i = 0; i < tensors; i++) {
        const mgr_stored *const s = &layout->cat->stored[list[i]];
        if (!is_of(s->name, model))
            continue;
        snprintf(key, sizeof key, "%u", (*n)++);
        MGR_TRY(mgr_pickle_text(out, key_of(s->name), err));
        MGR_TRY(mgr_pickle_tensor(out, key, s->dtype, s->ndim, s->shape, err));
    }
    for (size_t i = 0; i < layout->n_objects; i++) {
        const mgr_object *const o = &layout->objects[i];
        if (o->file != file || !is_of(o->name, model))
            continue;
        MGR_TRY(mgr_pickle_text(out, key_of(o->name), err));
        MGR_TRY(mgr_pickle_none(out, err));
    }
    return mgr_pickle_dict_close(out, err);
}

static int emit_models(const mgr_layout *layout, uint32_t file, uint32_t chunks, mgr_buf *out,
                       mgr_err *err)
{
    unsigned n = 0;
    char model[24];
    if (chunks < 2)
        return emit_model(layout, file, "model", &n, out, err);
    for (uint32_t k = 0; k < chunks; k++) {
        snprintf(model, sizeof model, "model%u", k);
        MGR_TRY(emit_model(layout, file, model, &n, out, err));
    }
    return MGR_OK;
}

static int emit_megatron(const mgr_layout *layout, uint32_t file, const mgr_torch_context *context,
                         mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "args", err));
    MGR_TRY(mgr_pickle_namespace_open(out, err));
    MGR_TRY(context->args(context->data, out, err));
    MGR_TRY(mgr_pickle_namespace_close(out, err));
    MGR_TRY(mgr_pickle_text(out, "checkpoint_version", err));
    MGR_TRY(mgr_pickle_real(out, 3.0, err));
    MGR_TRY(mgr_pickle_text(out, "iteration", err));
    MGR_TRY(mgr_pickle_int(out, (int64_t)context->iteration, err));
    MGR_TRY(emit_models(layout, file, context->chunks, out, err));
    return mgr_pickle_dict_close(out, err);
}

static int emit(const mgr_layout *layout, uint32_t file, const mgr_torch_context *context,
                mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_begin(out, err));
    MGR_TRY(context->content ? context->content(layout, file, context->data, out, err)
                             : emit_megatron(layout, file, context, out, err));
    return mgr_pickle_end(out, err);
}

static void archive_clear(archive *a)
{
    mgr_buf_clear(&a->pickle);
    mgr_free(a->entries);
    mgr_free(a->stored);
    mgr_free(a->names);
}

static void add(archive *a, const char *name, uint64_t size, uint32_t crc, uint32_t stored)
{
    snprintf(a->names[a->n], NAME_BYTES, FOLDER "%s", name);
    a->entries[a->n] = (mgr_zip_entry){.name = a->names[a->n], .size = size, .crc32 = crc};
    a->stored[a->n++] = stored;
}

static int archive_make(archive *a, const mgr_layout *layout, uint32_t file,
                        const mgr_torch_context *context, const uint32_t *crc, mgr_err *err)
{
    size_t tensors;
    const uint32_t *const list = mgr_layout_in_file(layout, file, &tensors);
    const size_t most = tensors + 3;
    *a = (archive){0};
    MGR_TRY(mgr_alloc(&a->entries, most, sizeof *a->entries, err));
    MGR_TRY(mgr_alloc(&a->stored, most, sizeof *a->stored, err));
    MGR_TRY(mgr_alloc(&a->names, most, sizeof *a->names, err));
    MGR_TRY(emit(layout, file, context, &a->pickle, err));
    add(a, "data.pkl", a->pickle.len, mgr_crc32(0, a->pickle.data, a->pickle.len), MGR_NONE);
    add(a, "byteorder", 6, mgr_crc32(0, "little", 6), MGR_NONE);
    char name[24];
    unsigned n = 0;
    for (size_t i = 0; i < tensors; i++) {
        snprintf(name, sizeof name, "data/%u", n++);
        add(a, name, mgr_stored_bytes(&layout->cat->stored[list[i]]), crc ? crc[list[i]] : 0,
            list[i]);
    }
    add(a, "version", 2, mgr_crc32(0, "3\n", 2), MGR_NONE);
    return mgr_zip_layout(a->entries, a->n, ALIGN, &a->directory, &a->total, err);
}

static int place_torch_container(mgr_layout *layout, uint32_t file, const void *context,
                                 mgr_err *err)
{
    archive a;
    const int rc = archive_make(&a, layout, file, context, NULL, err);
    for (size_t i = 0; rc == MGR_OK && i < a.n; i++)
        if (a.stored[i] != MGR_NONE)
            layout->cat->stored[a.stored[i]].offset = a.entries[i].offset;
    if (rc == MGR_OK)
        layout->cat->files[file].bytes = a.total;
    archive_clear(&a);
    return rc;
}

static int put(const mgr_blob_sink *sink, uint64_t offset, const void *bytes, size_t len,
               mgr_err *err)
{
    const mgr_blob blob = {offset, bytes, len};
    return sink->put(sink->context, &blob, err);
}

static int put_member(const archive *a, size_t i, const mgr_blob_sink *sink, mgr_err *err)
{
    const mgr_zip_entry *const e = &a->entries[i];
    mgr_buf header = {0};
    int rc = mgr_zip_local_header(e, ALIGN, &header, err);
    if (rc == MGR_OK)
        rc = put(sink, e->header, header.data, header.len, err);
    mgr_buf_clear(&header);
    if (rc != MGR_OK || a->stored[i] != MGR_NONE)
        return rc;
    const char *const text = i == 0 ? a->pickle.data : i == 1 ? "little" : "3\n";
    return put(sink, e->offset, text, (size_t)e->size, err);
}

static int finish_torch_container(const mgr_layout *layout, uint32_t file, const void *context,
                                  const uint32_t *crc, const mgr_blob_sink *sink, mgr_err *err)
{
    archive a;
    mgr_buf tail = {0};
    int rc = archive_make(&a, layout, file, context, crc, err);
    for (size_t i = 0; rc == MGR_OK && i < a.n; i++)
        rc = put_member(&a, i, sink, err);
    if (rc == MGR_OK)
        rc = mgr_zip_directory(a.entries, a.n, a.directory, &tail, err);
    if (rc == MGR_OK)
        rc = put(sink, a.directory, tail.data, tail.len, err);
    mgr_buf_clear(&tail);
    archive_clear(&a);
    return rc;
}

const mgr_container mgr_container_torch = {.place = place_torch_container,
                                           .finish = finish_torch_container};
