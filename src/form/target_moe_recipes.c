/*
 * Target `moe-recipes`: the directory that MixtralForCausalLM.from_pretrained loads, under
 * transformers 4 and 5; with `names: fused` under 5 alone.
 */
#include <string.h>

#include "form/huggingface_sidecars.h"
#include "model/huggingface.h"

extern const mgr_target_format mgr_target_moe_recipes;

static bool is_fused(const mgr_config *config)
{
    return strcmp(config->target.names, "fused") == 0;
}

static int check_names(const mgr_config *config, mgr_err *err)
{
    static const char *const known[] = {"auto", "per-expert", "fused"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(config->target.names, known[i]) == 0)
            return MGR_OK;
    return mgr_config_fail(config, "target.names", err,
                           "'target.names' is '%s', which is for Megatron; target format "
                           "'moe-recipes' takes per-expert or fused",
                           config->target.names);
}

static int check_parallel(const mgr_config *config, const mgr_model *model, mgr_err *err)
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

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts == 0)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'moe-recipes' holds mixtures of experts; the source "
                               "is dense and 'mode' is not 'upcycle'");
    MGR_TRY(check_names(config, err));
    MGR_TRY(check_parallel(config, model, err));
    return mgr_huggingface_check("moe-recipes", model, err);
}

static int layout(const mgr_config *config, const mgr_origin *origin, mgr_layout *into,
                  void **state, mgr_err *err)
{
    (void)origin;
    const mgr_huggingface hf = {.ffn = is_fused(config) ? MGR_HF_FUSED : MGR_HF_PER_EXPERT,
                                .expert_parallel = (uint32_t)config->target.expert_parallel,
                                .max_shard_size = config->target.max_shard_size};
    *state = NULL;
    return mgr_huggingface_layout(into, &hf, err);
}

const mgr_target_format mgr_target_moe_recipes = {
    .name = "moe-recipes",
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};
