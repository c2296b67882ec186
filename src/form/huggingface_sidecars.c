/* config.json: transformers' models/{llama,qwen2,qwen3,mixtral}/configuration_*.py; RoPE:
 * modeling_rope_utils.py. */
#include "form/huggingface_sidecars.h"

#include <jansson.h>
#include <stdio.h>

#include "form/sidecar.h"
#include "model/huggingface.h"

static const struct {
    const char *architecture, *type;
} classes[] = {
    [MGR_HF_LLAMA] = {"LlamaForCausalLM", "llama"},
    [MGR_HF_QWEN2] = {"Qwen2ForCausalLM", "qwen2"},
    [MGR_HF_QWEN3] = {"Qwen3ForCausalLM", "qwen3"},
    [MGR_HF_MIXTRAL] = {"MixtralForCausalLM", "mixtral"},
};

/* "LayerNorm, GELU and learned positions" */
static void list_features(const mgr_model *m, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; mgr_model_feature(m, i) && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 i == 0                        ? ""
                                 : mgr_model_feature(m, i + 1) ? ", "
                                                               : " and ",
                                 mgr_model_feature(m, i));
}

int mgr_huggingface_check(const char *format, const mgr_model *model, mgr_err *err)
{
    char features[400];
    if (mgr_huggingface_class(model) != MGR_HF_NO_CLASS)
        return MGR_OK;
    list_features(model, features, sizeof features);
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "target format '%s' cannot express a model with %s", format,
             features);
    return mgr_hint(err, "choose target format 'megatron-torch' or 'megatron-dist'");
}

static json_t *token_id(int64_t id)
{
    return id < 0 ? json_null() : json_integer(id);
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

/* Every field is written, since defaults differ between versions; reals have a point, as
 * transformers 5 insists. Both spellings of RoPE: 4 reads rope_theta and rope_scaling, 5
 * rope_parameters. */
static json_t *common_config(const mgr_model *m, mgr_dtype dtype)
{
    const mgr_hf_class class = mgr_huggingface_class(m);
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
        {"attention_dropout", json_real(0.0)},
        {"initializer_range", json_real(m->init_std)},
        {"tie_word_embeddings", json_boolean(m->tied)},
        {"use_cache", json_true()},
        {"bos_token_id", token_id(m->bos_token_id)},
        {"eos_token_id", token_id(m->eos_token_id)},
        {"torch_dtype", json_string(mgr_dtype_name(dtype))},
    };
    json_t *const object = json_object();
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
    if (m->rope.kind != MGR_ROPE_PLAIN)
        json_object_set_new(object, "rope_scaling", rope_config(&m->rope, NULL));
    return object;
}

/* output_router_logits makes transformers compute the balancing loss, in training and in
 * generate(), where it fails on a padded batch: who trains asks for it. */
static void add_mixtral_fields(json_t *object, const mgr_model *m)
{
    const field fields[] = {
        {"num_local_experts", json_integer((json_int_t)m->experts)},
        {"num_experts_per_tok", json_integer((json_int_t)m->top_k)},
        {"sliding_window", json_null()},
        {"output_router_logits", json_false()},
        {"router_aux_loss_coef", json_real(0.02)},
        {"router_jitter_noise", json_real(0.0)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static void add_llama_fields(json_t *object, const mgr_model *m)
{
    const field fields[] = {
        {"attention_bias", json_boolean(m->bias_qkv)},
        {"mlp_bias", json_boolean(m->bias_mlp)},
        {"pretraining_tp", json_integer(1)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

/* Both classes look at the window only where it is switched on. */
static void add_qwen_fields(json_t *object, const mgr_model *m)
{
    const field fields[] = {
        {"use_sliding_window", json_false()},
        {"sliding_window", json_null()},
        {"max_window_layers", json_integer((json_int_t)m->layers)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
    if (mgr_huggingface_class(m) == MGR_HF_QWEN3) /* Qwen2 has no such key: its biases are fixed */
        json_object_set_new(object, "attention_bias", json_boolean(m->bias_qkv));
}

static json_t *make_config(const mgr_model *m, mgr_dtype dtype)
{
    json_t *const config = common_config(m, dtype);
    switch (mgr_huggingface_class(m)) {
    case MGR_HF_LLAMA:
        add_llama_fields(config, m);
        break;
    case MGR_HF_QWEN2:
    case MGR_HF_QWEN3:
        add_qwen_fields(config, m);
        break;
    case MGR_HF_MIXTRAL:
        add_mixtral_fields(config, m);
        break;
    case MGR_HF_NO_CLASS: /* refused before there was a plan */
        break;
    }
    return config;
}

static int write_index(const mgr_output *target, const char *directory, mgr_err *err)
{
    const mgr_catalogue *const cat = target->layout->cat;
    json_t *const map = json_object();
    json_int_t total = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        total += (json_int_t)(s->shape[0] * s->stride[0] * mgr_dtype_size(s->dtype));
        json_object_set_new(map, s->name, json_string(cat->files[s->file].path));
    }
    json_t *const index =
        json_pack("{s:{s:I},s:o}", "metadata", "total_size", total, "weight_map", map);
    const int rc = mgr_sidecar_json(directory, "model.safetensors.index.json", index, err);
    json_decref(index);
    return rc;
}

/* Token ids that the configuration does not give are taken from files that came with the tokenizer.
 * A list of end tokens is cut to its first. */
static void known_token_ids(const mgr_sidecar_tokenizer *tokenizer, mgr_model *m)
{
    if (m->bos_token_id < 0)
        m->bos_token_id = tokenizer->bos_token_id;
    if (m->eos_token_id < 0)
        m->eos_token_id = tokenizer->eos_token_id;
}

int mgr_huggingface_small_files(const mgr_output *target, const char *directory, json_t **out,
                                mgr_err *err)
{
    mgr_model m = target->layout->tensors->model;
    mgr_sidecar_tokenizer tokenizer;
    MGR_TRY(mgr_sidecar_copy_tokenizer(target, directory, &tokenizer, err));
    known_token_ids(&tokenizer, &m);
    json_t *const config = make_config(&m, target->layout->dtype);
    json_t *const generation =
        json_pack("{s:b,s:o,s:o}", "_from_model_config", 1, "bos_token_id",
                  token_id(m.bos_token_id), "eos_token_id", token_id(m.eos_token_id));
    int rc = mgr_sidecar_json(directory, "config.json", config, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, "generation_config.json", generation, err);
    json_decref(generation);
    if (rc == MGR_OK)
        *out = config;
    else
        json_decref(config);
    return rc;
}

int mgr_huggingface_sidecars(const mgr_output *target, const char *directory, mgr_err *err)
{
    json_t *config;
    MGR_TRY(mgr_huggingface_small_files(target, directory, &config, err));
    json_decref(config);
    return target->layout->cat->n_files > 1 ? write_index(target, directory, err) : MGR_OK;
}
