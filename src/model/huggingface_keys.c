#include "model/huggingface_keys.h"

#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "model/huggingface_family.h"

#define LLAMA MGR_HF_BIT(MGR_HF_LLAMA)
#define MISTRAL MGR_HF_BIT(MGR_HF_MISTRAL)
#define QWEN2 MGR_HF_BIT(MGR_HF_QWEN2)
#define QWEN3 MGR_HF_BIT(MGR_HF_QWEN3)
#define MIXTRAL MGR_HF_BIT(MGR_HF_MIXTRAL)
#define QWEN3_MOE MGR_HF_BIT(MGR_HF_QWEN3_MOE)
#define QWEN2_MOE MGR_HF_BIT(MGR_HF_QWEN2_MOE)
#define GLM4_MOE MGR_HF_BIT(MGR_HF_GLM4_MOE)
#define SPARSE (QWEN3_MOE | QWEN2_MOE)
#define OLMO2 MGR_HF_BIT(MGR_HF_OLMO2)
#define GRANITE MGR_HF_BIT(MGR_HF_GRANITE)
#define SMOLLM3 MGR_HF_BIT(MGR_HF_SMOLLM3)
#define ERNIE4_5 MGR_HF_BIT(MGR_HF_ERNIE)
#define SEED_OSS MGR_HF_BIT(MGR_HF_SEED_OSS)
#define PHI3 MGR_HF_BIT(MGR_HF_PHI3)
#define FLEX_OLMO MGR_HF_BIT(MGR_HF_FLEX_OLMO)
#define OLMOE MGR_HF_BIT(MGR_HF_OLMOE)
#define GRANITEMOE MGR_HF_BIT(MGR_HF_GRANITE_MOE)
#define MINISTRAL MGR_HF_BIT(MGR_HF_MINISTRAL)
#define GRANITEMOESHARED MGR_HF_BIT(MGR_HF_GRANITE_SHARED)
#define ERNIE4_5_MOE MGR_HF_BIT(MGR_HF_ERNIE_MOE)
#define DOTS1 MGR_HF_BIT(MGR_HF_DOTS1)
#define MINIMAX_M2 MGR_HF_BIT(MGR_HF_MINIMAX_M2)
#define GROUPED (GLM4_MOE | DOTS1)
#define PART_ROPE (GLM4_MOE | MINIMAX_M2)
#define OLMOS (OLMO2 | FLEX_OLMO | OLMOE)
#define OLMO_MOE (FLEX_OLMO | OLMOE)
#define GRANITE_MOES (GRANITEMOE | GRANITEMOESHARED)
#define GRANITES (GRANITE | GRANITE_MOES)
#define NEWER_MOE (GRANITE_MOES | ERNIE4_5_MOE | MINIMAX_M2)
#define MOE (MIXTRAL | SPARSE | GROUPED | OLMO_MOE | NEWER_MOE)
#define BIAS_KEY (LLAMA | QWEN3 | QWEN3_MOE | GROUPED | OLMOS | GRANITES | SMOLLM3 | SEED_OSS)
#define MLP_BIAS_KEY (LLAMA | GRANITE | SMOLLM3 | SEED_OSS)
#define QWENS (QWEN2 | QWEN3 | QWEN3_MOE)
#define T5 MGR_HF_BIT(MGR_HF_T5)
#define SWITCH_TRANSFORMERS MGR_HF_BIT(MGR_HF_SWITCH)
#define T5S (T5 | SWITCH_TRANSFORMERS)
#define EVERY (MGR_HF_BIT(MGR_HF_NO_CLASS) - 1)
#define PASSED MGR_HF_BIT(MGR_HF_PASSED)
#define READ_ONES (EVERY & ~PASSED)
#define ALL (READ_ONES & ~T5S) /* of one stack */

#define READ(name, families, source)                                                               \
    {                                                                                              \
        name, families, MGR_HF_READ, NULL, NULL, source                                            \
    }
#define CARRIED(name, families, source)                                                            \
    {                                                                                              \
        name, families, MGR_HF_CARRIED, NULL, NULL, source                                         \
    }
#define IGNORED(name, families, source)                                                            \
    {                                                                                              \
        name, families, MGR_HF_IGNORED, NULL, NULL, source                                         \
    }
#define NEUTRAL(name, families, value, what, source)                                               \
    {                                                                                              \
        name, families, MGR_HF_NEUTRAL, value, what, source                                        \
    }
#define ROPE(place)                                                                                \
    READ(place ".rope_type", ALL, ROPE_UTILS), READ(place ".type", ALL, ROPE_UTILS),               \
        READ(place ".rope_theta", ALL, ROPE_UTILS), READ(place ".factor", ALL, ROPE_UTILS),        \
        READ(place ".low_freq_factor", ALL, ROPE_UTILS),                                           \
        READ(place ".high_freq_factor", ALL, ROPE_UTILS),                                          \
        READ(place ".original_max_position_embeddings", ALL, ROPE_UTILS),                          \
        READ(place ".partial_rotary_factor", PART_ROPE, ROPE_UTILS),                               \
        NEUTRAL(place ".partial_rotary_factor", ALL & ~PART_ROPE, "1", PARTIAL, ROPE_UTILS),       \
        NEUTRAL(place ".attention_factor", ALL, "1", "scaled RoPE", ROPE_UTILS),                   \
        NEUTRAL(place ".full_attention", ALL, NULL, PER_LAYER_ROPE, ROPE_UTILS),                   \
        NEUTRAL(place ".sliding_attention", ALL, NULL, PER_LAYER_ROPE, ROPE_UTILS)

/* Sources: files of transformers 4.46, 4.57 and 5. */
#define CONFIGS "models/*/configuration_*.py"
#define BASE "configuration_utils.py"
#define MODELING "models/*/modeling_*.py"
#define ROPE_UTILS "modeling_rope_utils.py"
#define MASKS "masking_utils.py"
#define CACHES "cache_utils.py"
#define LOADER "modeling_utils.py"
#define GENERATION "generation/configuration_utils.py, which takes it from a config.json"
#define TRAINERS "written by trainers, read by no class"

#define PARTIAL "RoPE on a part of the head"
#define PER_LAYER_ROPE "RoPE that differs between layers"
#define NESTED "a model inside the model"
#define OTHER_HALF "an encoder and a decoder"

static const mgr_hf_key keys[] = {
    READ("model_type", EVERY, BASE),
    READ("architectures", EVERY, BASE),
    READ("auto_map", EVERY, "dynamic_module_utils.py"),
    READ("vocab_size", EVERY, CONFIGS),
    READ("hidden_size", ALL, CONFIGS),
    READ("intermediate_size", ALL, CONFIGS),
    READ("num_hidden_layers", ALL, CONFIGS),
    READ("num_attention_heads", ALL, CONFIGS),
    READ("num_key_value_heads", ALL, CONFIGS),
    READ("head_dim", ALL, CONFIGS),
    READ("hidden_act", ALL, CONFIGS),
    READ("max_position_embeddings", ALL, CONFIGS),
    READ("rms_norm_eps", ALL, CONFIGS),
    READ("initializer_range", ALL, CONFIGS),
    READ("tie_word_embeddings", EVERY, BASE),
    READ("torch_dtype", EVERY, BASE),
    READ("dtype", EVERY, BASE),
    READ("bos_token_id", EVERY, CONFIGS),
    READ("eos_token_id", EVERY, CONFIGS),
    READ("rope_theta", ALL, ROPE_UTILS),
    READ("rope_parameters", ALL, ROPE_UTILS),
    READ("rope_scaling", ALL, ROPE_UTILS),
    READ("original_max_position_embeddings", ALL, ROPE_UTILS),
    ROPE("rope_parameters"),
    ROPE("rope_scaling"),
    READ("partial_rotary_factor", PART_ROPE, CONFIGS),
    READ("rotary_dim", MINIMAX_M2, CONFIGS ": where there is no partial_rotary_factor"),
    NEUTRAL("partial_rotary_factor", ALL & ~PART_ROPE, "1", PARTIAL, ROPE_UTILS),

    READ("attention_bias", BIAS_KEY, CONFIGS),
    IGNORED("attention_bias", ALL & ~BIAS_KEY, MODELING ": biases are fixed"),
    READ("attention_out_bias", SEED_OSS, MODELING),
    READ("mlp_bias", MLP_BIAS_KEY, CONFIGS),
    IGNORED("mlp_bias", ALL & ~MLP_BIAS_KEY, MODELING ": no bias"),
    NEUTRAL("use_bias", ERNIE4_5 | ERNIE4_5_MOE, "false", "biases of all linear layers", MODELING),
    CARRIED("pretraining_tp", LLAMA | SEED_OSS, MODELING " of 4: slices the same product"),
    IGNORED("pretraining_tp", ALL & ~(LLAMA | SEED_OSS), MODELING),
    READ("no_rope_layers", SMOLLM3, MODELING),
    READ("no_rope_layer_interval", SMOLLM3, CONFIGS ": where there is no list"),
    READ("embedding_multiplier", GRANITES, MODELING),
    READ("residual_multiplier", GRANITES, MODELING),
    READ("attention_multiplier", GRANITES, MODELING),
    READ("logits_scaling", GRANITES, MODELING),
    NEUTRAL("clip_qkv", OLMOE, NULL, "q, k and v that are clipped", MODELING),
    CARRIED("position_embedding_type", GRANITE_MOES, CONFIGS " of 4: a constant"),
    CARRIED("resid_pdrop", PHI3, MODELING ": in training alone"),
    CARRIED("embd_pdrop", PHI3, CONFIGS ": read by no class"),
    CARRIED("residual_dropout", SEED_OSS, MODELING ": in training alone"),

    READ("sliding_window", ALL, MASKS ", " CACHES),
    READ("layer_types", ALL, MASKS ", " CACHES),
    READ("use_sliding_window", QWENS | SMOLLM3, CONFIGS),
    NEUTRAL("use_sliding_window", QWEN2_MOE, "false", "windows in every second layer", CONFIGS),
    IGNORED("use_sliding_window", ALL & ~(QWENS | SMOLLM3 | QWEN2_MOE), MODELING),
    READ("max_window_layers", QWEN2 | QWEN3 | DOTS1, CONFIGS),
    CARRIED("max_window_layers", SPARSE, CONFIGS " of 4"),
    IGNORED("max_window_layers", ALL & ~(QWENS | QWEN2_MOE | DOTS1), MODELING),
    NEUTRAL("is_causal", ALL, "true", "attention that is not causal", MASKS),
    NEUTRAL("attention_chunk_size", ALL, NULL, "attention in chunks", MASKS ", " CACHES),

    READ("num_local_experts", MOE, CONFIGS ": attribute_map"),
    READ("num_experts", MOE, CONFIGS ": attribute_map"),
    READ("num_experts_per_tok", MOE, CONFIGS),
    NEUTRAL("num_local_experts", ALL & ~MOE, "false", "a mixture of experts", CONFIGS),
    NEUTRAL("num_experts", ALL & ~MOE, "false", "a mixture of experts", CONFIGS),
    CARRIED("output_router_logits", MOE, MODELING ": a loss for training"),
    CARRIED("router_aux_loss_coef", MOE, MODELING ": a loss for training"),
    CARRIED("router_jitter_noise", MIXTRAL | MINIMAX_M2, MODELING ": in training alone"),
    IGNORED("router_jitter_noise", MOE & ~(MIXTRAL | MINIMAX_M2), MODELING),
    READ("norm_topk_prob", SPARSE | GROUPED | OLMO_MOE, MODELING),
    IGNORED("norm_topk_prob", MIXTRAL | NEWER_MOE, MODELING ": always normalised"),
    READ("moe_intermediate_size", SPARSE | GROUPED | ERNIE4_5_MOE, CONFIGS),
    READ("decoder_sparse_step", SPARSE, MODELING),
    READ("mlp_only_layers", SPARSE, MODELING),
    READ("shared_expert_intermediate_size", QWEN2_MOE, MODELING),
    READ("qkv_bias", QWEN2_MOE, MODELING),
    READ("shared_intermediate_size", GRANITEMOESHARED, MODELING),
    READ("moe_num_experts", ERNIE4_5_MOE, CONFIGS),
    READ("moe_k", ERNIE4_5_MOE, CONFIGS),
    READ("moe_num_shared_experts", ERNIE4_5_MOE, MODELING),
    READ("moe_layer_start_index", ERNIE4_5_MOE, MODELING),
    READ("moe_layer_end_index", ERNIE4_5_MOE, MODELING),
    READ("moe_layer_interval", ERNIE4_5_MOE, MODELING),
    CARRIED("moe_norm_min", ERNIE4_5_MOE, MODELING ": below any sum of scores"),
    READ("n_routed_experts", GROUPED, CONFIGS),
    READ("n_shared_experts", GROUPED, MODELING),
    READ("first_k_dense_replace", GROUPED, MODELING),
    READ("n_group", GROUPED, MODELING),
    READ("topk_group", GROUPED, MODELING),
    READ("routed_scaling_factor", GROUPED, MODELING),
    READ("use_qk_norm", GLM4_MOE, MODELING),
    CARRIED("num_nextn_predict_layers", GROUPED | ERNIE4_5_MOE,
            "generation alone; its layers are refused or dropped (mtp.h)"),
    CARRIED("num_mtp_layers", GROUPED | ERNIE4_5_MOE, CONFIGS ": attribute_map"),
    CARRIED("num_mtp_modules", MINIMAX_M2, "the same, written by its authors"),
    CARRIED("mtp_transformer_layers", MINIMAX_M2, "the same"),
    CARRIED("use_mtp", MINIMAX_M2, "the same"),

    READ("d_model", T5S, CONFIGS),
    READ("d_kv", T5S, CONFIGS),
    READ("d_ff", T5S, CONFIGS),
    READ("num_layers", T5S, CONFIGS),
    READ("num_decoder_layers", T5S, CONFIGS),
    READ("num_heads", T5S, CONFIGS),
    READ("layer_norm_epsilon", T5S, CONFIGS),
    READ("feed_forward_proj", T5, CONFIGS),
    READ("dense_act_fn", T5S, CONFIGS ": wins over feed_forward_proj"),
    READ("is_gated_act", T5S, CONFIGS ": as feed_forward_proj says"),
    NEUTRAL("is_encoder_decoder", T5S, "true", "half of a model of two stacks", BASE),
    READ("scale_decoder_outputs", T5, CONFIGS " of 5: tie_word_embeddings before"),
    CARRIED("relative_attention_num_buckets", T5S, MODELING ": of tensors that are not looked at"),
    CARRIED("relative_attention_max_distance", T5S, MODELING ": the same"),
    CARRIED("n_positions", T5, "written by T5's authors, read by no class"),
    CARRIED("output_past", T5, "the same"),
    CARRIED("dropout_rate", T5S, MODELING ": in training alone"),
    CARRIED("classifier_dropout", T5, MODELING ": in training alone"),
    CARRIED("initializer_range", T5S, BASE ": not of these classes"),
    READ("num_sparse_encoder_layers", SWITCH_TRANSFORMERS, CONFIGS),
    READ("num_sparse_decoder_layers", SWITCH_TRANSFORMERS, CONFIGS),
    READ("encoder_sparse_step", SWITCH_TRANSFORMERS, CONFIGS ": wins over the number of layers"),
    READ("decoder_sparse_step", SWITCH_TRANSFORMERS, CONFIGS),
    READ("num_experts", SWITCH_TRANSFORMERS, CONFIGS),
    READ("router_bias", SWITCH_TRANSFORMERS, MODELING),
    CARRIED("expert_capacity", SWITCH_TRANSFORMERS,
            MODELING ": of the tokens of a sequence, not of the weights"),
    CARRIED("router_dtype", SWITCH_TRANSFORMERS, MODELING ": as what the router computes"),
    CARRIED("router_jitter_noise", SWITCH_TRANSFORMERS, MODELING ": in training alone"),
    IGNORED("router_ignore_padding_tokens", SWITCH_TRANSFORMERS, MODELING),
    CARRIED("router_z_loss_coef", SWITCH_TRANSFORMERS, MODELING ": a loss for training"),
    CARRIED("router_aux_loss_coef", SWITCH_TRANSFORMERS, MODELING ": a loss for training"),
    CARRIED("router_type", SWITCH_TRANSFORMERS, CONFIGS " of 4: a constant"),
    CARRIED("add_router_probs", SWITCH_TRANSFORMERS,
            MODELING ": what is returned beside the logits"),
    CARRIED("output_router_logits", SWITCH_TRANSFORMERS, MODELING ": a loss for training"),

    NEUTRAL("quantization_config", EVERY, NULL, "quantized weights", LOADER),
    NEUTRAL("compression_config", EVERY, NULL, "quantized weights", LOADER),
    NEUTRAL("transformers_weights", EVERY, NULL, "weights under a name of their own", LOADER),
    NEUTRAL("per_layer_config", READ_ONES, "empty", "layers that differ", BASE),
    NEUTRAL("text_config", READ_ONES, NULL, NESTED, BASE ": get_text_config"),
    NEUTRAL("decoder", READ_ONES, NULL, NESTED, BASE ": get_text_config"),
    NEUTRAL("generator", READ_ONES, NULL, NESTED, BASE ": get_text_config"),
    NEUTRAL("text_encoder", READ_ONES, NULL, NESTED, BASE ": get_text_config"),
    NEUTRAL("pruned_heads", READ_ONES, "empty", "heads that were cut out", BASE " of 4"),
    NEUTRAL("is_encoder_decoder", ALL, "false", OTHER_HALF, BASE),
    NEUTRAL("add_cross_attention", READ_ONES, "false", OTHER_HALF, BASE " of 4"),
    NEUTRAL("cross_attention_hidden_size", READ_ONES, NULL, OTHER_HALF, BASE " of 4"),
    NEUTRAL("tie_encoder_decoder", READ_ONES, "false", OTHER_HALF, BASE " of 4"),

    CARRIED("attention_dropout", ALL, MODELING ": in training alone"),
    CARRIED("use_cache", EVERY, MODELING ": whether, not what"),
    CARRIED("pad_token_id", EVERY, MODELING ": a row without gradient"),
    CARRIED("chunk_size_feed_forward", EVERY, BASE ": not of these classes"),
    CARRIED("is_decoder", EVERY, BASE " of 4"),
    CARRIED("output_hidden_states", EVERY, BASE),
    CARRIED("output_attentions", EVERY, BASE),
    CARRIED("return_dict", EVERY, BASE),
    CARRIED("use_return_dict", EVERY, BASE),
    CARRIED("torchscript", EVERY, BASE " of 4"),
    CARRIED("use_bfloat16", EVERY, BASE " of 4"),
    CARRIED("xla_device", EVERY, BASE " of 4"),
    CARRIED("tf_legacy_loss", EVERY, BASE " of 4"),
    CARRIED("id2label", EVERY, BASE),
    CARRIED("label2id", EVERY, BASE),
    CARRIED("num_labels", EVERY, BASE),
    CARRIED("problem_type", EVERY, BASE),
    CARRIED("finetuning_task", EVERY, BASE " of 4"),
    CARRIED("task_specific_params", EVERY, BASE " of 4"),
    CARRIED("tokenizer_class", EVERY, BASE),
    CARRIED("prefix", EVERY, BASE " of 4"),
    CARRIED("sep_token_id", EVERY, BASE " of 4"),
    CARRIED("decoder_start_token_id", EVERY, BASE " of 4"),
    CARRIED("transformers_version", EVERY, BASE),
    CARRIED("_name_or_path", EVERY, BASE),
    CARRIED("name_or_path", EVERY, BASE),
    CARRIED("_commit_hash", EVERY, BASE),
    CARRIED("_attn_implementation", EVERY, BASE ": how, not what"),
    CARRIED("_attn_implementation_internal", EVERY, BASE ": how, not what"),
    CARRIED("_attn_implementation_autoset", EVERY, BASE),
    CARRIED("attn_implementation", EVERY, BASE ": how, not what"),
    CARRIED("_experts_implementation", EVERY, BASE ": how, not what"),
    CARRIED("_experts_implementation_internal", EVERY, BASE ": how, not what"),
    CARRIED("experts_implementation", EVERY, BASE ": how, not what"),
    CARRIED("_output_attentions", EVERY, BASE),
    CARRIED("gradient_checkpointing", EVERY, LOADER ": in training alone"),
    CARRIED("initializer_factor", EVERY, TRAINERS),
    CARRIED("unsloth_version", EVERY, TRAINERS),
    CARRIED("unsloth_fixed", EVERY, TRAINERS),
    CARRIED("seq_length", EVERY, TRAINERS),
    CARRIED("max_sequence_length", EVERY, TRAINERS),
    CARRIED("model_max_length", EVERY, TRAINERS),
    CARRIED("tokenizer_model_max_length", EVERY, TRAINERS),
    CARRIED("tokenizer_padding_side", EVERY, TRAINERS),
    CARRIED("transformers/js_config", EVERY, TRAINERS),

    CARRIED("bad_words_ids", EVERY, GENERATION),
    CARRIED("begin_suppress_tokens", EVERY, GENERATION),
    CARRIED("cache_implementation", EVERY, GENERATION),
    CARRIED("diversity_penalty", EVERY, GENERATION),
    CARRIED("do_sample", EVERY, GENERATION),
    CARRIED("early_stopping", EVERY, GENERATION),
    CARRIED("encoder_no_repeat_ngram_size", EVERY, GENERATION),
    CARRIED("exponential_decay_length_penalty", EVERY, GENERATION),
    CARRIED("forced_bos_token_id", EVERY, GENERATION),
    CARRIED("forced_eos_token_id", EVERY, GENERATION),
    CARRIED("length_penalty", EVERY, GENERATION),
    CARRIED("max_length", EVERY, GENERATION),
    CARRIED("max_new_tokens", EVERY, GENERATION),
    CARRIED("min_length", EVERY, GENERATION),
    CARRIED("no_repeat_ngram_size", EVERY, GENERATION),
    CARRIED("num_beam_groups", EVERY, GENERATION),
    CARRIED("num_beams", EVERY, GENERATION),
    CARRIED("num_return_sequences", EVERY, GENERATION),
    CARRIED("output_scores", EVERY, GENERATION),
    CARRIED("remove_invalid_values", EVERY, GENERATION),
    CARRIED("repetition_penalty", EVERY, GENERATION),
    CARRIED("return_dict_in_generate", EVERY, GENERATION),
    CARRIED("suppress_tokens", EVERY, GENERATION),
    CARRIED("temperature", EVERY, GENERATION),
    CARRIED("top_k", EVERY, GENERATION),
    CARRIED("top_p", EVERY, GENERATION),
    CARRIED("typical_p", EVERY, GENERATION),
};

#define N_KEYS (sizeof keys / sizeof keys[0])
#define PREFIX "config."
#define MAX_NAME 256

const mgr_hf_key *mgr_huggingface_key_at(size_t idx)
{
    return idx < N_KEYS ? &keys[idx] : NULL;
}

const mgr_hf_key *mgr_huggingface_key(const char *name, unsigned family)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if ((keys[i].families & family) && strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

/* null, false, 0, "" and what is empty. */
static bool is_nil(const mgr_attr *a)
{
    switch (a->kind) {
    case MGR_ATTR_NULL:
        return true;
    case MGR_ATTR_BOOL:
    case MGR_ATTR_INT:
    case MGR_ATTR_OTHER: /* of these `i` is the number of members */
        return a->i == 0;
    case MGR_ATTR_REAL:
        return a->r >= 0 && a->r <= 0;
    case MGR_ATTR_TEXT:
    case MGR_ATTR_SYMBOL: /* these two are Python's, not JSON's */
    case MGR_ATTR_LITERAL:
        break;
    }
    return a->text[0] == '\0';
}

static bool is_neutral(const mgr_attr *a, const char *neutral)
{
    const bool number = a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_REAL;
    if (a->kind == MGR_ATTR_NULL) /* which is no truth: is_causal, to transformers 4 */
        return !neutral || strcmp(neutral, "true") != 0;
    if (!neutral)
        return false;
    if (strcmp(neutral, "true") == 0)
        return a->kind == MGR_ATTR_BOOL && a->i == 1;
    if (strcmp(neutral, "false") == 0)
        return (a->kind == MGR_ATTR_BOOL || a->kind == MGR_ATTR_INT) && a->i == 0;
    if (strcmp(neutral, "empty") == 0)
        return a->kind == MGR_ATTR_OTHER && a->i == 0;
    const double value = a->kind == MGR_ATTR_INT ? (double)a->i : a->r;
    return number && value >= 1 && value <= 1;
}

/* The nearest ancestor of `name` that has a row, and in *direct whether it is the parent. */
static const mgr_hf_key *ancestor(const char *name, unsigned family, char parent[MAX_NAME],
                                  bool *direct)
{
    snprintf(parent, MAX_NAME, "%s", name);
    *direct = true;
    for (char *dot = strrchr(parent, '.'); dot; dot = strrchr(parent, '.')) {
        *dot = '\0';
        const mgr_hf_key *const row = mgr_huggingface_key(parent, family);
        if (row)
            return row;
        *direct = false;
    }
    return NULL;
}

/* Is `name` a member that its container's verdict does not cover? Of objects that are read each
 * member counts; lists are read as a whole, and so is what is carried. */
static bool stands_alone(const mgr_catalogue *cat, const mgr_attr *a, const char *name,
                         unsigned family)
{
    char parent[MAX_NAME], key[2 * MAX_NAME];
    bool direct;
    if (!strchr(name, '.'))
        return true;
    const mgr_hf_key *const row = ancestor(name, family, parent, &direct);
    if (!row || !direct || row->use != MGR_HF_READ)
        return false;
    snprintf(key, sizeof key, "%.*s%s", (int)(name - a->key), a->key, parent);
    const mgr_attr *const container = mgr_catalogue_attr(cat, a->file, key);
    return container && container->text && strcmp(container->text, "object") == 0 &&
           strcmp(parent, "auto_map") != 0;
}

static bool says(const mgr_catalogue *cat, const char *key, const char *text)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, 0, key);
    return a && a->kind == MGR_ATTR_TEXT && strcmp(a->text, text) == 0;
}

bool mgr_huggingface_fp8_blocks(const mgr_catalogue *cat, uint64_t block[2])
{
    static const char *const sizes[] = {PREFIX "quantization_config.weight_block_size.0",
                                        PREFIX "quantization_config.weight_block_size.1"};
    const mgr_attr *const format = mgr_catalogue_attr(cat, 0, PREFIX "quantization_config.fmt");
    for (int i = 0; i < 2; i++) {
        const mgr_attr *const a = mgr_catalogue_attr(cat, 0, sizes[i]);
        if (!a || a->kind != MGR_ATTR_INT || a->i < 1)
            return false;
        block[i] = (uint64_t)a->i;
    }
    return says(cat, PREFIX "quantization_config.quant_method", "fp8") &&
           says(cat, PREFIX "quantization_config.activation_scheme", "dynamic") &&
           (!format || says(cat, PREFIX "quantization_config.fmt", "e4m3"));
}

static bool is_fp8_blocks(const mgr_catalogue *cat, const char *name)
{
    uint64_t block[2];
    return strcmp(name, "quantization_config") == 0 && mgr_huggingface_fp8_blocks(cat, block);
}

mgr_hf_verdict mgr_huggingface_judge(const mgr_catalogue *cat, const mgr_attr *a, unsigned family,
                                     const char *section, const mgr_hf_key **row)
{
    const char *name = a->key + sizeof PREFIX - 1;
    if (section && mgr_has_prefix(name, section))
        name += strlen(section);
    else if (section && *section)
        family = PASSED;
    *row = mgr_huggingface_key(name, family);
    if (!*row && family == PASSED) /* nothing is interpreted */
        return MGR_HF_KNOWN;
    if (*row)
        switch ((*row)->use) {
        case MGR_HF_NEUTRAL:
            return is_neutral(a, (*row)->neutral) || is_fp8_blocks(cat, name) ? MGR_HF_KNOWN
                                                                              : MGR_HF_REFUSED;
        case MGR_HF_IGNORED:
            return is_nil(a) ? MGR_HF_KNOWN : MGR_HF_PASSED_OVER;
        case MGR_HF_READ:
        case MGR_HF_CARRIED:
            return MGR_HF_KNOWN;
        }
    if (!stands_alone(cat, a, name, family))
        return MGR_HF_KNOWN;
    return is_nil(a) ? MGR_HF_UNKNOWN_NIL : MGR_HF_UNKNOWN;
}

const char *mgr_huggingface_value(const mgr_attr *a, char *out, size_t size)
{
    char text[128];
    switch (a->kind) {
    case MGR_ATTR_NULL:
        snprintf(out, size, "null");
        break;
    case MGR_ATTR_BOOL:
        snprintf(out, size, "%s", a->i ? "true" : "false");
        break;
    case MGR_ATTR_INT:
        snprintf(out, size, "%lld", (long long)a->i);
        break;
    case MGR_ATTR_REAL:
        snprintf(out, size, "%g", a->r);
        break;
    case MGR_ATTR_TEXT:
    case MGR_ATTR_SYMBOL:
    case MGR_ATTR_LITERAL:
        snprintf(out, size, "\"%s\"", mgr_printable(a->text, strlen(a->text), text, sizeof text));
        break;
    case MGR_ATTR_OTHER:
        snprintf(out, size, "%s%s", a->i ? (a->text[0] == 'o' ? "an " : "a ") : "an empty ",
                 a->text);
        break;
    }
    return out;
}
