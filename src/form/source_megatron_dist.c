/*
 * Source `megatron-dist`: iter_%07d or release with metadata.json, .metadata, common.pt (up to core
 * 0.18) and __<rank>_<n>.distcp (megatron/core/dist_checkpointing). Listed are .metadata, which
 * proves that the chunks tile their tensors, common.pt, and each file that has an item of ours.
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/torch_file.h"
#include "form/dcp_chunks.h"
#include "form/format_keys.h"
#include "form/megatron_root.h"
#include "form/megatron_write.h"
#include "form/source.h"
#include "io/file.h"
#include "model/megatron_dist.h"
#include "model/megatron_kin_dist.h"

#define COMMON "common.pt"
#define COMMON_OBJECT "common_state/shard_0_1"

extern const mgr_source_format mgr_source_megatron_dist;

/* ---- .metadata ---- */

/* "chained_<n>." precedes the keys of models with several optimizers. */
static bool is_optimizer(const char *key)
{
    if (mgr_has_prefix(key, "chained_")) {
        const char *const dot = strchr(key, '.');
        key = dot ? dot + 1 : key;
    }
    return mgr_has_prefix(key, "optimizer") || mgr_has_prefix(key, "opt_param_scheduler");
}

/* Tensors are weights until their keys say otherwise; objects never are. */
static mgr_skip sort_weights(const char *key, bool tensor)
{
    if (is_optimizer(key))
        return MGR_SKIP_OPTIMIZER;
    if (mgr_has_prefix(key, "rng_state"))
        return MGR_SKIP_RNG;
    if (mgr_has_suffix(key, "_extra_state") || strstr(key, "_extra_state/shard_"))
        return MGR_SKIP_EXTRA_STATE;
    if (mgr_has_prefix(key, "rerun_state"))
        return MGR_SKIP_OTHER;
    return tensor || strcmp(key, COMMON_OBJECT) == 0 ? MGR_SKIP_COUNT : MGR_SKIP_OTHER;
}

/* The same with the masters, or with all that an optimizer keeps of a parameter. */
static mgr_skip sort_masters(const char *key, bool tensor)
{
    return tensor && mgr_megatron_dist_plane(key) == MGR_PLANE_MASTER ? MGR_SKIP_COUNT
                                                                      : sort_weights(key, tensor);
}

static mgr_skip sort_planes(const char *key, bool tensor)
{
    return tensor && mgr_megatron_dist_plane(key) != MGR_PLANE_WEIGHT ? MGR_SKIP_COUNT
                                                                      : sort_weights(key, tensor);
}

static int hold(const mgr_config *config, const char *directory, void **held, mgr_err *err)
{
    const bool masters = strcmp(config->source.weights, "masters") == 0;
    const mgr_dcp *dcp;
    return mgr_dcp_hold(held, directory,
                        config->source.planes ? sort_planes
                        : masters             ? sort_masters
                                              : sort_weights,
                        &dcp, err);
}

/* ---- files ---- */

/* torch.distributed.checkpoint of a model of transformers: source_torch_dcp.c. */
static bool has_config(const char *path)
{
    mgr_buf config = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const bool is = mgr_buf_fmt(&config, &ignored, "%s/config.json", path) == MGR_OK &&
                    mgr_path_exists(config.data);
    mgr_buf_clear(&config);
    return is;
}

static bool probe_megatron_dist_source(const char *path)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char *directory;
    bool found = false;
    if (mgr_megatron_find_iteration(path, "latest", &arena, &directory, &ignored) == MGR_OK) {
        const mgr_megatron_kind kind = mgr_megatron_kind_of(directory);
        found = kind == MGR_MEGATRON_DIST || (kind == MGR_MEGATRON_DCP && !has_config(directory));
    } else if (!mgr_megatron_has_tracker(path)) {
        const mgr_megatron_kind kind = mgr_megatron_kind_below(path);
        found = kind == MGR_MEGATRON_DIST || (kind == MGR_MEGATRON_DCP && !has_config(path));
    }
    mgr_arena_clear(&arena);
    return found;
}

/* metadata.json := {"sharded_backend": "torch_dist", "sharded_backend_version": 1, ...} */
static int check_backend(const char *name, const json_t *root, mgr_err *err)
{
    const json_t *const backend = json_object_get(root, "sharded_backend");
    const json_t *const version = json_object_get(root, "sharded_backend_version");
    char shown[64];
    if (!json_is_string(backend))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names no sharded_backend", name);
    const char *const text = json_string_value(backend);
    if (strcmp(text, "torch_dist") != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s': sharded_backend '%s' is not supported; known is torch_dist", name,
                        mgr_printable(text, strlen(text), shown, sizeof shown));
    if (version && (!json_is_integer(version) || json_integer_value(version) != 1))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s': sharded_backend_version is not 1, the one that is known", name);
    return MGR_OK;
}

static int check_manifest(const char *directory, mgr_arena *arena, mgr_err *err)
{
    const char *path;
    mgr_buf text = {0};
    json_t *root = NULL;
    MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/metadata.json", directory));
    int rc = mgr_read_file(path, 1 << 20, &text, err);
    if (rc == MGR_OK)
        rc = mgr_json_parse(&root, path, text.data ? text.data : "", text.len, err);
    if (rc == MGR_OK)
        rc = check_backend(path, root, err);
    json_decref(root);
    mgr_buf_clear(&text);
    return rc;
}

static int check_kind(const char *directory, mgr_arena *arena, mgr_err *err)
{
    switch (mgr_megatron_kind_of(directory)) {
    case MGR_MEGATRON_DIST:
        return check_manifest(directory, arena, err);
    case MGR_MEGATRON_DCP:
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has '.metadata' and no 'metadata.json': the formats fsdp_dtensor and "
                 "torch_dcp are not supported, and torch_dist is incomplete without it",
                 directory);
        return mgr_hint(err, "load it in the trainer that saved it, and save it with --ckpt-format "
                             "torch_dist; of a model of transformers, set 'source.format: "
                             "torch-dcp' and 'source.config'");
    case MGR_MEGATRON_TORCH:
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of the format torch", directory);
        return mgr_hint(err, "set 'source.format: megatron-torch'");
    case MGR_MEGATRON_NONE:
        break;
    }
    return mgr_fail(err, MGR_ERR_NOT_FOUND, "no 'metadata.json' in '%s'", directory);
}

static int find_megatron_dist_source(const mgr_config *config, mgr_arena *arena,
                                     mgr_source_files *files, mgr_err *err)
{
    const mgr_dcp *dcp;
    MGR_TRY(mgr_megatron_find_iteration(config->source.path, config->source.iteration, arena,
                                        &files->directory, err));
    MGR_TRY(check_kind(files->directory, arena, err));
    MGR_TRY(hold(config, files->directory, &files->held, err));
    dcp = files->held;
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, (dcp->n_paths + 2) * sizeof *files->paths, err));
    MGR_TRY(mgr_arena_fmt(arena, &files->paths[0], err, "%s/" MGR_DCP_METADATA, files->directory));
    MGR_TRY(mgr_arena_fmt(arena, &files->paths[1], err, "%s/" COMMON, files->directory));
    files->n = mgr_path_exists(files->paths[1]) ? 2 : 1;
    for (size_t i = 0; i < dcp->n_paths; i++)
        MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", files->directory,
                              dcp->paths[i]));
    return MGR_OK;
}

/* ---- reading ---- */

static int read_chunk(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                      const mgr_dcp *dcp, const mgr_dcp_item *item, mgr_err *err)
{
    const int rc = mgr_dcp_read_chunk(dcp, item, cat, file, reader, err);
    return dcp->entries[item->entry].fp8
               ? mgr_hint(err, "save the checkpoint without --fp8-param-gather")
               : rc;
}

/* Are moments among what is read, and so their optimizer's settings? */
static bool has_moments(const mgr_dcp *dcp)
{
    for (size_t i = 0; i < dcp->n_entries; i++)
        if (dcp->entries[i].tensor &&
            mgr_megatron_dist_plane(dcp->entries[i].name) >= MGR_PLANE_EXP_AVG)
            return true;
    return false;
}

static int read_common(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                       const char *directory, const mgr_dcp *dcp, const mgr_dcp_item *item,
                       mgr_err *err)
{
    mgr_buf path = {0};
    mgr_reader window;
    int rc = mgr_buf_fmt(&path, err, "%s/" COMMON, directory);
    const bool other = rc == MGR_OK && mgr_path_exists(path.data); /* Megatron prefers it */
    if (rc == MGR_OK && !other)
        rc = mgr_reader_window(&window, reader, item->offset, item->length, err);
    if (rc == MGR_OK && !other)
        rc = mgr_torch_file_read_common(cat, file, &window, has_moments(dcp), err);
    mgr_buf_clear(&path);
    return rc == MGR_OK ? rc : mgr_wrap(err, "object '" COMMON_OBJECT "'");
}

static int read_common_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                            const char *directory, void **held, mgr_err *err)
{
    const mgr_dcp *dcp;
    MGR_TRY(mgr_dcp_hold(held, directory, sort_weights, &dcp, err));
    return mgr_torch_file_read_common(cat, file, reader, has_moments(dcp), err);
}

static int read_items(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                      const char *directory, void **held, mgr_err *err)
{
    const mgr_dcp *dcp;
    size_t first, n;
    MGR_TRY(mgr_dcp_hold(held, directory, sort_weights, &dcp, err));
    mgr_dcp_items_of(dcp, strrchr(reader->name, '/') + 1, &first, &n);
    int rc = MGR_OK;
    for (size_t i = first; rc == MGR_OK && i < first + n; i++)
        rc = dcp->items[i].chunk == SIZE_MAX
                 ? read_common(cat, file, reader, directory, dcp, &dcp->items[i], err)
                 : read_chunk(cat, file, reader, dcp, &dcp->items[i], err);
    return rc;
}

static int count_skipped(mgr_catalogue *cat, const char *directory, void **held, mgr_err *err)
{
    const mgr_dcp *dcp;
    MGR_TRY(mgr_dcp_hold(held, directory, sort_weights, &dcp, err));
    mgr_dcp_count_skipped(dcp, cat);
    return MGR_OK;
}

static int read_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, void **held,
                     mgr_err *err)
{
    mgr_arena arena = {0};
    const char *directory;
    int rc = mgr_dirname(reader->name, &arena, &directory, err);
    if (rc == MGR_OK && mgr_has_suffix(reader->name, "/" MGR_DCP_METADATA))
        rc = count_skipped(cat, directory, held, err);
    else if (rc == MGR_OK && mgr_has_suffix(reader->name, "/" COMMON))
        rc = read_common_file(cat, file, reader, directory, held, err);
    else if (rc == MGR_OK)
        rc = read_items(cat, file, reader, directory, held, err);
    mgr_arena_clear(&arena);
    return rc;
}

/* ---- the model ---- */

typedef struct state {
    mgr_megatron_dist dist;
    size_t n_chunks;
} state;

static void release_megatron_dist_source(void *opaque)
{
    mgr_free(opaque);
}

/* What an optimizer has of opaque tensors is not looked for. */
static int check_optimizer(const mgr_catalogue *cat, const mgr_config *config,
                           const mgr_megatron_dist *dist, mgr_err *err)
{
    const bool planes = config->source.planes && config->source.planes != MGR_PLANES_FOUND;
    if (!dist->kin || (!dist->masters && !planes))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' is of a model of which nothing but the FFNs is understood, and its optimizer is "
             "not read",
             cat->n_files ? cat->files[0].path : "");
    return mgr_hint(err, planes ? "set 'target.optimizer: none' and 'source.weights: copies'"
                                : "set 'source.weights: copies'");
}

static int describe_megatron_dist_source(const mgr_catalogue *cat, const mgr_config *config,
                                         void **out, mgr_model *model, mgr_err *err)
{
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    s->n_chunks = cat->n_stored;
    int rc = mgr_megatron_dist_model(cat, config, &s->dist, model, err);
    if (rc == MGR_OK)
        rc = check_optimizer(cat, config, &s->dist, err);
    if (rc == MGR_OK)
        *out = s;
    else
        release_megatron_dist_source(s);
    return rc;
}

static int opaque_megatron_dist_source(const void *opaque, const mgr_catalogue *cat,
                                       mgr_tensors *tensors, mgr_err *err)
{
    (void)opaque;
    return mgr_kin_dist_opaque(tensors, cat, err);
}

static int layout_megatron_dist_source(const void *opaque, mgr_layout *into, mgr_err *err)
{
    const state *const s = opaque;
    return mgr_megatron_dist_layout(into, &s->dist, err);
}

static int summary_megatron_dist_source(const void *opaque, mgr_buf *out, mgr_err *err)
{
    const state *const s = opaque;
    MGR_TRY(mgr_buf_fmt(out, err, "torch_dist, %zu chunks, %s%s", s->n_chunks,
                        s->dist.hybrid    ? "a HybridModel's layers"
                        : s->dist.stacked ? "stacked layers"
                                          : "a key per layer",
                        s->dist.singleton ? ", gate and up apart" : ""));
    return s->dist.masters ? mgr_buf_text(out, ", float32 masters", err) : MGR_OK;
}

static unsigned planes_megatron_dist_source(const mgr_catalogue *cat)
{
    unsigned planes = 0;
    for (size_t i = 0; i < cat->n_stored && !mgr_megatron_kin_of(cat); i++)
        planes |= 1u << mgr_megatron_dist_plane(cat->stored[i].name);
    return planes & MGR_PLANES_KEPT;
}

static const mgr_key keys[] = {
    MGR_ROW_SOURCE_ITERATION,
    MGR_ROW_UNKNOWN,
    MGR_ROW_MTP,
    MGR_ROW_CHOICE("source.weights", source.weights, "auto", "auto|copies|masters",
                   "the parameters (auto), or the float32 masters that an optimizer has of them"),
    MGR_ROW_BOOL("source.sha256", source.sha256, "false",
                 "compare every file with integrity.json; reads the source once more"),
};

static int review_megatron_dist_source(const void *opaque, const mgr_catalogue *cat,
                                       const mgr_config *config, mgr_remarks *remarks, mgr_err *err)
{
    (void)opaque;
    return mgr_megatron_source_review(cat, config, remarks, err);
}

const mgr_source_format mgr_source_megatron_dist = {
    .name = "megatron-dist",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "megatron-dist", keys),
    .planes = planes_megatron_dist_source,
    .probe = probe_megatron_dist_source,
    .find = find_megatron_dist_source,
    .begin = hold,
    .read = read_file,
    .forget = mgr_dcp_forget,
    .describe = describe_megatron_dist_source,
    .opaque = opaque_megatron_dist_source,
    .layout = layout_megatron_dist_source,
    .summary = summary_megatron_dist_source,
    .review = review_megatron_dist_source,
    .release = release_megatron_dist_source,
};
