/*
 * Target `huggingface`: the directory that the class of transformers with the model's features
 * loads, dense or a mixture of experts. `moe-recipes` and `mixtral` are names of the same for those
 * who want Mixtral and nothing else.
 */
#include <string.h>

#include "form/format_keys.h"
#include "form/huggingface_class.h"
#include "form/huggingface_sidecars.h"
#include "model/huggingface.h"
#include "model/huggingface_passed.h"

extern const mgr_target_format mgr_target_huggingface;
extern const mgr_target_format mgr_target_moe_recipes;
extern const mgr_target_format mgr_target_mixtral;

static bool is_fused(const mgr_config *config)
{
    return strcmp(config->target.names, "fused") == 0;
}

static int check_experts_huggingface_target(const mgr_config *config, const mgr_model *model,
                                            mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel;
    if (model->experts % ep != 0)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%llu experts do not divide among %llu expert-parallel ranks",
                               (unsigned long long)model->experts, (unsigned long long)ep);
    if (ep > 1 && is_fused(config))
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "a fused tensor holds the experts of all ranks: 'target.names: "
                               "fused' is for a 'target.expert_parallel' of 1, not %llu",
                               (unsigned long long)ep);
    return MGR_OK;
}

/* How the experts lie where a class without a row has them stays. */
static int check_passed(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const mgr_hf_ffn lies = (mgr_hf_ffn)model->passed_experts;
    const bool fused = mgr_huggingface_is_fused(lies),
               plain = !strcmp(config->target.names, "auto");
    if (!model->passed || plain || is_fused(config) == fused)
        return MGR_OK;
    return mgr_config_fail(config, "target.names", err,
                           "'target.names' is '%s', but the experts of a class without a row are "
                           "%s and stay so",
                           config->target.names, fused ? "fused" : "one by one");
}

static int check_dense(const mgr_config *config, mgr_err *err)
{
    if (config->target.expert_parallel > 1)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "'target.expert_parallel' is %llu, but the model is dense",
                               (unsigned long long)config->target.expert_parallel);
    if (strcmp(config->target.names, "auto") != 0)
        return mgr_config_fail(config, "target.names", err,
                               "'target.names' is '%s', which is about experts, but the model is "
                               "dense",
                               config->target.names);
    return MGR_OK;
}

/* The class that holds experts beside what is passed through; without experts there is none to
 * choose. */
static int check_sibling(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const char *const said = config->target.model_class;
    if (model->experts && model->sibling == mgr_huggingface_sibling_find(said) && model->sibling)
        return MGR_OK;
    mgr_config_fail(config, "target.class", err,
                    "'target.class' is '%s', which is none that holds experts beside parts that "
                    "are passed through unread",
                    said);
    return mgr_hint(err, "leave it out");
}

/* The class that the user names must compute the model. */
static int check_class(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const char *const said = config->target.model_class;
    const mgr_hf_class class = mgr_huggingface_type(said);
    char lacks[400], needs[400];
    char known[400];
    if (!*said || strcmp(said, "auto") == 0)
        return MGR_OK;
    if (model->passed)
        return check_sibling(config, model, err);
    if (class == MGR_HF_NO_CLASS)
        return mgr_config_fail(config, "target.class", err,
                               "'target.class' is '%s', which is not known; known are: %s", said,
                               mgr_huggingface_types(known, sizeof known));
    mgr_huggingface_lacks(class, model, lacks, sizeof lacks);
    mgr_huggingface_needs(class, model, needs, sizeof needs);
    if (!*lacks && !*needs)
        return MGR_OK;
    mgr_config_fail(config, "target.class", err,
                    "'target.class' is '%s', which has %s %s, but the model has %s", said,
                    *lacks ? "no" : "always", *lacks ? lacks : needs, *lacks ? "it" : "not");
    return mgr_hint(err, "leave it out: the model is a '%s'",
                    mgr_huggingface_family(mgr_huggingface_class(model))->type);
}

static int check_huggingface_target(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    MGR_TRY(model->experts ? check_experts_huggingface_target(config, model, err)
                           : check_dense(config, err));
    MGR_TRY(check_passed(config, model, err));
    MGR_TRY(mgr_huggingface_check("huggingface", model, err));
    return check_class(config, model, err);
}

/* The names that say Mixtral. */
static int check_mixtral(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts == 0)
        return mgr_config_fail(config, "target.format", err,
                               "target format '%s' holds mixtures of experts; the source is dense "
                               "and 'mode' is not 'upcycle'",
                               config->target.format);
    MGR_TRY(check_experts_huggingface_target(config, model, err));
    MGR_TRY(mgr_huggingface_check(config->target.format, model, err));
    char lacks[400];
    if (model->tower)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "target format '%s' is Mixtral alone, and cannot express a model with %s",
                        config->target.format, mgr_model_feature(model, 0));
    if (!*mgr_huggingface_lacks(MGR_HF_MIXTRAL, model, lacks, sizeof lacks))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "target format '%s' is Mixtral, which cannot express a model with %s",
             config->target.format, lacks);
    return mgr_hint(err, "choose target format 'huggingface', for a %s",
                    mgr_huggingface_family(mgr_huggingface_class(model))->name);
}

static int layout_huggingface_target(const mgr_config *config, const mgr_origin *origin,
                                     mgr_layout *into, void **state, mgr_err *err)
{
    mgr_hf_class class;
    *state = NULL;
    MGR_TRY(mgr_huggingface_choose(config, origin, &into->tensors->model, &class, err));
    const mgr_hf_family *const f = mgr_huggingface_family(class);
    const mgr_model *const m = &into->tensors->model;
    const mgr_huggingface hf = {.class = class,
                                .ffn = m->passed          ? (mgr_hf_ffn)m->passed_experts
                                       : is_fused(config) ? mgr_huggingface_memory(f)
                                                          : f->ffn,
                                .expert_parallel = (uint32_t)config->target.expert_parallel,
                                .max_shard_size = config->target.max_shard_size};
    if (mgr_huggingface_is_fused(hf.ffn) && hf.expert_parallel > 1)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%s holds the experts of all ranks in one tensor: it is for a "
                               "'target.expert_parallel' of 1, not %u",
                               f->name, hf.expert_parallel);
    return mgr_huggingface_layout(into, &hf, err);
}

/* clang-format off */
#define ROW_NAMES \
    MGR_ROW_CHOICE("target.names", target.names, "auto", "auto|per-expert|fused", \
                   "experts one by one (the default) or fused as in transformers 5")
/* clang-format on */

static const mgr_key keys[] = {
    MGR_ROW_EXPERT_PARALLEL,
    ROW_NAMES,
    MGR_ROW_MAX_SHARD_SIZE,
    MGR_ROW_CONFIG,
};

/* Of the target that may be any class. */
static const mgr_key free_keys[] = {
    MGR_ROW_EXPERT_PARALLEL,
    ROW_NAMES,
    MGR_ROW_TEXT("target.class", target.model_class, "auto",
                 "model_type of the class to write, where several compute the model"),
    MGR_ROW_MAX_SHARD_SIZE,
    MGR_ROW_CONFIG,
};

const mgr_target_format mgr_target_huggingface = {
    .name = "huggingface",
    .complete = mgr_huggingface_fill,
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "huggingface", free_keys),
    .container = &mgr_container_safetensors,
    .opaque = true,
    .check = check_huggingface_target,
    .layout = layout_huggingface_target,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};

const mgr_target_format mgr_target_moe_recipes = {
    .name = "moe-recipes",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "moe-recipes", keys),
    .container = &mgr_container_safetensors,
    .opaque = true,
    .check = check_mixtral,
    .layout = layout_huggingface_target,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};

const mgr_target_format mgr_target_mixtral = {
    .name = "mixtral",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "mixtral", keys),
    .container = &mgr_container_safetensors,
    .opaque = true,
    .check = check_mixtral,
    .layout = layout_huggingface_target,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};
