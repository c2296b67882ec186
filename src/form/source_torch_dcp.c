/*
 * Source `torch-dcp`: the state dict of a model of transformers as torch.distributed.checkpoint
 * saves it, in pieces of its ranks: `.metadata` and *.distcp, or the shards of its
 * HuggingFaceStorageWriter. What the model is, a config.json says, in the same folder or elsewhere.
 */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/safetensors.h"
#include "fmt/safetensors_pieces.h"
#include "form/dcp_chunks.h"
#include "form/format_keys.h"
#include "form/huggingface_config_file.h"
#include "form/source.h"
#include "form/strange.h"
#include "io/file.h"
#include "model/megatron_dist.h"
#include "model/pieces.h"

#define CONFIG "config.json"
#define SHARDS "shard-*-model-*.safetensors"

extern const mgr_source_format mgr_source_torch_dcp;

/* ---- which files ---- */

static bool has(const char *folder, const char *name)
{
    mgr_buf path = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const bool is = mgr_buf_fmt(&path, &ignored, "%s/%s", folder, name) == MGR_OK &&
                    mgr_path_exists(path.data) && !mgr_is_dir(path.data);
    mgr_buf_clear(&path);
    return is;
}

/* Those that HuggingFaceStorageWriter makes of each rank's pieces, by name. */
static int list_shards(const char *folder, mgr_arena *arena, const char ***out, size_t *n,
                       mgr_err *err)
{
    size_t all;
    MGR_TRY(mgr_list_dir(folder, arena, out, &all, err));
    *n = 0;
    for (size_t i = 0; i < all; i++)
        if (fnmatch(SHARDS, (*out)[i], 0) == 0)
            (*out)[(*n)++] = (*out)[i];
    return MGR_OK;
}

/* A folder whose weights transformers would load is one of its own, and what has a metadata.json is
 * Megatron's. */
static bool probe_torch_dcp_source(const char *path)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char **shards;
    size_t n = 0;
    if (!mgr_is_dir(path) || has(path, "model.safetensors") ||
        has(path, "model.safetensors.index.json"))
        return false;
    if (has(path, MGR_DCP_METADATA))
        return has(path, CONFIG) && !has(path, "metadata.json");
    const bool found = list_shards(path, &arena, &shards, &n, &ignored) == MGR_OK && n > 0;
    mgr_arena_clear(&arena);
    return found;
}

/* What is no tensor of the model: an optimizer's state, a scheduler's, a data loader's. */
static mgr_skip sort_key(const char *key, bool tensor)
{
    if (mgr_has_prefix(key, "optim"))
        return MGR_SKIP_OPTIMIZER;
    return tensor ? MGR_SKIP_COUNT : MGR_SKIP_OTHER;
}

/* The config.json that the user names, or that lies with the files or one folder above. */
static int find_config(const mgr_config *config, const char *root, mgr_arena *arena,
                       const char **out, mgr_err *err)
{
    const char *const said = config->source.config, *above;
    if (*said)
        return mgr_huggingface_config_named(said, arena, out, err);
    MGR_TRY(mgr_dirname(root, arena, &above, err));
    const char *const place = has(root, CONFIG) ? root : above;
    if (has(place, CONFIG))
        return mgr_arena_fmt(arena, out, err, "%s/" CONFIG, place);
    mgr_fail(err, MGR_ERR_CONFIG, "no " CONFIG " in '%s', which says what the model is", root);
    return mgr_hint(err, "name the folder with it: source.config");
}

static int add_files(const char *root, const char *first, const char *const *names, size_t n,
                     mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    const char *const config = files->paths[0];
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, (n + 2) * sizeof *files->paths, err));
    files->paths[0] = config;
    files->n = 1;
    if (first)
        MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", root, first));
    for (size_t i = 0; i < n; i++)
        MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", root, names[i]));
    return MGR_OK;
}

/* config.json, then `.metadata` if there is one, then the pieces. */
static int find_torch_dcp_source(const mgr_config *config, mgr_arena *arena,
                                 mgr_source_files *files, mgr_err *err)
{
    const char *const root = config->source.path;
    const mgr_dcp *dcp;
    const char **shards;
    size_t n;
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, sizeof *files->paths, err));
    MGR_TRY(find_config(config, root, arena, &files->paths[0], err));
    MGR_TRY(mgr_dirname(files->paths[0], arena, &files->directory, err));
    if (has(root, MGR_DCP_METADATA)) {
        MGR_TRY(mgr_dcp_hold(&files->held, root, sort_key, &dcp, err));
        return add_files(root, MGR_DCP_METADATA, dcp->paths, dcp->n_paths, arena, files, err);
    }
    MGR_TRY(list_shards(root, arena, &shards, &n, err));
    if (n == 0)
        return mgr_fail(err, MGR_ERR_NOT_FOUND,
                        "neither '" MGR_DCP_METADATA "' nor '" SHARDS "' in '%s'", root);
    return add_files(root, NULL, shards, n, arena, files, err);
}

/* ---- headers ---- */

static int read_items(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, void **held,
                      mgr_err *err)
{
    mgr_arena arena = {0};
    const char *directory;
    const mgr_dcp *dcp = NULL;
    size_t first = 0, n = 0;
    int rc = mgr_dirname(reader->name, &arena, &directory, err);
    if (rc == MGR_OK)
        rc = mgr_dcp_hold(held, directory, sort_key, &dcp, err);
    if (rc == MGR_OK && mgr_has_suffix(reader->name, "/" MGR_DCP_METADATA))
        mgr_dcp_count_skipped(dcp, cat);
    else if (rc == MGR_OK)
        mgr_dcp_items_of(dcp, strrchr(reader->name, '/') + 1, &first, &n);
    for (size_t i = first; rc == MGR_OK && i < first + n; i++)
        if (dcp->items[i].chunk != SIZE_MAX)
            rc = mgr_dcp_read_chunk(dcp, &dcp->items[i], cat, file, reader, err);
    mgr_arena_clear(&arena);
    return rc;
}

/* The name of a tensor of a shard, with its offsets behind it. */
static int name_piece(mgr_catalogue *cat, mgr_stored *s, const json_t *info, mgr_err *err)
{
    const json_t *const at = json_object_get(json_object_get(info, s->name), "saved_offsets");
    uint64_t offset[MGR_MAX_NDIM] = {0};
    mgr_buf name = {0};
    bool good = json_is_array(at) && json_array_size(at) == s->ndim;
    for (uint32_t d = 0; good && d < s->ndim; d++) {
        const json_t *const o = json_array_get(at, d);
        good = json_is_integer(o) && json_integer_value(o) >= 0;
        offset[d] = good ? (uint64_t)json_integer_value(o) : 0;
    }
    if (!good)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' does not say where its tensor '%s' lies: no saved_offsets for its "
                        "%u axes",
                        cat->files[s->file].path, s->name, s->ndim);
    int rc = mgr_megatron_dist_name(&name, s->name, s->ndim, offset, err);
    s->name = name.data;
    if (rc == MGR_OK)
        rc = mgr_catalogue_own(cat, &s->name, err);
    mgr_buf_clear(&name);
    return rc;
}

static int read_shard(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    const size_t first = cat->n_stored;
    json_t *info;
    MGR_TRY(mgr_strange_file(reader, err));
    MGR_TRY(mgr_safetensors_read(cat, file, reader, err));
    MGR_TRY(mgr_safetensors_sharding(reader, &info, err));
    int rc = MGR_OK;
    for (size_t i = first; rc == MGR_OK && i < cat->n_stored; i++)
        rc = name_piece(cat, &cat->stored[i], info, err);
    json_decref(info);
    return rc;
}

static int read_torch_dcp_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               void **held, mgr_err *err)
{
    if (mgr_has_suffix(reader->name, ".json"))
        return mgr_huggingface_read_config(cat, file, reader, err);
    return mgr_has_suffix(reader->name, ".safetensors") ? read_shard(cat, file, reader, err)
                                                        : read_items(cat, file, reader, held, err);
}

/* ---- what was found ---- */

static void release_torch_dcp_source(void *state)
{
    if (state)
        mgr_pieces_clear(state);
    mgr_free(state);
}

static int describe_torch_dcp_source(const mgr_catalogue *cat, const mgr_config *config, void **out,
                                     mgr_model *model, mgr_err *err)
{
    mgr_pieces *ps;
    MGR_TRY(mgr_alloc(&ps, 1, sizeof *ps, err));
    int rc = mgr_pieces_view(cat, ps, err);
    if (rc == MGR_OK)
        rc = mgr_strange_tensors(&ps->view, err);
    if (rc == MGR_OK)
        rc = mgr_huggingface_model(&ps->view, config, &ps->hf, model, err);
    if (rc == MGR_OK)
        *out = ps;
    else
        release_torch_dcp_source(ps);
    return rc;
}

static int opaque(const void *state, const mgr_catalogue *cat, mgr_tensors *tensors, mgr_err *err)
{
    const mgr_pieces *const ps = state;
    (void)cat;
    return mgr_huggingface_opaque(&ps->view, &ps->hf, tensors, err);
}

static int layout_torch_dcp_source(const void *state, mgr_layout *into, mgr_err *err)
{
    return mgr_pieces_layout(into, state, err);
}

static int summary_torch_dcp_source(const void *state, mgr_buf *out, mgr_err *err)
{
    const mgr_pieces *const ps = state;
    return mgr_buf_fmt(out, err, "%s, %zu tensors in %zu pieces",
                       ps->hf.type ? ps->hf.type : mgr_huggingface_family(ps->hf.class)->name,
                       ps->view.n_stored, ps->n);
}

static int review_torch_dcp_source(const void *state, const mgr_catalogue *cat,
                                   const mgr_config *config, mgr_remarks *remarks, mgr_err *err)
{
    const mgr_pieces *const ps = state;
    (void)cat;
    (void)config;
    return mgr_huggingface_review_config(&ps->hf, &ps->view, remarks, err);
}

static const mgr_key keys[] = {
    MGR_ROW_UNKNOWN,
    MGR_ROW_MTP,
    MGR_ROW_SOURCE_CONFIG,
};

const mgr_source_format mgr_source_torch_dcp = {
    .name = "torch-dcp",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "torch-dcp", keys),
    .probe = probe_torch_dcp_source,
    .find = find_torch_dcp_source,
    .read = read_torch_dcp_file,
    .forget = mgr_dcp_forget,
    .describe = describe_torch_dcp_source,
    .opaque = opaque,
    .layout = layout_torch_dcp_source,
    .summary = summary_torch_dcp_source,
    .review = review_torch_dcp_source,
    .release = release_torch_dcp_source,
};
