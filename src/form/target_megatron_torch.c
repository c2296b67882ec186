/*
 * Target `megatron-torch`: mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt of a dense model or a mixture
 * of experts. With expert tensor parallelism below tensor parallelism every (tensor, expert) pair
 * is written, although a given run of that size reads only some of them: which ones depends on its
 * rank order (parallel_state.py), and all of them fit any.
 */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "form/format_keys.h"
#include "form/megatron_write.h"
#include "form/target.h"
#include "model/megatron.h"

extern const mgr_target_format mgr_target_megatron_torch;

/* Also the context of the container, so that comes first. */
typedef struct state {
    mgr_torch_context context;
    mgr_megatron megatron;
    mgr_model model;
    mgr_dtype dtype;
    mgr_megatron_arg_list args;
    uint32_t *stage_layers, *files;
} state;

static uint64_t expert_tensor_parallel(const mgr_config *config)
{
    const uint64_t given = config->target.expert_tensor_parallel;
    return given ? given : config->target.tensor_parallel;
}

/* Biases of experts: TransformerConfig of core 0.16 and later refuses them with ETP other than 1,
 * for each rank would add the whole bias of fc2; cores up to 0.13 refuse them at all. Where the
 * linears have biases the router has one too, `router.bias` of the element type of the weights, in
 * core 0.16 and later (transformer/moe/router.py). */
static int check_experts_megatron_torch_target(const mgr_config *config, const mgr_model *model,
                                               mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel, etp = expert_tensor_parallel(config);
    if (model->experts % ep != 0 || (ep > 1 && model->experts == 0))
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%llu experts do not divide among %llu expert-parallel ranks",
                               (unsigned long long)model->experts, (unsigned long long)ep);
    if (config->target.tensor_parallel % etp != 0)
        return mgr_config_fail(config, "target.expert_tensor_parallel", err,
                               "'target.expert_tensor_parallel' %llu does not divide "
                               "tensor_parallel %llu, as this format needs",
                               (unsigned long long)etp,
                               (unsigned long long)config->target.tensor_parallel);
    if (model->experts && model->bias_mlp && etp > 1) {
        mgr_config_fail(config, "target.expert_tensor_parallel", err,
                        "the experts have biases, which Megatron does not split over %llu "
                        "expert-tensor-parallel ranks",
                        (unsigned long long)etp);
        return mgr_hint(err, "set 'target.expert_tensor_parallel: 1'");
    }
    if (model->bias_mlp && strcmp(config->target.expert_names, "grouped-old") == 0)
        return mgr_config_fail(config, "target.expert_names", err,
                               "'target.expert_names' is 'grouped-old', but GroupedMLP has no "
                               "biases");
    return MGR_OK;
}

/* Layers of the stages between the first and the last, of all chunks together; false if what there
 * is does not divide. As get_num_layers_to_build (transformer_block.py) shares them out. Stages
 * between without a layer are refused by TransformerConfig, and virtual chunks without stages
 * between make get_transformer_layer_offset divide by zero. */
static bool middle_layers(const mgr_config *config, uint64_t layers, uint64_t *out)
{
    const uint64_t pp = config->target.pipeline_parallel, vp = config->target.virtual_pipeline;
    const uint64_t first = config->target.first_stage_layers;
    const uint64_t last = config->target.last_stage_layers;
    const uint64_t fixed = (uint64_t)(first > 0) + (uint64_t)(last > 0);
    *out = 0;
    if (fixed > pp || first + last > layers || first % vp != 0 || last % vp != 0)
        return false;
    const uint64_t stages = pp - fixed, left = layers - first - last;
    if (stages == 0)
        return left == 0 && vp == 1;
    *out = left / stages;
    return left > 0 && left % (stages * vp) == 0;
}

static int check_stages(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    uint64_t middle;
    if (config->target.virtual_pipeline > 1 && config->target.pipeline_parallel < 2)
        return mgr_config_fail(config, "target.virtual_pipeline", err,
                               "'target.virtual_pipeline' needs more than one pipeline stage");
    if (middle_layers(config, model->layers, &middle))
        return MGR_OK;
    return mgr_config_fail(config, "target.pipeline_parallel", err,
                           "%llu layers do not divide among %llu pipeline stages%s",
                           (unsigned long long)model->layers,
                           (unsigned long long)config->target.pipeline_parallel,
                           config->target.virtual_pipeline > 1 ? " and their virtual chunks" : "");
}

static int check_names(const mgr_config *config, mgr_err *err)
{
    const char *const names = config->target.names;
    if (strcmp(names, "local") == 0 && strcmp(config->target.expert_names, "grouped") == 0)
        return mgr_config_fail(config, "target.expert_names", err,
                               "'target.expert_names' is 'grouped', which the local spec of "
                               "'target.names' does not have");
    return MGR_OK;
}

static int check_megatron_torch_target(const mgr_config *config, const mgr_model *model,
                                       mgr_err *err)
{
    if (model->kin && config->target.pipeline_parallel > 1)
        return mgr_config_fail(config, "target.pipeline_parallel", err,
                               "%s is written in one pipeline stage, not %llu",
                               model->kin == MGR_KIN_T5 ? "a T5" : "a vision transformer",
                               (unsigned long long)config->target.pipeline_parallel);
    MGR_TRY(check_names(config, err));
    MGR_TRY(check_experts_megatron_torch_target(config, model, err));
    MGR_TRY(check_stages(config, model, err));
    return mgr_megatron_check_args(model, err);
}

static int emit_args(const void *data, mgr_buf *out, mgr_err *err)
{
    return mgr_megatron_args_emit(&((const state *)data)->args, out, err);
}

/* _PPP and _EEE are there only where there is more than one (get_checkpoint_name). */
static int add_file(mgr_layout *into, state *s, uint32_t pp, uint32_t ep, uint32_t tp, mgr_err *err)
{
    const mgr_megatron *const mg = &s->megatron;
    char folder[32], path[96], stage[16] = "", expert[16] = "";
    if (mg->pipeline_parallel > 1)
        snprintf(stage, sizeof stage, "_%03u", pp);
    if (mg->expert_parallel > 1)
        snprintf(expert, sizeof expert, "_%03u", ep);
    snprintf(path, sizeof path, "%s/mp_rank_%02u%s%s/model_optim_rng.pt",
             mgr_megatron_folder(s->context.iteration, folder, sizeof folder), tp, stage, expert);
    return mgr_catalogue_add_file(into->cat, path, 0, &s->files[mgr_megatron_cell(mg, pp, ep, tp)],
                                  err);
}

static int add_files(mgr_layout *into, state *s, mgr_err *err)
{
    const mgr_megatron *const mg = &s->megatron;
    for (uint32_t pp = 0; pp < mg->pipeline_parallel; pp++)
        for (uint32_t ep = 0; ep < mg->expert_parallel; ep++)
            for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++)
                MGR_TRY(add_file(into, s, pp, ep, tp, err));
    return MGR_OK;
}

static void share_layers(const mgr_config *config, const state *s)
{
    const uint32_t pp = s->megatron.pipeline_parallel, vp = s->megatron.virtual_pipeline;
    const uint64_t first = config->target.first_stage_layers;
    const uint64_t last = config->target.last_stage_layers;
    uint64_t middle;
    (void)middle_layers(config, s->model.layers, &middle); /* checked */
    for (uint32_t k = 0; k < pp * vp; k++) {
        const uint64_t here = k % pp == 0 && first       ? first
                              : k % pp == pp - 1 && last ? last
                                                         : middle;
        s->stage_layers[k] = (uint32_t)(here / vp);
    }
}

static mgr_expert_names expert_names(const char *name)
{
    return strcmp(name, "grouped") == 0       ? MGR_EXPERTS_GROUPED
           : strcmp(name, "grouped-old") == 0 ? MGR_EXPERTS_GROUPED_OLD
                                              : MGR_EXPERTS_SEQUENTIAL;
}

static int fill_state(const mgr_config *config, mgr_layout *into, state *s, mgr_err *err)
{
    mgr_megatron *const mg = &s->megatron;
    s->context = (mgr_torch_context){.args = emit_args,
                                     .data = s,
                                     .iteration = config->target.iteration,
                                     .chunks = (uint32_t)config->target.virtual_pipeline};
    s->model = into->tensors->model;
    s->dtype = into->dtype;
    *mg = (mgr_megatron){
        .tensor_parallel = (uint32_t)config->target.tensor_parallel,
        .pipeline_parallel = (uint32_t)config->target.pipeline_parallel,
        .expert_parallel = (uint32_t)config->target.expert_parallel,
        .expert_tensor_parallel = (uint32_t)expert_tensor_parallel(config),
        .virtual_pipeline = (uint32_t)config->target.virtual_pipeline,
        .padded_vocab = mgr_megatron_padded_vocab(config, s->model.vocab),
        .names = strcmp(config->target.names, "local") == 0 ? MGR_NAMES_LOCAL : MGR_NAMES_TE,
        .experts = expert_names(config->target.expert_names),
    };
    const size_t chunks = (size_t)mg->pipeline_parallel * mg->virtual_pipeline;
    MGR_TRY(mgr_alloc(&s->stage_layers, chunks, sizeof *s->stage_layers, err));
    MGR_TRY(mgr_alloc(&s->files,
                      (size_t)mg->pipeline_parallel * mg->expert_parallel * mg->tensor_parallel,
                      sizeof *s->files, err));
    share_layers(config, s);
    mg->stage_layers = s->stage_layers;
    mg->files = s->files;
    return add_files(into, s, err);
}

static int make_args(const mgr_config *config, const mgr_origin *origin, state *s, mgr_err *err)
{
    const mgr_megatron_args args = {.model = &s->model,
                                    .megatron = &s->megatron,
                                    .config = config,
                                    .origin = origin,
                                    .dtype = s->dtype,
                                    .ckpt_format = "torch"};
    return mgr_megatron_args_make(&args, &s->args, err);
}

static int review_megatron_torch_target(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    const state *const s = out->state;
    MGR_TRY(mgr_megatron_args_review(&s->args, remarks, err));
    MGR_TRY(mgr_megatron_tokenizer_review(out, remarks, err));
    return mgr_megatron_flags_review(&s->args, out, remarks, err);
}

static void release_megatron_torch_target(void *opaque)
{
    state *const s = opaque;
    if (!s)
        return;
    mgr_megatron_args_clear(&s->args);
    mgr_free(s->stage_layers);
    mgr_free(s->files);
    mgr_free(s);
}

static int layout_megatron_torch_target(const mgr_config *config, const mgr_origin *origin,
                                        mgr_layout *into, void **out, mgr_err *err)
{
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    *out = s; /* released with the target, also after an error */
    MGR_TRY(fill_state(config, into, s, err));
    MGR_TRY(make_args(config, origin, s, err));
    return mgr_megatron_layout(into, &s->megatron, err);
}

static int sidecars_megatron_torch_target(const mgr_output *target, const char *directory,
                                          mgr_err *err)
{
    MGR_TRY(mgr_megatron_write_tokenizer(target, directory, err));
    return mgr_megatron_write_tracker(directory, target->config->target.iteration, err);
}

static const mgr_key keys[] = {
    MGR_ROW_TENSOR_PARALLEL,
    MGR_ROW_UINT("target.pipeline_parallel", target.pipeline_parallel, "1", 1, MGR_MOST_PARTS,
                 "pipeline parallel size"),
    MGR_ROW_EXPERT_PARALLEL,
    MGR_ROW_UINT("target.expert_tensor_parallel", target.expert_tensor_parallel, "0", 0,
                 MGR_MOST_PARTS, "tensor parallel size of the experts; 0: as the rest"),
    MGR_ROW_UINT("target.virtual_pipeline", target.virtual_pipeline, "1", 1, MGR_MOST_PARTS,
                 "virtual pipeline chunks in each stage"),
    MGR_ROW_UINT("target.first_stage_layers", target.first_stage_layers, "0", 0, MGR_MOST_PARTS,
                 "layers of the first pipeline stage; 0: as the stages between"),
    MGR_ROW_UINT("target.last_stage_layers", target.last_stage_layers, "0", 0, MGR_MOST_PARTS,
                 "layers of the last pipeline stage; 0: as the stages between"),
    MGR_ROW_VOCAB_DIVISOR,
    MGR_ROW_MEGATRON_NAMES,
    MGR_ROW_CHOICE("target.expert_names", target.expert_names, "sequential",
                   "sequential|grouped|grouped-old",
                   "experts as SequentialMLP, TEGroupedMLP, or GroupedMLP (before core 0.17) name "
                   "them"),
    MGR_ROW_TARGET_ITERATION,
};

const mgr_target_format mgr_target_megatron_torch = {
    .name = "megatron-torch",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "megatron-torch", keys),
    .kin = true,
    .container = &mgr_container_torch,
    .check = check_megatron_torch_target,
    .settle = mgr_megatron_settle,
    .layout = layout_megatron_torch_target,
    .review = review_megatron_torch_target,
    .sidecars = sidecars_megatron_torch_target,
    .release = release_megatron_torch_target,
};
