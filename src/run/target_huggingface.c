/*
 * Target `huggingface`: a dense model as the directory that LlamaForCausalLM.from_pretrained loads,
 * for `mode: reshard` and for mgr-synth.
 */
#include "model/mixtral.h"
#include "run/huggingface_sidecars.h"

extern const mgr_target_format mgr_target_huggingface;

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'huggingface' holds dense models; for a mixture of "
                               "experts choose 'moe-recipes'");
    return MGR_OK;
}

static int layout(const mgr_config *config, mgr_layout *into, void **state, mgr_err *err)
{
    const mgr_mixtral llama = {1, config->target.max_shard_size};
    *state = NULL;
    return mgr_mixtral_layout(into, &llama, err);
}

const mgr_target_format mgr_target_huggingface = {
    .name = "huggingface",
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .sidecars = mgr_huggingface_sidecars,
};
