/* The options with which Megatron-LM goes on with an output: those that its checkpoint's args
 * amount to, and those that say how to load it (arguments.py and transformer_config.py of 0.19). */
#include <stdio.h>
#include <string.h>

#include "fmt/literal.h"
#include "form/megatron_optimizer.h"
#include "form/megatron_settings.h"
#include "form/megatron_write.h"
#include "model/megatron_fields.h"

typedef enum flag_when {
    VALUE,    /* as it is, unless None */
    IF_TRUE,  /* an option without a value */
    IF_FALSE, /* the same */
    IF_NOT_1, /* a value, unless it is 1 */
    IF_NOT_SOFTMAX
} flag_when;

typedef struct flag {
    const char *arg;
    flag_when when;
    const char *option;
    bool from_args; /* --use-checkpoint-args sets it, too (checkpointing.py) */
} flag;

static const flag model_flags[] = {
    {"hybrid_layer_pattern", VALUE, "--hybrid-layer-pattern", true},
    {"num_layers", VALUE, "--num-layers", true},
    {"hidden_size", VALUE, "--hidden-size", true},
    {"ffn_hidden_size", VALUE, "--ffn-hidden-size", true},
    {"num_attention_heads", VALUE, "--num-attention-heads", true},
    {"group_query_attention", IF_TRUE, "--group-query-attention", true},
    {"num_query_groups", VALUE, "--num-query-groups", true},
    {"kv_channels", VALUE, "--kv-channels", true},
    {"seq_length", VALUE, "--seq-length", true},
    {"max_position_embeddings", VALUE, "--max-position-embeddings", true},
    {"position_embedding_type", VALUE, "--position-embedding-type", true},
    {"rotary_base", VALUE, "--rotary-base", true},
    {"rotary_percent", IF_NOT_1, "--rotary-percent", true},
    {"rotary_interleaved", IF_TRUE, "--rotary-interleaved", true},
    {"window_attn_skip_freq", VALUE, "--window-attn-skip-freq", false},
    {"use_rope_scaling", IF_TRUE, "--use-rope-scaling", false},
    {"rotary_seq_len_interpolation_factor", VALUE, "--rotary-seq-len-interpolation-factor", false},
    {"normalization", VALUE, "--normalization", true},
    {"layernorm_epsilon", VALUE, "--norm-epsilon", false},
    {"qk_layernorm", IF_TRUE, "--qk-layernorm", false},
    {"swiglu", IF_TRUE, "--swiglu", true},
    {"squared_relu", IF_TRUE, "--squared-relu", true},
    {"add_bias_linear", IF_FALSE, "--disable-bias-linear", true},
    {"add_qkv_bias", IF_TRUE, "--add-qkv-bias", true},
    {"untie_embeddings_and_output_weights", IF_TRUE, "--untie-embeddings-and-output-weights", true},
    {"num_experts", VALUE, "--num-experts", true},
    {"moe_ffn_hidden_size", VALUE, "--moe-ffn-hidden-size", true},
    {"moe_layer_freq", IF_NOT_1, "--moe-layer-freq", true},
    {"moe_router_topk", VALUE, "--moe-router-topk", true},
    {"moe_router_pre_softmax", IF_TRUE, "--moe-router-pre-softmax", true},
    {"moe_router_score_function", IF_NOT_SOFTMAX, "--moe-router-score-function", true},
    {"moe_router_enable_expert_bias", IF_TRUE, "--moe-router-enable-expert-bias", true},
    {"moe_router_topk_scaling_factor", VALUE, "--moe-router-topk-scaling-factor", true},
    {"moe_router_num_groups", VALUE, "--moe-router-num-groups", false},
    {"moe_router_group_topk", VALUE, "--moe-router-group-topk", false},
    {"moe_shared_expert_intermediate_size", VALUE, "--moe-shared-expert-intermediate-size", true},
    {"moe_shared_expert_gate", IF_TRUE, "--moe-shared-expert-gate", false},
    {"moe_grouped_gemm", IF_TRUE, "--moe-grouped-gemm", true},
    {"make_vocab_size_divisible_by", VALUE, "--make-vocab-size-divisible-by", false},
    {"bf16", IF_TRUE, "--bf16", false},
    {"fp16", IF_TRUE, "--fp16", false},
};

static const flag split_flags[] = {
    {"tensor_model_parallel_size", VALUE, "--tensor-model-parallel-size", false},
    {"pipeline_model_parallel_size", VALUE, "--pipeline-model-parallel-size", false},
    {"virtual_pipeline_model_parallel_size", VALUE, "--num-virtual-stages-per-pipeline-rank",
     false},
    {"decoder_first_pipeline_num_layers", VALUE, "--decoder-first-pipeline-num-layers", false},
    {"decoder_last_pipeline_num_layers", VALUE, "--decoder-last-pipeline-num-layers", false},
    {"expert_model_parallel_size", VALUE, "--expert-model-parallel-size", false},
    {"expert_tensor_parallel_size", VALUE, "--expert-tensor-parallel-size", false},
};

/* A list or a pattern has an entry for each layer. */
#define MOST_VALUE (MGR_CONFIG_TEXT + 4 * MGR_MAX_LAYERS)

/* Lines of a command that is wrapped as shells take it. */
typedef struct lines {
    mgr_remarks *remarks;
    char text[MOST_VALUE + 256];
    mgr_err *err;
} lines;

#define WIDTH 68

static int end_line(lines *l, const char *end)
{
    const int rc = l->text[0]
                       ? mgr_remarks_say(l->remarks, MGR_REMARK_NEXT, l->err, "%s%s", l->text, end)
                       : MGR_OK;
    l->text[0] = '\0';
    return rc;
}

static int put(lines *l, const char *option, const char *value)
{
    const size_t n = strlen(l->text), more = strlen(option) + (value ? 1 + strlen(value) : 0);
    if (n > 0 && n + 1 + more > WIDTH)
        MGR_TRY(end_line(l, " \\"));
    const size_t at = strlen(l->text);
    snprintf(l->text + at, sizeof l->text - at, "%s%s%s%s", at ? " " : "  ", option,
             value ? " " : "", value ? value : "");
    return MGR_OK;
}

static bool is_true(const mgr_attr *a)
{
    return a && (a->kind == MGR_ATTR_BOOL || a->kind == MGR_ATTR_INT) && a->i != 0;
}

/* As Megatron-LM's parser takes lists: it refuses spaces in them. */
static void close_up(char *text)
{
    char *to = text;
    for (const char *from = text; *from; from++)
        if (*from != ' ')
            *to++ = *from;
    *to = '\0';
}

static int put_flag(lines *l, const flag *f, const mgr_attr *a)
{
    char text[MOST_VALUE], word[MOST_VALUE];
    const bool one = a && a->kind != MGR_ATTR_LITERAL &&
                     (a->kind == MGR_ATTR_REAL ? a->r >= 1 && a->r <= 1 : a->i == 1);
    if (!a || a->kind == MGR_ATTR_NULL || (f->when == IF_NOT_1 && one) ||
        (f->when == IF_NOT_SOFTMAX && a->text && strcmp(a->text, "softmax") == 0))
        return MGR_OK;
    if (f->when == IF_TRUE || f->when == IF_FALSE)
        return is_true(a) == (f->when == IF_TRUE) ? put(l, f->option, NULL) : MGR_OK;
    mgr_attr_text(a, text, sizeof text);
    if (a->kind == MGR_ATTR_LITERAL)
        close_up(text);
    return put(l, f->option, mgr_shell_word(text, word, sizeof word));
}

static bool of_rope(const char *name)
{
    return mgr_has_prefix(name, "rotary_") || strcmp(name, "use_rope_scaling") == 0;
}

/* `alone`: only what --use-checkpoint-args leaves out. */
static int put_model(lines *l, const mgr_megatron_arg_list *list, bool alone)
{
    const mgr_attr *const positions = mgr_megatron_args_get(list, "position_embedding_type");
    const bool rope = positions && positions->text && strcmp(positions->text, "rope") == 0;
    const bool hybrid = mgr_megatron_args_get(list, "hybrid_layer_pattern");
    const bool grouped = is_true(mgr_megatron_args_get(list, "group_query_attention"));
    for (size_t i = 0; i < sizeof model_flags / sizeof model_flags[0]; i++) {
        const flag *const f = &model_flags[i];
        if ((alone && f->from_args) || (!rope && of_rope(f->arg)) ||
            (hybrid && strcmp(f->arg, "num_layers") == 0) ||
            (!grouped && strcmp(f->arg, "num_query_groups") == 0))
            continue;
        MGR_TRY(put_flag(l, f, mgr_megatron_args_get(list, f->arg)));
    }
    return MGR_OK;
}

/* Values of a Megatron source that change what is computed and were kept. */
static int put_kept(lines *l, const mgr_megatron_arg_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        const mgr_megatron_arg *const a = &list->list[i];
        const mgr_field f = mgr_megatron_field(a->name);
        char option[96] = "--";
        const bool mup =
            mgr_has_prefix(a->name, "mup_") && is_true(mgr_megatron_args_get(list, "use_mup"));
        if (a->fate == MGR_REMARK_DROPPED || mgr_has_prefix(a->name, "rotary_") ||
            (!mup && (f.rule != MGR_FIELD_KEPT || mgr_megatron_is_neutral(&f, &a->value))))
            continue;
        const char *const name =
            strcmp(a->name, "layernorm_zero_centered_gamma") == 0 ? "apply_layernorm_1p" : a->name;
        for (size_t k = 0; name[k] && k + 3 < sizeof option; k++)
            option[2 + k] = name[k] == '_' ? '-' : name[k];
        const flag shown = {a->name, a->value.kind == MGR_ATTR_BOOL ? IF_TRUE : VALUE, option,
                            false};
        MGR_TRY(put_flag(l, &shown, &a->value));
    }
    return MGR_OK;
}

static bool has_biased_experts(const mgr_megatron_arg_list *list)
{
    const mgr_attr *const experts = mgr_megatron_args_get(list, "num_experts");
    return experts && experts->kind == MGR_ATTR_INT &&
           is_true(mgr_megatron_args_get(list, "add_bias_linear"));
}

/* torch_dist is for any sizes: those for which its vocabulary is padded and its files are cut. */
static int put_split(lines *l, const mgr_megatron_arg_list *list, const mgr_config *config,
                     bool dist)
{
    char tp[24], ep[24];
    for (size_t i = 0; !dist && i < sizeof split_flags / sizeof split_flags[0]; i++)
        MGR_TRY(put_flag(l, &split_flags[i], mgr_megatron_args_get(list, split_flags[i].arg)));
    snprintf(tp, sizeof tp, "%llu", (unsigned long long)config->target.tensor_parallel);
    snprintf(ep, sizeof ep, "%llu", (unsigned long long)config->target.expert_parallel);
    if (dist)
        MGR_TRY(put(l, "--tensor-model-parallel-size", tp));
    if (dist && config->target.expert_parallel > 1)
        MGR_TRY(put(l, "--expert-model-parallel-size", ep));
    if (dist && has_biased_experts(list)) /* TransformerConfig takes them whole alone */
        MGR_TRY(put(l, "--expert-tensor-parallel-size", "1"));
    return MGR_OK;
}

/* Of settings that were another trainer's: groups are found by them, and the schedule is none. */
static int put_settings(lines *l, const mgr_origin *origin)
{
    char lr[32];
    if (!mgr_megatron_settings_foreign(origin))
        return MGR_OK;
    MGR_TRY(put(l, "--lr", mgr_literal_real(mgr_megatron_settings_lr(origin), lr, sizeof lr)));
    MGR_TRY(put(l, "--min-lr", "0.0"));
    return put(l, "--override-opt_param-scheduler", NULL);
}

static int put_load(lines *l, const mgr_output *out, bool dist, bool hybrid, bool distributed)
{
    const mgr_config *const config = out->config;
    char path[MGR_CONFIG_TEXT + 64];
    if (hybrid) /* of pretrain_hybrid.py; a kept arg `spec` says another */
        MGR_TRY(
            put(l, "--spec", "megatron.core.models.hybrid.hybrid_layer_specs hybrid_stack_spec"));
    MGR_TRY(put(l, "--load", mgr_shell_word(config->target.path, path, sizeof path)));
    MGR_TRY(put(l, "--ckpt-format", dist ? "torch_dist" : "torch"));
    if (strcmp(config->target.names, "local") == 0)
        MGR_TRY(put(l, "--transformer-impl", "local"));
    if (strcmp(config->target.optimizer, "keep") == 0) {
        if (distributed)
            MGR_TRY(put(l, "--use-distributed-optimizer", NULL));
        MGR_TRY(put_settings(l, out->origin));
        return put(l, "--no-load-rng", NULL);
    }
    if (strcmp(config->mode, "reshard") != 0)
        return put(l, "--finetune", NULL);
    MGR_TRY(put(l, "--no-load-optim", NULL));
    return put(l, "--no-load-rng", NULL);
}

static int say_limits(const mgr_megatron_arg_list *list, const mgr_config *config,
                      mgr_remarks *remarks, mgr_err *err)
{
    const mgr_attr *const gated = mgr_megatron_args_get(list, "gated_linear_unit");
    const mgr_attr *const base = mgr_megatron_args_get(list, "rotary_base");
    if (mgr_megatron_args_get(list, "hybrid_layer_pattern") && /* hybrid_layer_specs.py of 0.19 */
        is_true(mgr_megatron_args_get(list, "qk_layernorm")))
        MGR_TRY(
            mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                            "hybrid_stack_spec of megatron-core 0.19 makes no norms of q and k, "
                            "which this model has: it takes a layer spec that does"));
    if (is_true(gated) && !is_true(mgr_megatron_args_get(list, "swiglu")))
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "no option of Megatron-LM makes GEGLU: its model builder has to "
                                "set gated_linear_unit"));
    if (mgr_megatron_args_get(list, "num_experts") && config->target.tensor_parallel > 1)
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err, /* moe_layer.py, forward */
                                "Megatron-LM trains experts with tensor parallelism only together "
                                "with --sequence-parallel"));
    if (base && base->kind == MGR_ATTR_REAL && base->r != (double)(int64_t)base->r)
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "Megatron-LM's --rotary-base takes whole numbers, and this model's "
                                "is %g: only --use-checkpoint-args sets it",
                                base->r));
    return MGR_OK;
}

/* Of T5 and vision transformers: no spec that Megatron has gives them experts
 * (models/T5/t5_spec.py, models/vision/vit_layer_specs.py of 0.19), and MoELayer wants all process
 * groups. */
static int say_spec(const mgr_model *m, mgr_remarks *remarks, mgr_err *err)
{
    const bool t5 = m->kin == MGR_KIN_T5;
    if (!m->experts)
        return MGR_OK;
    MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                            "# no option of Megatron-LM gives %s experts: in the layer spec of "
                            "each",
                            t5 ? "a T5" : "a vision transformer"));
    MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                            "# layer with a router, submodules.mlp = get_moe_module_spec(...),"));
    return mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                           "# and pg_collection=ProcessGroupCollection.use_mpu_process_groups()");
}

int mgr_megatron_flags_review(const mgr_megatron_arg_list *list, const mgr_output *out,
                              mgr_remarks *remarks, mgr_err *err)
{
    const mgr_attr *const format = mgr_megatron_args_get(list, "ckpt_format");
    const bool dist = format && strcmp(format->text, "torch_dist") == 0;
    const bool hybrid = mgr_megatron_args_get(list, "hybrid_layer_pattern");
    const bool distributed = out->origin && mgr_megatron_optimizer_distributed(out->origin->cat);
    lines l = {.remarks = remarks, .err = err};
    if (out->layout->tensors->model.kin)
        return say_spec(&out->layout->tensors->model, remarks, err);
    MGR_TRY(say_limits(list, out->config, remarks, err));
    for (int alone = 0; alone < 2; alone++) {
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err, "%s",
                                alone ? "# or, with the checkpoint's own args:"
                                      : "# Megatron-LM's options, beside those of your data:"));
        if (alone)
            MGR_TRY(put(&l, "--use-checkpoint-args", NULL));
        MGR_TRY(put_load(&l, out, dist, hybrid, distributed));
        MGR_TRY(put_split(&l, list, out->config, dist));
        MGR_TRY(put_model(&l, list, alone));
        MGR_TRY(put_kept(&l, list));
        MGR_TRY(end_line(&l, ""));
    }
    return MGR_OK;
}
