#include "cfg/core_keys.h"

#include "mgr/keys.h"

static const mgr_key all[] = {
    MGR_ROW_CHOICE("mode", mode, "upcycle", "upcycle|reshard",
                   "what to do: make a mixture of experts of a dense model, or only lay a "
                   "checkpoint out anew"),
    MGR_ROW_BYTES("memory_per_rank", memory_per_rank, "2GiB", 64 * MGR_MIB, MGR_MOST_BYTES,
                  "most memory that a rank may have resident, everything counted"),
    MGR_ROW_TEXT("io_threads", io_threads, "auto",
                 "threads of each rank that write while it makes what comes next: auto (1 where a "
                 "rank has two cores or more to itself, else 0), or a number up to 16"),

    MGR_ROW_REQUIRED_PATH("source.path", source.path,
                          "the checkpoint to read: a Megatron root or one iteration, or a Hugging "
                          "Face folder"),
    MGR_ROW_TEXT("source.format", source.format, "auto",
                 "auto: look; or megatron-torch, megatron-dist (torch_dist), huggingface, "
                 "moe-recipes or mixtral (its other names), or hdf5"),
    MGR_ROW_PATH("source.tokenizer", source.tokenizer, "",
                 "folder of tokenizer files to carry along; empty: those beside the checkpoint"),
    MGR_ROW_BOOL("source.allow_nonfinite", source.allow_nonfinite, "false",
                 "pass NaN and infinities on, instead of refusing them"),

    MGR_ROW_UINT("model.num_layers", model.num_layers, "0", 0, MGR_MOST_PARTS,
                 "transformer layers"),
    MGR_ROW_UINT("model.hidden_size", model.hidden_size, "0", 0, MGR_MOST_I31,
                 "width of the residual stream"),
    MGR_ROW_UINT("model.ffn_hidden_size", model.ffn_hidden_size, "0", 0, MGR_MOST_I31,
                 "intermediate width of the FFN"),
    MGR_ROW_UINT("model.num_attention_heads", model.num_attention_heads, "0", 0, MGR_MOST_I31,
                 "query heads"),
    MGR_ROW_UINT("model.num_query_groups", model.num_query_groups, "0", 0, MGR_MOST_I31,
                 "key and value heads"),
    MGR_ROW_UINT("model.kv_channels", model.kv_channels, "0", 0, MGR_MOST_I31, "width of one head"),
    MGR_ROW_UINT(
        "model.vocab_size", model.vocab_size, "0", 0, MGR_MOST_I31,
        "true vocabulary size: cuts the padding rows (kept where neither this nor args tell)"),
    MGR_ROW_UINT("model.max_position_embeddings", model.max_position_embeddings, "0", 0,
                 MGR_MOST_I31, "longest sequence"),
    MGR_ROW_UINT("model.moe_router_topk", model.moe_router_topk, "0", 0, MGR_MOST_PARTS,
                 "experts that each token of a mixture of experts uses"),
    MGR_ROW_REAL("model.norm_epsilon", model.norm_epsilon, "0", 0, 1, "epsilon of the norms"),
    MGR_ROW_REAL("model.rotary_base", model.rotary_base, "0", 0, 1e15,
                 "base of the rotary embedding (rope_theta)"),
    MGR_ROW_INT("model.bos_token_id", model.bos_token_id, "-1", -1, MGR_MOST_I31,
                "token that begins a text"),
    MGR_ROW_INT("model.eos_token_id", model.eos_token_id, "-1", -1, MGR_MOST_I31,
                "token that ends a text"),

    MGR_ROW_REQUIRED_PATH("target.path", target.path,
                          "the folder to create; an existing one is replaced with --force only"),
    MGR_ROW_TEXT("target.format", target.format, "moe-recipes",
                 "huggingface (the class that the model fits), moe-recipes or mixtral (both "
                 "Mixtral), megatron-torch, megatron-dist (torch_dist) or hdf5"),
    MGR_ROW_BOOL("target.sha256", target.sha256, "false",
                 "SHA-256 of every file in mgr-manifest.json, and of megatron-dist in "
                 "integrity.json; reads the output once more"),
};

static const mgr_key upcycle[] = {
    MGR_ROW_CHOICE("target.dtype", target.dtype, "bfloat16", "source|bfloat16|float16|float32",
                   "element type of the target's weights; source: each tensor's as it is"),
    MGR_ROW_TEXT("upcycle.method", upcycle.method, "drop",
                 "how experts are made of the dense FFN: drop, naive or noise"),
    MGR_ROW_UINT("upcycle.experts", upcycle.experts, "8", 1, MGR_MOST_PARTS, "experts per layer"),
    MGR_ROW_UINT("upcycle.top_k", upcycle.top_k, "2", 1, MGR_MOST_PARTS,
                 "experts that each token uses"),
    MGR_ROW_UINT("upcycle.expert_width", upcycle.expert_width, "0", 0, MGR_MOST_I31,
                 "neurons of an expert, cut in turn from copies of the dense FFN laid end to end: "
                 "of a divisor N times smaller, expert e gets slice e mod N; 0: all of it"),
    MGR_ROW_UINT("upcycle.slices", upcycle.slices, "0", 0, MGR_MOST_I31,
                 "the same as a number: cut the dense FFN into so many experts"),
    MGR_ROW_CHOICE("upcycle.cut", upcycle.cut, "slices", "slices|shuffled",
                   "cut the FFN's neurons in their order, or shuffle each copy of the FFN before "
                   "(Qwen2-57B-A14B)"),
    MGR_ROW_CHOICE("upcycle.scale", upcycle.scale, "none", "none|published|exact",
                   "make up for narrow experts: by a root of the factor on each matrix (NVIDIA, "
                   "Marco), or by all of it on down, which is the dense FFN where the router "
                   "chooses whole groups"),
    MGR_ROW_BOOL("upcycle.router_pre_softmax", upcycle.router_pre_softmax, "false",
                 "the router takes its softmax over all experts, and the chosen ones' weights are "
                 "not normalised (norm_topk_prob: false)"),
    MGR_ROW_TEXT("upcycle.experts_from", upcycle.experts_from, "",
                 "of a mixture as the source: which of its experts the target has, such as 0-3,7; "
                 "empty: all of them, as often as 'upcycle.experts' takes"),
    MGR_ROW_PATH(
        "upcycle.experts_file", upcycle.experts_file, "",
        "the same from a JSON or HDF5 file: 'experts', a list for each layer with experts, "
        "or one for all (REAP and kin)"),
    MGR_ROW_PATH(
        "upcycle.neurons_file", upcycle.neurons_file, "",
        "JSON or HDF5 file with 'neurons': for each layer with experts, or once for all, for "
        "each expert the list of the dense FFN's neurons that it has (MoEfication and kin)"),
    MGR_ROW_TEXT("upcycle.layers_from", upcycle.layers_from, "",
                 "which layers of the source the target has, such as 0-3,2-5, or times 2: each so "
                 "often, one behind the other; empty: each once"),
    MGR_ROW_UINT("upcycle.seed", upcycle.seed, "1234", 0, MGR_MOST_U64,
                 "seed of all random numbers"),
    MGR_ROW_BOOL("upcycle.shuffle", upcycle.shuffle, "false",
                 "permute the neurons of each expert (does not change what it computes)"),
    MGR_ROW_TEXT("upcycle.router", upcycle.router, "uniform",
                 "start of the router: uniform, uniform01, uniform01-centred, normal, "
                 "virtual-groups, zeros or file; source: a mixture's own (its default)"),
    MGR_ROW_TEXT("upcycle.moe_layer_freq", upcycle.moe_layer_freq, "1",
                 "which layers get experts, as Megatron's option: 1 all, N each N-th, or a list "
                 "such as [0]*1+[1]*31; or every-second (1, 3, 5, ...), last-half"),
    MGR_ROW_TEXT("upcycle.encoder_moe_layer_freq", upcycle.encoder_moe_layer_freq, "",
                 "the same of the encoder, where the model has one, or none; empty: as the "
                 "decoder's"),
};

static const mgr_key reshard[] = {
    MGR_ROW_CHOICE("target.dtype", target.dtype, "source", "source|bfloat16|float16|float32",
                   "element type of the target's weights; source: each tensor's as it is"),
};

static const mgr_key_table tables[] = {
    MGR_KEY_TABLE(MGR_OWNER_ALL, NULL, all),
    MGR_KEY_TABLE(MGR_OWNER_MODE, "upcycle", upcycle),
    MGR_KEY_TABLE(MGR_OWNER_MODE, "reshard", reshard),
};

const mgr_key_table *mgr_core_keys(size_t idx)
{
    return idx < sizeof tables / sizeof tables[0] ? &tables[idx] : NULL;
}
