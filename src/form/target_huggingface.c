/*
 * Target `huggingface`: a dense model as the directory that LlamaForCausalLM.from_pretrained loads,
 * or Qwen2's or Qwen3's, whichever has the model's features; for `mode: reshard` and for mgr-synth.
 */
#include <string.h>

#include "form/huggingface_sidecars.h"
#include "model/huggingface.h"

extern const mgr_target_format mgr_target_huggingface;

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'huggingface' holds dense models; for a mixture of "
                               "experts choose 'moe-recipes'");
    if (strcmp(config->target.names, "auto") != 0)
        return mgr_config_fail(config, "target.names", err,
                               "'target.names' is '%s', but names of target format 'huggingface' "
                               "are always the same",
                               config->target.names);
    return mgr_huggingface_check("huggingface", model, err);
}

static int layout(const mgr_config *config, const mgr_origin *origin, mgr_layout *into,
                  void **state, mgr_err *err)
{
    (void)origin;
    const mgr_huggingface hf = {
        .ffn = MGR_HF_DENSE, .expert_parallel = 1, .max_shard_size = config->target.max_shard_size};
    *state = NULL;
    return mgr_huggingface_layout(into, &hf, err);
}

const mgr_target_format mgr_target_huggingface = {
    .name = "huggingface",
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .review = mgr_huggingface_review,
    .sidecars = mgr_huggingface_sidecars,
};
