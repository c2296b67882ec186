#include "form/megatron_write.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/literal.h"
#include "fmt/pickle_write.h"
#include "form/megatron_root.h"
#include "io/file.h"
#include "model/megatron_hybrid.h"

typedef struct arg {
    const char *name;
    mgr_attr_kind kind;
    double number; /* whole numbers here are far below 2^53 */
    const char *text;
} arg;

#define WHOLE MGR_ATTR_INT
#define REAL MGR_ATTR_REAL
#define BOOLEAN MGR_ATTR_BOOL
#define TEXT MGR_ATTR_TEXT

static int add(mgr_megatron_arg_list *out, const arg *a, mgr_err *err)
{
    const mgr_megatron_arg entry = {.name = a->name,
                                    .value = {.key = a->name,
                                              .kind = a->kind,
                                              .i = (int64_t)a->number,
                                              .r = a->number,
                                              .text = a->text},
                                    .fate = MGR_REMARK_SET};
    MGR_TRY(mgr_grow(&out->list, &out->cap, out->n + 1, sizeof entry, err));
    out->list[out->n++] = entry;
    return MGR_OK;
}

static int add_all(mgr_megatron_arg_list *out, const arg *args, size_t n, mgr_err *err)
{
    for (size_t i = 0; i < n; i++)
        MGR_TRY(add(out, &args[i], err));
    return MGR_OK;
}

/* Megatron's RotaryEmbedding knows Llama 3's scaling by its factor alone, and its trainers do not
 * even hand that on (rotary_pos_embedding.py, gpt_builders.py). */
static bool is_megatron_rope(const mgr_rope *rope)
{
    return rope->kind != MGR_ROPE_LLAMA3 ||
           (rope->factor >= MGR_MEGATRON_ROPE_FACTOR && rope->factor <= MGR_MEGATRON_ROPE_FACTOR &&
            rope->low_freq >= 1.0 && rope->low_freq <= 1.0 && rope->high_freq >= 4.0 &&
            rope->high_freq <= 4.0 && rope->original_positions == 8192);
}

/* transformer/moe/{moe_utils,router,shared_experts}.py, transformer_config.py */
static const char *unsaid_of_experts(const mgr_model *m)
{
    const mgr_router_kind *const r = &m->router;
    const bool sigmoid = r->score == MGR_SCORE_SIGMOID;
    if (sigmoid && r->unnormalised != (m->top_k == 1))
        return r->unnormalised
                   ? "a router whose sigmoid scores are not normalised, and more than one expert"
                   : "a router whose sigmoid score is normalised, of one expert";
    if (m->shared_switch && !m->shared_ffn)
        return "a gate of a shared expert that has no neurons";
    if (r->selection_bias && !sigmoid)
        return "a router with a selection bias and no sigmoid scores";
    if (r->groups && r->group_best != m->top_k / r->top_groups)
        return "a router that takes groups of experts for as good as their best two, where it "
               "chooses more or fewer of each";
    return m->shared_ffn && m->bias_mlp ? "shared experts and biases of the FFN" : NULL;
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
        what = "Llama 3 RoPE scaling by other numbers than 8, 1, 4 and 8192 positions";
    else if (m->qk_norm && m->qk_norm_full)
        what = "norms of q and k over all heads together";
    else if (m->post_norm)
        what = "norms behind attention and FFN";
    else if (mgr_model_is_multiplied(m))
        what = "multipliers of embeddings, attention, residuals or logits";
    else if (m->experts)
        what = unsaid_of_experts(m);
    if (!what)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "Megatron's args cannot say that the model has %s",
                    what);
}

static int add_sizes(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    const mgr_megatron *const mg = a->megatron;
    const arg args[] = {
        {"num_layers", WHOLE, (double)(a->hybrid ? MGR_HYBRID_LAYERS * m->layers : m->layers),
         NULL},
        {"hidden_size", WHOLE, (double)m->hidden, NULL},
        {"ffn_hidden_size", WHOLE, (double)m->ffn, NULL},
        {"num_attention_heads", WHOLE, (double)m->heads, NULL},
        {"group_query_attention", BOOLEAN, m->kv_groups != m->heads, NULL},
        {"num_query_groups", WHOLE, (double)m->kv_groups, NULL},
        {"kv_channels", WHOLE, (double)m->head_dim, NULL},
        {"seq_length", WHOLE, (double)m->max_positions, NULL},
        {"max_position_embeddings", WHOLE, (double)m->max_positions, NULL},
        {"make_vocab_size_divisible_by", WHOLE,
         (double)a->config->target.make_vocab_size_divisible_by, NULL},
        {"padded_vocab_size", WHOLE, (double)mg->padded_vocab, NULL},
        {"tensor_model_parallel_size", WHOLE, mg->tensor_parallel, NULL},
        {"pipeline_model_parallel_size", WHOLE, mg->pipeline_parallel, NULL},
    };
    /* known to be less than what is stored; a reader of ours cuts the padding again */
    const arg true_size = {"vocab_size", WHOLE, (double)m->vocab, NULL};
    if (m->vocab < mg->padded_vocab)
        MGR_TRY(add(out, &true_size, err));
    return add_all(out, args, sizeof args / sizeof args[0], err);
}

/* Of a T5 and the like args keep what they have, but for what a job changes: they count layers of
 * the decoder or of the encoder, and say of attention what the opaque tensors are. */
static int add_sizes_of_kin(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    const mgr_megatron *const mg = a->megatron;
    const arg vocabulary[] = {
        {"make_vocab_size_divisible_by", WHOLE,
         (double)a->config->target.make_vocab_size_divisible_by, NULL},
        {"padded_vocab_size", WHOLE, (double)mg->padded_vocab, NULL},
        {"vocab_size", WHOLE, (double)m->vocab, NULL},
    };
    const arg args[] = {
        {"hidden_size", WHOLE, (double)m->hidden, NULL},
        {"ffn_hidden_size", WHOLE, (double)m->ffn, NULL},
        {"num_attention_heads", WHOLE, (double)m->heads, NULL},
        {"add_bias_linear", BOOLEAN, m->bias_mlp, NULL},
        {"tensor_model_parallel_size", WHOLE, mg->tensor_parallel, NULL},
        {"pipeline_model_parallel_size", WHOLE, mg->pipeline_parallel, NULL},
    };
    if (m->kin == MGR_KIN_T5)
        MGR_TRY(add_all(out, vocabulary, m->vocab < mg->padded_vocab ? 3 : 2, err));
    return add_all(out, args, sizeof args / sizeof args[0], err);
}

static int add_positions(const mgr_model *m, mgr_megatron_arg_list *out, mgr_err *err)
{
    const bool rope = m->positions == MGR_POSITIONS_ROPE;
    const bool whole = m->rotary_base < 0x1p53 && (double)(int64_t)m->rotary_base >= m->rotary_base;
    const arg args[] = {
        {"position_embedding_type", TEXT, 0, rope ? "rope" : "learned_absolute"},
        {"add_position_embedding", BOOLEAN, 1, NULL},
        {"use_rotary_position_embeddings", BOOLEAN, rope, NULL},
        {"rotary_base", whole ? WHOLE : REAL, m->rotary_base, NULL},
        {"rotary_percent", REAL, mgr_model_rotary_part(m), NULL},
        {"rotary_interleaved", BOOLEAN, m->rope_interleaved, NULL},
        {"use_rope_scaling", BOOLEAN, m->rope.kind == MGR_ROPE_LLAMA3, NULL},
        {"rope_scaling_factor", REAL, m->rope.kind == MGR_ROPE_LLAMA3 ? m->rope.factor : 8.0, NULL},
    };
    MGR_TRY(add_all(out, args, sizeof args / sizeof args[0], err));
    if (m->rope.kind != MGR_ROPE_LINEAR)
        return MGR_OK;
    const arg factor = {"rotary_seq_len_interpolation_factor", REAL, m->rope.factor, NULL};
    return add(out, &factor, err);
}

/* A list with 1 for each layer whose bit is set. */
static int add_bits(const char *name, const uint8_t *bits, uint64_t layers,
                    mgr_megatron_arg_list *out, mgr_err *err)
{
    mgr_buf list = {0};
    const char *text = NULL;
    int rc = MGR_OK;
    for (uint64_t l = 0; rc == MGR_OK && l < layers; l++)
        rc = mgr_buf_fmt(&list, err, "%s%d", l ? ", " : "[", bits[l / 8] >> l % 8 & 1);
    if (rc == MGR_OK)
        rc = mgr_arena_fmt(&out->arena, &text, err, "%s]", list.data);
    if (rc == MGR_OK)
        rc = add(out, &(arg){name, MGR_ATTR_LITERAL, 0, text}, err);
    mgr_buf_clear(&list);
    return rc;
}

/* Layers without RoPE and those with a window, which counts the positions to the left of each
 * (transformer/utils.py, get_sliding_window_causal_mask). */
static int add_attention(const mgr_model *m, mgr_megatron_arg_list *out, mgr_err *err)
{
    const char *window;
    if (mgr_model_nope_layers(m))
        MGR_TRY(add_bits("no_rope_freq", m->nope_layers, m->layers, out, err));
    if (!m->window)
        return MGR_OK;
    MGR_TRY(
        mgr_arena_fmt(&out->arena, &window, err, "(%llu, 0)", (unsigned long long)m->window - 1));
    MGR_TRY(add(out, &(arg){"window_size", MGR_ATTR_LITERAL, 0, window}, err));
    return mgr_model_window_layers(m) < m->layers
               ? add_bits("window_attn_skip_freq", m->window_layers, m->layers, out, err)
               : MGR_OK;
}

/* There is no option for GEGLU; `gated_linear_unit` is the name in TransformerConfig. */
static int add_architecture(const mgr_model *m, mgr_megatron_arg_list *out, mgr_err *err)
{
    const arg args[] = {
        {"normalization", TEXT, 0, m->norm == MGR_NORM_LAYER ? "LayerNorm" : "RMSNorm"},
        {"norm_epsilon", REAL, m->norm_epsilon, NULL},      /* up to core 0.18 */
        {"layernorm_epsilon", REAL, m->norm_epsilon, NULL}, /* from core 0.19 on */
        {"apply_layernorm_1p", BOOLEAN, 0, NULL},
        {"swiglu", BOOLEAN, m->activation == MGR_ACTIVATION_SWIGLU, NULL},
        {"gated_linear_unit", BOOLEAN, mgr_model_is_gated(m), NULL},
        {"squared_relu", BOOLEAN, m->activation == MGR_ACTIVATION_SQUARED_RELU, NULL},
        {"add_bias_linear", BOOLEAN, m->bias_mlp, NULL},
        {"add_qkv_bias", BOOLEAN, m->bias_qkv, NULL},
        {"qk_layernorm", BOOLEAN, m->qk_norm, NULL},
        {"untie_embeddings_and_output_weights", BOOLEAN, !m->tied, NULL},
        {"attention_dropout", REAL, 0.0, NULL},
        {"hidden_dropout", REAL, 0.0, NULL},
        {"init_method_std", REAL, m->init_std, NULL},
    };
    return add_all(out, args, sizeof args / sizeof args[0], err);
}

static int add_pattern(const mgr_model *m, mgr_megatron_arg_list *out, mgr_err *err)
{
    mgr_buf pattern = {0};
    const char *text = NULL;
    int rc = mgr_megatron_hybrid_pattern(m, &pattern, err);
    if (rc == MGR_OK)
        rc = mgr_arena_fmt(&out->arena, &text, err, "%s", pattern.data);
    if (rc == MGR_OK)
        rc = add(out, &(arg){"hybrid_layer_pattern", TEXT, 0, text}, err);
    mgr_buf_clear(&pattern);
    return rc;
}

/* A number where all layers have experts; else a list with 1 for those that have (Megatron takes
 * both). */
static int add_layer_freq(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    if (a->hybrid)
        return add_pattern(m, out, err);
    if (m->experts == 0 && !a->layer_list)
        return MGR_OK;
    const uint64_t layers = mgr_model_stack_layers(m, MGR_STACK_DECODER); /* a T5's config's */
    uint8_t moe[MGR_MAX_LAYERS / 8] = {0};
    if (mgr_model_moe_layers(m) == m->layers && !a->layer_list)
        return add(out, &(arg){"moe_layer_freq", WHOLE, 1, NULL}, err);
    for (uint64_t l = 0; l < layers; l++)
        moe[l / 8] |= (uint8_t)(mgr_model_is_moe(m, l) << l % 8);
    return add_bits("moe_layer_freq", moe, layers, out, err);
}

static int add_optional(const char *name, uint64_t value, mgr_megatron_arg_list *out, mgr_err *err)
{
    const arg a = {name, WHOLE, (double)value, NULL};
    return value ? add(out, &a, err) : MGR_OK;
}

/* What most routers do not have, and the shared expert. */
static int add_router(const mgr_model *m, mgr_megatron_arg_list *out, mgr_err *err)
{
    const arg scale = {"moe_router_topk_scaling_factor", REAL, m->router.scale, NULL};
    const arg gate = {"moe_shared_expert_gate", BOOLEAN, m->shared_switch, NULL};
    if (m->router.scale > 0)
        MGR_TRY(add(out, &scale, err));
    MGR_TRY(add_optional("moe_router_num_groups", m->router.groups, out, err));
    MGR_TRY(add_optional("moe_router_group_topk", m->router.top_groups, out, err));
    MGR_TRY(add_optional("moe_shared_expert_intermediate_size", m->shared_ffn, out, err));
    return m->shared_ffn ? add(out, &gate, err) : MGR_OK;
}

static int add_experts(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const mgr_model *const m = a->model;
    const mgr_megatron *const mg = a->megatron;
    const bool sigmoid = m->router.score == MGR_SCORE_SIGMOID;
    const arg pre_softmax = {"moe_router_pre_softmax", BOOLEAN, m->router.unnormalised, NULL};
    const arg args[] = {
        {"num_experts", WHOLE, (double)m->experts, NULL},
        {"moe_ffn_hidden_size", WHOLE, (double)mgr_model_expert_ffn(m), NULL},
        {"moe_router_topk", WHOLE, (double)m->top_k, NULL},
        {"moe_router_score_function", TEXT, 0, sigmoid ? "sigmoid" : "softmax"},
        {"moe_router_enable_expert_bias", BOOLEAN, m->router.selection_bias, NULL},
        {"expert_model_parallel_size", WHOLE, mg->expert_parallel, NULL},
        {"expert_tensor_parallel_size", WHOLE, mg->expert_tensor_parallel, NULL},
    };
    if (m->experts == 0)
        return MGR_OK;
    MGR_TRY(add_all(out, args, sizeof args / sizeof args[0], err));
    if (!sigmoid) /* of which it says nothing: a source's may stay */
        MGR_TRY(add(out, &pre_softmax, err));
    MGR_TRY(add_router(m, out, err));
    if (strcmp(a->ckpt_format, "torch") != 0)
        return MGR_OK; /* torch_dist suits both kinds of experts: the trainer's option decides */
    const arg grouped = {"moe_grouped_gemm", BOOLEAN, mg->experts != MGR_EXPERTS_SEQUENTIAL, NULL};
    return add(out, &grouped, err);
}

static int add_stages(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const uint32_t chunks = a->megatron->virtual_pipeline;
    MGR_TRY(
        add_optional("virtual_pipeline_model_parallel_size", chunks > 1 ? chunks : 0, out, err));
    MGR_TRY(add_optional("decoder_first_pipeline_num_layers", a->config->target.first_stage_layers,
                         out, err));
    return add_optional("decoder_last_pipeline_num_layers", a->config->target.last_stage_layers,
                        out, err);
}

static int add_type(mgr_dtype dtype, mgr_megatron_arg_list *out, mgr_err *err)
{
    const char *text;
    const arg flags[] = {
        {"bf16", BOOLEAN, dtype == MGR_DTYPE_BF16, NULL},
        {"fp16", BOOLEAN, dtype == MGR_DTYPE_F16, NULL},
    };
    MGR_TRY(mgr_arena_fmt(&out->arena, &text, err, "torch.%s", mgr_dtype_name(dtype)));
    MGR_TRY(add_all(out, flags, sizeof flags / sizeof flags[0], err));
    return add(out, &(arg){"params_dtype", MGR_ATTR_SYMBOL, 0, text}, err);
}

int mgr_megatron_args_own(const mgr_megatron_args *a, mgr_megatron_arg_list *out, mgr_err *err)
{
    const bool kept = strcmp(a->config->target.optimizer, "keep") == 0;
    const arg rest[] = {
        {"consumed_train_samples", WHOLE, 0, NULL}, {"skipped_train_samples", WHOLE, 0, NULL},
        {"consumed_valid_samples", WHOLE, 0, NULL}, {"data_parallel_random_init", BOOLEAN, 0, NULL},
        {"no_save_optim", BOOLEAN, !kept, NULL},    {"no_save_rng", BOOLEAN, 1, NULL},
        {"ckpt_format", TEXT, 0, a->ckpt_format},
    };
    if (a->model->kin) {
        MGR_TRY(add_sizes_of_kin(a, out, err));
    } else {
        MGR_TRY(add_sizes(a, out, err));
        MGR_TRY(add_positions(a->model, out, err));
        MGR_TRY(add_attention(a->model, out, err));
        MGR_TRY(add_architecture(a->model, out, err));
    }
    MGR_TRY(add_experts(a, out, err));
    MGR_TRY(add_layer_freq(a, out, err));
    MGR_TRY(add_stages(a, out, err));
    MGR_TRY(add_type(a->dtype, out, err));
    return add_all(out, rest, sizeof rest / sizeof rest[0], err);
}

int mgr_megatron_value_emit(const mgr_attr *a, mgr_buf *out, mgr_err *err)
{
    switch (a->kind) {
    case MGR_ATTR_NULL:
        return mgr_pickle_none(out, err);
    case MGR_ATTR_BOOL:
        return mgr_pickle_bool(out, a->i != 0, err);
    case MGR_ATTR_INT:
        return mgr_pickle_int(out, a->i, err);
    case MGR_ATTR_REAL:
        return mgr_pickle_real(out, a->r, err);
    case MGR_ATTR_TEXT:
        return mgr_pickle_text(out, a->text, err);
    case MGR_ATTR_LITERAL:
    case MGR_ATTR_SYMBOL: /* a dtype: others are dropped */
        return mgr_literal_pickle(a->text, out, err);
    case MGR_ATTR_OTHER:
        break;
    }
    return mgr_fail(err, MGR_ERR_INTERNAL, "arg '%s' has no spelling", a->key);
}

int mgr_megatron_args_emit(const mgr_megatron_arg_list *list, mgr_buf *out, mgr_err *err)
{
    for (size_t i = 0; i < list->n; i++) {
        if (list->list[i].fate == MGR_REMARK_DROPPED)
            continue;
        MGR_TRY(mgr_pickle_text(out, list->list[i].name, err));
        MGR_TRY(mgr_megatron_value_emit(&list->list[i].value, out, err));
    }
    return MGR_OK;
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

#define DIVISOR 128 /* Megatron's own default */

static const mgr_attr *arg_of(const mgr_catalogue *cat, const char *key)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (strcmp(cat->attrs[i].key, key) == 0)
            return &cat->attrs[i];
    return NULL;
}

/* Norms by themselves: the local spec's names. */
static bool has_local_names(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (strstr(cat->stored[i].name, ".input_layernorm.weight"))
            return true;
    return false;
}

void mgr_megatron_settle(const mgr_origin *origin, mgr_config *config)
{
    const bool megatron = strncmp(origin->format, "megatron", 8) == 0;
    const mgr_attr *const divisor = arg_of(origin->cat, "args.make_vocab_size_divisible_by");
    const bool known = megatron && divisor && divisor->kind == MGR_ATTR_INT && divisor->i > 0 &&
                       divisor->i <= INT32_MAX;
    if (config->target.make_vocab_size_divisible_by == 0)
        config->target.make_vocab_size_divisible_by = known ? (uint64_t)divisor->i : DIVISOR;
    if (strcmp(config->target.names, "auto") != 0)
        return;
    const mgr_attr *const impl = arg_of(origin->cat, "args.transformer_impl");
    const bool local = impl && impl->kind == MGR_ATTR_TEXT ? strcmp(impl->text, "local") == 0
                                                           : has_local_names(origin->cat);
    const bool can = strcmp(config->target.expert_names, "grouped") != 0;
    snprintf(config->target.names, sizeof config->target.names, "%s",
             megatron && local && can ? "local" : "te");
}
