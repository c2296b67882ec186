#include "form/megatron_write.h"

#include <stdio.h>
#include <string.h>

#include "fmt/pickle_write.h"
#include "form/megatron_root.h"
#include "io/file.h"

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

static int emit_all(const arg *args, size_t n, mgr_buf *out, mgr_err *err)
{
    for (size_t i = 0; i < n; i++)
        MGR_TRY(emit_arg(&args[i], out, err));
    return MGR_OK;
}

/* Megatron's RotaryEmbedding knows Llama 3's scaling by its factor alone
 * (core/models/common/embeddings/rotary_pos_embedding.py). */
static bool is_megatron_rope(const mgr_rope *rope)
{
    return rope->kind != MGR_ROPE_LLAMA3 ||
           (rope->low_freq >= 1.0 && rope->low_freq <= 1.0 && rope->high_freq >= 4.0 &&
            rope->high_freq <= 4.0 && rope->original_positions == 8192);
}

int mgr_megatron_check_args(const mgr_model *m, mgr_err *err)
{
    const char *what = NULL;
    if (m->bias_o != m->bias_mlp)
        what = m->bias_o ? "a bias of the attention's output, but none of the FFN"
                         : "biases of the FFN, but none of the attention's output";
    else if (m->bias_mlp && !m->bias_qkv)
        what = "biases of the linear layers, but none of q, k and v";
    else if (!is_megatron_rope(&m->rope))
        what = "Llama 3 RoPE scaling with other bounds than 1, 4 and 8192 positions";
    else if (m->window)
        what = "sliding-window attention";
    if (!what)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "Megatron's args cannot say that the model has %s", what);
    return mgr_hint(err, "choose target format 'huggingface'");
}

static int emit_sizes(const mgr_megatron_args *a, mgr_buf *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    const mgr_megatron *const mg = a->megatron;
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
        {"make_vocab_size_divisible_by", ARG_INT, (double)a->divisor, NULL},
        {"padded_vocab_size", ARG_INT, (double)mg->padded_vocab, NULL},
        {"tensor_model_parallel_size", ARG_INT, mg->tensor_parallel, NULL},
        {"pipeline_model_parallel_size", ARG_INT, mg->pipeline_parallel, NULL},
    };
    return emit_all(args, sizeof args / sizeof args[0], out, err);
}

static int emit_positions(const mgr_model *m, mgr_buf *out, mgr_err *err)
{
    const bool rope = m->positions == MGR_POSITIONS_ROPE;
    const bool whole = m->rotary_base < 0x1p53 && (double)(int64_t)m->rotary_base >= m->rotary_base;
    const arg args[] = {
        {"position_embedding_type", ARG_TEXT, 0, rope ? "rope" : "learned_absolute"},
        {"add_position_embedding", ARG_BOOL, !rope, NULL},
        {"use_rotary_position_embeddings", ARG_BOOL, rope, NULL},
        {"rotary_base", whole ? ARG_INT : ARG_REAL, m->rotary_base, NULL},
        {"rotary_percent", ARG_REAL, 1.0, NULL},
        {"rotary_interleaved", ARG_BOOL, 0, NULL},
        {"use_rope_scaling", ARG_BOOL, m->rope.kind == MGR_ROPE_LLAMA3, NULL},
        {"rope_scaling_factor", ARG_REAL, m->rope.kind == MGR_ROPE_LLAMA3 ? m->rope.factor : 8.0,
         NULL},
    };
    MGR_TRY(emit_all(args, sizeof args / sizeof args[0], out, err));
    if (m->rope.kind != MGR_ROPE_LINEAR)
        return MGR_OK;
    const arg factor = {"rotary_seq_len_interpolation_factor", ARG_REAL, m->rope.factor, NULL};
    return emit_arg(&factor, out, err);
}

/* There is no option for GEGLU; `gated_linear_unit` is the name in TransformerConfig. */
static int emit_architecture(const mgr_model *m, mgr_buf *out, mgr_err *err)
{
    const arg args[] = {
        {"normalization", ARG_TEXT, 0, m->norm == MGR_NORM_LAYER ? "LayerNorm" : "RMSNorm"},
        {"norm_epsilon", ARG_REAL, m->norm_epsilon, NULL},
        {"apply_layernorm_1p", ARG_BOOL, 0, NULL},
        {"swiglu", ARG_BOOL, m->activation == MGR_ACTIVATION_SWIGLU, NULL},
        {"gated_linear_unit", ARG_BOOL, mgr_model_is_gated(m), NULL},
        {"squared_relu", ARG_BOOL, m->activation == MGR_ACTIVATION_SQUARED_RELU, NULL},
        {"add_bias_linear", ARG_BOOL, m->bias_mlp, NULL},
        {"add_qkv_bias", ARG_BOOL, m->bias_qkv, NULL},
        {"qk_layernorm", ARG_BOOL, m->qk_norm, NULL},
        {"untie_embeddings_and_output_weights", ARG_BOOL, !m->tied, NULL},
        {"attention_dropout", ARG_REAL, 0.0, NULL},
        {"hidden_dropout", ARG_REAL, 0.0, NULL},
        {"init_method_std", ARG_REAL, m->init_std, NULL},
    };
    return emit_all(args, sizeof args / sizeof args[0], out, err);
}

/* A number where all layers have experts; else a list with 1 for those that have (Megatron takes
 * both). */
static int emit_layer_freq(const mgr_megatron_args *a, mgr_buf *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    if (m->experts == 0 && !a->layer_list)
        return MGR_OK;
    MGR_TRY(mgr_pickle_text(out, "moe_layer_freq", err));
    if (mgr_model_moe_layers(m) == m->layers && !a->layer_list)
        return mgr_pickle_int(out, 1, err);
    MGR_TRY(mgr_pickle_list_open(out, err));
    for (uint64_t l = 0; l < m->layers; l++)
        MGR_TRY(mgr_pickle_int(out, mgr_model_is_moe(m, l), err));
    return mgr_pickle_list_close(out, err);
}

static int emit_experts(const mgr_megatron_args *a, mgr_buf *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    const mgr_megatron *const mg = a->megatron;
    const arg args[] = {
        {"num_experts", ARG_INT, (double)m->experts, NULL},
        {"moe_ffn_hidden_size", ARG_INT, (double)mgr_model_expert_ffn(m), NULL},
        {"moe_router_topk", ARG_INT, (double)m->top_k, NULL},
        {"moe_router_pre_softmax", ARG_BOOL, m->router_pre_softmax, NULL},
        {"moe_router_score_function", ARG_TEXT, 0, "softmax"},
        {"moe_router_enable_expert_bias", ARG_BOOL, 0, NULL},
        {"expert_model_parallel_size", ARG_INT, mg->expert_parallel, NULL},
        {"expert_tensor_parallel_size", ARG_INT, mg->expert_tensor_parallel, NULL},
    };
    if (m->experts == 0)
        return MGR_OK;
    MGR_TRY(emit_all(args, sizeof args / sizeof args[0], out, err));
    if (strcmp(a->ckpt_format, "torch") != 0)
        return MGR_OK; /* torch_dist suits both kinds of experts: the trainer's option decides */
    const arg grouped = {"moe_grouped_gemm", ARG_BOOL, mg->experts != MGR_EXPERTS_SEQUENTIAL, NULL};
    return emit_arg(&grouped, out, err);
}

static int emit_optional(const char *name, uint64_t value, mgr_buf *out, mgr_err *err)
{
    const arg a = {name, ARG_INT, (double)value, NULL};
    return value ? emit_arg(&a, out, err) : MGR_OK;
}

static int emit_stages(const mgr_megatron_args *a, mgr_buf *out, mgr_err *err)
{
    const uint32_t chunks = a->megatron->virtual_pipeline;
    MGR_TRY(
        emit_optional("virtual_pipeline_model_parallel_size", chunks > 1 ? chunks : 0, out, err));
    MGR_TRY(emit_optional("decoder_first_pipeline_num_layers", a->first_stage_layers, out, err));
    return emit_optional("decoder_last_pipeline_num_layers", a->last_stage_layers, out, err);
}

int mgr_megatron_write_args(const mgr_megatron_args *a, mgr_buf *out, mgr_err *err)
{
    const arg rest[] = {
        {"bf16", ARG_BOOL, a->dtype == MGR_DTYPE_BF16, NULL},
        {"fp16", ARG_BOOL, a->dtype == MGR_DTYPE_F16, NULL},
        {"consumed_train_samples", ARG_INT, 0, NULL},
        {"skipped_train_samples", ARG_INT, 0, NULL},
        {"consumed_valid_samples", ARG_INT, 0, NULL},
        {"data_parallel_random_init", ARG_BOOL, 0, NULL},
        {"no_save_optim", ARG_BOOL, 1, NULL},
        {"no_save_rng", ARG_BOOL, 1, NULL},
        {"ckpt_format", ARG_TEXT, 0, a->ckpt_format},
    };
    MGR_TRY(emit_sizes(a, out, err));
    MGR_TRY(emit_positions(a->model, out, err));
    MGR_TRY(emit_architecture(a->model, out, err));
    MGR_TRY(emit_experts(a, out, err));
    MGR_TRY(emit_layer_freq(a, out, err));
    MGR_TRY(emit_stages(a, out, err));
    MGR_TRY(emit_all(rest, sizeof rest / sizeof rest[0], out, err));
    MGR_TRY(mgr_pickle_text(out, "params_dtype", err));
    return mgr_pickle_global(out, "torch", mgr_dtype_name(a->dtype), err);
}

const char *mgr_megatron_folder(uint64_t iteration, char *out, size_t size)
{
    if (iteration)
        snprintf(out, size, "iter_%07llu", (unsigned long long)iteration);
    else
        snprintf(out, size, "release");
    return out;
}

int mgr_megatron_write_tracker(const char *directory, uint64_t iteration, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_MEGATRON_TRACKER, directory);
    if (rc == MGR_OK)
        rc = iteration ? mgr_buf_fmt(&text, err, "%llu", (unsigned long long)iteration)
                       : mgr_buf_text(&text, "release", err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

uint64_t mgr_megatron_padded_vocab(const mgr_config *config, uint64_t vocab)
{
    const uint64_t multiple =
        config->target.make_vocab_size_divisible_by * config->target.tensor_parallel;
    return (vocab + multiple - 1) / multiple * multiple;
}
