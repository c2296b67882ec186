/*
 * Target `huggingface`: the directory that the class of transformers with the model's features
 * loads, dense or a mixture of experts. `moe-recipes` and `mixtral` are names of the same for those
 * who want Mixtral and nothing else.
 */
#include <string.h>

#include "form/format_keys.h"
#include "form/huggingface_sidecars.h"
#include "model/huggingface.h"

extern const mgr_target_format mgr_target_huggingface;
extern const mgr_target_format mgr_target_moe_recipes;
extern const mgr_target_format mgr_target_mixtral;

static bool is_fused(const mgr_config *config)
{
    return strcmp(config->target.names, "fused") == 0;
}

static int check_experts(const mgr_config *config, const mgr_model *model, mgr_err *err)
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

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    MGR_TRY(model->experts ? check_experts(config, model, err) : check_dense(config, err));
    return mgr_huggingface_check("huggingface", model, err);
}

/* The names that say Mixtral. */
static int check_mixtral(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts == 0)
        return mgr_config_fail(config, "target.format", err,
                               "target format '%s' holds mixtures of experts; the source is dense "
                               "and 'mode' is not 'upcycle'",
                               config->target.format);
    MGR_TRY(check_experts(config, model, err));
    MGR_TRY(mgr_huggingface_check(config->target.format, model, err));
    const mgr_hf_class class = mgr_huggingface_class(model);
    char features[400];
    if (class == MGR_HF_MIXTRAL)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "target format '%s' is Mixtral, which cannot express a model with %s",
             config->target.format, mgr_huggingface_features(model, features, sizeof features));
    return mgr_hint(err, "choose target format 'huggingface', for a %s",
                    mgr_huggingface_family(class)->name);
}

static int layout(const mgr_config *config, const mgr_origin *origin, mgr_layout *into,
                  void **state, mgr_err *err)
{
    (void)origin;
    const mgr_model *const m = &into->tensors->model;
    const mgr_huggingface hf = {.class = mgr_huggingface_class(m),
                                .ffn = m->experts && is_fused(config) ? MGR_HF_FUSED
                                                                      : mgr_huggingface_ffn(m),
                                .expert_parallel = (uint32_t)config->target.expert_parallel,
                                .max_shard_size = config->target.max_shard_size};
    *state = NULL;
    return mgr_huggingface_layout(into, &hf, err);
}

static const mgr_key keys[] = {
    MGR_ROW_EXPERT_PARALLEL,
    MGR_ROW_CHOICE("target.names", target.names, "auto", "auto|per-expert|fused",
                   "experts one by one (the default) or fused as in transformers 5"),
    MGR_ROW_MAX_SHARD_SIZE,
    MGR_ROW_CONFIG,
};

const mgr_target_format mgr_target_huggingface = {
    .name = "huggingface",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "huggingface", keys),
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};

const mgr_target_format mgr_target_moe_recipes = {
    .name = "moe-recipes",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "moe-recipes", keys),
    .container = &mgr_container_safetensors,
    .check = check_mixtral,
    .layout = layout,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};

const mgr_target_format mgr_target_mixtral = {
    .name = "mixtral",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "mixtral", keys),
    .container = &mgr_container_safetensors,
    .check = check_mixtral,
    .layout = layout,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};
