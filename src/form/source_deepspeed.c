/*
 * Source `deepspeed`: a ZeRO or universal checkpoint of a model of transformers, as moe-recipes and
 * Trainer save it. The float32 masters of the optimizer are the weights. What the model is, its
 * config.json says, which lies elsewhere.
 */
#include <string.h>

#include "core/mem.h"
#include "fmt/deepspeed_file.h"
#include "form/deepspeed_root.h"
#include "form/deepspeed_view.h"
#include "form/format_keys.h"
#include "form/huggingface_config_file.h"
#include "form/source.h"
#include "form/strange.h"
#include "io/file.h"

#define CONFIG "config.json"

extern const mgr_source_format mgr_source_deepspeed;

/* ---- which files ---- */

static bool is_file(const char *path)
{
    return mgr_path_exists(path) && !mgr_is_dir(path);
}

/* A folder whose weights transformers would load is one of its own. */
static bool has_weights(const char *path)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char *file;
    bool found = false;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !found; i++)
        found = mgr_arena_fmt(&arena, &file, &ignored, "%s/%s", path, names[i]) == MGR_OK &&
                is_file(file);
    mgr_arena_clear(&arena);
    return found;
}

static bool probe_deepspeed_source(const char *path)
{
    return !has_weights(path) && mgr_deepspeed_is(path);
}

/* Else one that lies with the files, or above them up to `root`; *out is NULL without one. */
static int config_beside(const char *folder, const char *root, mgr_arena *arena, const char **out,
                         mgr_err *err)
{
    const char *at = folder;
    for (int level = 0; level < MGR_DEEPSPEED_LEVELS; level++) {
        MGR_TRY(mgr_arena_fmt(arena, out, err, "%s/" CONFIG, at));
        if (is_file(*out))
            return MGR_OK;
        if (strcmp(at, root) == 0)
            break;
        MGR_TRY(mgr_dirname(at, arena, &at, err));
    }
    *out = NULL;
    return MGR_OK;
}

/* What is held between `find` and `read` says only that moments are asked for. */
static int begin_deepspeed_source(const mgr_config *config, const char *directory, void **held,
                                  mgr_err *err)
{
    static char moments;
    (void)directory;
    (void)err;
    *held = config->source.planes ? &moments : NULL;
    return MGR_OK;
}

/* config.json first, then the model's files, then the optimizer's. The folder is that of the
 * config: what belongs to the model, such as its tokenizer, lies there. */
static int find_deepspeed_source(const mgr_config *config, mgr_arena *arena,
                                 mgr_source_files *files, mgr_err *err)
{
    const char *const root = config->source.path;
    const char *folder, *json;
    MGR_TRY(mgr_deepspeed_folder(root, config->source.iteration, arena, &folder, err));
    MGR_TRY(config->source.config[0]
                ? mgr_huggingface_config_named(config->source.config, arena, &json, err)
                : config_beside(folder, root, arena, &json, err));
    files->directory = folder;
    files->n = 0;
    if (json) {
        MGR_TRY(mgr_dirname(json, arena, &files->directory, err));
        MGR_TRY(mgr_arena_alloc(arena, &files->paths, sizeof *files->paths, err));
        files->paths[files->n++] = json;
    }
    MGR_TRY(begin_deepspeed_source(config, folder, &files->held, err));
    return mgr_deepspeed_files(folder, files->held, arena, files, err);
}

/* ---- headers ---- */

/* Of a universal checkpoint; *is tells whether it was one. */
static int read_param(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, bool *is,
                      mgr_err *err)
{
    const mgr_plane plane = mgr_deepspeed_plane(reader->name);
    const char *const prefix = plane == MGR_PLANE_EXP_AVG      ? MGR_DS_EXP_AVG
                               : plane == MGR_PLANE_EXP_AVG_SQ ? MGR_DS_EXP_AVG_SQ
                                                               : "";
    mgr_arena arena = {0};
    const char *name;
    int rc = mgr_deepspeed_param(reader->name, &arena, &name, err);
    *is = rc == MGR_OK && name;
    if (*is)
        rc = mgr_strange_file(reader, err);
    if (*is && rc == MGR_OK)
        rc = mgr_arena_fmt(&arena, &name, err, "%s%s", prefix, name);
    if (*is && rc == MGR_OK)
        rc = mgr_deepspeed_read_param(cat, file, reader, name, err);
    mgr_arena_clear(&arena);
    return rc;
}

static int read_rank(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                     const mgr_zero_name *name, bool moments, mgr_err *err)
{
    const bool first = name->rank == 0;
    MGR_TRY(mgr_strange_file(reader, err));
    return name->optimizer ? mgr_deepspeed_read_optimizer(cat, file, reader, moments, first, err)
                           : mgr_deepspeed_read_model(cat, file, reader, first, err);
}

static int read_deepspeed_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               void **held, mgr_err *err)
{
    const char *const slash = strrchr(reader->name, '/');
    mgr_zero_name name;
    bool param;
    MGR_TRY(read_param(cat, file, reader, &param, err));
    if (param)
        return MGR_OK;
    if (mgr_deepspeed_is_settings(reader->name))
        return mgr_deepspeed_read_settings(cat, file, reader, err);
    if (mgr_deepspeed_is_step(reader->name))
        return mgr_deepspeed_read_step(cat, file, reader, err);
    if (!mgr_deepspeed_name(slash ? slash + 1 : reader->name, &name))
        return mgr_huggingface_read_config(cat, file, reader, err);
    return read_rank(cat, file, reader, &name, *held, err);
}

/* ---- what was found ---- */

static void release_deepspeed_source(void *state)
{
    if (state)
        mgr_deepspeed_clear(state);
    mgr_free(state);
}

static int need_config(const mgr_catalogue *cat, mgr_err *err)
{
    if (mgr_deepspeed_config(cat) != MGR_NONE)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_CONFIG,
             "'%s' and the files beside it do not say what the model is; source.config does",
             cat->files[0].path);
    return mgr_hint(err, "name the folder with its config.json: source.config");
}

static int describe_deepspeed_source(const mgr_catalogue *cat, const mgr_config *config, void **out,
                                     mgr_model *model, mgr_err *err)
{
    const bool copies = strcmp(config->source.weights, "copies") == 0;
    mgr_deepspeed *ds;
    MGR_TRY(mgr_alloc(&ds, 1, sizeof *ds, err));
    int rc = mgr_deepspeed_view(cat, copies, ds, err);
    ds->hf = (mgr_huggingface){.config = 0, .first_file = 1, .n_files = 1};
    if (rc == MGR_OK)
        rc = need_config(cat, err);
    if (rc == MGR_OK)
        rc = mgr_strange_tensors(&ds->view, err);
    if (rc == MGR_OK)
        rc = mgr_huggingface_model(&ds->view, config, &ds->hf, model, err);
    if (rc == MGR_OK)
        *out = ds;
    else
        release_deepspeed_source(ds);
    return rc;
}

static int layout_deepspeed_source(const void *state, mgr_layout *into, mgr_err *err)
{
    return mgr_deepspeed_layout(into, state, err);
}

static int summary_deepspeed_source(const void *state, mgr_buf *out, mgr_err *err)
{
    const mgr_deepspeed *const ds = state;
    if (ds->universal)
        return mgr_buf_fmt(out, err, "universal checkpoint, %zu parameters, %s", ds->view.n_stored,
                           mgr_huggingface_family(ds->hf.class)->name);
    return mgr_buf_fmt(out, err, "%s, %u rank%s, %u %sgroup%s, %s",
                       ds->zero3 ? "ZeRO-3" : "ZeRO-1 or 2", ds->ranks, ds->ranks == 1 ? "" : "s",
                       ds->groups, ds->zero3 ? "sub-" : "", ds->groups == 1 ? "" : "s",
                       mgr_huggingface_family(ds->hf.class)->name);
}

static int review_deepspeed_source(const void *state, const mgr_catalogue *cat,
                                   const mgr_config *config, mgr_remarks *remarks, mgr_err *err)
{
    const mgr_deepspeed *const ds = state;
    (void)cat;
    (void)config;
    return mgr_huggingface_review_config(&ds->hf, &ds->view, remarks, err);
}

static unsigned planes_deepspeed_source(const mgr_catalogue *cat)
{
    unsigned planes = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_plane plane = mgr_deepspeed_plane(cat->files[cat->stored[i].file].path);
        const char *const name = cat->stored[i].name;
        const bool flat = plane == MGR_PLANE_COUNT;
        if (plane == MGR_PLANE_EXP_AVG || (flat && mgr_has_prefix(name, MGR_DS_EXP_AVG)))
            planes |= 1u << MGR_PLANE_EXP_AVG;
        if (plane == MGR_PLANE_EXP_AVG_SQ || (flat && mgr_has_prefix(name, MGR_DS_EXP_AVG_SQ)))
            planes |= 1u << MGR_PLANE_EXP_AVG_SQ;
    }
    return planes;
}

static const mgr_key keys[] = {
    MGR_ROW_SOURCE_ITERATION,
    MGR_ROW_UNKNOWN,
    MGR_ROW_SOURCE_CONFIG,
    MGR_ROW_CHOICE("source.weights", source.weights, "auto", "auto|masters|copies",
                   "the float32 masters (auto), or the copies that ZeRO-1 and 2 have of them"),
};

const mgr_source_format mgr_source_deepspeed = {
    .name = "deepspeed",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "deepspeed", keys),
    .planes = planes_deepspeed_source,
    .masters = true,
    .probe = probe_deepspeed_source,
    .find = find_deepspeed_source,
    .begin = begin_deepspeed_source,
    .read = read_deepspeed_file,
    .describe = describe_deepspeed_source,
    .layout = layout_deepspeed_source,
    .summary = summary_deepspeed_source,
    .review = review_deepspeed_source,
    .release = release_deepspeed_source,
};
