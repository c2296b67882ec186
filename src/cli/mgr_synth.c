/* mgr-synth: a deterministic checkpoint of any size, kind and split. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/str.h"
#include "form/source.h"
#include "io/fault.h"
#include "model/huggingface_family.h"
#include "run/run.h"

enum {
    LAYERS,
    HIDDEN,
    FFN,
    HEADS,
    KV_HEADS,
    VOCAB,
    MAX_POSITIONS,
    POSITIONS,
    NORM,
    ACTIVATION,
    CLASS,
    QKV_BIAS,
    BIAS,
    QK_NORM,
    TIED,
    EXPERTS,
    TOP_K,
    EXPERT_FFN,
    TP,
    PP,
    VPP,
    EP,
    ETP,
    DIVISOR,
    SEED,
    DTYPE,
    FORMAT,
    NAMES,
    DIST_KEYS,
    SPARSE,
    FORCE,
    QUIET
};

static const mgr_option options[] = {
    [LAYERS] = {"layers", 0, "L", "transformer layers (default 4)"},
    [HIDDEN] = {"hidden", 0, "H", "hidden size (default 256)"},
    [FFN] = {"ffn", 0, "F", "intermediate size of the FFN (default 704)"},
    [HEADS] = {"heads", 0, "N", "attention heads (default 8)"},
    [KV_HEADS] = {"kv-heads", 0, "G", "key and value heads (default: as many as heads)"},
    [VOCAB] = {"vocab", 0, "V", "vocabulary size (default 1000)"},
    [MAX_POSITIONS] = {"max-positions", 0, "P", "longest sequence (default 2048)"},
    [POSITIONS] = {"positions", 0, "KIND", "rope or learned (default rope)"},
    [NORM] = {"norm", 0, "KIND", "rmsnorm or layernorm (default rmsnorm)"},
    [ACTIVATION] = {"activation", 0, "KIND",
                    "swiglu, geglu, gelu or squared-relu (default swiglu)"},
    [CLASS] = {"class", 0, "TYPE",
               "a model with all that this model_type of transformers has (qwen3_moe, dots1, ...)"},
    [QKV_BIAS] = {"qkv-bias", 0, NULL, "biases of q, k and v"},
    [BIAS] = {"bias", 0, NULL, "biases of all linear layers, but the output layer"},
    [QK_NORM] = {"qk-norm", 0, NULL, "norms of q and k"},
    [TIED] = {"tied", 0, NULL, "tie the embedding and the output layer"},
    [EXPERTS] = {"experts", 0, "E",
                 "a mixture of E experts in each layer (default: a dense model)"},
    [TOP_K] = {"top-k", 0, "K", "experts that each token uses (default 2, or E if that is less)"},
    [EXPERT_FFN] = {"expert-ffn", 0, "F",
                    "intermediate size of an expert (default: that of --ffn)"},
    [TP] = {"tp", 0, "T", "tensor parallel size (default 1)"},
    [PP] = {"pp", 0, "P", "pipeline parallel size (default 1)"},
    [VPP] = {"vpp", 0, "C", "virtual pipeline chunks of a stage (default 1)"},
    [EP] = {"ep", 0, "E", "expert parallel size (default 1)"},
    [ETP] = {"etp", 0, "T", "tensor parallel size of the experts (default: that of --tp)"},
    [DIVISOR] = {"make-vocab-size-divisible-by", 0, "N",
                 "pad the vocabulary with zeros to a multiple of N x T (default 1)"},
    [SEED] = {"seed", 0, "S", "seed of the values (default 1234)"},
    [DTYPE] = {"dtype", 0, "TYPE", "bf16, fp16 or fp32 (default bf16)"},
    [FORMAT] = {"format", 0, "NAME", "a target.format of mgr-upcycle (default megatron-torch)"},
    [NAMES] =
        {"names", 0, "SPEC",
         "as target.names of mgr-upcycle: auto, te, local, per-expert or fused (default auto)"},
    [DIST_KEYS] = {"dist-keys", 0, "KEYS",
                   "as target.dist_keys of mgr-upcycle: auto, stacked, per-layer or hybrid "
                   "(default auto)"},
    [SPARSE] = {"sparse", 0, NULL,
                "headers alone: all weights are zeros that take no room, for plans"},
    [FORCE] = {"force", 'f', NULL, "replace an existing checkpoint OUT"},
    [QUIET] = {"quiet", 'q', NULL, "print errors only"},
};

static const mgr_words_of option_words[] = {
    {"positions", "rope learned"},
    {"norm", "rmsnorm layernorm"},
    {"activation", "swiglu geglu gelu squared-relu"},
    {"dtype", "bf16 fp16 fp32"},
    {"format", "megatron-torch megatron-dist huggingface moe-recipes mixtral hdf5 deepspeed"},
    {"names", "auto te local per-expert fused"},
    {"dist-keys", "auto stacked per-layer hybrid"},
    {NULL, NULL}};

static const mgr_program program = {
    .name = "mgr-synth",
    .synopsis = "[OPTION]... OUT",
    .about = "Write a checkpoint of random weights at OUT, in Megatron's format torch unless "
             "--format says otherwise. Values depend on the seed and on each weight's place in the "
             "model alone, not on the format, the split or the number of ranks.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .words = option_words,
};

/* Words that an option takes, and the numbers they stand for; ends with NULL. */
typedef struct word {
    const char *text;
    int value;
} word;

static const word position_words[] = {
    {"rope", MGR_POSITIONS_ROPE}, {"learned", MGR_POSITIONS_LEARNED}, {NULL, 0}};
static const word norm_words[] = {
    {"rmsnorm", MGR_NORM_RMS}, {"layernorm", MGR_NORM_LAYER}, {NULL, 0}};
static const word activation_words[] = {{"swiglu", MGR_ACTIVATION_SWIGLU},
                                        {"geglu", MGR_ACTIVATION_GEGLU},
                                        {"gelu", MGR_ACTIVATION_GELU},
                                        {"squared-relu", MGR_ACTIVATION_SQUARED_RELU},
                                        {NULL, 0}};
static const word dtype_words[] = {
    {"bf16", MGR_DTYPE_BF16}, {"fp16", MGR_DTYPE_F16}, {"fp32", MGR_DTYPE_F32}, {NULL, 0}};
static const word name_words[] = {{"auto", 0},       {"te", 0},    {"local", 0},
                                  {"per-expert", 0}, {"fused", 0}, {NULL, 0}};

static const word dist_key_words[] = {
    {"auto", 0}, {"stacked", 0}, {"per-layer", 0}, {"hybrid", 0}, {NULL, 0}};

static int find_word(const char *option, const word *words, const char *value, const word **out,
                     mgr_err *err)
{
    char known[96];
    size_t used = 0;
    for (*out = words; (*out)->text; ++*out)
        if (strcmp((*out)->text, value) == 0)
            return MGR_OK;
    for (const word *w = words; w->text && used < sizeof known; w++)
        used +=
            (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", w->text);
    return mgr_fail(err, MGR_ERR_USAGE, "--%s '%s' is none of %s", option, value, known);
}

static int take_word(mgr_synth_options *o, size_t idx, const char *value, mgr_err *err)
{
    static const word *const tables[] = {
        [POSITIONS] = position_words, [NORM] = norm_words,  [ACTIVATION] = activation_words,
        [DTYPE] = dtype_words,        [NAMES] = name_words, [DIST_KEYS] = dist_key_words};
    const word *found;
    MGR_TRY(find_word(options[idx].name, tables[idx], value, &found, err));
    if (idx == POSITIONS)
        o->model.positions = (mgr_positions)found->value;
    else if (idx == NORM)
        o->model.norm = (mgr_norm)found->value;
    else if (idx == ACTIVATION)
        o->model.activation = (mgr_activation)found->value;
    else if (idx == DTYPE)
        o->dtype = (mgr_dtype)found->value;
    else if (idx == DIST_KEYS)
        o->dist_keys = found->text;
    else
        o->names = found->text;
    return MGR_OK;
}

static int take_format(mgr_synth_options *o, const char *value, mgr_err *err)
{
    char known[160];
    size_t used = 0;
    o->format = value;
    if (mgr_target_find(value))
        return MGR_OK;
    if (mgr_source_find(value))
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--format '%s' is one that is read alone: PyTorch writes it", value);
    for (size_t i = 0; mgr_target_at(i) && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "",
                                 mgr_target_at(i)->name);
    return mgr_fail(err, MGR_ERR_USAGE, "--format '%s' is none of %s", value, known);
}

static int take_class(mgr_synth_options *o, const char *value, mgr_err *err)
{
    char known[400];
    o->class = value;
    const mgr_hf_family *const f = mgr_huggingface_family(mgr_huggingface_type(value));
    if (f && mgr_has_suffix(f->architecture, "ForCausalLM"))
        return MGR_OK;
    if (f)
        mgr_fail(err, MGR_ERR_USAGE, "--class '%s' is no causal LM, which is all it writes", value);
    else
        mgr_fail(err, MGR_ERR_USAGE, "--class '%s' is none of %s", value,
                 mgr_huggingface_types(known, sizeof known));
    return mgr_hint(err, "what moves unread is written by save_pretrained of transformers");
}

static int take_size(mgr_synth_options *o, size_t idx, const char *value, mgr_err *err)
{
    uint64_t *const sizes[] = {[LAYERS] = &o->model.layers,
                               [HIDDEN] = &o->model.hidden,
                               [FFN] = &o->model.ffn,
                               [HEADS] = &o->model.heads,
                               [KV_HEADS] = &o->model.kv_groups,
                               [VOCAB] = &o->model.vocab,
                               [MAX_POSITIONS] = &o->model.max_positions,
                               [EXPERTS] = &o->model.experts,
                               [TOP_K] = &o->model.top_k,
                               [EXPERT_FFN] = &o->model.expert_ffn,
                               [TP] = &o->tensor_parallel,
                               [PP] = &o->pipeline_parallel,
                               [VPP] = &o->virtual_pipeline,
                               [EP] = &o->expert_parallel,
                               [ETP] = &o->expert_tensor_parallel,
                               [DIVISOR] = &o->vocab_divisor,
                               [SEED] = &o->seed};
    const bool seed = idx == SEED;
    return mgr_cli_uint(options[idx].name, value, !seed, seed ? UINT64_MAX : INT32_MAX, sizes[idx],
                        err);
}

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    mgr_synth_options *const o = context;
    switch (idx) {
    case POSITIONS:
    case NORM:
    case ACTIVATION:
    case DTYPE:
    case NAMES:
    case DIST_KEYS:
        return take_word(o, idx, value, err);
    case FORMAT:
        return take_format(o, value, err);
    case CLASS:
        return take_class(o, value, err);
    case QKV_BIAS:
        o->model.bias_qkv = true;
        return MGR_OK;
    case BIAS:
        o->model.bias_qkv = o->model.bias_o = o->model.bias_mlp = true;
        return MGR_OK;
    case QK_NORM:
        o->model.qk_norm = true;
        return MGR_OK;
    case TIED:
        o->model.tied = true;
        return MGR_OK;
    case SPARSE:
        o->sparse = true;
        return MGR_OK;
    case FORCE:
        o->force = true;
        return MGR_OK;
    case QUIET:
        o->verbosity = -1;
        return MGR_OK;
    default:
        return take_size(o, idx, value, err);
    }
}

static int check_experts(mgr_model *m, mgr_err *err)
{
    m->bias_router = m->experts && m->bias_mlp; /* as Megatron has it (transformer/moe/router.py) */
    if (m->experts == 0 && (m->top_k || m->expert_ffn))
        return mgr_fail(err, MGR_ERR_USAGE, "--top-k and --expert-ffn need --experts");
    if (m->experts && m->top_k == 0)
        m->top_k = m->experts < 2 ? m->experts : 2;
    if (m->top_k > m->experts)
        return mgr_fail(err, MGR_ERR_USAGE, "--top-k is above --experts");
    return MGR_OK;
}

static int check_sizes(mgr_synth_options *o, mgr_err *err)
{
    mgr_model *const m = &o->model;
    if (o->class)
        mgr_huggingface_typical(mgr_huggingface_type(o->class), m);
    const uint64_t parts = o->pipeline_parallel * o->virtual_pipeline;
    if (m->kv_groups == 0)
        m->kv_groups = m->heads;
    if (m->hidden % m->heads != 0 || m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--heads must divide --hidden, and --kv-heads must divide --heads");
    if (m->layers % parts != 0)
        return mgr_fail(err, MGR_ERR_USAGE, "%llu layers do not divide among %llu pipeline %s",
                        (unsigned long long)m->layers, (unsigned long long)parts,
                        o->virtual_pipeline > 1 ? "chunks" : "stages");
    m->head_dim = m->hidden / m->heads;
    m->dtype = o->dtype;
    return check_experts(m, err);
}

static int parse(mgr_synth_options *o, int argc, char **argv, mgr_err *err)
{
    int first;
    *o = (mgr_synth_options){.model = {.layers = 4,
                                       .hidden = 256,
                                       .ffn = 704,
                                       .heads = 8,
                                       .vocab = 1000,
                                       .norm_epsilon = 1e-5,
                                       .rotary_base = 10000.0,
                                       .max_positions = 2048,
                                       .bos_token_id = -1,
                                       .eos_token_id = -1,
                                       .init_std = 0.02},
                             .dtype = MGR_DTYPE_BF16,
                             .tensor_parallel = 1,
                             .pipeline_parallel = 1,
                             .virtual_pipeline = 1,
                             .expert_parallel = 1,
                             .vocab_divisor = 1,
                             .format = "megatron-torch",
                             .names = "auto",
                             .dist_keys = "auto",
                             .seed = 1234};
    MGR_TRY(mgr_cli_parse(&program, argc, argv, take, o, &first, err));
    if (argc - first != 1) {
        mgr_fail(err, MGR_ERR_USAGE, "one OUT is needed");
        return mgr_hint(err, "see mgr-synth --help");
    }
    o->out = argv[first];
    return check_sizes(o, err);
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_synth_options o;
    mgr_comm *comm = NULL;
    if (parse(&o, argc, argv, &err) != MGR_OK)
        return mgr_cli_usage_end(&program, &err);
    int rc = mgr_cli_start(&comm, &err);
    mgr_cli_catch_signals();
    if (rc == MGR_OK) {
        mgr_fault_set_rank(mgr_comm_rank(comm));
        rc = mgr_run_synth(comm, &o, &err);
    }
    return mgr_cli_end(&program, comm, rc, &err);
}
