/*
 * Target `megatron-torch`: mp_rank_TT[_PPP]/model_optim_rng.pt of a dense model, for `mode:
 * reshard` and for mgr-synth. Uniform pipeline stages. args are fresh and hold builtin types and
 * torch dtypes alone, which torch's restricted unpickler takes once argparse.Namespace is allowed.
 * What the loader compares: check_checkpoint_args in megatron/training/checkpointing.py.
 */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/pickle_write.h"
#include "io/file.h"
#include "model/megatron.h"
#include "run/job.h"

#define TRACKER "latest_checkpointed_iteration.txt"

extern const mgr_target_format mgr_target_megatron_torch;

/* Also the context of the container, so that comes first. */
typedef struct state {
    mgr_torch_context context;
    mgr_megatron megatron;
    mgr_model model;
    mgr_dtype dtype;
    uint64_t divisor;
    uint32_t *stage_layers, *files;
} state;

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (model->experts)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'megatron-torch' holds dense models; for a mixture "
                               "of experts choose 'moe-recipes'");
    if (model->layers % config->target.pipeline_parallel != 0)
        return mgr_config_fail(config, "target.pipeline_parallel", err,
                               "%llu layers do not divide among %llu pipeline stages",
                               (unsigned long long)model->layers,
                               (unsigned long long)config->target.pipeline_parallel);
    return MGR_OK;
}

typedef struct arg {
    const char *name;
    enum { ARG_INT, ARG_REAL, ARG_BOOL, ARG_TEXT } kind;
    double number; /* whole numbers here are far below 2^53 */
    const char *text;
} arg;

static int emit_arg(const arg *a, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, a->name, err));
    if (a->kind == ARG_TEXT)
        return mgr_pickle_text(out, a->text, err);
    if (a->kind == ARG_REAL)
        return mgr_pickle_real(out, a->number, err);
    if (a->kind == ARG_BOOL)
        return mgr_pickle_bool(out, a->number != 0, err);
    return mgr_pickle_int(out, (int64_t)a->number, err);
}

static int emit_args(const void *data, mgr_buf *out, mgr_err *err)
{
    const state *const s = data;
    const mgr_model *const m = &s->model;
    const arg args[] = {
        {"num_layers", ARG_INT, (double)m->layers, NULL},
        {"hidden_size", ARG_INT, (double)m->hidden, NULL},
        {"ffn_hidden_size", ARG_INT, (double)m->ffn, NULL},
        {"num_attention_heads", ARG_INT, (double)m->heads, NULL},
        {"group_query_attention", ARG_BOOL, m->kv_groups != m->heads, NULL},
        {"num_query_groups", ARG_INT, (double)m->kv_groups, NULL},
        {"kv_channels", ARG_INT, (double)m->head_dim, NULL},
        {"seq_length", ARG_INT, (double)m->max_positions, NULL},
        {"max_position_embeddings", ARG_INT, (double)m->max_positions, NULL},
        {"make_vocab_size_divisible_by", ARG_INT, (double)s->divisor, NULL},
        {"padded_vocab_size", ARG_INT, (double)s->megatron.padded_vocab, NULL},
        {"position_embedding_type", ARG_TEXT, 0, "rope"},
        {"add_position_embedding", ARG_BOOL, 0, NULL},
        {"use_rotary_position_embeddings", ARG_BOOL, 1, NULL},
        {"rotary_base", ARG_INT, m->rotary_base, NULL},
        {"rotary_percent", ARG_REAL, 1.0, NULL},
        {"rotary_interleaved", ARG_BOOL, 0, NULL},
        {"normalization", ARG_TEXT, 0, "RMSNorm"},
        {"norm_epsilon", ARG_REAL, m->norm_epsilon, NULL},
        {"apply_layernorm_1p", ARG_BOOL, 0, NULL},
        {"swiglu", ARG_BOOL, 1, NULL},
        {"squared_relu", ARG_BOOL, 0, NULL},
        {"add_bias_linear", ARG_BOOL, 0, NULL},
        {"add_qkv_bias", ARG_BOOL, 0, NULL},
        {"untie_embeddings_and_output_weights", ARG_BOOL, !m->tied, NULL},
        {"attention_dropout", ARG_REAL, 0.0, NULL},
        {"hidden_dropout", ARG_REAL, 0.0, NULL},
        {"init_method_std", ARG_REAL, m->init_std, NULL},
        {"tensor_model_parallel_size", ARG_INT, s->megatron.tensor_parallel, NULL},
        {"pipeline_model_parallel_size", ARG_INT, s->megatron.pipeline_parallel, NULL},
        {"bf16", ARG_BOOL, s->dtype == MGR_DTYPE_BF16, NULL},
        {"fp16", ARG_BOOL, s->dtype == MGR_DTYPE_F16, NULL},
        {"consumed_train_samples", ARG_INT, 0, NULL},
        {"skipped_train_samples", ARG_INT, 0, NULL},
        {"consumed_valid_samples", ARG_INT, 0, NULL},
        {"data_parallel_random_init", ARG_BOOL, 0, NULL},
        {"no_save_optim", ARG_BOOL, 1, NULL},
        {"no_save_rng", ARG_BOOL, 1, NULL},
        {"ckpt_format", ARG_TEXT, 0, "torch"},
    };
    for (size_t i = 0; i < sizeof args / sizeof args[0]; i++)
        MGR_TRY(emit_arg(&args[i], out, err));
    MGR_TRY(mgr_pickle_text(out, "params_dtype", err));
    return mgr_pickle_global(out, "torch", mgr_dtype_name(s->dtype), err);
}

static int add_files(mgr_layout *into, state *s, mgr_err *err)
{
    const mgr_megatron *const mg = &s->megatron;
    char folder[32], path[96];
    if (s->context.iteration)
        snprintf(folder, sizeof folder, "iter_%07llu", (unsigned long long)s->context.iteration);
    else
        snprintf(folder, sizeof folder, "release");
    for (uint32_t pp = 0; pp < mg->pipeline_parallel; pp++)
        for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++) {
            char stage[16] = "";
            if (mg->pipeline_parallel > 1)
                snprintf(stage, sizeof stage, "_%03u", pp);
            snprintf(path, sizeof path, "%s/mp_rank_%02u%s/model_optim_rng.pt", folder, tp, stage);
            MGR_TRY(mgr_catalogue_add_file(into->cat, path, 0,
                                           &s->files[pp * mg->tensor_parallel + tp], err));
        }
    return MGR_OK;
}

static int fill_state(const mgr_config *config, mgr_layout *into, state *s, mgr_err *err)
{
    mgr_megatron *const mg = &s->megatron;
    s->context = (mgr_torch_context){emit_args, s, config->target.iteration};
    s->model = into->tensors->model;
    s->dtype = into->dtype;
    s->divisor = config->target.make_vocab_size_divisible_by;
    mg->tensor_parallel = (uint32_t)config->target.tensor_parallel;
    mg->pipeline_parallel = (uint32_t)config->target.pipeline_parallel;
    mg->virtual_pipeline = 1;
    mg->names = strcmp(config->target.names, "local") == 0 ? MGR_NAMES_LOCAL : MGR_NAMES_TE;
    const uint64_t multiple = s->divisor * mg->tensor_parallel;
    mg->padded_vocab = (s->model.vocab + multiple - 1) / multiple * multiple;
    MGR_TRY(mgr_alloc(&s->stage_layers, mg->pipeline_parallel, sizeof *s->stage_layers, err));
    MGR_TRY(mgr_alloc(&s->files, (size_t)mg->pipeline_parallel * mg->tensor_parallel,
                      sizeof *s->files, err));
    for (uint32_t pp = 0; pp < mg->pipeline_parallel; pp++)
        s->stage_layers[pp] = (uint32_t)(s->model.layers / mg->pipeline_parallel);
    mg->stage_layers = s->stage_layers;
    mg->files = s->files;
    return add_files(into, s, err);
}

static void release(void *opaque)
{
    state *const s = opaque;
    if (!s)
        return;
    mgr_free(s->stage_layers);
    mgr_free(s->files);
    mgr_free(s);
}

static int layout(const mgr_config *config, mgr_layout *into, void **out, mgr_err *err)
{
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    *out = s; /* released with the job, also after an error */
    MGR_TRY(fill_state(config, into, s, err));
    return mgr_megatron_layout(into, &s->megatron, err);
}

static int sidecars(const mgr_job *job, const char *directory, mgr_err *err)
{
    const state *const s = job->target_state;
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/" TRACKER, directory);
    if (rc == MGR_OK)
        rc = s->context.iteration
                 ? mgr_buf_fmt(&text, err, "%llu", (unsigned long long)s->context.iteration)
                 : mgr_buf_text(&text, "release", err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

const mgr_target_format mgr_target_megatron_torch = {
    .name = "megatron-torch",
    .container = &mgr_container_torch,
    .check = check,
    .layout = layout,
    .sidecars = sidecars,
    .release = release,
};
