/*
 * Target `moe-recipes`: the directory that MixtralForCausalLM.from_pretrained loads, under
 * transformers 4 and 5.
 */
#include "model/mixtral.h"
#include "run/huggingface_sidecars.h"

extern const mgr_target_format mgr_target_moe_recipes;

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel;
    if (model->experts == 0)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'moe-recipes' holds mixtures of experts; the source "
                               "is dense and 'mode' is not 'upcycle'");
    if (model->experts % ep != 0)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%llu experts do not divide among %llu expert-parallel ranks",
                               (unsigned long long)model->experts, (unsigned long long)ep);
    return MGR_OK;
}

static int layout(const mgr_config *config, mgr_layout *into, void **state, mgr_err *err)
{
    const mgr_mixtral mixtral = {(uint32_t)config->target.expert_parallel,
                                 config->target.max_shard_size};
    *state = NULL;
    return mgr_mixtral_layout(into, &mixtral, err);
}

const mgr_target_format mgr_target_moe_recipes = {
    .name = "moe-recipes",
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .sidecars = mgr_huggingface_sidecars,
};
