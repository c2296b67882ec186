/* The model of a Megatron checkpoint from its args, its shapes and the configuration. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "model/megatron.h"
#include "model/megatron_attention.h"
#include "model/megatron_families.h"
#include "model/megatron_fields.h"
#include "model/megatron_hybrid.h"
#include "model/mtp.h"

#define MAX_EXPERTS 65536

/* What the derivation looks at. */
typedef struct evidence {
    const mgr_catalogue *cat;
    const mgr_config *config;
    uint32_t file; /* whose args are read: first stage, tensor-parallel rank 0 */
    bool hybrid;   /* a HybridModel's keys */
    mgr_megatron_kin kin;
} evidence;

static const mgr_attr *arg(const evidence *ev, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, MGR_ARGS "%s", name);
    const mgr_attr *const a = mgr_catalogue_attr(ev->cat, ev->file, key);
    return a && a->kind != MGR_ATTR_NULL ? a : NULL;
}

static const char *path(const evidence *ev)
{
    return ev->cat->files[ev->file].path;
}

static bool is_true(const mgr_attr *a)
{
    return a && (a->kind == MGR_ATTR_BOOL || a->kind == MGR_ATTR_INT) && a->i != 0;
}

static bool becomes_hybrid(const evidence *ev)
{
    const mgr_config *const c = ev->config;
    return strcmp(c->target.dist_keys, "hybrid") == 0 ||
           (ev->hybrid && strcmp(c->target.dist_keys, "auto") == 0 &&
            strcmp(c->target.format, "megatron-dist") == 0);
}

/* What args say of each layer's attention is the model's, unless they count half layers. */
static bool reads_attention(const evidence *ev)
{
    return !ev->hybrid && !becomes_hybrid(ev);
}

/* Args that no tensor shows may go unchanged from Megatron to Megatron where nothing is made of the
 * model, nor of the numbers of its layers, which they count by; someone who only looks (without a
 * target) is shown all there is; and what is opaque goes to Megatron alone. */
static bool keeps_args(const evidence *ev)
{
    const mgr_config *const c = ev->config;
    const bool to_hybrid = becomes_hybrid(ev);
    return c->target.format[0] == '\0' || ev->kin ||
           (mgr_has_prefix(c->target.format, "megatron-") && strcmp(c->mode, "reshard") == 0 &&
            ev->hybrid == to_hybrid);
}

static bool lets_unknown_pass(const mgr_config *config)
{
    return config->target.format[0] == '\0' || strcmp(config->source.unknown, "warn") == 0;
}

static int check_field(const evidence *ev, const mgr_attr *a, mgr_err *err)
{
    const char *const name = a->key + strlen(MGR_ARGS);
    const mgr_field f = mgr_megatron_field(name);
    char value[80], shown[80];
    mgr_attr_text(a, value, sizeof value);
    mgr_printable(value, strlen(value), shown, sizeof shown);
    if (f.rule == MGR_FIELD_UNKNOWN && !mgr_attr_is_nothing(a) && !lets_unknown_pass(ev->config)) {
        char arg_name[80];
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has args.%s = %s, which is not known here and may change what the model "
                 "computes",
                 path(ev), mgr_printable(name, strlen(name), arg_name, sizeof arg_name), shown);
        return mgr_hint(err, "set 'source.unknown: warn' if it does not");
    }
    if ((f.rule != MGR_FIELD_NEUTRAL && f.rule != MGR_FIELD_KEPT) || mgr_megatron_is_neutral(&f, a))
        return MGR_OK;
    if (f.rule == MGR_FIELD_KEPT &&
        (keeps_args(ev) || (reads_attention(ev) && mgr_megatron_is_attention(a))))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s (args.%s is %s), which is not supported",
             path(ev), f.what, name, shown);
    if (mgr_mtp_is_arg(a->key))
        return mgr_hint(err, MGR_MTP_HINT);
    return f.rule == MGR_FIELD_KEPT
               ? mgr_hint(err, "only 'mode: reshard' from Megatron to Megatron keeps it%s",
                          ev->hybrid ? ", from a HybridModel to 'target.dist_keys: hybrid'" : "")
               : err->code;
}

static int check_fields(const evidence *ev, mgr_err *err)
{
    for (size_t i = 0; i < ev->cat->n_attrs; i++) {
        const mgr_attr *const a = &ev->cat->attrs[i];
        if (a->file == ev->file && mgr_has_prefix(a->key, MGR_ARGS))
            MGR_TRY(check_field(ev, a, err));
    }
    return MGR_OK;
}

/* Only torch_dist of a HybridModel is known, and mgr_megatron_hybrid_check has looked at its
 * pattern. Its RoPE is never scaled (hybrid_model.py). */
static int check_hybrid(const evidence *ev, mgr_err *err)
{
    static const char *const names[] = {"hybrid_layer_pattern", "hybrid_override_pattern"};
    for (size_t i = 0; !ev->hybrid && i < sizeof names / sizeof names[0]; i++) {
        const mgr_attr *const a = arg(ev, names[i]);
        char value[80], shown[80];
        if (!a)
            continue;
        mgr_attr_text(a, value, sizeof value);
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has hybrid layers (args.%s is %s), which are not supported in this "
                        "format",
                        path(ev), names[i],
                        mgr_printable(value, strlen(value), shown, sizeof shown));
    }
    if (ev->hybrid && is_true(arg(ev, "use_rope_scaling")))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has args.use_rope_scaling, but a HybridModel computes without it",
                        path(ev));
    return MGR_OK;
}

static bool old_names(const evidence *ev)
{
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (strstr(ev->cat->stored[i].name, ".language_model."))
            return true;
    return false;
}

static int check_supported(const evidence *ev, mgr_err *err)
{
    MGR_TRY(check_fields(ev, err));
    MGR_TRY(check_hybrid(ev, err));
    /* QKV rows had another order before version 2. A save without a version counts as 0, but one
     * that has Megatron-Core's names is younger than that. */
    const mgr_attr *const version = mgr_catalogue_attr(ev->cat, ev->file, "checkpoint_version");
    const double number = !version                         ? (old_names(ev) ? 0.0 : 3.0)
                          : version->kind == MGR_ATTR_REAL ? version->r
                                                           : (double)version->i;
    if (number < 2.0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has checkpoint_version %g, whose QKV rows have another order; only 2 "
                        "and later are supported",
                        path(ev), number);
    return MGR_OK;
}

/* One whole number that args, the configuration and perhaps the tensors know. 0 is "unknown". */
static int whole(const evidence *ev, const char *name, uint64_t from_config, uint64_t from_tensors,
                 uint64_t *out, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    char key[96];
    snprintf(key, sizeof key, "model.%s", name);
    uint64_t known = 0;
    if (a && (a->kind != MGR_ATTR_INT || a->i < 1 || a->i > INT32_MAX))
        return mgr_fail(err, MGR_ERR_FORMAT, "args.%s in '%s' is not a positive whole number", name,
                        path(ev));
    if (a)
        known = (uint64_t)a->i;
    if (known && from_config && known != from_config)
        return mgr_config_fail(ev->config, key, err, "'%s' is %llu, but args of '%s' say %llu", key,
                               (unsigned long long)from_config, path(ev),
                               (unsigned long long)known);
    if (!known)
        known = from_config;
    if (known && from_tensors && known != from_tensors)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%s is %llu in %s, but the tensors' shapes say %llu (%s)", name,
                        (unsigned long long)known, a ? "args" : "the configuration",
                        (unsigned long long)from_tensors, path(ev));
    *out = known ? known : from_tensors;
    return MGR_OK;
}

static int needed(const evidence *ev, const char *name, uint64_t value, mgr_err *err)
{
    if (value)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_CONFIG, "%s is not known: '%s' has no args.%s", name, path(ev), name);
    return mgr_hint(err, "set 'model.%s' in the configuration", name);
}

static double real_arg(const evidence *ev, const char *name, double otherwise)
{
    const mgr_attr *const a = arg(ev, name);
    if (a && a->kind == MGR_ATTR_REAL)
        return a->r;
    return a && a->kind == MGR_ATTR_INT ? (double)a->i : otherwise;
}

static int known_names(const evidence *ev, mgr_err *err)
{
    MGR_TRY(mgr_megatron_families_check(ev->cat, err));
    for (size_t i = 0; i < ev->cat->n_stored; i++) {
        const char *const name = ev->cat->stored[i].name;
        const char *const what = strstr(name, ".layernorm_qkv.") || strstr(name, ".layernorm_mlp.")
                                     ? "Transformer Engine's own layer names"
                                 : strstr(name, ".self_attention.linear_q_")
                                     ? "multi-latent attention"
                                 : strstr(name, ".mixer.") ? "Mamba layers"
                                                           : NULL;
        if (what)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s ('%s'), which is not supported",
                            ev->cat->files[ev->cat->stored[i].file].path, what, name);
    }
    return MGR_OK;
}

/* args.vocab_size is the true size where it pads to what there is; some keep a number there that
 * their tokenizer did not take, or one token less (NullTokenizer up to core 0.17). The padding of
 * torch_dist may be for more ranks than the args tell. */
static uint64_t true_vocabulary(const evidence *ev, uint64_t padded)
{
    const mgr_attr *const size = arg(ev, "vocab_size"), *const type = arg(ev, "tokenizer_type");
    const mgr_attr *const divisor = arg(ev, "make_vocab_size_divisible_by");
    const bool null = type && type->kind == MGR_ATTR_TEXT && strstr(type->text, "Null");
    if (!size || size->kind != MGR_ATTR_INT || size->i < 1 || (uint64_t)size->i > padded || null ||
        !divisor || divisor->kind != MGR_ATTR_INT || divisor->i < 1 || divisor->i > INT32_MAX)
        return padded;
    for (uint64_t ranks = 1; ranks <= 64; ranks *= 2) {
        const uint64_t multiple = (uint64_t)divisor->i * ranks;
        if (((uint64_t)size->i + multiple - 1) / multiple * multiple == padded)
            return (uint64_t)size->i;
    }
    return padded;
}

static int vocabulary_size(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m,
                           mgr_err *err)
{
    uint64_t padded;
    MGR_TRY(whole(ev, "padded_vocab_size", 0, s->padded_vocab, &padded, err));
    const uint64_t known = true_vocabulary(ev, padded);
    m->vocab = ev->config->model.vocab_size ? ev->config->model.vocab_size : known;
    if (m->vocab > padded)
        return mgr_config_fail(ev->config, "model.vocab_size", err,
                               "'model.vocab_size' is %llu, but the checkpoint holds %llu rows",
                               (unsigned long long)m->vocab, (unsigned long long)padded);
    return MGR_OK;
}

/* num_query_groups defaults to 1 in args of plain MHA models, so the flag decides
 * (megatron/training/argument_utils.py). */
static int attention_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(whole(ev, "num_attention_heads", c->model.num_attention_heads, 0, &m->heads, err));
    MGR_TRY(needed(ev, "num_attention_heads", m->heads, err));
    const mgr_attr *const flag = arg(ev, "group_query_attention");
    if (flag && !is_true(flag)) {
        m->kv_groups = m->heads;
        if (c->model.num_query_groups && c->model.num_query_groups != m->heads)
            return mgr_config_fail(c, "model.num_query_groups", err,
                                   "'model.num_query_groups' is %llu, but args of '%s' say that "
                                   "each of the %llu heads is a group",
                                   (unsigned long long)c->model.num_query_groups, path(ev),
                                   (unsigned long long)m->heads);
    } else {
        MGR_TRY(whole(ev, "num_query_groups", c->model.num_query_groups, 0, &m->kv_groups, err));
        if (!m->kv_groups)
            m->kv_groups = m->heads;
    }
    MGR_TRY(whole(ev, "kv_channels", c->model.kv_channels, 0, &m->head_dim, err));
    if (!m->head_dim)
        m->head_dim = m->hidden / m->heads;
    return MGR_OK;
}

/* ---- what kind of model it is ---- */

/* A part that is there or not: tensors show it, and args, where they say something, must agree. */
static int agree(const evidence *ev, const char *name, bool shown, const char *what, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    if (!a || a->kind != MGR_ATTR_BOOL || is_true(a) == shown)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "args.%s of '%s' is %s, but there are %s%s", name,
                    path(ev), is_true(a) ? "true" : "false", shown ? "" : "no ", what);
}

static int biases(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const linear = arg(ev, "add_bias_linear");
    m->bias_qkv = s->qkv_bias;
    m->bias_o = s->o_bias;
    m->bias_mlp = s->mlp_bias;
    m->bias_router = s->router_bias;
    m->qk_norm = s->qk_norm;
    MGR_TRY(agree(ev, "add_bias_linear", s->mlp_bias, "biases of the FFN", err));
    MGR_TRY(agree(ev, "add_bias_linear", s->o_bias, "biases of the attention's output", err));
    if (!is_true(linear)) /* which implies it */
        MGR_TRY(agree(ev, "add_qkv_bias", s->qkv_bias, "biases of QKV", err));
    return agree(ev, "qk_layernorm", s->qk_norm, "norms of q and k", err);
}

static int norm_kind(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, "normalization");
    const char *const name = a && a->text ? a->text : s->norm_bias ? "LayerNorm" : "RMSNorm";
    m->norm = strcmp(name, "LayerNorm") == 0 ? MGR_NORM_LAYER : MGR_NORM_RMS;
    if (m->norm == MGR_NORM_RMS && strcmp(name, "RMSNorm") != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has the norm '%s' (args.normalization), which is not supported",
                        path(ev), name);
    if ((m->norm == MGR_NORM_LAYER) != s->norm_bias)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args.normalization of '%s' is %s, but there are %s"
                        "biases of norms",
                        path(ev), name, s->norm_bias ? "" : "no ");
    return MGR_OK;
}

/* The rows of fc1 show whether there is a gate, args which function. Megatron's options have no
 * plain GEGLU, so that it must be said: gated_linear_unit, as in TransformerConfig, without swiglu.
 */
static int activation(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const swiglu = arg(ev, "swiglu");
    const uint64_t rows = s->fc1_rows ? s->fc1_rows : s->expert_fc1_rows;
    const uint64_t inner = s->fc1_rows ? s->ffn : s->expert_ffn;
    const bool relu = is_true(arg(ev, "squared_relu"));
    const bool silu = swiglu ? is_true(swiglu) : rows == 2 * inner && !relu;
    const bool gated = silu || is_true(arg(ev, "gated_linear_unit"));
    m->activation = silu    ? MGR_ACTIVATION_SWIGLU
                    : gated ? MGR_ACTIVATION_GEGLU
                    : relu  ? MGR_ACTIVATION_SQUARED_RELU
                            : MGR_ACTIVATION_GELU;
    /* the fused kernel has the tanh form of GELU, modules elsewhere the exact one */
    if (gated && !silu && is_true(arg(ev, "bias_gelu_fusion")) && !keeps_args(ev))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has GEGLU in its tanh form (args.bias_gelu_fusion is True), which is "
                        "not supported",
                        path(ev));
    if (rows == (gated ? 2 * inner : inner) && !(gated && relu))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s': fc1 has %llu rows for %llu columns of fc2, which does not fit the "
                    "activation that its args tell (swiglu, squared_relu)",
                    path(ev), (unsigned long long)rows, (unsigned long long)inner);
}

/* args.rope_scaling_factor is not looked at: no trainer up to core 0.19 hands it to its model,
 * whose own default is what was computed with (gpt_builders.py, pretrain_gpt.py,
 * rotary_pos_embedding.py).
 */
static int rope_scaling(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const stretch = arg(ev, "rotary_seq_len_interpolation_factor");
    const bool scaled = is_true(arg(ev, "use_rope_scaling"));
    const double linear = real_arg(ev, "rotary_seq_len_interpolation_factor", 1.0);
    if (stretch && (scaled || !(linear > 0 && linear <= 1e6)))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has RoPE interpolation by %g%s (args."
                        "rotary_seq_len_interpolation_factor), which is not supported",
                        path(ev), linear, scaled ? " and RoPE scaling" : "");
    if (stretch && (linear < 1.0 || linear > 1.0))
        m->rope = (mgr_rope){.kind = MGR_ROPE_LINEAR, .factor = linear};
    if (scaled)
        m->rope = (mgr_rope){MGR_ROPE_LLAMA3, MGR_MEGATRON_ROPE_FACTOR, 1.0, 4.0, 8192};
    return MGR_OK;
}

/* The first part of a head is turned (rotary_pos_embedding.py, RotaryEmbedding). */
static int rope(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const double part = real_arg(ev, "rotary_percent", 1.0);
    if (!(part > 0 && part <= 1))
        return mgr_fail(err, MGR_ERR_FORMAT, "args.rotary_percent of '%s' is %g", path(ev), part);
    m->rotary_part = part < 1 ? part : 0;
    return rope_scaling(ev, m, err);
}

static int position_kind(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m,
                         mgr_err *err)
{
    const mgr_attr *const a = arg(ev, "position_embedding_type");
    const char *const name = a && a->text ? a->text : s->positions ? "learned_absolute" : "rope";
    m->positions = s->positions ? MGR_POSITIONS_LEARNED : MGR_POSITIONS_ROPE;
    if (strcmp(name, "rope") != 0 && strcmp(name, "learned_absolute") != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has position embeddings of the kind '%s' "
                        "(args.position_embedding_type), which is not supported",
                        path(ev), name);
    if ((strcmp(name, "rope") != 0) != (s->positions > 0))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args.position_embedding_type of '%s' is %s, but there are %sposition "
                        "embeddings",
                        path(ev), name, s->positions ? "" : "no ");
    return s->positions ? MGR_OK : rope(ev, m, err);
}

/* topk_routing_with_score_function in transformer/moe/moe_utils.py: a sigmoid's scores are divided
 * by their sum unless there is one alone, and moe_router_pre_softmax says nothing of them. */
static int score_function(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, "moe_router_score_function");
    const char *const name = a && a->text ? a->text : "softmax";
    m->router.score = strcmp(name, "sigmoid") == 0 ? MGR_SCORE_SIGMOID : MGR_SCORE_SOFTMAX;
    m->router.unnormalised = m->router.score == MGR_SCORE_SIGMOID
                                 ? m->top_k == 1
                                 : is_true(arg(ev, "moe_router_pre_softmax"));
    if (m->router.score == MGR_SCORE_SIGMOID || strcmp(name, "softmax") == 0)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' has a router with scores of another kind "
                    "(args.moe_router_score_function is %s), which is not supported",
                    path(ev), name);
}

/* A group is as good as its topk / group_topk best experts (group_limited_topk). */
static int router_groups(const evidence *ev, mgr_model *m, mgr_err *err)
{
    mgr_router_kind *const r = &m->router;
    uint64_t groups, top;
    MGR_TRY(whole(ev, "moe_router_num_groups", 0, 0, &groups, err));
    MGR_TRY(whole(ev, "moe_router_group_topk", 0, 0, &top, err));
    if (top == 0 || top == groups)
        return MGR_OK;
    if (groups == 0 || m->experts % groups != 0 || top > groups || top > m->top_k)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' chooses %llu of %llu experts from %llu of %llu groups, which no "
                        "router can",
                        path(ev), (unsigned long long)m->top_k, (unsigned long long)m->experts,
                        (unsigned long long)top, (unsigned long long)groups);
    r->groups = groups;
    r->top_groups = top;
    r->group_best = m->top_k / top;
    return MGR_OK;
}

static int router(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const double scale = real_arg(ev, "moe_router_topk_scaling_factor", 0);
    MGR_TRY(score_function(ev, m, err));
    MGR_TRY(agree(ev, "moe_router_enable_expert_bias", s->selection_bias,
                  "biases of the router's choice", err));
    m->router.selection_bias = s->selection_bias;
    if (s->selection_bias && m->router.score != MGR_SCORE_SIGMOID)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' has biases of the router's choice (expert_bias), but its args do not "
                        "say that moe_router_score_function is sigmoid",
                        path(ev));
    if (!(scale >= 0 && scale <= 1e6))
        return mgr_fail(err, MGR_ERR_FORMAT, "args.moe_router_topk_scaling_factor of '%s' is %g",
                        path(ev), scale);
    m->router.scale = scale < 1 || scale > 1 ? scale : 0;
    return router_groups(ev, m, err);
}

static int shared_expert(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m,
                         mgr_err *err)
{
    const mgr_attr *const size = arg(ev, "moe_shared_expert_intermediate_size");
    if (size && size->kind == MGR_ATTR_INT && size->i > 0 && !s->shared_ffn)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args.moe_shared_expert_intermediate_size of '%s' is %lld, but there is no "
                        "shared expert",
                        path(ev), (long long)size->i);
    m->shared_ffn = s->shared_ffn;
    m->shared_switch = s->shared_switch;
    if (!s->shared_ffn)
        return MGR_OK;
    if (m->bias_mlp) /* SharedExpertMLP */
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has biases of the FFN and a shared expert",
                        path(ev));
    MGR_TRY(
        agree(ev, "moe_shared_expert_gate", s->shared_switch, "gates of the shared expert", err));
    return whole(ev, "moe_shared_expert_intermediate_size", 0, s->shared_ffn, &m->shared_ffn, err);
}

static int expert_sizes(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m,
                        mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(whole(ev, "num_experts", 0, s->experts, &m->experts, err));
    if (m->experts == 0)
        return MGR_OK;
    if (s->experts == 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args.num_experts of '%s' is %llu, but there is no router", path(ev),
                        (unsigned long long)m->experts);
    if (m->experts > MAX_EXPERTS) /* what a file claims must not make us list millions */
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %llu experts, more than %d", path(ev),
                        (unsigned long long)m->experts, MAX_EXPERTS);
    MGR_TRY(whole(ev, "moe_ffn_hidden_size", 0, s->expert_ffn, &m->expert_ffn, err));
    MGR_TRY(whole(ev, "moe_router_topk", c->model.moe_router_topk, 0, &m->top_k, err));
    MGR_TRY(needed(ev, "moe_router_topk", m->top_k, err));
    MGR_TRY(router(ev, s, m, err));
    MGR_TRY(shared_expert(ev, s, m, err));
    for (uint64_t l = 0; l < m->layers; l++)
        if (!(s->moe_layers[l / 8] >> l % 8 & 1))
            mgr_model_set_dense(m, l);
    return m->top_k <= m->experts
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_FORMAT, "'%s': each token uses %llu of %llu experts",
                          path(ev), (unsigned long long)m->top_k, (unsigned long long)m->experts);
}

/* Of FFNs alone: which function there is, nobody needs to know. */
static int kind_of_kin(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const uint64_t rows = s->fc1_rows ? s->fc1_rows : s->expert_fc1_rows;
    const uint64_t inner = s->fc1_rows ? s->ffn : s->expert_ffn;
    m->norm = s->norm_bias ? MGR_NORM_LAYER : MGR_NORM_RMS;
    m->activation = rows == 2 * inner ? MGR_ACTIVATION_GATED : MGR_ACTIVATION_UNGATED;
    if (rows != inner && rows != 2 * inner)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': fc1 has %llu rows for %llu columns of fc2",
                        path(ev), (unsigned long long)rows, (unsigned long long)inner);
    MGR_TRY(biases(ev, s, m, err));
    return expert_sizes(ev, s, m, err);
}

static int kind_of_model(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m,
                         mgr_err *err)
{
    if (s->kin)
        return kind_of_kin(ev, s, m, err);
    MGR_TRY(norm_kind(ev, s, m, err));
    MGR_TRY(activation(ev, s, m, err));
    MGR_TRY(biases(ev, s, m, err));
    MGR_TRY(position_kind(ev, s, m, err));
    if (reads_attention(ev))
        MGR_TRY(mgr_megatron_attention_read(ev->cat, ev->file, m, err));
    return expert_sizes(ev, s, m, err);
}

/* ---- sizes ---- */

/* The tensors have told how many there are: args say the same number of both stacks, or nothing. */
static int kin_layers(const evidence *ev, const mgr_megatron_shapes *s, uint64_t *out, mgr_err *err)
{
    const uint64_t given = ev->config->model.num_layers;
    *out = s->layers;
    if (s->layers > MGR_MAX_LAYERS)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%llu layers in '%s' are more than %d",
                        (unsigned long long)s->layers, path(ev), MGR_MAX_LAYERS);
    if (given && given != s->layers)
        return mgr_config_fail(ev->config, "model.num_layers", err,
                               "'model.num_layers' is %llu, but '%s' has %llu in all",
                               (unsigned long long)given, path(ev), (unsigned long long)s->layers);
    return MGR_OK;
}

/* The keys have told how many there are; args count each half. */
static int hybrid_layers(const evidence *ev, const mgr_megatron_shapes *s, uint64_t *out,
                         mgr_err *err)
{
    const mgr_attr *const a = arg(ev, "num_layers");
    const uint64_t halves = MGR_HYBRID_LAYERS * s->layers, given = ev->config->model.num_layers;
    *out = s->layers;
    if (a && (a->kind != MGR_ATTR_INT || a->i < 0 || (uint64_t)a->i != halves))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args.num_layers of '%s' is not %llu, the layers that its keys have",
                        path(ev), (unsigned long long)halves);
    if (given && given != s->layers)
        return mgr_config_fail(
            ev->config, "model.num_layers", err,
            "'model.num_layers' is %llu, but '%s' has %llu, each of an attention "
            "and an FFN layer",
            (unsigned long long)given, path(ev), (unsigned long long)s->layers);
    return MGR_OK;
}

static int layer_sizes(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(s->kin      ? kin_layers(ev, s, &m->layers, err)
            : s->hybrid ? hybrid_layers(ev, s, &m->layers, err)
                        : whole(ev, "num_layers", c->model.num_layers, s->layers, &m->layers, err));
    MGR_TRY(needed(ev, "num_layers", m->layers, err));
    if (m->layers > s->most_layers) /* a name alone must not make us list a million layers */
        return mgr_fail(err, MGR_ERR_FORMAT, "%llu layers in %zu tensors (%s)",
                        (unsigned long long)m->layers, ev->cat->n_stored, path(ev));
    MGR_TRY(whole(ev, "ffn_hidden_size", c->model.ffn_hidden_size, s->ffn, &m->ffn, err));
    if (!m->ffn) /* no dense layer, and args that leave it open */
        m->ffn = s->expert_ffn;
    return MGR_OK;
}

/* norm_epsilon up to core 0.18, layernorm_epsilon from 0.19 on; neither release reads the other. */
static int epsilon(const evidence *ev, double *out, mgr_err *err)
{
    const double one = real_arg(ev, "layernorm_epsilon", 1e-5);
    const double other = real_arg(ev, "norm_epsilon", one);
    *out = other;
    if (!arg(ev, "layernorm_epsilon") || (one <= other && one >= other))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has args.norm_epsilon %g and args.layernorm_epsilon %g: which of them a trainer "
             "took depends on its release",
             path(ev), other, one);
    return mgr_hint(err, "set 'model.norm_epsilon'");
}

/* Comparisons are written so that a NaN fails them. */
static int scalars(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    double eps = c->model.norm_epsilon;
    if (!(eps > 0))
        MGR_TRY(epsilon(ev, &eps, err));
    m->norm_epsilon = eps;
    m->rotary_base =
        c->model.rotary_base > 0 ? c->model.rotary_base : real_arg(ev, "rotary_base", 10000.0);
    const double positions =
        real_arg(ev, "max_position_embeddings", real_arg(ev, "seq_length", 2048.0));
    m->bos_token_id = c->model.bos_token_id;
    m->eos_token_id = c->model.eos_token_id;
    m->init_std = real_arg(ev, "init_method_std", 0.02);
    if (!(m->norm_epsilon >= 0 && m->norm_epsilon <= 1) ||
        !(m->rotary_base > 0 && m->rotary_base <= 1e15) || !(positions >= 1 && positions <= 1e15) ||
        !(m->init_std >= 0 && m->init_std <= 1e15))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "args of '%s': norm_epsilon %g, rotary_base %g, max_position_embeddings %g "
                        "or init_method_std %g is out of range",
                        path(ev), m->norm_epsilon, m->rotary_base, positions, m->init_std);
    m->max_positions =
        c->model.max_position_embeddings ? c->model.max_position_embeddings : (uint64_t)positions;
    if (s->positions) /* rows of a tensor: no longer a matter of opinion */
        return whole(ev, "max_position_embeddings", c->model.max_position_embeddings, s->positions,
                     &m->max_positions, err);
    return MGR_OK;
}

/* Tied or not: args know; without them, a single stage shows it by having an output layer or not,
 * and with several stages the stored output layer is taken as a tensor of its own. */
static int model_of(const evidence *ev, const mgr_megatron_shapes *s, mgr_model *model,
                    mgr_err *err)
{
    const mgr_attr *const untied = arg(ev, "untie_embeddings_and_output_weights");
    mgr_model m = {.dtype = s->dtype,
                   .kin = (uint8_t)s->kin,
                   .ffns_only = s->kin != MGR_KIN_NONE,
                   .encoder_layers = s->encoder_layers};
    MGR_TRY(whole(ev, "hidden_size", ev->config->model.hidden_size, s->hidden, &m.hidden, err));
    if (s->kin != MGR_KIN_VIT)
        MGR_TRY(vocabulary_size(ev, s, &m, err));
    MGR_TRY(attention_sizes(ev, &m, err));
    MGR_TRY(layer_sizes(ev, s, &m, err));
    m.tied = untied ? !is_true(untied) : !s->output;
    MGR_TRY(scalars(ev, s, &m, err));
    MGR_TRY(kind_of_model(ev, s, &m, err));
    *model = m;
    return MGR_OK;
}

static evidence evidence_of(const mgr_catalogue *cat, const mgr_config *config,
                            const mgr_megatron_shapes *shapes)
{
    return (evidence){.cat = cat,
                      .config = config,
                      .file = shapes->file,
                      .hybrid = shapes->hybrid,
                      .kin = shapes->kin};
}

int mgr_megatron_model_check(const mgr_catalogue *cat, const mgr_config *config,
                             const mgr_megatron_shapes *shapes, mgr_err *err)
{
    const evidence ev = evidence_of(cat, config, shapes);
    MGR_TRY(known_names(&ev, err));
    return check_supported(&ev, err);
}

int mgr_megatron_model_of(const mgr_catalogue *cat, const mgr_config *config,
                          const mgr_megatron_shapes *shapes, mgr_model *model, mgr_err *err)
{
    const evidence ev = evidence_of(cat, config, shapes);
    MGR_TRY(mgr_megatron_model_check(cat, config, shapes, err));
    return model_of(&ev, shapes, model, err);
}
