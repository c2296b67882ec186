/*
 * The classes of transformers that are read and written, one row each: what their models have, how
 * tensors are called, what keys of config.json say what, and what a key means that is not there.
 * A new class is a row of the table, its keys in huggingface_keys.c, and its tests.
 */
#ifndef MGR_MODEL_HUGGINGFACE_FAMILY_H
#define MGR_MODEL_HUGGINGFACE_FAMILY_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/model.h"

/* Rows of the table, in its order: of two classes that compute a model the first is chosen. */
typedef enum mgr_hf_class {
    MGR_HF_LLAMA,
    MGR_HF_MISTRAL,
    MGR_HF_QWEN2,
    MGR_HF_QWEN3,
    MGR_HF_OLMO2,
    MGR_HF_GRANITE,
    MGR_HF_SMOLLM3,
    MGR_HF_ERNIE,
    MGR_HF_SEED_OSS,
    MGR_HF_PHI3,
    MGR_HF_MINISTRAL,
    MGR_HF_MIXTRAL,
    MGR_HF_QWEN3_MOE,
    MGR_HF_QWEN2_MOE,
    MGR_HF_GLM4_MOE,
    MGR_HF_FLEX_OLMO,
    MGR_HF_OLMOE,
    MGR_HF_GRANITE_MOE,
    MGR_HF_GRANITE_SHARED,
    MGR_HF_ERNIE_MOE,
    MGR_HF_DOTS1,
    MGR_HF_MINIMAX_M2,
    MGR_HF_T5,
    MGR_HF_SWITCH,
    MGR_HF_PASSED, /* any class without a row: huggingface_passed.h */
    MGR_HF_NO_CLASS
} mgr_hf_class;

/* The bit of a class, for the keys of huggingface_keys.c. */
#define MGR_HF_BIT(class) (1u << (class))

/* What a model has beside a Llama's parts. Whatever no row names is in no class. */
enum {
    MGR_HF_HAS_QKV_BIAS = 1 << 0,  /* q, k and v, but not o */
    MGR_HF_HAS_ATTN_BIAS = 1 << 1, /* q, k, v and o */
    MGR_HF_HAS_O_BIAS = 1 << 2,    /* o alone */
    MGR_HF_HAS_MLP_BIAS = 1 << 3,
    MGR_HF_HAS_QK_NORM = 1 << 4,      /* of each head */
    MGR_HF_HAS_WINDOW = 1 << 5,       /* of all layers */
    MGR_HF_HAS_SOME_WINDOWS = 1 << 6, /* of some layers */
    MGR_HF_HAS_EXPERTS = 1 << 7,
    MGR_HF_HAS_FIRST_DENSE = 1 << 8,  /* the first layers are dense, and only those */
    MGR_HF_HAS_SOME_DENSE = 1 << 9,   /* other ones are */
    MGR_HF_HAS_DENSE_STEPS = 1 << 27, /* each so-manieth of a range has experts, the others none */
    MGR_HF_HAS_UNNORMALISED = 1 << 10,
    MGR_HF_HAS_SIGMOID = 1 << 11,
    MGR_HF_HAS_SELECTION = 1 << 12,  /* a selection bias */
    MGR_HF_HAS_SCALE = 1 << 13,      /* of the router's weights */
    MGR_HF_HAS_GROUPS = 1 << 14,     /* of experts, as good as their two best */
    MGR_HF_HAS_SHARED = 1 << 15,     /* a shared expert, a multiple of a routed one's width */
    MGR_HF_HAS_ODD_SHARED = 1 << 16, /* one of another width */
    MGR_HF_HAS_SWITCH = 1 << 17,     /* its gate */
    MGR_HF_HAS_PART_ROPE = 1 << 18,
    MGR_HF_HAS_QK_NORM_FULL = 1 << 20, /* over all heads together */
    MGR_HF_HAS_POST_NORM = 1 << 21,    /* norms behind attention and FFN, none before */
    MGR_HF_HAS_NEIGHBOURS = 1 << 22,   /* RoPE turns those */
    MGR_HF_HAS_NOPE = 1 << 23,         /* some layers have no RoPE */
    MGR_HF_HAS_MULTIPLIERS = 1 << 24,
    MGR_HF_HAS_SCALED_ROPE = 1 << 25, /* linear or Llama 3's: any class but for `never` */
    MGR_HF_HAS_WIDE_HEADS = 1 << 26,  /* together not as wide as the model: the same */
    MGR_HF_HAS_PASSED = 1 << 28,      /* parts that are passed through unread */
    MGR_HF_HAS_ENCODER = 1 << 30,     /* of which the FFNs alone are understood */
    MGR_HF_HAS_OTHER = 1 << 19 /* LayerNorm, no gate, learned positions: in no class so far */
};

/* Which keys say it, where classes differ; windows are of all layers unless said otherwise. */
enum {
    MGR_HF_KEY_OUT_BIAS = 1 << 20,      /* attention_out_bias; attention_bias, true where it is left
                                           out, is of q, k and v alone */
    MGR_HF_KEY_TIED = 1 << 21,          /* tie_word_embeddings is true where it is left out */
    MGR_HF_KEY_NOPE_LIST = 1 << 22,     /* no_rope_layers, no_rope_layer_interval */
    MGR_HF_KEY_MULTIPLIERS = 1 << 23,   /* four of them, 1 where they are left out */
    MGR_HF_KEY_ATTENTION_BIAS = 1 << 0, /* attention_bias: of q, k, v and o */
    MGR_HF_KEY_MLP_BIAS = 1 << 1,       /* mlp_bias */
    MGR_HF_KEY_WINDOW_SWITCH = 1 << 2,  /* sliding_window counts with use_sliding_window alone */
    MGR_HF_KEY_WINDOW_LAYERS = 1 << 3,  /* as layer_types says, or from max_window_layers on */
    MGR_HF_KEY_NO_WINDOWS = 1 << 4,
    MGR_HF_KEY_SPARSE_STEP = 1 << 5, /* decoder_sparse_step and mlp_only_layers: dense layers */
    MGR_HF_KEY_NORM_TOPK = 1 << 6,   /* norm_topk_prob */
    MGR_HF_KEY_QKV_BIAS = 1 << 7,    /* qkv_bias: of q, k and v; true where it is left out */
    MGR_HF_KEY_GLM = 1 << 8,         /* use_qk_norm, and attention_bias is of q, k and v alone */
    MGR_HF_KEY_GROUPED = 1 << 9,     /* the router of DeepSeek-V3, first_k_dense_replace and shared
                                        experts that are counted */
    MGR_HF_KEY_PART_ROPE = 1 << 10,  /* partial_rotary_factor */
    MGR_HF_KEY_ROTARY_DIM = 1 << 11, /* rotary_dim, where that is left out */
    MGR_HF_KEY_ERNIE = 1 << 12 /* moe_k, moe_num_experts, moe_num_shared_experts, moe_layer_* */
};

/* How a class names experts that are stored one by one, and how they may be stored. */
typedef enum mgr_hf_ffn {
    MGR_HF_DENSE,
    MGR_HF_PER_EXPERT,  /* w1 (gate) and w3 (up) [F, H], w2 (down) [H, F] of each expert */
    MGR_HF_QWEN_EXPERT, /* the same as gate_proj, up_proj, down_proj */
    MGR_HF_FUSED, /* gate_up_proj [E, 2F, H], an expert's gate before its up; down [E, H, F] */
    MGR_HF_INPUT_LINEAR,  /* the same as input_linear and output_linear */
    MGR_HF_GRANITE_FUSED, /* MGR_HF_FUSED below block_sparse_moe */
    MGR_HF_SWITCH_EXPERT, /* wi and wo of expert_E, without a gate */
    MGR_HF_FEED_FORWARD,  /* w1, w3 and w2 of feed_forward.experts */
    MGR_HF_DOTS_VISION,   /* fc1, fc3 and fc2 of blocks' experts */
    MGR_HF_MLPS           /* behind it: the rows of dense FFNs in huggingface_passed.c, 1 and up */
} mgr_hf_ffn;

/* Does one tensor hold all experts? Pure. */
bool mgr_huggingface_is_fused(mgr_hf_ffn ffn);

/* What else is fused, by rows. */
enum {
    MGR_HF_FUSES_QKV = 1,     /* qkv_proj: q, k, v */
    MGR_HF_FUSES_GATE_UP = 2, /* gate_up_proj of a dense FFN: gate, up */
    MGR_HF_FUSES_SHARED = 4   /* shared_mlp.input_linear: gate, up */
};

/* A name of the class's own, in place of or beside the common ones; %u is the layer. */
typedef struct mgr_hf_name {
    mgr_role role;
    const char *name; /* NULL behind the last */
} mgr_hf_name;

typedef struct mgr_hf_family {
    const char *type, *name, *architecture; /* model_type; for people; of architectures */
    unsigned must, may, never;              /* MGR_HF_HAS_* */
    unsigned gains; /* of `must`, what a mixture that is just made may be given: it says nothing
                       while the router is new and the bias is zero */
    unsigned keys;  /* MGR_HF_KEY_* */
    const mgr_hf_name *names;        /* NULL: the common ones */
    const mgr_hf_name *memory_names; /* before `names`, where experts are fused */
    /* NULL, or all its names, of a class with several stacks; %u is the layer of its stack */
    const char *(*name_of)(bool expert, mgr_role role, mgr_stack stack);
    mgr_hf_ffn ffn;
    mgr_hf_ffn
        memory;     /* of fused experts, as transformers 5 has them; MGR_HF_DENSE: MGR_HF_FUSED */
    unsigned fuses; /* MGR_HF_FUSES_* */
    /* transformers' defaults for keys that config.json leaves out */
    uint64_t groups;   /* num_key_value_heads; 0: as many as heads */
    uint64_t head_dim; /* 0: hidden size by heads */
    uint64_t positions;
    int64_t window;       /* sliding_window; 0: none */
    int64_t first_window; /* max_window_layers */
    double rotary_part;   /* partial_rotary_factor; 0: 1 */
    double epsilon, theta;
    /* of a mixture of experts */
    const char *count; /* keys that its number of experts is written to, side by side */
    uint64_t experts, top_k;
    uint64_t expert_ffn;    /* moe_intermediate_size; 0: experts have intermediate_size */
    const char *shared_key; /* of the shared expert's width; NULL: there is no such key */
    uint64_t shared_ffn;    /* its default */
    uint64_t first_dense;   /* first_k_dense_replace */
    bool normalises;        /* norm_topk_prob */
    bool hollow;            /* a shared expert of no width has tensors all the same */
    bool row_bias;          /* the selection bias is [1, E] */
    /* An object of keys that no logit follows from, written where the source has none. */
    const char *written;
} mgr_hf_family;

/* The row of a class, NULL for MGR_HF_NO_CLASS; of a model_type, or NULL. Pure. */
const mgr_hf_family *mgr_huggingface_family(mgr_hf_class class);
mgr_hf_class mgr_huggingface_type(const char *type);

/* What keeps a well-known model_type out, or NULL. Pure. */
const char *mgr_huggingface_refusal(const char *type);

/* The class that computes what `model` computes; MGR_HF_NO_CLASS if none does. Pure. */
mgr_hf_class mgr_huggingface_class(const mgr_model *model);

/* The same, but the class of model_type `type` where that computes it, too. Pure. */
mgr_hf_class mgr_huggingface_class_like(const mgr_model *model, const char *type);

/* What `model` has that `class` has not, and what the class has always and the model has not, by
 * name ("interleaved RoPE and layers without RoPE"); "" if nothing. Returns out. Pure. */
const char *mgr_huggingface_lacks(mgr_hf_class class, const mgr_model *model, char *out,
                                  size_t size);
const char *mgr_huggingface_needs(mgr_hf_class class, const mgr_model *model, char *out,
                                  size_t size);

/* Make of a mixture that is just made one that class `type` computes, or, where that cannot be or
 * is no class's name, the first class that can: give it what that class always has and what says
 * nothing yet. Left alone where a class computes it as it is, or none can. Pure. */
void mgr_huggingface_complete(mgr_model *model, const char *type);

/* Give a plain model of some size what models of a class have: for synthetic ones. Pure. */
void mgr_huggingface_typical(mgr_hf_class class, mgr_model *model);

/* What the first layers with experts are: the first of them, the last, and the step between. False
 * if they are not evenly spaced as moe_layer_interval says it. Pure. */
typedef struct mgr_hf_steps {
    uint64_t first, last, step;
} mgr_hf_steps;
bool mgr_huggingface_steps(const mgr_model *model, mgr_hf_steps *out);

/* The class that lacks least, of those that need nothing. Pure. */
mgr_hf_class mgr_huggingface_nearest(const mgr_model *model);

/* How its fused experts are called in memory. Pure. */
mgr_hf_ffn mgr_huggingface_memory(const mgr_hf_family *family);

/* "llama, mistral, ..."; returns out. */
const char *mgr_huggingface_types(char *out, size_t size);

#endif
