/*
 * Target `hdf5`: a directory with shared.h5, one experts-RRRRR-of-NNNNN.h5 for each expert-parallel
 * rank, and model.h5, in which every tensor is found under its Hugging Face name. Beside the links,
 * model.h5 has texts in its group mgr: model.json (the model as we know it, what source_hdf5.c
 * reads), config.json (Hugging Face's), manifest.json, and the names of the tokenizer's files.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/h5.h"
#include "fmt/json.h"
#include "form/format_keys.h"
#include "form/hdf5_files.h"
#include "form/hdf5_model.h"
#include "form/huggingface_class.h"
#include "form/huggingface_sidecars.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "model/flat.h"

#define MAX_MANIFEST ((uint64_t)1 << 30)

extern const mgr_target_format mgr_target_hdf5;

static int check_hdf5_target(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel;
    if (model->experts % ep != 0)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%llu experts do not divide among %llu expert-parallel ranks",
                               (unsigned long long)model->experts, (unsigned long long)ep);
    return mgr_huggingface_check("hdf5", model, err);
}

static int layout_hdf5_target(const mgr_config *config, const mgr_origin *origin, mgr_layout *into,
                              void **state, mgr_err *err)
{
    (void)origin;
    const uint32_t ep = into->tensors->model.experts ? (uint32_t)config->target.expert_parallel : 0;
    const mgr_flat flat = {(uint32_t)into->cat->n_files, 1 + ep};
    mgr_hdf5_context *context;
    uint32_t file;
    MGR_TRY(mgr_alloc(&context, 1, sizeof *context, err));
    *state = context; /* released with the target, also after an error */
    MGR_TRY(mgr_catalogue_add_file(into->cat, MGR_HDF5_SHARED, 0, &file, err));
    for (uint32_t r = 0; r < ep; r++) {
        char path[64];
        snprintf(path, sizeof path, MGR_HDF5_EXPERTS "%05u-of-%05u.h5", r, ep);
        MGR_TRY(mgr_catalogue_add_file(into->cat, path, 0, &file, err));
    }
    return mgr_flat_layout(into, &flat, err);
}

static void release_hdf5_target(void *state)
{
    mgr_hdf5_context *const context = state;
    if (context) {
        mgr_buf_clear(&context->directory);
        mgr_hdf5_room_clear(&context->room);
    }
    mgr_free(context);
}

static const mgr_container *choose(const mgr_config *config)
{
    return strcmp(config->target.compression, "deflate") == 0 ? &mgr_container_hdf5_deflate
                                                              : &mgr_container_hdf5;
}

static int add_links(mgr_h5 *h, const mgr_catalogue *cat, mgr_err *err)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        MGR_TRY(mgr_h5_add_link(h, cat->stored[i].name, cat->files[cat->stored[i].file].path, err));
    return MGR_OK;
}

static int add_json(mgr_h5 *h, const char *name, const json_t *value, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = value ? mgr_json_dump(value, 2, &text, err)
                   : mgr_fail(err, MGR_ERR_NOMEM, "no memory to make '%s'", name);
    if (rc == MGR_OK)
        rc = mgr_h5_add_text(h, name, text.data, text.len, err);
    mgr_buf_clear(&text);
    return rc;
}

static int add_manifest(mgr_h5 *h, const char *directory, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/mgr-manifest.json", directory);
    if (rc == MGR_OK)
        rc = mgr_read_file(path.data, MAX_MANIFEST, &text, err);
    if (rc == MGR_OK)
        rc = mgr_h5_add_text(h, "mgr/manifest.json", text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

static int add_tokenizer(mgr_h5 *h, const char *directory, mgr_err *err)
{
    json_t *const list = json_array();
    mgr_arena arena = {0};
    const char **names;
    size_t n = 0;
    int rc = mgr_list_dir(directory, &arena, &names, &n, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        if (mgr_tokenizer_is_file(names[i]) || mgr_tokenizer_is_companion(names[i]))
            json_array_append_new(list, json_string(names[i]));
    if (rc == MGR_OK)
        rc = add_json(h, "mgr/tokenizer.json", list, err);
    json_decref(list);
    mgr_arena_clear(&arena);
    return rc;
}

static int fill_model(mgr_h5 *h, const mgr_output *target, const char *directory,
                      const json_t *config, mgr_err *err)
{
    json_t *const model =
        mgr_hdf5_model_json(&target->layout->tensors->model, target->layout->dtype);
    int rc = add_json(h, MGR_HDF5_MODEL, model, err);
    json_decref(model);
    if (rc == MGR_OK)
        rc = add_json(h, "mgr/config.json", config, err);
    if (rc == MGR_OK)
        rc = add_tokenizer(h, directory, err);
    if (rc == MGR_OK)
        rc = add_manifest(h, directory, err);
    return rc != MGR_OK ? rc : add_links(h, target->layout->cat, err);
}

/* model.h5 last: it is what makes the directory a checkpoint. */
static int sidecars_hdf5_target(const mgr_output *target, const char *directory, mgr_err *err)
{
    json_t *config;
    mgr_buf path = {0};
    mgr_h5 *h;
    int fd = -1;
    MGR_TRY(mgr_huggingface_small_files(target, directory, &config, err));
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_HDF5_INDEX, directory);
    if (rc == MGR_OK)
        rc = mgr_h5_create(&h, path.data, err);
    if (rc == MGR_OK) {
        rc = fill_model(h, target, directory, config, err);
        const int closed = mgr_h5_close(h, err);
        rc = rc != MGR_OK ? rc : closed;
    }
    if (rc == MGR_OK)
        rc = mgr_open_write(path.data, &fd, err);
    if (rc == MGR_OK)
        rc = mgr_sync_close(fd, path.data, err);
    json_decref(config);
    mgr_buf_clear(&path);
    return rc;
}

static const mgr_key keys[] = {
    MGR_ROW_EXPERT_PARALLEL,
    MGR_ROW_CONFIG,
    MGR_ROW_CHOICE("target.compression", target.compression, "none", "none|deflate",
                   "deflate: each piece of rows is shuffled by bytes and deflated"),
};

const mgr_target_format mgr_target_hdf5 = {
    .name = "hdf5",
    .complete = mgr_huggingface_fill,
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "hdf5", keys),
    .container = &mgr_container_hdf5,
    .opaque = true,
    .choose = choose,
    .check = check_hdf5_target,
    .layout = layout_hdf5_target,
    .review = mgr_huggingface_review,
    .sidecars = sidecars_hdf5_target,
    .release = release_hdf5_target,
};
