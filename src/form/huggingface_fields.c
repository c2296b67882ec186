/* config.json: transformers' models/<type>/configuration_<type>.py; RoPE: modeling_rope_utils.py.
 */
#include <math.h>
#include <string.h>

#include "form/huggingface_compose.h"
#include "model/huggingface_t5.h"

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

/* Each name of a row's `count`. */
static void add_count(json_t *object, const char *names, uint64_t experts)
{
    for (const char *at = names; *at; at += strspn(at, " ")) {
        const size_t n = strcspn(at, " ");
        json_object_setn_new(object, at, n, json_integer((json_int_t)experts));
        at += n;
    }
}

static void add_sparse_step(json_t *object, const mgr_model *m)
{
    json_t *const dense = json_array();
    for (uint64_t layer = 0; layer < m->layers; layer++)
        if (!mgr_model_is_moe(m, layer))
            json_array_append_new(dense, json_integer((json_int_t)layer));
    json_object_set_new(object, "decoder_sparse_step", json_integer(1));
    json_object_set_new(object, "mlp_only_layers", dense);
}

static json_t *shared_count(const mgr_model *m)
{
    return json_integer((json_int_t)(m->shared_ffn / mgr_model_expert_ffn(m)));
}

/* The first layers are dense, or none is. */
static void add_grouped(json_t *object, const mgr_model *m)
{
    const mgr_router_kind *const r = &m->router;
    const field fields[] = {
        {"n_shared_experts", shared_count(m)},
        {"first_k_dense_replace", json_integer((json_int_t)(m->layers - mgr_model_moe_layers(m)))},
        {"n_group", json_integer(r->groups ? (json_int_t)r->groups : 1)},
        {"topk_group", json_integer(r->groups ? (json_int_t)r->top_groups : 1)},
        {"routed_scaling_factor", json_real(mgr_model_router_scale(m))},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static void add_ernie(json_t *object, const mgr_model *m)
{
    mgr_hf_steps steps;
    mgr_huggingface_steps(m, &steps);
    const field fields[] = {
        {"moe_k", json_integer((json_int_t)m->top_k)},
        {"moe_num_shared_experts", shared_count(m)},
        {"moe_layer_start_index", json_integer((json_int_t)steps.first)},
        {"moe_layer_end_index", json_integer((json_int_t)steps.last)},
        {"moe_layer_interval", json_integer((json_int_t)steps.step)},
    };
    json_object_del(object, "num_experts_per_tok");
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static void add_part_rope(json_t *object, const mgr_model *m, const mgr_hf_family *f)
{
    const double part = mgr_model_rotary_part(m);
    json_object_set_new(object, "partial_rotary_factor", json_real(part));
    json_object_set_new(json_object_get(object, "rope_parameters"), "partial_rotary_factor",
                        json_real(part));
    if (f->keys & MGR_HF_KEY_ROTARY_DIM)
        json_object_set_new(object, "rotary_dim",
                            json_integer((json_int_t)(part * (double)m->head_dim + 0.5)));
}

/* What norm_topk_prob is by default nobody should have to know. */
static void add_experts(json_t *object, const mgr_model *m, const mgr_hf_family *f)
{
    add_count(object, f->count, m->experts);
    json_object_set_new(object, "num_experts_per_tok", json_integer((json_int_t)m->top_k));
    if (f->expert_ffn) {
        json_object_set_new(object, "intermediate_size", json_integer((json_int_t)m->ffn));
        json_object_set_new(object, "moe_intermediate_size",
                            json_integer((json_int_t)mgr_model_expert_ffn(m)));
    }
    if (f->keys & MGR_HF_KEY_NORM_TOPK)
        json_object_set_new(object, "norm_topk_prob", json_boolean(!m->router.unnormalised));
    if (f->keys & MGR_HF_KEY_SPARSE_STEP)
        add_sparse_step(object, m);
    if (f->shared_key)
        json_object_set_new(object, f->shared_key, json_integer((json_int_t)m->shared_ffn));
    if (f->keys & MGR_HF_KEY_GROUPED)
        add_grouped(object, m);
    if (f->keys & MGR_HF_KEY_ERNIE)
        add_ernie(object, m);
    if (f->keys & MGR_HF_KEY_GLM)
        json_object_set_new(object, "use_qk_norm", json_boolean(m->qk_norm));
    if (f->keys & MGR_HF_KEY_PART_ROPE)
        add_part_rope(object, m, f);
}

/* Of the other classes they are fixed. */
static void add_biases(json_t *object, const mgr_model *m, const mgr_hf_family *f)
{
    if (f->keys & MGR_HF_KEY_QKV_BIAS)
        json_object_set_new(object, "qkv_bias", json_boolean(m->bias_qkv));
    if (f->keys & (MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_GLM))
        json_object_set_new(object, "attention_bias", json_boolean(m->bias_qkv));
    if (f->keys & MGR_HF_KEY_OUT_BIAS) {
        json_object_set_new(object, "attention_bias", json_boolean(m->bias_qkv));
        json_object_set_new(object, "attention_out_bias", json_boolean(m->bias_o));
    }
    if (f->keys & MGR_HF_KEY_MLP_BIAS)
        json_object_set_new(object, "mlp_bias", json_boolean(m->bias_mlp));
}

static json_t *factor(double value, double neutral)
{
    return json_real(value > 0 ? value : neutral);
}

static void add_multipliers(json_t *object, const mgr_model *m)
{
    const double usual = 1 / sqrt((double)m->head_dim);
    const field fields[] = {
        {"embedding_multiplier", factor(m->embedding_multiplier, 1)},
        {"residual_multiplier", factor(m->residual_multiplier, 1)},
        {"attention_multiplier", factor(m->attention_multiplier, usual)},
        {"logits_scaling", factor(m->logits_divisor, 1)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

/* 1 where there is RoPE, whatever the key is called. */
static json_t *rope_layers(const mgr_model *m)
{
    json_t *const list = json_array();
    for (uint64_t l = 0; l < m->layers; l++)
        json_array_append_new(list, json_integer(!(m->nope_layers[l / 8] >> l % 8 & 1)));
    return list;
}

static json_t *whole(uint64_t value)
{
    return json_integer((json_int_t)value);
}

/* Which layers of a stack have experts: the step decides, and the number of them that it is derived
 * from where it is not there says the same where it can. */
static void add_sparse_layers(json_t *object, const mgr_model *m, mgr_stack stack)
{
    const bool encoder = stack == MGR_STACK_ENCODER;
    const uint64_t layers = mgr_model_stack_layers(m, stack);
    uint64_t step = 0;
    (void)mgr_huggingface_sparse_step(m, stack, &step); /* it was checked */
    json_object_set_new(object, encoder ? "encoder_sparse_step" : "decoder_sparse_step",
                        whole(step));
    json_object_set_new(object, encoder ? "num_sparse_encoder_layers" : "num_sparse_decoder_layers",
                        whole(step ? layers / step : 0));
}

/* T5 and Switch Transformers; of T5 the source says whether outputs are scaled. */
static json_t *derived_t5(const mgr_model *m, const mgr_hf_family *f, mgr_dtype dtype)
{
    const field fields[] = {
        {"architectures", json_pack("[s]", f->architecture)},
        {"model_type", json_string(f->type)},
        {"vocab_size", whole(m->vocab)},
        {"d_model", whole(m->hidden)},
        {"d_ff", whole(m->ffn)},
        {"d_kv", whole(m->head_dim)},
        {"num_heads", whole(m->heads)},
        {"num_layers", whole(m->encoder_layers)},
        {"num_decoder_layers", whole(m->layers - m->encoder_layers)},
        {"layer_norm_epsilon", json_real(m->norm_epsilon)},
        {m->experts ? "dense_act_fn" : "feed_forward_proj", json_string("relu")},
        {"is_encoder_decoder", json_true()},
        {"torch_dtype", json_string(mgr_dtype_name(dtype))},
    };
    json_t *const object = json_object();
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
    if (!m->experts)
        return object;
    json_object_set_new(object, "tie_word_embeddings", json_boolean(m->tied));
    json_object_set_new(object, "num_experts", whole(m->experts));
    json_object_set_new(object, "router_bias", json_boolean(m->bias_router));
    add_sparse_layers(object, m, MGR_STACK_ENCODER);
    add_sparse_layers(object, m, MGR_STACK_DECODER);
    return object;
}

/* Every field is written, since defaults differ between versions; reals have a point, as
 * transformers 5 insists. Both spellings of RoPE: 4 reads rope_theta and rope_scaling, 5
 * rope_parameters. */
json_t *mgr_huggingface_derived(const mgr_model *m, mgr_hf_class class, mgr_dtype dtype)
{
    const mgr_hf_family *const f = mgr_huggingface_family(class);
    if (m->encoder_layers)
        return derived_t5(m, f, dtype);
    const bool geglu = m->activation == MGR_ACTIVATION_GEGLU;
    const field fields[] = {
        {"architectures", json_pack("[s]", f->architecture)},
        {"model_type", json_string(f->type)},
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
    add_biases(object, m, f);
    if (f->keys & MGR_HF_KEY_MULTIPLIERS)
        add_multipliers(object, m);
    if (f->keys & MGR_HF_KEY_NOPE_LIST)
        json_object_set_new(object, "no_rope_layers", rope_layers(m));
    if (m->experts)
        add_experts(object, m, f);
    return object;
}

static json_t *window_of(const mgr_model *m)
{
    return m->window ? json_integer((json_int_t)m->window) : json_null();
}

/* layer_types decides, and max_window_layers where there is none. */
void mgr_huggingface_window_layers(json_t *object, const mgr_model *m, bool first_too)
{
    json_t *const types = json_array();
    uint64_t first = m->layers;
    for (uint64_t l = m->layers; l-- > 0;) {
        const bool slides = m->window && (m->window_layers[l / 8] >> l % 8 & 1);
        first = slides ? l : first;
        json_array_insert_new(types, 0,
                              json_string(slides ? "sliding_attention" : "full_attention"));
    }
    json_object_set_new(object, "layer_types", types);
    if (first_too)
        json_object_set_new(object, "max_window_layers", json_integer((json_int_t)first));
}

/* output_router_logits makes transformers compute the balancing loss in training, and lets
 * generate() of a padded batch fail (modeling_mixtral.py, load_balancing_loss_func). */
json_t *mgr_huggingface_defaults(const mgr_model *m, mgr_hf_class class)
{
    const mgr_hf_family *const f = mgr_huggingface_family(class);
    json_t *const object = json_object();
    json_t *const written = f->written ? json_loads(f->written, 0, NULL) : NULL;
    if (!m->encoder_layers)
        json_object_set_new(object, "attention_dropout", json_real(0));
    json_object_set_new(object, "use_cache", json_true());
    json_object_update(object, written);
    json_decref(written);
    if (m->encoder_layers && m->experts)
        json_object_set_new(object, "expert_capacity", whole(m->max_positions));
    if (!(f->keys & MGR_HF_KEY_NO_WINDOWS))
        json_object_set_new(object, "sliding_window", window_of(m));
    if (f->keys & MGR_HF_KEY_WINDOW_SWITCH)
        json_object_set_new(object, "use_sliding_window", json_boolean(m->window));
    if (f->keys & MGR_HF_KEY_WINDOW_LAYERS && m->window)
        mgr_huggingface_window_layers(object, m, f->first_window);
    return object;
}
