/*
 * Source `megatron-torch`: latest_checkpointed_iteration.txt, iter_%07d or release,
 * mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt (megatron/training/checkpointing.py,
 * get_checkpoint_name).
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/torch_file.h"
#include "fmt/torch_optimizer.h"
#include "form/format_keys.h"
#include "form/megatron_root.h"
#include "form/megatron_write.h"
#include "form/source.h"
#include "form/strange.h"
#include "io/file.h"
#include "model/megatron.h"
#include "model/megatron_kin.h"

#define RANK_FILE "model_optim_rng.pt"
#define MAX_PARALLEL 65536

extern const mgr_source_format mgr_source_megatron_torch;

static bool probe_megatron_torch_source(const char *path)
{
    return mgr_megatron_has_tracker(path) || mgr_megatron_kind_of(path) == MGR_MEGATRON_TORCH ||
           mgr_megatron_kind_below(path) == MGR_MEGATRON_TORCH;
}

static int no_rank_folder(const char *directory, mgr_err *err)
{
    mgr_err strange = MGR_ERR_INIT;
    if (mgr_strange_path(directory, &strange) == MGR_ERR_NOT_FOUND)
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "no 'mp_rank_*' folder in '%s'", directory);
    *err = strange;
    return err->code;
}

/* What is held between `find` and `read` says only that an optimizer is asked for. */
static int begin_megatron_torch_source(const mgr_config *config, const char *directory, void **held,
                                       mgr_err *err)
{
    static char optimizer;
    (void)directory;
    (void)err;
    *held =
        config->source.planes || strcmp(config->source.weights, "masters") == 0 ? &optimizer : NULL;
    return MGR_OK;
}

/* Is it of rank 0 in every way? Its folder's name has no other digit. */
static bool is_first(const char *path)
{
    const char *at = path + strlen(path) - strlen("/" RANK_FILE);
    while (at > path && at[-1] != '/')
        at--;
    return strcspn(at, "123456789") >= strcspn(at, "/");
}

static int read_megatron_torch_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                    void **held, mgr_err *err)
{
    return *held ? mgr_torch_file_read_stepped(cat, file, reader, is_first(reader->name), err)
                 : mgr_torch_file_read(cat, file, reader, err);
}

static int find_megatron_torch_source(const mgr_config *config, mgr_arena *arena,
                                      mgr_source_files *files, mgr_err *err)
{
    const char **names;
    size_t n;
    MGR_TRY(mgr_megatron_find_iteration(config->source.path, config->source.iteration, arena,
                                        &files->directory, err));
    if (mgr_megatron_kind_of(files->directory) == MGR_MEGATRON_DIST) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of the format torch_dist", files->directory);
        return mgr_hint(err, "set 'source.format: megatron-dist'");
    }
    MGR_TRY(begin_megatron_torch_source(config, files->directory, &files->held, err));
    MGR_TRY(mgr_list_dir(files->directory, arena, &names, &n, err));
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, (n + 1) * sizeof *files->paths, err));
    files->n = 0;
    for (size_t i = 0; i < n; i++)
        if (mgr_megatron_is_rank_folder(names[i]))
            MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s/" RANK_FILE,
                                  files->directory, names[i]));
    return files->n ? MGR_OK : no_rank_folder(files->directory, err);
}

typedef struct state {
    mgr_megatron megatron;
    uint32_t *files, *stage_layers;
    const char *names; /* for people */
} state;

static void release_megatron_torch_source(void *opaque)
{
    state *const s = opaque;
    if (!s)
        return;
    mgr_free(s->files);
    mgr_free(s->stage_layers);
    mgr_free(s);
}

/* The numbers in ".../mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt", as they stand there. */
static int parse_numbers(const char *path, uint32_t numbers[3], int *n, mgr_err *err)
{
    const char *folder = path + strlen(path) - strlen("/" RANK_FILE);
    while (folder > path && folder[-1] != '/')
        folder--;
    const char *at = folder + strlen("mp_rank");
    bool small = true;
    for (*n = 0; *n < 3 && at[0] == '_' && isdigit((unsigned char)at[1]); ++*n) {
        char *end;
        const unsigned long rank = strtoul(at + 1, &end, 10);
        small = small && rank < MAX_PARALLEL;
        numbers[*n] = (uint32_t)rank;
        at = end;
    }
    if (*n < 1 || at[0] != '/' || !small)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not named as Megatron names its ranks", path);
    return MGR_OK;
}

/* Of two numbers the second is a pipeline rank or, where there is one stage alone, an expert rank:
 * names do not tell, args do (checkpointing.py, find_checkpoint_rank_0). */
typedef struct ranks {
    uint32_t tp, pp, ep;
} ranks;

static int parse_ranks(const char *path, int names, bool second_is_expert, ranks *out, mgr_err *err)
{
    uint32_t numbers[3] = {0, 0, 0};
    int n;
    MGR_TRY(parse_numbers(path, numbers, &n, err));
    if (n != names)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' does not fit the names of the other ranks",
                        path);
    *out = (ranks){numbers[0], numbers[1], numbers[2]};
    if (n == 2 && second_is_expert)
        *out = (ranks){numbers[0], 0, numbers[1]};
    return MGR_OK;
}

static uint64_t size_arg(const mgr_catalogue *cat, const char *name)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, 0, name);
    return a && a->kind == MGR_ATTR_INT && a->i > 0 ? (uint64_t)a->i : 0;
}

/* How many ranks there are: what the names show, checked against args and the configuration. */
static int parallel_size(const mgr_catalogue *cat, const char *name, uint64_t given, uint32_t seen,
                         uint32_t *out, mgr_err *err)
{
    uint64_t size = size_arg(cat, name);
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

static const char *folder_name(const mgr_megatron *mg, ranks r, char *out, size_t size)
{
    char stage[16] = "", expert[16] = "";
    if (mg->pipeline_parallel > 1)
        snprintf(stage, sizeof stage, "_%03u", r.pp);
    if (mg->expert_parallel > 1)
        snprintf(expert, sizeof expert, "_%03u", r.ep);
    snprintf(out, size, "mp_rank_%02u%s%s", r.tp, stage, expert);
    return out;
}

static int missing(const mgr_megatron *mg, ranks r, const char *what, mgr_err *err)
{
    char name[64], experts[64] = "";
    if (mg->expert_parallel > 1)
        snprintf(experts, sizeof experts, " x expert parallel %u (expert tensor parallel %u)",
                 mg->expert_parallel, mg->expert_tensor_parallel);
    return mgr_fail(err, MGR_ERR_NOT_FOUND,
                    "missing shard '%s/" RANK_FILE "'%s: the checkpoint is tensor parallel %u x "
                    "pipeline parallel %u%s",
                    folder_name(mg, r, name, sizeof name), what, mg->tensor_parallel,
                    mg->pipeline_parallel, experts);
}

static uint32_t cell(const mgr_megatron *mg, ranks r)
{
    return mg->files[mgr_megatron_cell(mg, r.pp, r.ep, r.tp)];
}

/* Does any file hold the experts of (pp, ep) that tensor-parallel rank r.tp has? */
static bool experts_there(const mgr_megatron *mg, ranks r)
{
    for (uint32_t tp = r.tp % mg->expert_tensor_parallel; tp < mg->tensor_parallel;
         tp += mg->expert_tensor_parallel)
        if (cell(mg, (ranks){tp, r.pp, r.ep}) != MGR_NONE)
            return true;
    return false;
}

/* With as many expert-tensor-parallel as tensor-parallel ranks every file is there. With fewer, a
 * save has only some (parallel_state.py), yet all tensor-parallel ranks of all stages and all parts
 * of all experts; saves by cores before 0.17 may lack some (NVIDIA/Megatron-LM#4200). */
static int check_grid(const mgr_megatron *mg, mgr_err *err)
{
    const bool every = mg->expert_tensor_parallel == mg->tensor_parallel;
    for (uint32_t pp = 0; pp < mg->pipeline_parallel; pp++)
        for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++) {
            bool some = false;
            for (uint32_t ep = 0; ep < mg->expert_parallel; ep++) {
                const ranks r = {tp, pp, ep};
                some = some || cell(mg, r) != MGR_NONE;
                if (cell(mg, r) == MGR_NONE && (every || !experts_there(mg, r)))
                    return missing(mg, r, "", err);
            }
            if (!some)
                return missing(mg, (ranks){tp, pp, 0}, " or that of another expert rank", err);
        }
    return MGR_OK;
}

static int fill_grid(const mgr_catalogue *cat, state *s, int names, bool second_is_expert,
                     mgr_err *err)
{
    mgr_megatron *const mg = &s->megatron;
    const size_t cells = (size_t)mg->tensor_parallel * mg->pipeline_parallel * mg->expert_parallel;
    if (cells > MAX_PARALLEL * (size_t)16)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor parallel %u x pipeline parallel %u x expert parallel %u is too "
                        "much",
                        mg->tensor_parallel, mg->pipeline_parallel, mg->expert_parallel);
    MGR_TRY(mgr_alloc(&s->files, cells, sizeof *s->files, err));
    memset(s->files, 0xff, cells * sizeof *s->files);
    mg->files = s->files;
    for (uint32_t f = 0; f < cat->n_files; f++) {
        ranks r = {0, 0, 0};
        MGR_TRY(parse_ranks(cat->files[f].path, names, second_is_expert, &r, err));
        s->files[mgr_megatron_cell(mg, r.pp, r.ep, r.tp)] = f;
    }
    return check_grid(mg, err);
}

static int expert_split(const mgr_catalogue *cat, mgr_megatron *mg, mgr_err *err)
{
    const uint64_t etp = size_arg(cat, "args.expert_tensor_parallel_size");
    mg->expert_tensor_parallel = mg->tensor_parallel;
    if (etp == 0 || size_arg(cat, "args.num_experts") == 0)
        return MGR_OK;
    if (etp > mg->tensor_parallel || mg->tensor_parallel % etp != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "expert tensor parallel %llu does not divide tensor parallel %u: such "
                        "saves overwrite their own files",
                        (unsigned long long)etp, mg->tensor_parallel);
    mg->expert_tensor_parallel = (uint32_t)etp;
    return MGR_OK;
}

static int grid_size(const mgr_catalogue *cat, const mgr_config *config, mgr_megatron *mg,
                     int *names, bool *second_is_expert, mgr_err *err)
{
    uint32_t first[3];
    ranks seen = {0, 0, 0};
    MGR_TRY(parse_numbers(cat->files[0].path, first, names, err));
    const uint64_t stages = size_arg(cat, "args.pipeline_model_parallel_size");
    *second_is_expert = *names == 2 && (stages ? stages : config->model.pipeline_parallel) <= 1 &&
                        size_arg(cat, "args.expert_model_parallel_size") > 1;
    for (uint32_t f = 0; f < cat->n_files; f++) {
        ranks r = {0, 0, 0};
        MGR_TRY(parse_ranks(cat->files[f].path, *names, *second_is_expert, &r, err));
        seen.tp = r.tp + 1 > seen.tp ? r.tp + 1 : seen.tp;
        seen.pp = r.pp + 1 > seen.pp ? r.pp + 1 : seen.pp;
        seen.ep = r.ep + 1 > seen.ep ? r.ep + 1 : seen.ep;
    }
    MGR_TRY(parallel_size(cat, "args.tensor_model_parallel_size", config->model.tensor_parallel,
                          seen.tp, &mg->tensor_parallel, err));
    MGR_TRY(parallel_size(cat, "args.pipeline_model_parallel_size", config->model.pipeline_parallel,
                          seen.pp, &mg->pipeline_parallel, err));
    mg->expert_parallel = seen.ep;
    if (size_arg(cat, "args.num_experts") > 0 || seen.ep > 1)
        MGR_TRY(parallel_size(cat, "args.expert_model_parallel_size", 0, seen.ep,
                              &mg->expert_parallel, err));
    return expert_split(cat, mg, err);
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
        if (mgr_has_suffix(cat->stored[i].name, ".input_layernorm.weight"))
            return "local";
    }
    return "Transformer Engine";
}

static int describe_megatron_torch_source(const mgr_catalogue *cat, const mgr_config *config,
                                          void **out, mgr_model *model, mgr_err *err)
{
    state *s;
    int names = 0;
    bool second_is_expert = false;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    int rc = grid_size(cat, config, &s->megatron, &names, &second_is_expert, err);
    if (rc == MGR_OK)
        rc = fill_grid(cat, s, names, second_is_expert, err);
    if (rc == MGR_OK)
        rc = virtual_size(cat, &s->megatron.virtual_pipeline, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&s->stage_layers,
                       (size_t)s->megatron.virtual_pipeline * s->megatron.pipeline_parallel,
                       sizeof *s->stage_layers, err);
    if (rc == MGR_OK)
        rc = mgr_megatron_model(cat, config, &s->megatron, s->stage_layers, model, err);
    s->names = kind_of_names(cat);
    s->megatron.masters = strcmp(config->source.weights, "masters") == 0;
    if (rc == MGR_OK)
        *out = s;
    else
        release_megatron_torch_source(s);
    return rc;
}

static int opaque_megatron_torch_source(const void *opaque, const mgr_catalogue *cat,
                                        mgr_tensors *tensors, mgr_err *err)
{
    return mgr_kin_opaque(tensors, cat, &((const state *)opaque)->megatron, err);
}

static int layout_megatron_torch_source(const void *opaque, mgr_layout *into, mgr_err *err)
{
    const state *const s = opaque;
    return mgr_megatron_layout(into, &s->megatron, err);
}

static int summary_megatron_torch_source(const void *opaque, mgr_buf *out, mgr_err *err)
{
    const state *const s = opaque;
    const mgr_megatron *const mg = &s->megatron;
    char chunks[32] = "", experts[96] = "";
    if (mg->virtual_pipeline > 1)
        snprintf(chunks, sizeof chunks, " x virtual %u", mg->virtual_pipeline);
    if (mg->expert_parallel > 1 || mg->expert_tensor_parallel != mg->tensor_parallel)
        snprintf(experts, sizeof experts, " x expert parallel %u (expert tensor parallel %u)",
                 mg->expert_parallel, mg->expert_tensor_parallel);
    return mgr_buf_fmt(out, err, "tensor parallel %u x pipeline parallel %u%s%s, %s names%s",
                       mg->tensor_parallel, mg->pipeline_parallel, chunks, experts, s->names,
                       mg->masters ? ", float32 masters" : "");
}

static unsigned planes_megatron_torch_source(const mgr_catalogue *cat)
{
    static const char *const prefixes[MGR_PLANE_COUNT] = {
        [MGR_PLANE_MASTER] = MGR_TORCH_PLANE MGR_TORCH_MASTER ".",
        [MGR_PLANE_EXP_AVG] = MGR_TORCH_PLANE MGR_TORCH_EXP_AVG ".",
        [MGR_PLANE_EXP_AVG_SQ] = MGR_TORCH_PLANE MGR_TORCH_EXP_AVG_SQ ".",
    };
    unsigned planes = 0;
    for (size_t i = 0; i < cat->n_stored; i++)
        for (int p = 0; p < MGR_PLANE_COUNT; p++)
            if (prefixes[p] && mgr_has_prefix(cat->stored[i].name, prefixes[p]))
                planes |= 1u << p;
    return planes;
}

static const mgr_key keys[] = {
    MGR_ROW_SOURCE_ITERATION,
    MGR_ROW_UNKNOWN,
    MGR_ROW_MTP,
    MGR_ROW_UINT("model.tensor_parallel", model.tensor_parallel, "0", 0, MGR_MOST_PARTS,
                 "tensor parallel size of the source"),
    MGR_ROW_UINT("model.pipeline_parallel", model.pipeline_parallel, "0", 0, MGR_MOST_PARTS,
                 "pipeline parallel size of the source"),
    MGR_ROW_CHOICE("source.weights", source.weights, "auto", "auto|copies|masters",
                   "the parameters (auto), or the float32 masters that an optimizer has of them"),
};

static int review_megatron_torch_source(const void *opaque, const mgr_catalogue *cat,
                                        const mgr_config *config, mgr_remarks *remarks,
                                        mgr_err *err)
{
    (void)opaque;
    return mgr_megatron_source_review(cat, config, remarks, err);
}

const mgr_source_format mgr_source_megatron_torch = {
    .name = "megatron-torch",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "megatron-torch", keys),
    .planes = planes_megatron_torch_source,
    .probe = probe_megatron_torch_source,
    .find = find_megatron_torch_source,
    .begin = begin_megatron_torch_source,
    .read = read_megatron_torch_file,
    .describe = describe_megatron_torch_source,
    .opaque = opaque_megatron_torch_source,
    .layout = layout_megatron_torch_source,
    .summary = summary_megatron_torch_source,
    .review = review_megatron_torch_source,
    .release = release_megatron_torch_source,
};
