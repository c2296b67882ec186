/* The one table of configuration keys, and look-ups in it. */
#include "cfg/schema.h"

#include <stdio.h>
#include <string.h>

#include "core/str.h"

#define FIELD(member) offsetof(mgr_config, member), sizeof(((mgr_config *)0)->member)

#define TEXT(name, member, fallback, help)                                                         \
    {                                                                                              \
        name, MGR_KEY_TEXT, FIELD(member), false, fallback, NULL, 0, 0, help                       \
    }
#define REQUIRED(name, member, help)                                                               \
    {                                                                                              \
        name, MGR_KEY_TEXT, FIELD(member), true, NULL, NULL, 0, 0, help                            \
    }
#define CHOICE(name, member, fallback, choices, help)                                              \
    {                                                                                              \
        name, MGR_KEY_CHOICE, FIELD(member), false, fallback, choices, 0, 0, help                  \
    }
#define UINT(name, member, fallback, min, max, help)                                               \
    {                                                                                              \
        name, MGR_KEY_UINT, FIELD(member), false, fallback, NULL, min, max, help                   \
    }
#define INT(name, member, fallback, min, max, help)                                                \
    {                                                                                              \
        name, MGR_KEY_INT, FIELD(member), false, fallback, NULL, min, max, help                    \
    }
#define REAL(name, member, fallback, min, max, help)                                               \
    {                                                                                              \
        name, MGR_KEY_REAL, FIELD(member), false, fallback, NULL, min, max, help                   \
    }
#define BOOL(name, member, fallback, help)                                                         \
    {                                                                                              \
        name, MGR_KEY_BOOL, FIELD(member), false, fallback, NULL, 0, 0, help                       \
    }
#define BYTES(name, member, fallback, min, max, help)                                              \
    {                                                                                              \
        name, MGR_KEY_BYTES, FIELD(member), false, fallback, NULL, min, max, help                  \
    }

/* Limits are doubles: exact up to 2^53; U64 stands for "any 64-bit number" (value.c). */
#define U64 0x1p64
#define I31 2147483647.0
#define MIB 0x1p20
#define MOST_BYTES 0x1p53
#define MOST_PARTS 65536.0

static const mgr_key schema[] = {
    CHOICE("mode", mode, "upcycle", "upcycle|reshard",
           "what to do: make a mixture of experts of a dense model, or only lay it out anew"),
    BYTES("memory_per_rank", memory_per_rank, "2GiB", 64 * MIB, MOST_BYTES,
          "most memory that a rank may have resident, everything counted"),

    REQUIRED("source.path", source.path,
             "the checkpoint to read: a Megatron root or one iteration, or a Hugging Face folder"),
    TEXT("source.format", source.format, "auto",
         "auto, megatron-torch, megatron-dist (torch_dist), huggingface, moe-recipes (Mixtral) "
         "or hdf5"),
    /* a choice "N" is any whole number */
    CHOICE("source.iteration", source.iteration, "latest", "latest|release|N",
           "which iteration of a Megatron root"),
    TEXT("source.tokenizer", source.tokenizer, "",
         "folder of tokenizer files to carry along; empty: those beside the checkpoint"),
    CHOICE("source.unknown", source.unknown, "refuse", "refuse|warn",
           "a field of config.json that is not known, at a value that says something"),

    UINT("model.num_layers", model.num_layers, "0", 0, MOST_PARTS, "transformer layers"),
    UINT("model.hidden_size", model.hidden_size, "0", 0, I31, "width of the residual stream"),
    UINT("model.ffn_hidden_size", model.ffn_hidden_size, "0", 0, I31,
         "intermediate width of the FFN"),
    UINT("model.num_attention_heads", model.num_attention_heads, "0", 0, I31, "query heads"),
    UINT("model.num_query_groups", model.num_query_groups, "0", 0, I31, "key and value heads"),
    UINT("model.kv_channels", model.kv_channels, "0", 0, I31, "width of one head"),
    UINT("model.vocab_size", model.vocab_size, "0", 0, I31,
         "true vocabulary size: cuts the padding rows (kept if not given)"),
    UINT("model.max_position_embeddings", model.max_position_embeddings, "0", 0, I31,
         "longest sequence"),
    UINT("model.moe_router_topk", model.moe_router_topk, "0", 0, MOST_PARTS,
         "experts that each token of a mixture of experts uses"),
    UINT("model.tensor_parallel", model.tensor_parallel, "0", 0, MOST_PARTS,
         "tensor parallel size of the source"),
    UINT("model.pipeline_parallel", model.pipeline_parallel, "0", 0, MOST_PARTS,
         "pipeline parallel size of the source"),
    REAL("model.norm_epsilon", model.norm_epsilon, "0", 0, 1, "epsilon of the norms"),
    REAL("model.rotary_base", model.rotary_base, "0", 0, 1e15,
         "base of the rotary embedding (rope_theta)"),
    INT("model.bos_token_id", model.bos_token_id, "-1", -1, I31, "token that begins a text"),
    INT("model.eos_token_id", model.eos_token_id, "-1", -1, I31, "token that ends a text"),

    TEXT("upcycle.method", upcycle.method, "drop",
         "how experts are made of the dense FFN: drop, naive or noise"),
    UINT("upcycle.experts", upcycle.experts, "8", 1, MOST_PARTS, "experts per layer"),
    UINT("upcycle.top_k", upcycle.top_k, "2", 1, MOST_PARTS, "experts that each token uses"),
    REAL("upcycle.ratio", upcycle.ratio, "0.5", 0, 1,
         "share of the FFN's neurons that each expert starts anew"),
    UINT("upcycle.seed", upcycle.seed, "1234", 0, U64, "seed of all random numbers"),
    CHOICE("upcycle.index_sets", upcycle.index_sets, "shared", "shared|independent",
           "an expert's gate, up and down restart the same neurons (the paper) or each its own"),
    BOOL("upcycle.shuffle", upcycle.shuffle, "false",
         "permute the neurons of each expert (does not change what it computes)"),
    TEXT("upcycle.router", upcycle.router, "uniform",
         "start of the router: uniform, uniform01, uniform01-centred or normal"),
    REAL("upcycle.router_std", upcycle.router_std, "0.02", 0, 100,
         "standard deviation of the router 'normal'"),
    REAL("upcycle.noise_std", upcycle.noise_std, "0.02", 0, 100,
         "standard deviation of the noise, for methods that add some"),
    TEXT("upcycle.moe_layer_freq", upcycle.moe_layer_freq, "1",
         "which layers get experts, as Megatron's option: 1 all, N each N-th, or a list such as "
         "[0]*1+[1]*31"),

    REQUIRED("target.path", target.path,
             "the folder to create; an existing one is replaced with --force only"),
    TEXT("target.format", target.format, "moe-recipes",
         "moe-recipes (Mixtral), megatron-torch, megatron-dist (torch_dist), hdf5, or "
         "huggingface (dense)"),
    UINT("target.expert_parallel", target.expert_parallel, "1", 1, MOST_PARTS,
         "expert parallel size of the target, where its format has one"),
    UINT("target.tensor_parallel", target.tensor_parallel, "1", 1, MOST_PARTS,
         "tensor parallel size of a Megatron target"),
    UINT("target.pipeline_parallel", target.pipeline_parallel, "1", 1, MOST_PARTS,
         "pipeline parallel size of a Megatron target"),
    UINT("target.expert_tensor_parallel", target.expert_tensor_parallel, "0", 0, MOST_PARTS,
         "tensor parallel size of the experts of a Megatron target; 0: as the rest"),
    UINT("target.virtual_pipeline", target.virtual_pipeline, "1", 1, MOST_PARTS,
         "virtual pipeline chunks in each stage of a Megatron target"),
    UINT("target.first_stage_layers", target.first_stage_layers, "0", 0, MOST_PARTS,
         "layers of the first pipeline stage; 0: as the stages between"),
    UINT("target.last_stage_layers", target.last_stage_layers, "0", 0, MOST_PARTS,
         "layers of the last pipeline stage; 0: as the stages between"),
    UINT("target.make_vocab_size_divisible_by", target.make_vocab_size_divisible_by, "128", 1, I31,
         "a Megatron target's vocabulary is padded with zeros to a multiple of this x TP"),
    CHOICE("target.names", target.names, "auto", "auto|te|local|per-expert|fused",
           "Megatron: norms as Transformer Engine (te, the default) or the local spec names them; "
           "moe-recipes: experts one by one (the default) or fused as in transformers 5"),
    CHOICE("target.expert_names", target.expert_names, "sequential",
           "sequential|grouped|grouped-old",
           "a Megatron target's experts: SequentialMLP, TEGroupedMLP, or GroupedMLP (before core "
           "0.17)"),
    CHOICE("target.dist_keys", target.dist_keys, "auto", "auto|stacked|per-layer",
           "keys of megatron-dist: layers stacked, as a moe_layer_freq of 1 asks for, or each by "
           "its number, as a list does"),
    UINT("target.iteration", target.iteration, "0", 0, 1e9,
         "a Megatron target's iteration; 0: a release checkpoint"),
    CHOICE("target.dtype", target.dtype, "auto", "auto|source|bfloat16|float16|float32",
           "element type of the target's weights; source: each tensor's as it is; auto: bfloat16 "
           "where experts are made, source in mode reshard"),
    BYTES("target.max_shard_size", target.max_shard_size, "5GB", MIB, MOST_BYTES,
          "largest file to write where the format has shards, unless one tensor alone is larger"),
    BOOL(
        "target.sha256", target.sha256, "false",
        "SHA-256 of every file in mgr-manifest.json, and of megatron-dist in integrity.json; reads "
        "the output once more"),
    CHOICE("target.compression", target.compression, "none", "none|deflate",
           "of an hdf5 target's weights; deflate: each piece of rows is shuffled by bytes and "
           "deflated"),
};

#define N_KEYS (sizeof schema / sizeof schema[0])

_Static_assert(N_KEYS <= MGR_MAX_KEYS, "mgr_config has a place for each key");

const char *const mgr_config_sections[MGR_N_SECTIONS] = {"source", "model", "upcycle", "target"};

const mgr_key *mgr_config_schema(size_t *n)
{
    *n = N_KEYS;
    return schema;
}

const mgr_key *mgr_config_key(const char *name)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(schema[i].name, name) == 0)
            return &schema[i];
    return NULL;
}

size_t mgr_config_key_idx(const mgr_key *key)
{
    return (size_t)(key - schema);
}

const char *mgr_config_key_leaf(const mgr_key *key)
{
    const char *dot = strchr(key->name, '.');
    return dot ? dot + 1 : key->name;
}

int mgr_config_key_section(const mgr_key *key)
{
    for (int i = 0; i < MGR_N_SECTIONS; i++) {
        const size_t len = strlen(mgr_config_sections[i]);
        if (strncmp(key->name, mgr_config_sections[i], len) == 0 && key->name[len] == '.')
            return i;
    }
    return -1;
}

int mgr_config_section(const char *name)
{
    for (int i = 0; i < MGR_N_SECTIONS; i++)
        if (strcmp(mgr_config_sections[i], name) == 0)
            return i;
    return -1;
}

/* "; did you mean 'source.path' or 'target.path'?": the same word in other sections. */
static bool suggest_elsewhere(int section, const char *name, char *out, size_t size)
{
    size_t len = 0;
    for (size_t i = 0; i < N_KEYS; i++) {
        if (mgr_config_key_section(&schema[i]) == section ||
            strcmp(mgr_config_key_leaf(&schema[i]), name) != 0 || len >= size)
            continue;
        const char *lead = len ? " or" : "; did you mean";
        const int added = snprintf(out + len, size - len, "%s '%s'", lead, schema[i].name);
        len += added > 0 ? (size_t)added : 0;
    }
    if (len && len + 1 < size)
        memcpy(out + len, "?", 2);
    return len > 0;
}

/* `key` is a key, but was not found on the level where its full name was written. */
static bool suggest_level(const mgr_key *key, char *out, size_t size)
{
    if (!key)
        return false;
    const int section = mgr_config_key_section(key);
    if (section < 0)
        (void)snprintf(out, size, "; it belongs to the top level");
    else
        (void)snprintf(out, size, "; write '%s' below '%s:'", mgr_config_key_leaf(key),
                       mgr_config_sections[section]);
    return true;
}

const char *mgr_config_suggest(int section, const char *name, char *out, size_t size)
{
    const char *names[N_KEYS + MGR_N_SECTIONS];
    size_t n = 0;
    if (suggest_level(mgr_config_key(name), out, size) ||
        suggest_elsewhere(section, name, out, size))
        return out;
    for (size_t i = 0; i < N_KEYS; i++)
        if (mgr_config_key_section(&schema[i]) == section)
            names[n++] = mgr_config_key_leaf(&schema[i]);
    for (int i = 0; section < 0 && i < MGR_N_SECTIONS; i++)
        names[n++] = mgr_config_sections[i];
    const char *near = mgr_nearest(name, names, n);
    (void)snprintf(out, size, near ? "; did you mean '%s'?" : "%s", near ? near : "");
    return out;
}

const char *mgr_config_suggest_full(const char *name, char *out, size_t size)
{
    const char *names[N_KEYS];
    if (suggest_elsewhere(-2, name, out, size)) /* a key without its section */
        return out;
    for (size_t i = 0; i < N_KEYS; i++)
        names[i] = schema[i].name;
    const char *near = mgr_nearest(name, names, N_KEYS);
    (void)snprintf(out, size, near ? "; did you mean '%s'?" : "%s", near ? near : "");
    return out;
}
