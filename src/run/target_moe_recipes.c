/*
 * Target `moe-recipes`: the directory that MixtralForCausalLM.from_pretrained loads, under
 * transformers 4 and 5. config.json: transformers' models/mixtral/configuration_mixtral.py.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "io/file.h"
#include "model/mixtral.h"
#include "run/job.h"
#include "run/sidecar.h"

extern const mgr_target_format mgr_target_moe_recipes;

static int check(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel;
    if (model->experts == 0)
        return mgr_config_fail(config, "target.format", err,
                               "target format 'moe-recipes' holds mixtures of experts; the source "
                               "is dense and 'mode' is not 'upcycle'");
    if (model->experts % ep != 0)
        return mgr_config_fail(config, "target.expert_parallel", err,
                               "%llu experts do not divide among %llu expert-parallel ranks",
                               (unsigned long long)model->experts, (unsigned long long)ep);
    return MGR_OK;
}

static int layout(const mgr_config *config, mgr_layout *into, void **state, mgr_err *err)
{
    const mgr_mixtral mixtral = {(uint32_t)config->target.expert_parallel,
                                 config->target.max_shard_size};
    *state = NULL;
    return mgr_mixtral_layout(into, &mixtral, err);
}

static json_t *token_id(int64_t id)
{
    return id < 0 ? json_null() : json_integer(id);
}

/* Every field is written, since defaults differ between versions; reals have a point, as
 * transformers 5 insists. Both spellings of RoPE: 4 reads rope_theta, 5 rope_parameters. */
static json_t *mixtral_config(const mgr_model *m, mgr_dtype dtype)
{
    const struct {
        const char *key;
        json_t *value;
    } fields[] = {
        {"architectures", json_pack("[s]", "MixtralForCausalLM")},
        {"model_type", json_string("mixtral")},
        {"vocab_size", json_integer((json_int_t)m->vocab)},
        {"hidden_size", json_integer((json_int_t)m->hidden)},
        {"intermediate_size", json_integer((json_int_t)m->ffn)},
        {"num_hidden_layers", json_integer((json_int_t)m->layers)},
        {"num_attention_heads", json_integer((json_int_t)m->heads)},
        {"num_key_value_heads", json_integer((json_int_t)m->kv_groups)},
        {"head_dim", json_integer((json_int_t)m->head_dim)},
        {"num_local_experts", json_integer((json_int_t)m->experts)},
        {"num_experts_per_tok", json_integer((json_int_t)m->top_k)},
        {"hidden_act", json_string("silu")},
        {"max_position_embeddings", json_integer((json_int_t)m->max_positions)},
        {"rms_norm_eps", json_real(m->norm_epsilon)},
        {"rope_theta", json_real(m->rotary_base)},
        {"rope_parameters",
         json_pack("{s:s,s:f}", "rope_type", "default", "rope_theta", m->rotary_base)},
        {"sliding_window", json_null()},
        {"attention_dropout", json_real(0.0)},
        {"initializer_range", json_real(m->init_std)},
        {"output_router_logits", json_true()},
        {"router_aux_loss_coef", json_real(0.02)},
        {"router_jitter_noise", json_real(0.0)},
        {"tie_word_embeddings", json_boolean(m->tied)},
        {"use_cache", json_true()},
        {"bos_token_id", token_id(m->bos_token_id)},
        {"eos_token_id", token_id(m->eos_token_id)},
        {"torch_dtype", json_string(mgr_dtype_name(dtype))},
    };
    json_t *const object = json_object();
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        json_object_set_new(object, fields[i].key, fields[i].value);
    return object;
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

static int sidecars(const mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_model m = job->target.tensors.model;
    mgr_sidecar_tokenizer tokenizer;
    MGR_TRY(mgr_sidecar_copy_tokenizer(job, directory, &tokenizer, err));
    known_token_ids(&tokenizer, &m);
    json_t *const config = mixtral_config(&m, job->target.layout.dtype);
    json_t *const generation =
        json_pack("{s:b,s:o,s:o}", "_from_model_config", 1, "bos_token_id",
                  token_id(m.bos_token_id), "eos_token_id", token_id(m.eos_token_id));
    int rc = mgr_sidecar_json(directory, "config.json", config, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, "generation_config.json", generation, err);
    if (rc == MGR_OK)
        rc = write_index(job, directory, err);
    json_decref(config);
    json_decref(generation);
    return rc;
}

const mgr_target_format mgr_target_moe_recipes = {
    .name = "moe-recipes",
    .container = &mgr_container_safetensors,
    .check = check,
    .layout = layout,
    .sidecars = sidecars,
};
