/* config.json: transformers' models/{llama,mixtral}/configuration_*.py. */
#include "run/huggingface_sidecars.h"

#include <jansson.h>

#include "run/sidecar.h"

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

/* Every field is written, since defaults differ between versions; reals have a point, as
 * transformers 5 insists. Both spellings of RoPE: 4 reads rope_theta, 5 rope_parameters. */
static json_t *common_config(const mgr_model *m, mgr_dtype dtype)
{
    const field fields[] = {
        {"architectures", json_pack("[s]", m->experts ? "MixtralForCausalLM" : "LlamaForCausalLM")},
        {"model_type", json_string(m->experts ? "mixtral" : "llama")},
        {"vocab_size", json_integer((json_int_t)m->vocab)},
        {"hidden_size", json_integer((json_int_t)m->hidden)},
        {"intermediate_size", json_integer((json_int_t)m->ffn)},
        {"num_hidden_layers", json_integer((json_int_t)m->layers)},
        {"num_attention_heads", json_integer((json_int_t)m->heads)},
        {"num_key_value_heads", json_integer((json_int_t)m->kv_groups)},
        {"head_dim", json_integer((json_int_t)m->head_dim)},
        {"hidden_act", json_string("silu")},
        {"max_position_embeddings", json_integer((json_int_t)m->max_positions)},
        {"rms_norm_eps", json_real(m->norm_epsilon)},
        {"rope_theta", json_real(m->rotary_base)},
        {"rope_parameters",
         json_pack("{s:s,s:f}", "rope_type", "default", "rope_theta", m->rotary_base)},
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
    return object;
}

/* output_router_logits is what makes transformers compute the balancing loss in training. */
static void add_mixtral_fields(json_t *object, const mgr_model *m)
{
    const field fields[] = {
        {"num_local_experts", json_integer((json_int_t)m->experts)},
        {"num_experts_per_tok", json_integer((json_int_t)m->top_k)},
        {"sliding_window", json_null()},
        {"output_router_logits", json_true()},
        {"router_aux_loss_coef", json_real(0.02)},
        {"router_jitter_noise", json_real(0.0)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static void add_llama_fields(json_t *object)
{
    const field fields[] = {
        {"attention_bias", json_false()},
        {"mlp_bias", json_false()},
        {"pretraining_tp", json_integer(1)},
    };
    add_fields(object, fields, sizeof fields / sizeof fields[0]);
}

static int write_index(const mgr_job *job, const char *directory, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->target.cat;
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

int mgr_huggingface_sidecars(const mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_model m = job->target.tensors.model;
    mgr_sidecar_tokenizer tokenizer;
    MGR_TRY(mgr_sidecar_copy_tokenizer(job, directory, &tokenizer, err));
    known_token_ids(&tokenizer, &m);
    json_t *const config = common_config(&m, job->target.layout.dtype);
    if (m.experts)
        add_mixtral_fields(config, &m);
    else
        add_llama_fields(config);
    json_t *const generation =
        json_pack("{s:b,s:o,s:o}", "_from_model_config", 1, "bos_token_id",
                  token_id(m.bos_token_id), "eos_token_id", token_id(m.eos_token_id));
    int rc = mgr_sidecar_json(directory, "config.json", config, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, "generation_config.json", generation, err);
    if (rc == MGR_OK && job->target.cat.n_files > 1)
        rc = write_index(job, directory, err);
    json_decref(config);
    json_decref(generation);
    return rc;
}
