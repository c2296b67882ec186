/*
 * Source `megatron-torch`: latest_checkpointed_iteration.txt, iter_%07d or release,
 * mp_rank_TT[_PPP]/model_optim_rng.pt (megatron/training/checkpointing.py, get_checkpoint_name).
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/torch_file.h"
#include "io/file.h"
#include "model/megatron.h"
#include "run/megatron_root.h"
#include "run/source.h"

#define RANK_FILE "model_optim_rng.pt"
#define MAX_PARALLEL 65536

extern const mgr_source_format mgr_source_megatron_torch;

static bool probe(const char *path)
{
    return mgr_megatron_has_tracker(path) || mgr_megatron_kind_of(path) == MGR_MEGATRON_TORCH;
}

static int find(const mgr_config *config, mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    const char **names;
    size_t n;
    MGR_TRY(mgr_megatron_find_iteration(config->source.path, config->source.iteration, arena,
                                        &files->directory, err));
    if (mgr_megatron_kind_of(files->directory) == MGR_MEGATRON_DIST) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of the format torch_dist", files->directory);
        return mgr_hint(err, "set 'source.format: megatron-dist'");
    }
    MGR_TRY(mgr_list_dir(files->directory, arena, &names, &n, err));
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, (n + 1) * sizeof *files->paths, err));
    files->n = 0;
    for (size_t i = 0; i < n; i++)
        if (mgr_megatron_is_rank_folder(names[i]))
            MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s/" RANK_FILE,
                                  files->directory, names[i]));
    if (files->n == 0)
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "no 'mp_rank_*' folder in '%s'", files->directory);
    return MGR_OK;
}

typedef struct state {
    mgr_megatron megatron;
    uint32_t *files, *stage_layers;
    const char *names; /* for people */
} state;

static void release(void *opaque)
{
    state *const s = opaque;
    if (!s)
        return;
    mgr_free(s->files);
    mgr_free(s->stage_layers);
    mgr_free(s);
}

/* Ranks in ".../mp_rank_TT[_PPP]/model_optim_rng.pt"; a third number is an expert-parallel rank. */
static int parse_ranks(const char *path, unsigned ranks[3], int *n, mgr_err *err)
{
    const char *folder = path + strlen(path) - strlen("/" RANK_FILE);
    while (folder > path && folder[-1] != '/')
        folder--;
    const char *at = folder + strlen("mp_rank");
    for (*n = 0; *n < 3 && at[0] == '_' && isdigit((unsigned char)at[1]); ++*n) {
        char *end;
        const unsigned long rank = strtoul(at + 1, &end, 10);
        ranks[*n] = rank < MAX_PARALLEL ? (unsigned)rank : MAX_PARALLEL;
        at = end;
    }
    if (*n < 1 || at[0] != '/' || ranks[0] == MAX_PARALLEL || (*n > 1 && ranks[1] == MAX_PARALLEL))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not named as Megatron names its ranks", path);
    if (*n == 3)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of an expert-parallel save; a dense source is needed", path);
    return MGR_OK;
}

/* How many ranks there are: what the names show, checked against args and the configuration. */
static int parallel_size(const mgr_catalogue *cat, const char *name, uint64_t given, uint32_t seen,
                         uint32_t *out, mgr_err *err)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, 0, name);
    uint64_t size = a && a->kind == MGR_ATTR_INT && a->i > 0 ? (uint64_t)a->i : 0;
    if (size == 0)
        size = given ? given : seen;
    if (size > MAX_PARALLEL)
        return mgr_fail(err, MGR_ERR_FORMAT, "%s is %llu", name, (unsigned long long)size);
    *out = size > seen ? (uint32_t)size : seen;
    if (seen > size)
        return mgr_fail(err, MGR_ERR_FORMAT, "%s is %llu, but the folders' names show %u", name,
                        (unsigned long long)size, seen);
    return MGR_OK;
}

/* Every (pp, tp) must have its file. */
static int fill_grid(const mgr_catalogue *cat, state *s, mgr_err *err)
{
    mgr_megatron *const mg = &s->megatron;
    const size_t cells = (size_t)mg->tensor_parallel * mg->pipeline_parallel;
    if (cells > MAX_PARALLEL * (size_t)16)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor parallel %u x pipeline parallel %u is too much",
                        mg->tensor_parallel, mg->pipeline_parallel);
    MGR_TRY(mgr_alloc(&s->files, cells, sizeof *s->files, err));
    memset(s->files, 0xff, cells * sizeof *s->files);
    for (uint32_t f = 0; f < cat->n_files; f++) {
        unsigned ranks[3] = {0, 0, 0};
        int n;
        MGR_TRY(parse_ranks(cat->files[f].path, ranks, &n, err));
        if ((n > 1) != (mg->pipeline_parallel > 1))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' does not fit pipeline_parallel %u",
                            cat->files[f].path, mg->pipeline_parallel);
        s->files[ranks[1] * mg->tensor_parallel + ranks[0]] = f;
    }
    for (size_t i = 0; i < cells; i++) {
        if (s->files[i] != MGR_NONE)
            continue;
        char name[64];
        const unsigned tp = (unsigned)(i % mg->tensor_parallel);
        const unsigned pp = (unsigned)(i / mg->tensor_parallel);
        snprintf(name, sizeof name,
                 mg->pipeline_parallel > 1 ? "mp_rank_%02u_%03u" : "mp_rank_%02u", tp, pp);
        return mgr_fail(err, MGR_ERR_NOT_FOUND,
                        "missing shard '%s/" RANK_FILE "': the checkpoint is tensor parallel %u x "
                        "pipeline parallel %u",
                        name, mg->tensor_parallel, mg->pipeline_parallel);
    }
    mg->files = s->files;
    return MGR_OK;
}

static int grid_size(const mgr_catalogue *cat, const mgr_config *config, mgr_megatron *mg,
                     mgr_err *err)
{
    uint32_t seen[2] = {0, 0};
    for (uint32_t f = 0; f < cat->n_files; f++) {
        unsigned ranks[3] = {0, 0, 0};
        int n;
        MGR_TRY(parse_ranks(cat->files[f].path, ranks, &n, err));
        for (int k = 0; k < 2; k++)
            if (ranks[k] + 1 > seen[k])
                seen[k] = ranks[k] + 1;
    }
    MGR_TRY(parallel_size(cat, "args.tensor_model_parallel_size", config->model.tensor_parallel,
                          seen[0], &mg->tensor_parallel, err));
    return parallel_size(cat, "args.pipeline_model_parallel_size", config->model.pipeline_parallel,
                         seen[1], &mg->pipeline_parallel, err);
}

/* How many chunks model0, model1, ... a stage has; 1 where the key is "model". */
static int virtual_size(const mgr_catalogue *cat, uint32_t *out, mgr_err *err)
{
    unsigned long seen = 1;
    bool numbered = false;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const char *const digits = cat->stored[i].name + strlen("model");
        if (!mgr_has_prefix(cat->stored[i].name, "model") || !isdigit((unsigned char)*digits))
            continue;
        const unsigned long chunk = strtoul(digits, NULL, 10);
        numbered = true;
        seen = chunk + 1 > seen && chunk < MAX_PARALLEL ? chunk + 1 : seen;
    }
    const mgr_attr *const a =
        mgr_catalogue_attr(cat, 0, "args.virtual_pipeline_model_parallel_size");
    if (numbered && a && a->kind == MGR_ATTR_INT && a->i > 0 && (uint64_t)a->i != seen)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "virtual_pipeline_model_parallel_size is %lld, but the keys show %lu "
                        "chunks",
                        (long long)a->i, seen);
    *out = (uint32_t)seen;
    return MGR_OK;
}

static const char *kind_of_names(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        if (strstr(cat->stored[i].name, ".language_model."))
            return "old (before Megatron-Core)";
        if (mgr_has_suffix(cat->stored[i].name, ".pre_mlp_layernorm.weight"))
            return "local";
    }
    return "Transformer Engine";
}

static int describe(const mgr_catalogue *cat, const mgr_config *config, void **out,
                    mgr_model *model, mgr_err *err)
{
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    int rc = grid_size(cat, config, &s->megatron, err);
    if (rc == MGR_OK)
        rc = fill_grid(cat, s, err);
    if (rc == MGR_OK)
        rc = virtual_size(cat, &s->megatron.virtual_pipeline, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&s->stage_layers,
                       (size_t)s->megatron.virtual_pipeline * s->megatron.pipeline_parallel,
                       sizeof *s->stage_layers, err);
    if (rc == MGR_OK)
        rc = mgr_megatron_model(cat, config, &s->megatron, s->stage_layers, model, err);
    s->names = kind_of_names(cat);
    if (rc == MGR_OK)
        *out = s;
    else
        release(s);
    return rc;
}

static int layout(const void *opaque, mgr_layout *into, mgr_err *err)
{
    const state *const s = opaque;
    return mgr_megatron_layout(into, &s->megatron, err);
}

static int summary(const void *opaque, mgr_buf *out, mgr_err *err)
{
    const state *const s = opaque;
    const mgr_megatron *const mg = &s->megatron;
    char chunks[32] = "";
    if (mg->virtual_pipeline > 1)
        snprintf(chunks, sizeof chunks, " x virtual %u", mg->virtual_pipeline);
    return mgr_buf_fmt(out, err, "tensor parallel %u x pipeline parallel %u%s, %s names",
                       mg->tensor_parallel, mg->pipeline_parallel, chunks, s->names);
}

const mgr_source_format mgr_source_megatron_torch = {
    .name = "megatron-torch",
    .probe = probe,
    .find = find,
    .read = mgr_torch_file_read,
    .describe = describe,
    .layout = layout,
    .summary = summary,
    .release = release,
};
