#include "form/huggingface_sidecars.h"

#include <jansson.h>
#include <stdio.h>

#include "form/huggingface_compose.h"
#include "form/huggingface_next.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "model/huggingface.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_t5.h"

/* "LayerNorm, GELU and learned positions" */
const char *mgr_huggingface_features(const mgr_model *m, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; mgr_model_feature(m, i) && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 i == 0                        ? ""
                                 : mgr_model_feature(m, i + 1) ? ", "
                                                               : " and ",
                                 mgr_model_feature(m, i));
    return out;
}

/* Experts beside what is passed through: of a class that is known to hold both, or that was read.
 */
static int check_passed(const char *format, const mgr_model *m, mgr_err *err)
{
    char known[200] = "";
    size_t used = 0;
    if (!m->passed || !m->experts || (m->passed_experts && !m->sibling))
        return MGR_OK;
    for (unsigned i = 1; mgr_huggingface_sibling(i) && used < sizeof known; i++)
        used +=
            (size_t)snprintf(known + used, sizeof known - used, "%s%s of %s", i > 1 ? ", " : "",
                             mgr_huggingface_sibling(i)->type, mgr_huggingface_sibling(i)->dense);
    const mgr_hf_sibling *const s = mgr_huggingface_sibling(m->sibling);
    if (!s)
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "target format '%s' cannot express experts in this model, of which all but the "
                 "FFNs is passed through unread: no class of transformers is known that has both; "
                 "known are: %s",
                 format, known);
    else if (!mgr_model_is_gated(m) || (!s->kinds && mgr_model_moe_layers(m) < m->layers) ||
             !(s->sigmoid ? !m->router.unnormalised : mgr_model_plain_router(m)) || m->bias_mlp)
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has gated experts without biases%s and a router that normalises, as the "
                 "model has not",
                 s->type, s->kinds ? "" : " in every layer");
    else
        return MGR_OK;
    return mgr_hint(err, "resharding moves the dense model as it is: 'mode: reshard'");
}

int mgr_huggingface_check(const char *format, const mgr_model *model, mgr_err *err)
{
    char features[600], lacks[600];
    MGR_TRY(check_passed(format, model, err));
    if (model->encoder_layers && model->experts)
        MGR_TRY(mgr_huggingface_switch_check(model, err));
    if (mgr_huggingface_class(model) != MGR_HF_NO_CLASS)
        return MGR_OK;
    const mgr_hf_class near = mgr_huggingface_nearest(model);
    mgr_huggingface_features(model, features, sizeof features);
    if (near == MGR_HF_NO_CLASS)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "target format '%s' cannot express a model with %s", format, features);
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "target format '%s' cannot express a model with %s: no class of transformers "
                    "has all that; the nearest, %s, has no %s",
                    format, features, mgr_huggingface_family(near)->type,
                    mgr_huggingface_lacks(near, model, lacks, sizeof lacks));
}

static int write_index(const mgr_output *target, const char *directory, mgr_err *err)
{
    const mgr_catalogue *const cat = target->layout->cat;
    json_t *const map = json_object();
    json_int_t total = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        total += (json_int_t)(mgr_stored_bytes(s));
        json_object_set_new(map, s->name, json_string(cat->files[s->file].path));
    }
    json_t *const index =
        json_pack("{s:{s:I},s:o}", "metadata", "total_size", total, "weight_map", map);
    const int rc = mgr_sidecar_json(directory, "model.safetensors.index.json", index, err);
    json_decref(index);
    return rc;
}

/* Token ids from beside the tokenizer, or from what lies where source.tokenizer says. */
static int look_up(const mgr_output *output, mgr_tokenizer_facts *facts, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *place;
    *facts = (mgr_tokenizer_facts){-1, -1, -1, 0};
    int rc = mgr_sidecar_find_tokenizer(output, &arena, &place, err);
    if (rc == MGR_OK && place && mgr_is_dir(place))
        rc = mgr_tokenizer_look_up(place, facts, err);
    mgr_arena_clear(&arena);
    return rc;
}

/* transformers' own, of a model that has none: what config.json says, for generate(). */
static int write_generation(const char *directory, const json_t *config, mgr_err *err)
{
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id",
                                       "decoder_start_token_id"};
    json_t *const generation = json_pack("{s:b}", "_from_model_config", 1);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (json_object_get(config, keys[i]))
            json_object_set(generation, keys[i], json_object_get(config, keys[i]));
    const int rc = mgr_sidecar_json(directory, "generation_config.json", generation, err);
    json_decref(generation);
    return rc;
}

static bool has_generation(const mgr_output *output)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char *path;
    const bool has = mgr_sidecar_find_generation(output, &arena, &path, &ignored) == MGR_OK && path;
    mgr_arena_clear(&arena);
    return has;
}

int mgr_huggingface_small_files(const mgr_output *target, const char *directory, json_t **out,
                                mgr_err *err)
{
    mgr_tokenizer_facts facts;
    json_t *config = NULL;
    MGR_TRY(look_up(target, &facts, err));
    MGR_TRY(mgr_huggingface_compose(target, &facts, &config, NULL, err));
    int rc = mgr_sidecar_copy(target, directory, err);
    if (rc == MGR_OK)
        rc = mgr_sidecar_json(directory, "config.json", config, err);
    if (rc == MGR_OK && !has_generation(target))
        rc = write_generation(directory, config, err);
    if (rc == MGR_OK)
        *out = config;
    else
        json_decref(config);
    return rc;
}

static int speak_of_tokens(const mgr_output *output, const mgr_tokenizer_facts *facts,
                           const json_t *config, mgr_remarks *remarks, mgr_err *err)
{
    const mgr_model *const m = &output->layout->tensors->model;
    if (facts->length > m->vocab)
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "the tokenizer gives out %llu ids, the vocabulary has %llu rows",
                                (unsigned long long)facts->length, (unsigned long long)m->vocab));
    if (has_generation(output))
        return mgr_remarks_add(
            remarks, &(mgr_remark){.kind = MGR_REMARK_CARRIED, .field = "generation_config.json"},
            err);
    if (output->origin && json_object_get(config, "eos_token_id"))
        return mgr_remarks_add(
            remarks, &(mgr_remark){.kind = MGR_REMARK_SET, .field = "generation_config.json"}, err);
    return MGR_OK;
}

/* A shared expert that the class always has and the model has not. */
static int speak_of_hollow(const mgr_output *output, const json_t *config, mgr_remarks *remarks,
                           mgr_err *err)
{
    const mgr_model *const m = &output->layout->tensors->model;
    const char *const type = json_string_value(json_object_get(config, "model_type"));
    const mgr_hf_family *const f = type ? mgr_huggingface_family(mgr_huggingface_type(type)) : NULL;
    if (!f || !f->hollow || !m->experts || m->shared_ffn)
        return MGR_OK;
    return mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                           "the shared expert that %s always has is there without neurons: its "
                           "tensors are empty, which a trainer may not expect",
                           f->name);
}

/* Where Switch Transformers is not the dense model, or does not train as one expects. */
static int speak_of_switch(const mgr_output *output, const json_t *config, mgr_remarks *remarks,
                           mgr_err *err)
{
    const mgr_model *const m = &output->layout->tensors->model;
    const json_t *const jitter = json_object_get(config, "router_jitter_noise");
    uint64_t steps[MGR_STACK_COUNT] = {0};
    if (!m->encoder_layers || !m->experts)
        return MGR_OK;
    MGR_TRY(mgr_remarks_say(
        remarks, MGR_REMARK_WARNING, err,
        "of each sequence an expert takes expert_capacity %lld tokens, padding included; others "
        "pass it by: set it to the longest sequence with 'target.config'",
        (long long)json_integer_value(json_object_get(config, "expert_capacity"))));
    if (json_number_value(jitter) > 0)
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "router_jitter_noise %g changes in training what experts are given",
                                json_number_value(jitter)));
    for (int s = 0; s < MGR_STACK_COUNT; s++)
        (void)mgr_huggingface_sparse_step(m, (mgr_stack)s, &steps[s]);
    if (steps[MGR_STACK_ENCODER] == 1 || steps[MGR_STACK_DECODER] == 1)
        return mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                               "with experts in every layer transformers adds no balancing loss in "
                               "training (sparse step 1)");
    return MGR_OK;
}

int mgr_huggingface_review(const mgr_output *output, mgr_remarks *remarks, mgr_err *err)
{
    mgr_tokenizer_facts facts;
    json_t *config = NULL;
    MGR_TRY(mgr_sidecar_check(output, err));
    MGR_TRY(look_up(output, &facts, err));
    MGR_TRY(mgr_huggingface_compose(output, &facts, &config, remarks, err));
    int rc = mgr_huggingface_next(output, config, remarks, err);
    if (rc == MGR_OK && json_is_false(json_object_get(config, "output_router_logits")))
        rc = mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                             "config.json has output_router_logits: false, so that generate() "
                             "works; a trainer that takes it from there adds no balancing loss");
    if (rc == MGR_OK)
        rc = speak_of_switch(output, config, remarks, err);
    if (rc == MGR_OK)
        rc = speak_of_hollow(output, config, remarks, err);
    if (rc == MGR_OK)
        rc = speak_of_tokens(output, &facts, config, remarks, err);
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
