/* Facts: transformers' models/<type>/configuration_<type>.py (defaults) and modeling_<type>.py
 * (names, what there is) of releases 4.46, 4.57 and 5. */
#include "model/huggingface_family.h"

#include <stdio.h>
#include <string.h>

#define ALL_WINDOWS (MGR_HF_HAS_WINDOW | MGR_HF_HAS_SOME_WINDOWS)
#define ANY_DENSE (MGR_HF_HAS_FIRST_DENSE | MGR_HF_HAS_SOME_DENSE)

static const mgr_hf_name qwen2_moe_names[] = {
    {MGR_ROLE_SHARED_GATE, "model.layers.%u.mlp.shared_expert.gate_proj.weight"},
    {MGR_ROLE_SHARED_UP, "model.layers.%u.mlp.shared_expert.up_proj.weight"},
    {MGR_ROLE_SHARED_DOWN, "model.layers.%u.mlp.shared_expert.down_proj.weight"},
    {MGR_ROLE_SHARED_SWITCH, "model.layers.%u.mlp.shared_expert_gate.weight"},
    {MGR_ROLE_COUNT, NULL},
};

static const mgr_hf_name glm4_moe_names[] = {
    {MGR_ROLE_SELECTION_BIAS, "model.layers.%u.mlp.gate.e_score_correction_bias"},
    {MGR_ROLE_SHARED_GATE, "model.layers.%u.mlp.shared_experts.gate_proj.weight"},
    {MGR_ROLE_SHARED_UP, "model.layers.%u.mlp.shared_experts.up_proj.weight"},
    {MGR_ROLE_SHARED_DOWN, "model.layers.%u.mlp.shared_experts.down_proj.weight"},
    {MGR_ROLE_COUNT, NULL},
};

/* clang-format off */
static const mgr_hf_family families[] = {
    [MGR_HF_LLAMA] = {
        .type = "llama", .name = "Llama", .architecture = "LlamaForCausalLM",
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_MLP_BIAS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_MLP_BIAS | MGR_HF_KEY_NO_WINDOWS,
        .positions = 2048, .epsilon = 1e-6, .theta = 1e4,
        .written = "{\"pretraining_tp\": 1}"},
    [MGR_HF_MISTRAL] = {
        .type = "mistral", .name = "Mistral", .architecture = "MistralForCausalLM",
        .may = MGR_HF_HAS_WINDOW,
        .groups = 8, .positions = 131072, .window = 4096, .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_QWEN2] = {
        .type = "qwen2", .name = "Qwen2", .architecture = "Qwen2ForCausalLM",
        .must = MGR_HF_HAS_QKV_BIAS, .may = ALL_WINDOWS,
        .keys = MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_WINDOW_LAYERS,
        .groups = 32, .positions = 32768, .window = 4096, .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_QWEN3] = {
        .type = "qwen3", .name = "Qwen3", .architecture = "Qwen3ForCausalLM",
        .must = MGR_HF_HAS_QK_NORM, .may = MGR_HF_HAS_ATTN_BIAS | ALL_WINDOWS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_WINDOW_LAYERS,
        .groups = 32, .head_dim = 128, .positions = 32768, .window = 4096, .epsilon = 1e-6,
        .theta = 1e4},
    [MGR_HF_MIXTRAL] = { /* renormalises behind top-k */
        .type = "mixtral", .name = "Mixtral", .architecture = "MixtralForCausalLM",
        .must = MGR_HF_HAS_EXPERTS, .may = MGR_HF_HAS_WINDOW, .ffn = MGR_HF_PER_EXPERT,
        .groups = 8, .positions = 131072, .epsilon = 1e-5, .theta = 1e6,
        .count = "num_local_experts", .experts = 8, .top_k = 2,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.02,"
                   " \"router_jitter_noise\": 0.0}"},
    [MGR_HF_QWEN3_MOE] = { /* transformers 4 reads num_experts, 5 writes num_local_experts */
        .type = "qwen3_moe", .name = "Qwen3-MoE", .architecture = "Qwen3MoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_QK_NORM,
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_WINDOW | ANY_DENSE | MGR_HF_HAS_UNNORMALISED,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_SPARSE_STEP |
                MGR_HF_KEY_NORM_TOPK,
        .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 4, .positions = 32768, .window = 4096, .epsilon = 1e-6, .theta = 1e4,
        .count = "num_experts num_local_experts", .experts = 128, .top_k = 8, .expert_ffn = 768,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_QWEN2_MOE] = { /* its shared expert is always there, and has a gate */
        .type = "qwen2_moe", .name = "Qwen2-MoE", .architecture = "Qwen2MoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_SWITCH,
        .may = MGR_HF_HAS_SHARED | MGR_HF_HAS_ODD_SHARED | MGR_HF_HAS_QKV_BIAS | ANY_DENSE |
               MGR_HF_HAS_UNNORMALISED,
        .keys = MGR_HF_KEY_QKV_BIAS | MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_SPARSE_STEP |
                MGR_HF_KEY_NORM_TOPK,
        .names = qwen2_moe_names, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 16, .positions = 32768, .window = 4096, .epsilon = 1e-6, .theta = 1e4,
        .count = "num_experts", .experts = 60, .top_k = 4, .expert_ffn = 1408, .shared_ffn = 5632,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_GLM4_MOE] = { /* as many shared experts as one wants, side by side as one */
        .type = "glm4_moe", .name = "GLM-4.5", .architecture = "Glm4MoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_SIGMOID | MGR_HF_HAS_SELECTION | MGR_HF_HAS_SHARED,
        .may = MGR_HF_HAS_QKV_BIAS | MGR_HF_HAS_QK_NORM | MGR_HF_HAS_FIRST_DENSE |
               MGR_HF_HAS_UNNORMALISED | MGR_HF_HAS_SCALE | MGR_HF_HAS_GROUPS |
               MGR_HF_HAS_PART_ROPE,
        .keys = MGR_HF_KEY_GLM | MGR_HF_KEY_NORM_TOPK | MGR_HF_KEY_NO_WINDOWS,
        .names = glm4_moe_names, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 8, .positions = 131072, .epsilon = 1e-5, .theta = 1e4,
        .count = "n_routed_experts", .experts = 128, .top_k = 8, .expert_ffn = 1408,
        .normalises = true,
        .written = "{\"output_router_logits\": false, \"num_nextn_predict_layers\": 0}"},
};
/* clang-format on */

#define N_FAMILIES (sizeof families / sizeof families[0])

_Static_assert(N_FAMILIES == MGR_HF_NO_CLASS, "each class has a row");

const mgr_hf_family *mgr_huggingface_family(mgr_hf_class class)
{
    return class < MGR_HF_NO_CLASS ? &families[class] : NULL;
}

mgr_hf_class mgr_huggingface_type(const char *type)
{
    size_t i = 0;
    while (i < N_FAMILIES && strcmp(families[i].type, type) != 0)
        i++;
    return (mgr_hf_class)i;
}

const char *mgr_huggingface_types(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < N_FAMILIES && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", families[i].type);
    return out;
}

/* ---- which class ---- */

static unsigned bit(bool is, unsigned value)
{
    return is ? value : 0u;
}

static bool first_are_dense(const mgr_model *m)
{
    bool moe = false;
    for (uint64_t l = 0; l < m->layers; l++) {
        if (moe && !mgr_model_is_moe(m, l))
            return false;
        moe = mgr_model_is_moe(m, l);
    }
    return true;
}

static unsigned has_of_router(const mgr_model *m)
{
    const mgr_router_kind *const r = &m->router;
    const double scale = mgr_model_router_scale(m);
    return bit(r->unnormalised, MGR_HF_HAS_UNNORMALISED) |
           bit(r->score == MGR_SCORE_SIGMOID, MGR_HF_HAS_SIGMOID) |
           bit(r->selection_bias, MGR_HF_HAS_SELECTION) |
           bit(scale < 1 || scale > 1, MGR_HF_HAS_SCALE) |
           bit(r->groups > 1, r->group_best == 2 ? MGR_HF_HAS_GROUPS : MGR_HF_HAS_OTHER) |
           bit(m->bias_router, MGR_HF_HAS_OTHER);
}

static unsigned has_of_experts(const mgr_model *m)
{
    const bool odd = m->shared_ffn && m->shared_ffn % mgr_model_expert_ffn(m) != 0;
    return MGR_HF_HAS_EXPERTS | has_of_router(m) |
           bit(mgr_model_moe_layers(m) < m->layers,
               first_are_dense(m) ? MGR_HF_HAS_FIRST_DENSE : MGR_HF_HAS_SOME_DENSE) |
           bit(m->shared_ffn, odd ? MGR_HF_HAS_ODD_SHARED : MGR_HF_HAS_SHARED) |
           bit(m->shared_ffn && m->shared_switch, MGR_HF_HAS_SWITCH);
}

static unsigned has(const mgr_model *m)
{
    const bool other =
        m->norm != MGR_NORM_RMS || !mgr_model_is_gated(m) || m->positions != MGR_POSITIONS_ROPE;
    const bool all_windows = mgr_model_window_layers(m) == m->layers;
    return bit(other, MGR_HF_HAS_OTHER) | bit(m->bias_qkv && !m->bias_o, MGR_HF_HAS_QKV_BIAS) |
           bit(m->bias_qkv && m->bias_o, MGR_HF_HAS_ATTN_BIAS) |
           bit(m->bias_o && !m->bias_qkv, MGR_HF_HAS_O_BIAS) |
           bit(m->bias_mlp, MGR_HF_HAS_MLP_BIAS) | bit(m->qk_norm, MGR_HF_HAS_QK_NORM) |
           bit(m->window, all_windows ? MGR_HF_HAS_WINDOW : MGR_HF_HAS_SOME_WINDOWS) |
           bit(mgr_model_rotary_part(m) < 1, MGR_HF_HAS_PART_ROPE) |
           (m->experts ? has_of_experts(m) : 0u);
}

static bool computes(const mgr_hf_family *f, unsigned what)
{
    return (what & f->must) == f->must && (what & ~(f->must | f->may)) == 0;
}

mgr_hf_class mgr_huggingface_class(const mgr_model *m)
{
    const unsigned what = has(m);
    size_t i = 0;
    while (i < N_FAMILIES && !computes(&families[i], what))
        i++;
    return (mgr_hf_class)i;
}

mgr_hf_class mgr_huggingface_class_like(const mgr_model *m, const char *type)
{
    const mgr_hf_class class = mgr_huggingface_class(m), like = mgr_huggingface_type(type);
    if (class == MGR_HF_NO_CLASS || like == MGR_HF_NO_CLASS || !computes(&families[like], has(m)))
        return class;
    return families[like].ffn == families[class].ffn &&
                   families[like].names == families[class].names
               ? like
               : class;
}
