/* config.json: transformers'
 * models/{llama,mistral,qwen2,qwen3,mixtral,qwen3_moe}/configuration_*.py; RoPE:
 * modeling_rope_utils.py. */
#include "form/huggingface_compose.h"

static const struct {
    const char *architecture, *type;
} classes[] = {
    [MGR_HF_LLAMA] = {"LlamaForCausalLM", "llama"},
    [MGR_HF_MISTRAL] = {"MistralForCausalLM", "mistral"},
    [MGR_HF_QWEN2] = {"Qwen2ForCausalLM", "qwen2"},
    [MGR_HF_QWEN3] = {"Qwen3ForCausalLM", "qwen3"},
    [MGR_HF_MIXTRAL] = {"MixtralForCausalLM", "mixtral"},
    [MGR_HF_QWEN3_MOE] = {"Qwen3MoeForCausalLM", "qwen3_moe"},
};

const char *mgr_huggingface_model_type(mgr_hf_class class)
{
    return classes[class].type;
}

typedef struct field {
    const char *key;
    json_t *value;
} field;

static void add_fields(json_t *object, const field *fields, size_t n)
{
    for (size_t i = 0; i < n; i++)
        json_object_set_new(object, fields[i].key, fields[i].value);
}

/* transformers 5 wants the base of RoPE beside the scaling, 4 apart from it. */
static json_t *rope_config(const mgr_rope *rope, const double *base)
{
    static const char *const types[] = {
        [MGR_ROPE_PLAIN] = "default", [MGR_ROPE_LINEAR] = "linear", [MGR_ROPE_LLAMA3] = "llama3"};
    json_t *const object = json_pack("{s:s}", "rope_type", types[rope->kind]);
    if (base)
        json_object_set_new(object, "rope_theta", json_real(*base));
    if (rope->kind != MGR_ROPE_PLAIN)
        json_object_set_new(object, "factor", json_real(rope->factor));
    if (rope->kind != MGR_ROPE_LLAMA3)
        return object;
    const field fields[] = {
        {"low_freq_factor", json_real(rope->low_freq)},
        {"high_freq_factor", json_real(rope->high_freq)},
        {"original_max_position_embeddings", json_integer((json_int_t)rope->original_positions)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
    return object;
}

/* transformers 4 reads num_experts, 5 writes num_local_experts; what norm_topk_prob is by default
 * nobody should have to know. */
static void add_qwen_experts(json_t *object, const mgr_model *m)
{
    json_t *const dense = json_array();
    for (uint64_t layer = 0; layer < m->layers; layer++)
        if (!mgr_model_is_moe(m, layer))
            json_array_append_new(dense, json_integer((json_int_t)layer));
    const field fields[] = {
        {"intermediate_size", json_integer((json_int_t)m->ffn)},
        {"moe_intermediate_size", json_integer((json_int_t)mgr_model_expert_ffn(m))},
        {"num_experts", json_integer((json_int_t)m->experts)},
        {"norm_topk_prob", json_boolean(!m->router.unnormalised)},
        {"decoder_sparse_step", json_integer(1)},
        {"mlp_only_layers", dense},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static void add_experts(json_t *object, const mgr_model *m, mgr_hf_class class)
{
    if (class == MGR_HF_QWEN3_MOE)
        add_qwen_experts(object, m);
    json_object_set_new(object, "num_local_experts", json_integer((json_int_t)m->experts));
    json_object_set_new(object, "num_experts_per_tok", json_integer((json_int_t)m->top_k));
}

static void add_biases(json_t *object, const mgr_model *m, mgr_hf_class class)
{
    if (class != MGR_HF_LLAMA && class != MGR_HF_QWEN3 &&
        class != MGR_HF_QWEN3_MOE) /* of the others they are fixed */
        return;
    json_object_set_new(object, "attention_bias", json_boolean(m->bias_qkv));
    if (class == MGR_HF_LLAMA)
        json_object_set_new(object, "mlp_bias", json_boolean(m->bias_mlp));
}

/* Every field is written, since defaults differ between versions; reals have a point, as
 * transformers 5 insists. Both spellings of RoPE: 4 reads rope_theta and rope_scaling, 5
 * rope_parameters. */
json_t *mgr_huggingface_derived(const mgr_model *m, mgr_hf_class class, mgr_dtype dtype)
{
    const bool geglu = m->activation == MGR_ACTIVATION_GEGLU;
    const field fields[] = {
        {"architectures", json_pack("[s]", classes[class].architecture)},
        {"model_type", json_string(classes[class].type)},
        {"vocab_size", json_integer((json_int_t)m->vocab)},
        {"hidden_size", json_integer((json_int_t)m->hidden)},
        {"intermediate_size", json_integer((json_int_t)mgr_model_expert_ffn(m))},
        {"num_hidden_layers", json_integer((json_int_t)m->layers)},
        {"num_attention_heads", json_integer((json_int_t)m->heads)},
        {"num_key_value_heads", json_integer((json_int_t)m->kv_groups)},
        {"head_dim", json_integer((json_int_t)m->head_dim)},
        {"hidden_act", json_string(geglu ? "gelu" : "silu")},
        {"max_position_embeddings", json_integer((json_int_t)m->max_positions)},
        {"rms_norm_eps", json_real(m->norm_epsilon)},
        {"rope_theta", json_real(m->rotary_base)},
        {"rope_parameters", rope_config(&m->rope, &m->rotary_base)},
        {"initializer_range", json_real(m->init_std)},
        {"tie_word_embeddings", json_boolean(m->tied)},
        {"torch_dtype", json_string(mgr_dtype_name(dtype))},
    };
    json_t *const object = json_object();
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
    if (m->rope.kind != MGR_ROPE_PLAIN)
        json_object_set_new(object, "rope_scaling", rope_config(&m->rope, NULL));
    add_biases(object, m, class);
    if (m->experts)
        add_experts(object, m, class);
    return object;
}

static json_t *window_of(const mgr_model *m)
{
    return m->window ? json_integer((json_int_t)m->window) : json_null();
}

/* output_router_logits makes transformers compute the balancing loss in training, and lets
 * generate() of a padded batch fail (modeling_mixtral.py, load_balancing_loss_func). */
json_t *mgr_huggingface_defaults(const mgr_model *m, mgr_hf_class class)
{
    json_t *const object = json_pack("{s:f,s:b}", "attention_dropout", 0.0, "use_cache", 1);
    switch (class) {
    case MGR_HF_LLAMA:
        json_object_set_new(object, "pretraining_tp", json_integer(1));
        break;
    case MGR_HF_QWEN2:
    case MGR_HF_QWEN3:
        json_object_set_new(object, "use_sliding_window", json_boolean(m->window));
        json_object_set_new(object, "sliding_window", window_of(m));
        json_object_set_new(object, "max_window_layers", json_integer((json_int_t)m->layers));
        break;
    case MGR_HF_MIXTRAL:
        json_object_set_new(object, "output_router_logits", json_false());
        json_object_set_new(object, "router_aux_loss_coef", json_real(0.02));
        json_object_set_new(object, "router_jitter_noise", json_real(0.0));
        json_object_set_new(object, "sliding_window", window_of(m));
        break;
    case MGR_HF_QWEN3_MOE:
        json_object_set_new(object, "output_router_logits", json_false());
        json_object_set_new(object, "router_aux_loss_coef", json_real(0.001));
        json_object_set_new(object, "use_sliding_window", json_boolean(m->window));
        json_object_set_new(object, "sliding_window", window_of(m));
        break;
    case MGR_HF_MISTRAL:
        json_object_set_new(object, "sliding_window", window_of(m));
        break;
    case MGR_HF_NO_CLASS: /* refused before there was a plan */
        break;
    }
    return object;
}
