/* Facts: transformers' models/<type>/configuration_<type>.py (defaults) and modeling_<type>.py
 * (names, what there is) of releases 4.46, 4.57 and 5. */
#include "model/huggingface_family.h"

#include <stdio.h>
#include <string.h>

#include "model/huggingface_t5.h"

#define ALL_WINDOWS (MGR_HF_HAS_WINDOW | MGR_HF_HAS_SOME_WINDOWS)
#define OLMO (MGR_HF_HAS_QK_NORM | MGR_HF_HAS_QK_NORM_FULL)
#define MOST (MGR_HF_HAS_SCALED_ROPE | MGR_HF_HAS_WIDE_HEADS) /* classes compute with it */
#define STEPS (MGR_HF_HAS_FIRST_DENSE | MGR_HF_HAS_DENSE_STEPS)
#define ANY_DENSE (STEPS | MGR_HF_HAS_SOME_DENSE)
#define V3_ROUTER (MGR_HF_HAS_SIGMOID | MGR_HF_HAS_SELECTION) /* DeepSeek's */
#define V3_MAY                                                                                     \
    (MGR_HF_HAS_SHARED | MGR_HF_HAS_FIRST_DENSE | MGR_HF_HAS_UNNORMALISED | MGR_HF_HAS_SCALE |     \
     MGR_HF_HAS_GROUPS)

/* By default it is a row that a small vocabulary does not have. */
#define NO_PAD "{\"pad_token_id\": null}"

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

static const mgr_hf_name ernie_moe_names[] = {
    {MGR_ROLE_SELECTION_BIAS, "model.layers.%u.mlp.moe_statics.e_score_correction_bias"},
    {MGR_ROLE_SHARED_GATE, "model.layers.%u.mlp.shared_experts.gate_proj.weight"},
    {MGR_ROLE_SHARED_UP, "model.layers.%u.mlp.shared_experts.up_proj.weight"},
    {MGR_ROLE_SHARED_DOWN, "model.layers.%u.mlp.shared_experts.down_proj.weight"},
    {MGR_ROLE_COUNT, NULL},
};

static const mgr_hf_name ernie_moe_memory[] = {
    {MGR_ROLE_SELECTION_BIAS, "model.layers.%u.mlp.gate.moe_statics.e_score_correction_bias"},
    {MGR_ROLE_COUNT, NULL},
};

static const mgr_hf_name minimax_names[] = {
    {MGR_ROLE_SELECTION_BIAS, "model.layers.%u.block_sparse_moe.e_score_correction_bias"},
    {MGR_ROLE_COUNT, NULL},
};

static const mgr_hf_name minimax_memory[] = {
    {MGR_ROLE_SELECTION_BIAS, "model.layers.%u.mlp.e_score_correction_bias"},
    {MGR_ROLE_COUNT, NULL},
};

static const mgr_hf_name granite_shared_names[] = {
    {MGR_ROLE_SHARED_GATE, "model.layers.%u.shared_mlp.gate_proj.weight"}, /* in HDF5 */
    {MGR_ROLE_SHARED_UP, "model.layers.%u.shared_mlp.up_proj.weight"},
    {MGR_ROLE_SHARED_DOWN, "model.layers.%u.shared_mlp.output_linear.weight"},
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
        .groups = 32, .positions = 32768, .window = 4096, .first_window = 28, .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_QWEN3] = {
        .type = "qwen3", .name = "Qwen3", .architecture = "Qwen3ForCausalLM",
        .must = MGR_HF_HAS_QK_NORM, .may = MGR_HF_HAS_ATTN_BIAS | ALL_WINDOWS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_WINDOW_LAYERS,
        .groups = 32, .head_dim = 128, .positions = 32768, .window = 4096, .first_window = 28,
        .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_OLMO2] = {
        .type = "olmo2", .name = "OLMo 2", .architecture = "Olmo2ForCausalLM",
        .must = OLMO | MGR_HF_HAS_POST_NORM, .may = MGR_HF_HAS_ATTN_BIAS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NO_WINDOWS,
        .positions = 2048, .epsilon = 1e-5, .theta = 1e4},
    [MGR_HF_GRANITE] = {
        .type = "granite", .name = "Granite", .architecture = "GraniteForCausalLM",
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_MLP_BIAS | MGR_HF_HAS_MULTIPLIERS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_MLP_BIAS | MGR_HF_KEY_NO_WINDOWS |
                MGR_HF_KEY_MULTIPLIERS,
        .positions = 2048, .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_SMOLLM3] = { /* windows only in layers without RoPE: refused by its keys */
        .type = "smollm3", .name = "SmolLM3", .architecture = "SmolLM3ForCausalLM",
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_MLP_BIAS | MGR_HF_HAS_NOPE,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_MLP_BIAS | MGR_HF_KEY_TIED |
                MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_NO_WINDOWS | MGR_HF_KEY_NOPE_LIST,
        .groups = 4, .positions = 32768, .epsilon = 1e-6, .theta = 2e6, .written = NO_PAD},
    [MGR_HF_ERNIE] = {
        .type = "ernie4_5", .name = "Ernie 4.5", .architecture = "Ernie4_5ForCausalLM",
        .must = MGR_HF_HAS_NEIGHBOURS, .keys = MGR_HF_KEY_TIED | MGR_HF_KEY_NO_WINDOWS,
        .groups = 2, .head_dim = 128, .positions = 131072, .epsilon = 1e-5, .theta = 5e5},
    [MGR_HF_SEED_OSS] = {
        .type = "seed_oss", .name = "Seed-OSS", .architecture = "SeedOssForCausalLM",
        .may = MGR_HF_HAS_QKV_BIAS | MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_O_BIAS |
               MGR_HF_HAS_MLP_BIAS,
        .keys = MGR_HF_KEY_OUT_BIAS | MGR_HF_KEY_MLP_BIAS | MGR_HF_KEY_NO_WINDOWS,
        .groups = 8, .head_dim = 128, .positions = 524288, .epsilon = 1e-6, .theta = 1e4},
    [MGR_HF_PHI3] = { /* its RoPE is scaled by LongRoPE or not at all */
        .type = "phi3", .name = "Phi-3", .architecture = "Phi3ForCausalLM",
        .may = MGR_HF_HAS_WINDOW, .never = MGR_HF_HAS_SCALED_ROPE,
        .fuses = MGR_HF_FUSES_QKV | MGR_HF_FUSES_GATE_UP,
        .positions = 4096, .epsilon = 1e-5, .theta = 1e4, .written = NO_PAD},
    [MGR_HF_MINISTRAL] = { /* Mistral, and layer_types says which layers have the window */
        .type = "ministral", .name = "Ministral", .architecture = "MinistralForCausalLM",
        .may = ALL_WINDOWS, .keys = MGR_HF_KEY_WINDOW_LAYERS,
        .groups = 8, .positions = 131072, .window = 4096, .epsilon = 1e-6, .theta = 1e4},
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
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_SWITCH, .gains = MGR_HF_HAS_SWITCH,
        .may = MGR_HF_HAS_SHARED | MGR_HF_HAS_ODD_SHARED | MGR_HF_HAS_QKV_BIAS | ANY_DENSE |
               MGR_HF_HAS_UNNORMALISED,
        .keys = MGR_HF_KEY_QKV_BIAS | MGR_HF_KEY_WINDOW_SWITCH | MGR_HF_KEY_SPARSE_STEP |
                MGR_HF_KEY_NORM_TOPK,
        .names = qwen2_moe_names, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 16, .positions = 32768, .window = 4096, .epsilon = 1e-6, .theta = 1e4,
        .count = "num_experts", .experts = 60, .top_k = 4, .expert_ffn = 1408,
        .shared_key = "shared_expert_intermediate_size", .shared_ffn = 5632, .hollow = true,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_GLM4_MOE] = { /* as many shared experts as one wants, side by side as one */
        .type = "glm4_moe", .name = "GLM-4.5", .architecture = "Glm4MoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | V3_ROUTER, .gains = V3_ROUTER,
        .may = MGR_HF_HAS_QKV_BIAS | MGR_HF_HAS_QK_NORM | MGR_HF_HAS_PART_ROPE | V3_MAY,
        .keys = MGR_HF_KEY_GLM | MGR_HF_KEY_GROUPED | MGR_HF_KEY_PART_ROPE | MGR_HF_KEY_NORM_TOPK |
                MGR_HF_KEY_NO_WINDOWS,
        .names = glm4_moe_names, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 8, .positions = 131072, .epsilon = 1e-5, .theta = 1e4,
        .count = "n_routed_experts", .experts = 128, .top_k = 8, .expert_ffn = 1408,
        .normalises = true, .first_dense = 1, .hollow = true, .rotary_part = 0.5,
        .written = "{\"output_router_logits\": false, \"num_nextn_predict_layers\": 0}"},
    [MGR_HF_FLEX_OLMO] = {
        .type = "flex_olmo", .name = "FlexOlmo", .architecture = "FlexOlmoForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | OLMO | MGR_HF_HAS_POST_NORM,
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_UNNORMALISED,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NO_WINDOWS | MGR_HF_KEY_NORM_TOPK,
        .ffn = MGR_HF_QWEN_EXPERT,
        .positions = 4096, .epsilon = 1e-6, .theta = 5e5,
        .count = "num_experts", .experts = 7, .top_k = 5,
        .written = "{\"pad_token_id\": null, \"output_router_logits\": false, \"router_aux_loss_coef\": 0.01}"},
    [MGR_HF_OLMOE] = { /* its norms of q and k are as wide as the model, whatever the heads are */
        .type = "olmoe", .name = "OLMoE", .architecture = "OlmoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | OLMO, .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_UNNORMALISED,
        .never = MGR_HF_HAS_WIDE_HEADS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NO_WINDOWS | MGR_HF_KEY_NORM_TOPK,
        .ffn = MGR_HF_QWEN_EXPERT,
        .positions = 4096, .epsilon = 1e-5, .theta = 1e4,
        .count = "num_experts", .experts = 64, .top_k = 8,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.01}"},
    [MGR_HF_GRANITE_MOE] = { /* renormalises behind top-k; experts are fused in every release */
        .type = "granitemoe", .name = "Granite-MoE", .architecture = "GraniteMoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS, .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_MULTIPLIERS,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NO_WINDOWS | MGR_HF_KEY_MULTIPLIERS,
        .ffn = MGR_HF_INPUT_LINEAR, .memory = MGR_HF_GRANITE_FUSED,
        .positions = 2048, .epsilon = 1e-6, .theta = 1e4,
        .count = "num_local_experts", .experts = 8, .top_k = 2,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_GRANITE_SHARED] = { /* the same with a shared expert, which may be none */
        .type = "granitemoeshared", .name = "Granite-MoE-Shared",
        .architecture = "GraniteMoeSharedForCausalLM", .must = MGR_HF_HAS_EXPERTS,
        .may = MGR_HF_HAS_ATTN_BIAS | MGR_HF_HAS_MULTIPLIERS | MGR_HF_HAS_SHARED |
               MGR_HF_HAS_ODD_SHARED,
        .keys = MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NO_WINDOWS | MGR_HF_KEY_MULTIPLIERS,
        .names = granite_shared_names, .fuses = MGR_HF_FUSES_SHARED,
        .ffn = MGR_HF_INPUT_LINEAR, .memory = MGR_HF_GRANITE_FUSED,
        .positions = 2048, .epsilon = 1e-6, .theta = 1e4,
        .count = "num_local_experts", .experts = 8, .top_k = 2,
        .shared_key = "shared_intermediate_size",
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_ERNIE_MOE] = { /* renormalises behind top-k, which a bias may turn */
        .type = "ernie4_5_moe", .name = "Ernie 4.5 MoE", .architecture = "Ernie4_5_MoeForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_NEIGHBOURS | MGR_HF_HAS_SELECTION,
        .may = MGR_HF_HAS_SHARED | STEPS, .gains = MGR_HF_HAS_SELECTION,
        .keys = MGR_HF_KEY_ERNIE | MGR_HF_KEY_TIED | MGR_HF_KEY_NO_WINDOWS,
        .names = ernie_moe_names, .memory_names = ernie_moe_memory, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 4, .positions = 131072, .epsilon = 1e-5, .theta = 5e5,
        .count = "moe_num_experts", .experts = 64, .top_k = 6, .expert_ffn = 1536, .row_bias = true,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001}"},
    [MGR_HF_DOTS1] = { /* GLM-4.5's FFNs, Qwen3's attention */
        .type = "dots1", .name = "dots.llm1", .architecture = "Dots1ForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | MGR_HF_HAS_QK_NORM | V3_ROUTER, .gains = V3_ROUTER,
        .may = MGR_HF_HAS_ATTN_BIAS | ALL_WINDOWS | V3_MAY,
        .keys = MGR_HF_KEY_GROUPED | MGR_HF_KEY_ATTENTION_BIAS | MGR_HF_KEY_NORM_TOPK |
                MGR_HF_KEY_WINDOW_LAYERS,
        .names = glm4_moe_names, .ffn = MGR_HF_QWEN_EXPERT,
        .groups = 32, .positions = 2048, .window = 4096, .first_window = 62, .epsilon = 1e-6,
        .theta = 1e4,
        .count = "n_routed_experts", .expert_ffn = 1408, .hollow = true,
        .written = "{\"output_router_logits\": false}"},
    [MGR_HF_MINIMAX_M2] = { /* renormalises behind top-k */
        .type = "minimax_m2", .name = "MiniMax-M2", .architecture = "MiniMaxM2ForCausalLM",
        .must = MGR_HF_HAS_EXPERTS | OLMO | V3_ROUTER, .gains = V3_ROUTER,
        .may = MGR_HF_HAS_PART_ROPE,
        .keys = MGR_HF_KEY_PART_ROPE | MGR_HF_KEY_ROTARY_DIM | MGR_HF_KEY_NO_WINDOWS,
        .names = minimax_names, .memory_names = minimax_memory, .ffn = MGR_HF_PER_EXPERT,
        .groups = 8, .head_dim = 128, .positions = 196608, .epsilon = 1e-6, .theta = 5e6,
        .count = "num_local_experts", .experts = 256, .top_k = 8,
        .written = "{\"output_router_logits\": false, \"router_aux_loss_coef\": 0.001,"
                   " \"router_jitter_noise\": 0.0}"},
    [MGR_HF_T5] = { /* the first one: 1.1 and its kin have gates */
        .type = "t5", .name = "T5", .architecture = "T5ForConditionalGeneration",
        .must = MGR_HF_HAS_ENCODER, .keys = MGR_HF_KEY_NO_WINDOWS,
        .name_of = mgr_huggingface_t5_name, .positions = 512, .epsilon = 1e-6},
    [MGR_HF_SWITCH] = { /* capacity, jitter: no token is passed over, and step 0 is the dense model */
        .type = "switch_transformers", .name = "Switch Transformers",
        .architecture = "SwitchTransformersForConditionalGeneration",
        .must = MGR_HF_HAS_ENCODER | MGR_HF_HAS_EXPERTS | MGR_HF_HAS_UNNORMALISED,
        .may = ANY_DENSE | MGR_HF_HAS_OTHER, .keys = MGR_HF_KEY_NO_WINDOWS,
        .name_of = mgr_huggingface_switch_name, .ffn = MGR_HF_SWITCH_EXPERT,
        .positions = 512, .epsilon = 1e-6, .count = "num_experts", .experts = 8, .top_k = 1,
        .written = "{\"router_dtype\": \"float32\", \"router_jitter_noise\": 0.0,"
                   " \"router_ignore_padding_tokens\": false, \"router_z_loss_coef\": 0.001,"
                   " \"router_aux_loss_coef\": 0.001, \"add_router_probs\": false}"},
    [MGR_HF_PASSED] = { /* goes by no name of its own: what is not in the table */
        .type = "", .name = "a class without a row here", .architecture = "",
        .must = MGR_HF_HAS_PASSED, .may = MGR_HF_HAS_EXPERTS, .keys = MGR_HF_KEY_NO_WINDOWS},
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
    while (i < N_FAMILIES && (!*type || strcmp(families[i].type, type) != 0))
        i++;
    return (mgr_hf_class)i;
}

const char *mgr_huggingface_types(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < MGR_HF_PASSED && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", families[i].type);
    return out;
}

#define PATCHES "a vision transformer, of which no class with experts is known"

/* Model types that users will try, and what keeps them out. */
static const struct {
    const char *type, *what;
} refused_types[] = {
    {"mt5", "gated FFNs in two stacks, which no class with experts holds"},
    {"umt5", "gated FFNs in two stacks, which no class with experts holds"},
    {"longt5", "a T5 with another attention"},
    {"t5gemma", "gated FFNs in two stacks, which no class with experts holds"},
    {"vit", PATCHES},
    {"dinov2", PATCHES},
    {"siglip", PATCHES},
    {"clip", PATCHES},
    {"dots3_note", "a vision tower with experts of its own"},
    {"nllb-moe", "experts of which transformers evaluates two alone"},
    {"gpt2", "matrices that are stored transposed"},
    {"inkling", "experts that are fused with gate and up in turn"},
    {"inkling2", "experts that are fused with gate and up in turn"},
    {"gpt_oss", "experts that are fused transposed, with gate and up in turn"},
    {"llama4_text", "experts that are fused transposed"},
};

const char *mgr_huggingface_refusal(const char *type)
{
    for (size_t i = 0; i < sizeof refused_types / sizeof refused_types[0]; i++)
        if (strcmp(type, refused_types[i].type) == 0)
            return refused_types[i].what;
    return NULL;
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

bool mgr_huggingface_steps(const mgr_model *m, mgr_hf_steps *out)
{
    uint64_t n = 0;
    *out = (mgr_hf_steps){.step = 1};
    for (uint64_t l = 0; l < m->layers; l++) {
        if (!mgr_model_is_moe(m, l))
            continue;
        if (n == 0)
            out->first = l;
        else if (n == 1)
            out->step = l - out->last;
        else if (l - out->last != out->step)
            return false;
        out->last = l;
        n++;
    }
    return n > 0 && (out->first + 1) % out->step == 0;
}

static unsigned dense_among(const mgr_model *m)
{
    mgr_hf_steps steps;
    if (mgr_model_moe_layers(m) == m->layers)
        return 0;
    return first_are_dense(m)                 ? MGR_HF_HAS_FIRST_DENSE
           : mgr_huggingface_steps(m, &steps) ? MGR_HF_HAS_DENSE_STEPS
                                              : MGR_HF_HAS_SOME_DENSE;
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
    return MGR_HF_HAS_EXPERTS | has_of_router(m) | dense_among(m) |
           bit(m->shared_ffn, odd ? MGR_HF_HAS_ODD_SHARED : MGR_HF_HAS_SHARED) |
           bit(m->shared_switch, MGR_HF_HAS_SWITCH);
}

static unsigned has_of_positions(const mgr_model *m)
{
    return bit(mgr_model_rotary_part(m) < 1, MGR_HF_HAS_PART_ROPE) |
           bit(m->rope_interleaved, MGR_HF_HAS_NEIGHBOURS) |
           bit(mgr_model_nope_layers(m) > 0, MGR_HF_HAS_NOPE) |
           bit(m->rope.kind != MGR_ROPE_PLAIN, MGR_HF_HAS_SCALED_ROPE);
}

static unsigned has(const mgr_model *m)
{
    const bool other =
        m->norm != MGR_NORM_RMS || !mgr_model_is_gated(m) || m->positions != MGR_POSITIONS_ROPE;
    const bool all_windows = mgr_model_window_layers(m) == m->layers;
    if (m->passed)
        return MGR_HF_HAS_PASSED | bit(m->experts, MGR_HF_HAS_EXPERTS);
    if (m->encoder_layers) /* FFNs of ReLU, and what is opaque */
        return MGR_HF_HAS_ENCODER | (m->experts ? has_of_experts(m) : 0u) |
               bit(m->activation != MGR_ACTIVATION_RELU, MGR_HF_HAS_OTHER);
    return bit(other, MGR_HF_HAS_OTHER) | bit(m->bias_qkv && !m->bias_o, MGR_HF_HAS_QKV_BIAS) |
           bit(m->bias_qkv && m->bias_o, MGR_HF_HAS_ATTN_BIAS) |
           bit(m->bias_o && !m->bias_qkv, MGR_HF_HAS_O_BIAS) |
           bit(m->bias_mlp, MGR_HF_HAS_MLP_BIAS) | bit(m->qk_norm, MGR_HF_HAS_QK_NORM) |
           bit(m->window, all_windows ? MGR_HF_HAS_WINDOW : MGR_HF_HAS_SOME_WINDOWS) |
           bit(m->qk_norm && m->qk_norm_full, MGR_HF_HAS_QK_NORM_FULL) |
           bit(m->post_norm, MGR_HF_HAS_POST_NORM) |
           bit(mgr_model_is_multiplied(m), MGR_HF_HAS_MULTIPLIERS) |
           bit(m->heads * m->head_dim != m->hidden, MGR_HF_HAS_WIDE_HEADS) | has_of_positions(m) |
           (m->experts ? has_of_experts(m) : 0u);
}

static unsigned lacking(const mgr_hf_family *f, unsigned what)
{
    return what & ~((f->must | f->may | MOST) & ~f->never);
}

static unsigned needed(const mgr_hf_family *f, unsigned what)
{
    return f->must & ~what;
}

static bool computes(const mgr_hf_family *f, unsigned what)
{
    return !lacking(f, what) && !needed(f, what);
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
    const mgr_hf_class like = mgr_huggingface_type(type);
    return like < MGR_HF_NO_CLASS && computes(&families[like], has(m)) ? like
                                                                       : mgr_huggingface_class(m);
}

static void give(mgr_model *m, unsigned bits)
{
    m->router.selection_bias = m->router.selection_bias || bits & MGR_HF_HAS_SELECTION;
    m->shared_switch = m->shared_switch || bits & MGR_HF_HAS_SWITCH;
    if (bits & MGR_HF_HAS_SIGMOID)
        m->router.score = MGR_SCORE_SIGMOID;
}

/* A shared expert, the part of a head that RoPE turns, multipliers, windows, layers without RoPE.
 */
static void give_optional(mgr_model *m, const mgr_hf_family *f)
{
    if (m->experts && (f->may & MGR_HF_HAS_SHARED))
        m->shared_ffn = 2 * mgr_model_expert_ffn(m);
    m->rotary_part = f->rotary_part;
    if (f->keys & MGR_HF_KEY_MULTIPLIERS) {
        m->embedding_multiplier = 12;
        m->residual_multiplier = 0.22;
        m->logits_divisor = 8;
    }
    if ((f->keys & MGR_HF_KEY_WINDOW_LAYERS) && !(f->keys & MGR_HF_KEY_WINDOW_SWITCH))
        m->window = m->max_positions / 2;
    for (uint64_t l = 0; m->window && l < m->layers; l += 2)
        mgr_model_set_window(m, l);
    for (uint64_t l = 3; (f->keys & MGR_HF_KEY_NOPE_LIST) && l < m->layers; l += 4)
        mgr_model_set_nope(m, l);
}

void mgr_huggingface_typical(mgr_hf_class class, mgr_model *m)
{
    const mgr_hf_family *const f = &families[class];
    const unsigned must = f->must;
    if (must & MGR_HF_HAS_EXPERTS) {
        m->experts = m->experts ? m->experts : 4;
        m->top_k = m->top_k ? m->top_k : 2;
    }
    m->bias_qkv = m->bias_qkv || must & MGR_HF_HAS_QKV_BIAS;
    m->qk_norm = m->qk_norm || must & MGR_HF_HAS_QK_NORM;
    m->qk_norm_full = must & MGR_HF_HAS_QK_NORM_FULL;
    m->post_norm = must & MGR_HF_HAS_POST_NORM;
    m->rope_interleaved = must & MGR_HF_HAS_NEIGHBOURS;
    give(m, must);
    give_optional(m, f);
}

/* Can `m` become what row `f` computes? It does so then. */
static bool become(mgr_model *m, const mgr_hf_family *f)
{
    const unsigned what = has(m), gained = needed(f, what);
    if (lacking(f, what) || gained & ~f->gains)
        return false;
    give(m, gained);
    return true;
}

void mgr_huggingface_complete(mgr_model *m, const char *type)
{
    const mgr_hf_class said = mgr_huggingface_type(type);
    if (said < MGR_HF_NO_CLASS && become(m, &families[said]))
        return;
    if (mgr_huggingface_class(m) != MGR_HF_NO_CLASS)
        return;
    for (size_t i = 0; i < N_FAMILIES && !become(m, &families[i]); i++)
        continue;
}

/* ---- what is in the way ---- */

static const struct {
    unsigned bit;
    const char *name;
} words[] = {
    {MGR_HF_HAS_EXPERTS, "experts"},
    {MGR_HF_HAS_ENCODER, "an encoder beside the decoder"},
    {MGR_HF_HAS_PASSED, "parts that are passed through unread"},
    {MGR_HF_HAS_OTHER, "LayerNorm, FFNs without a gate, learned positions or biases of the router"},
    {MGR_HF_HAS_QKV_BIAS, "biases of q, k and v alone"},
    {MGR_HF_HAS_ATTN_BIAS, "biases of the attention"},
    {MGR_HF_HAS_O_BIAS, "a bias of the attention's output alone"},
    {MGR_HF_HAS_MLP_BIAS, "biases of the FFN"},
    {MGR_HF_HAS_QK_NORM, "norms of q and k"},
    {MGR_HF_HAS_QK_NORM_FULL, "norms of q and k over all heads together"},
    {MGR_HF_HAS_POST_NORM, "norms behind attention and FFN"},
    {MGR_HF_HAS_NEIGHBOURS, "interleaved RoPE"},
    {MGR_HF_HAS_NOPE, "layers without RoPE"},
    {MGR_HF_HAS_PART_ROPE, "RoPE on a part of the head"},
    {MGR_HF_HAS_SCALED_ROPE, "RoPE scaling of this kind"},
    {MGR_HF_HAS_WIDE_HEADS, "heads that are not as wide as the model"},
    {MGR_HF_HAS_MULTIPLIERS, "multipliers of embeddings, attention, residuals or logits"},
    {MGR_HF_HAS_WINDOW, "sliding-window attention"},
    {MGR_HF_HAS_SOME_WINDOWS, "sliding windows in some layers"},
    {MGR_HF_HAS_FIRST_DENSE, "dense layers before those with experts"},
    {MGR_HF_HAS_DENSE_STEPS, "dense layers between those with experts"},
    {MGR_HF_HAS_SOME_DENSE, "dense layers here and there"},
    {MGR_HF_HAS_UNNORMALISED, "a router that does not normalise"},
    {MGR_HF_HAS_SIGMOID, "a router with sigmoid scores"},
    {MGR_HF_HAS_SELECTION, "a router with a selection bias"},
    {MGR_HF_HAS_SCALE, "a scaled router"},
    {MGR_HF_HAS_GROUPS, "a router with groups of experts"},
    {MGR_HF_HAS_SHARED, "shared experts"},
    {MGR_HF_HAS_ODD_SHARED, "shared experts of such a width"},
    {MGR_HF_HAS_SWITCH, "a gate of the shared expert"},
};

static const char *spell(unsigned bits, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof words / sizeof words[0] && used < size; i++) {
        if (!(bits & words[i].bit))
            continue;
        bits &= ~words[i].bit;
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 used == 0 ? ""
                                 : bits    ? ", "
                                           : " and ",
                                 words[i].name);
    }
    return out;
}

const char *mgr_huggingface_lacks(mgr_hf_class class, const mgr_model *m, char *out, size_t size)
{
    return spell(lacking(&families[class], has(m)), out, size);
}

const char *mgr_huggingface_needs(mgr_hf_class class, const mgr_model *m, char *out, size_t size)
{
    return spell(needed(&families[class], has(m)), out, size);
}

static unsigned count(unsigned bits)
{
    unsigned n = 0;
    for (; bits; bits &= bits - 1)
        n++;
    return n;
}

mgr_hf_class mgr_huggingface_nearest(const mgr_model *m)
{
    const unsigned what = has(m);
    size_t best = N_FAMILIES;
    unsigned fewest = 32;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const unsigned lacks = lacking(&families[i], what);
        if (needed(&families[i], what) || (lacks & MGR_HF_HAS_EXPERTS) || count(lacks) >= fewest)
            continue;
        best = i;
        fewest = count(lacks);
    }
    return (mgr_hf_class)best;
}

bool mgr_huggingface_is_fused(mgr_hf_ffn ffn)
{
    return ffn == MGR_HF_FUSED || ffn == MGR_HF_INPUT_LINEAR || ffn == MGR_HF_GRANITE_FUSED;
}

mgr_hf_ffn mgr_huggingface_memory(const mgr_hf_family *family)
{
    return family->memory ? family->memory : MGR_HF_FUSED;
}
