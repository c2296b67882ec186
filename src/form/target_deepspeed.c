/*
 * Target `deepspeed`: what DeepSpeed's engine loads for a model of transformers, float32 masters
 * whatever the model's type is. A universal checkpoint, which any number of ranks and any stage
 * loads by name, or, with target.data_parallel, the files of ZeRO-3 for that many ranks, which have
 * no names. config.json and the tokenizer lie beside it. The optimizer is the source's, or a new
 * one: moments of zero.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/pickle_write.h"
#include "form/deepspeed_sidecars.h"
#include "form/format_keys.h"
#include "form/huggingface_class.h"
#include "form/huggingface_sidecars.h"
#include "form/recipes_folder.h"
#include "form/target.h"
#include "model/deepspeed_order.h"
#include "model/deepspeed_write.h"

extern const mgr_target_format mgr_target_deepspeed;

/* Also the context of the container, so that comes first. */
typedef struct state {
    mgr_torch_context context;
    mgr_deepspeed ds;
    mgr_deepspeed_optimizer optimizer;
    char folder[64];
} state;

#define ONE_GROUP 1000000000 /* DeepSpeed's own sub_group_size */

static int check_size(const mgr_config *config, mgr_err *err)
{
    if (config->target.data_parallel || config->target.sub_group_size == ONE_GROUP)
        return MGR_OK;
    return mgr_config_fail(config, "target.sub_group_size", err,
                           "'target.sub_group_size' is for ZeRO-3's files: it needs "
                           "'target.data_parallel'");
}

static bool is_recipes(const mgr_config *config)
{
    return strcmp(config->target.run_folder, "moe-recipes") == 0;
}

static int check_folder(const mgr_config *config, mgr_err *err)
{
    if (!is_recipes(config) || config->target.data_parallel)
        return MGR_OK;
    return mgr_config_fail(config, "target.run_folder", err,
                           "moe-recipes loads ZeRO-3's files alone: 'target.run_folder' needs "
                           "'target.data_parallel'");
}

static int check_names(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts || strcmp(config->target.names, "auto") == 0)
        return MGR_OK;
    return mgr_config_fail(config, "target.names", err,
                           "'target.names' is '%s', which is about experts, but the model is dense",
                           config->target.names);
}

/* A universal checkpoint restores what the optimizer has, which buffers are not. */
static int check_deepspeed_target(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    MGR_TRY(check_size(config, err));
    MGR_TRY(check_folder(config, err));
    MGR_TRY(check_names(config, model, err));
    MGR_TRY(mgr_huggingface_check("deepspeed", model, err));
    if (model->router.selection_bias)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "target format 'deepspeed' cannot express a model with a selection bias, "
                        "which is a buffer and no parameter");
    return MGR_OK;
}

/* {"param": tensor}, or what a rank of ZeRO-3 has. */
static int content(const mgr_layout *layout, uint32_t file, const void *data, mgr_buf *out,
                   mgr_err *err)
{
    const state *const s = data;
    const mgr_catalogue *const cat = layout->cat;
    uint64_t *sizes;
    uint32_t first = 0, n = 0;
    while (cat->stored[first].file != file)
        first++;
    if (s->ds.universal) {
        const mgr_stored *const t = &cat->stored[first];
        MGR_TRY(mgr_pickle_dict_open(out, err));
        MGR_TRY(mgr_pickle_text(out, "param", err));
        MGR_TRY(mgr_pickle_tensor(out, "0", t->dtype, t->ndim, t->shape, err));
        return mgr_pickle_dict_close(out, err);
    }
    MGR_TRY(mgr_alloc(&sizes, s->ds.groups, sizeof *sizes, err));
    for (uint32_t i = first; n < s->ds.groups; i++)
        sizes[n++] = cat->stored[i].shape[0];
    const int rc = mgr_deepspeed_emit_optimizer(&s->ds, &s->optimizer, sizes, out, err);
    mgr_free(sizes);
    return rc;
}

/* As transformers has the experts in memory: version 5 fused, version 4 one by one. */
static mgr_hf_ffn ffn_of(const mgr_config *config, const mgr_model *model, const mgr_hf_family *f)
{
    const bool one_by_one = strcmp(config->target.names, "per-expert") == 0;
    return model->experts && !one_by_one ? mgr_huggingface_memory(f) : f->ffn;
}

static int check_order(const mgr_config *config, const state *s, mgr_err *err)
{
    const mgr_hf_family *const f = mgr_huggingface_family(s->ds.hf.class);
    if (!config->target.data_parallel || mgr_deepspeed_has_order(s->ds.hf.class))
        return MGR_OK;
    mgr_config_fail(config, "target.data_parallel", err,
                    "ZeRO-3's files hold parameters by their order alone, which is not known of %s",
                    f->name);
    return mgr_hint(err, "write a universal checkpoint: leave out target.data_parallel");
}

static void name_folder(const mgr_config *config, state *s)
{
    char iteration[40];
    if (is_recipes(config))
        snprintf(s->folder, sizeof s->folder, "%s/" MGR_RECIPES_FILES,
                 mgr_recipes_folder(config->target.iteration, iteration, sizeof iteration));
    else
        snprintf(s->folder, sizeof s->folder, "global_step%" PRIu64 "%s", config->target.iteration,
                 s->ds.universal ? "_universal" : "");
}

static int layout_deepspeed_target(const mgr_config *config, const mgr_origin *origin,
                                   mgr_layout *into, void **out, mgr_err *err)
{
    const mgr_model *const model = &into->tensors->model;
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    *out = s; /* released with the target, also after an error */
    s->context = (mgr_torch_context){.data = s, .content = content};
    s->ds.hf = (mgr_huggingface){.expert_parallel = 1, .max_shard_size = UINT64_MAX};
    s->ds.universal = !config->target.data_parallel;
    if (into->tensors->kept)
        MGR_TRY(mgr_deepspeed_optimizer_take(origin, !s->ds.universal, &s->optimizer, err));
    MGR_TRY(mgr_huggingface_choose(config, origin, model, &s->ds.hf.class, err));
    MGR_TRY(check_order(config, s, err));
    s->ds.hf.ffn = ffn_of(config, model, mgr_huggingface_family(s->ds.hf.class));
    name_folder(config, s);
    const mgr_deepspeed_plan plan = {.folder = s->folder,
                                     .ranks = (uint32_t)config->target.data_parallel,
                                     .sub_group_size = config->target.sub_group_size};
    return mgr_deepspeed_declare(into, &plan, &s->ds, err);
}

/* Weights are masters themselves. */
static unsigned planes_deepspeed_target(const mgr_origin *origin, mgr_dtype dtype)
{
    (void)origin;
    (void)dtype;
    return MGR_PLANES_MOMENTS;
}

static int say_kept(const state *s, mgr_remarks *remarks, mgr_err *err)
{
    char settings[200];
    snprintf(settings, sizeof settings, "%s",
             s->optimizer.own  ? "with the settings that the source has"
             : s->ds.universal ? "learning rate and the like stay the run's own"
                               : "with the lr, betas, eps and weight_decay of the source's first "
                                 "group that decays");
    return mgr_remarks_say(
        remarks, MGR_REMARK_WARNING, err,
        "Adam goes on from its step %.0f; %s; the engine's own scheduler finds %s",
        s->optimizer.step, settings,
        s->optimizer.own ? "the source's state where that is of plain values"
                         : "none: load_lr_scheduler_states=False");
}

static int say_anew(const state *s, mgr_remarks *remarks, mgr_err *err)
{
    if (s->ds.universal)
        return mgr_remarks_say(
            remarks, MGR_REMARK_WARNING, err,
            "Adam's moments and step are zero; learning rate and the like stay the run's own");
    return mgr_remarks_say(
        remarks, MGR_REMARK_WARNING, err,
        "there are no moments: Adam begins anew, with torch's own lr, betas, eps and weight_decay, "
        "which the engine takes from here; set yours behind load_checkpoint");
}

static int say_how(const mgr_output *out, const state *s, mgr_remarks *remarks, mgr_err *err)
{
    MGR_TRY(s->optimizer.from ? say_kept(s, remarks, err) : say_anew(s, remarks, err));
    if (s->ds.universal)
        return MGR_OK;
    if (is_recipes(out->config))
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "moe-recipes' rng.pt is seeded anew, and scheduler.pt says %" PRIu64
                                " steps, of a "
                                "schedule that stays the run's",
                                out->config->target.iteration));
    return mgr_remarks_say(
        remarks, MGR_REMARK_WARNING, err,
        "for %u rank%s, stage 3, bf16, sub_group_size %" PRIu64 " (%u sub-group%s), one group of "
        "parameters in the order of transformers %s; any other run loads them in disorder",
        s->ds.ranks, s->ds.ranks == 1 ? "" : "s", out->config->target.sub_group_size, s->ds.groups,
        s->ds.groups == 1 ? "" : "s", mgr_huggingface_is_fused(s->ds.hf.ffn) ? "5" : "4 and 5");
}

static int review_deepspeed_target(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    MGR_TRY(mgr_huggingface_review(out, remarks, err));
    return say_how(out, out->state, remarks, err);
}

static int sidecars_deepspeed_target(const mgr_output *out, const char *directory, mgr_err *err)
{
    const state *const s = out->state;
    json_t *config;
    MGR_TRY(mgr_huggingface_small_files(out, directory, &config, err));
    json_decref(config);
    const mgr_config *const c = out->config;
    MGR_TRY(mgr_deepspeed_sidecars(&s->ds, &s->optimizer, out->layout->tensors->model.tied,
                                   c->target.iteration, s->folder, directory, err));
    return is_recipes(c) ? mgr_recipes_write(directory, c->target.iteration, c->upcycle.seed, err)
                         : MGR_OK;
}

static void release_deepspeed_target(void *opaque)
{
    state *const s = opaque;
    if (s)
        mgr_deepspeed_clear(&s->ds);
    mgr_free(s);
}

static const mgr_key keys[] = {
    MGR_ROW_UINT("target.data_parallel", target.data_parallel, "0", 0, MGR_MOST_PARTS,
                 "ranks of ZeRO-3 whose files to write; 0: a universal checkpoint, for any"),
    MGR_ROW_UINT("target.sub_group_size", target.sub_group_size, "1000000000", 1, 1e18,
                 "zero_optimization.sub_group_size of the run that loads ZeRO-3's files"),
    MGR_ROW_CHOICE("target.names", target.names, "auto", "auto|per-expert|fused",
                   "experts fused, as transformers 5 has them (the default), or one by one, as 4"),
    MGR_ROW_UINT("target.iteration", target.iteration, "0", 0, 1e9,
                 "the step to write: the folder global_stepN"),
    MGR_ROW_CHOICE(
        "target.run_folder", target.run_folder, "deepspeed", "deepspeed|moe-recipes",
        "how the folder is laid out: as DeepSpeed's, or moe-recipes' with its rng.pt and "
        "scheduler.pt, which its training loads"),
    MGR_ROW_OPTIMIZER,
    MGR_ROW_CONFIG,
};

const mgr_target_format mgr_target_deepspeed = {
    .name = "deepspeed",
    .complete = mgr_huggingface_fill,
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "deepspeed", keys),
    .container = &mgr_container_torch,
    .check = check_deepspeed_target,
    .planes = planes_deepspeed_target,
    .layout = layout_deepspeed_target,
    .review = review_deepspeed_target,
    .sidecars = sidecars_deepspeed_target,
    .release = release_deepspeed_target,
};
