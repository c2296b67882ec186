/*
 * A model as a list of logical tensors: weights as the model sees them, unfused and unsharded.
 */
#ifndef MGR_MODEL_H
#define MGR_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "mgr/dtype.h"
#include "mgr/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* More layers than any model has; a bound for what a hostile file may claim. */
#define MGR_MAX_LAYERS 4096

/* What a logical tensor is. Shapes and presence as in the table of model.c; H hidden, F ffn, V
 * vocabulary, Nq query heads, G key/value groups, D head dimension, E experts, S shared expert's
 * ffn, P positions. FFN tensors belong to an expert where the tensor has one; the shared expert,
 * which every token uses, is none of them. */
typedef enum mgr_role {
    MGR_ROLE_EMBEDDING,  /* [V, H] */
    MGR_ROLE_ATTN_NORM,  /* [H]; norms before attention and FFN only, as MLP_NORM */
    MGR_ROLE_Q,          /* [Nq*D, H] */
    MGR_ROLE_K,          /* [G*D, H] */
    MGR_ROLE_V,          /* [G*D, H] */
    MGR_ROLE_O,          /* [H, Nq*D] */
    MGR_ROLE_MLP_NORM,   /* [H] */
    MGR_ROLE_ROUTER,     /* [E, H] */
    MGR_ROLE_GATE,       /* [F, H]; gated activations only */
    MGR_ROLE_UP,         /* [F, H] */
    MGR_ROLE_DOWN,       /* [H, F] */
    MGR_ROLE_FINAL_NORM, /* [H] */
    MGR_ROLE_LM_HEAD,    /* [V, H]; absent where the embeddings are tied */
    MGR_ROLE_POSITIONS,  /* [P, H]; learned positions only */
    MGR_ROLE_ATTN_NORM_BIAS,
    MGR_ROLE_Q_BIAS, /* [Nq*D] */
    MGR_ROLE_K_BIAS, /* [G*D] */
    MGR_ROLE_V_BIAS, /* [G*D] */
    MGR_ROLE_Q_NORM, /* [D], or [Nq*D] where it is over all heads together */
    MGR_ROLE_K_NORM, /* [D], or [G*D] */
    MGR_ROLE_Q_NORM_BIAS,
    MGR_ROLE_K_NORM_BIAS,
    MGR_ROLE_O_BIAS, /* [H] */
    MGR_ROLE_MLP_NORM_BIAS,
    MGR_ROLE_ROUTER_BIAS, /* [E] */
    MGR_ROLE_GATE_BIAS,   /* [F] */
    MGR_ROLE_UP_BIAS,     /* [F] */
    MGR_ROLE_DOWN_BIAS,   /* [H] */
    MGR_ROLE_FINAL_NORM_BIAS,
    MGR_ROLE_SELECTION_BIAS, /* [E]; float32: added to the scores when experts are chosen */
    MGR_ROLE_SHARED_GATE,    /* [S, H] of the shared expert; gated activations only */
    MGR_ROLE_SHARED_UP,      /* [S, H] */
    MGR_ROLE_SHARED_DOWN,    /* [H, S] */
    MGR_ROLE_SHARED_SWITCH,  /* [1, H]: its sigmoid scales what the shared expert gives */
    MGR_ROLE_ATTN_OUT_NORM,  /* [H]; norms behind attention and FFN only */
    MGR_ROLE_MLP_OUT_NORM,   /* [H] */
    MGR_ROLE_OPAQUE,         /* of any shape: known by its name alone, and moved as it is */
    MGR_ROLE_COUNT
} mgr_role;

const char *mgr_role_name(mgr_role role);
/* Of an FFN: dense, or each routed expert's? */
bool mgr_role_is_ffn(mgr_role role);
/* Is it the weight of a norm? */
bool mgr_role_is_norm(mgr_role role);

/* Is it one of a shared expert's matrices; and which of an FFN's it is then. Pure. */
bool mgr_role_is_shared(mgr_role role);
mgr_role mgr_role_unshared(mgr_role role);
/* Is it gate, up or down? */
bool mgr_role_is_matrix(mgr_role role);

typedef enum mgr_norm { MGR_NORM_RMS, MGR_NORM_LAYER } mgr_norm;

typedef enum mgr_activation {
    MGR_ACTIVATION_SWIGLU,
    MGR_ACTIVATION_GEGLU,
    MGR_ACTIVATION_GELU,         /* no gate */
    MGR_ACTIVATION_SQUARED_RELU, /* no gate */
    MGR_ACTIVATION_RELU,         /* no gate */
    MGR_ACTIVATION_GATED,        /* some, with a gate: of FFNs that are passed through */
    MGR_ACTIVATION_UNGATED       /* some, without */
} mgr_activation;

/* The stacks of layers that a model may have. The numbers are part of the random streams. */
typedef enum mgr_stack {
    MGR_STACK_DECODER, /* or the only one */
    MGR_STACK_ENCODER,
    MGR_STACK_COUNT
} mgr_stack;

/* Models of Megatron-Core beside GPTModel (model/megatron_kin.h). */
typedef enum mgr_megatron_kin {
    MGR_KIN_NONE,
    MGR_KIN_T5,
    MGR_KIN_VIT /* CLIPViTModel */
} mgr_megatron_kin;

typedef enum mgr_positions { MGR_POSITIONS_ROPE, MGR_POSITIONS_LEARNED } mgr_positions;

/* How RoPE is stretched: LINEAR divides positions by the factor (position interpolation), LLAMA3
 * scales frequencies by wavelength (Llama 3.1). */
typedef enum mgr_rope_kind { MGR_ROPE_PLAIN, MGR_ROPE_LINEAR, MGR_ROPE_LLAMA3 } mgr_rope_kind;

typedef struct mgr_rope {
    mgr_rope_kind kind;
    double factor;               /* LINEAR, LLAMA3 */
    double low_freq, high_freq;  /* LLAMA3 */
    uint64_t original_positions; /* LLAMA3 */
} mgr_rope;

/* What a router makes of its logits. All zero: softmax, then the top-k, divided by their sum. */
typedef enum mgr_score { MGR_SCORE_SOFTMAX, MGR_SCORE_SIGMOID } mgr_score;

typedef struct mgr_router_kind {
    mgr_score score;
    bool unnormalised; /* the scores of all experts are the weights, not divided by the top-k's sum
                        */
    bool selection_bias; /* added to the scores for the choice alone */
    double scale;        /* of the weights; 0: 1 */
    /* Experts lie in equal groups, and only those of the best groups are chosen from; a group is as
     * good as the sum of its `group_best` best scores. 0: no groups. */
    uint64_t groups, top_groups, group_best;
} mgr_router_kind;

/* The sizes and the few scalars that consumers need. Plain data. All zero but the sizes is a
 * Llama-like model: RMSNorm, SwiGLU, RoPE, no biases. */
typedef struct mgr_model {
    uint64_t layers, hidden, heads, kv_groups, head_dim; /* layers of all stacks, one behind the
                                                            other: those of the decoder first */
    uint64_t encoder_layers;                             /* of them; 0: there is one stack */
    bool ffns_only; /* nothing but FFNs and routers is understood; all else is opaque */
    /* Of a class without a row: how its dense FFNs are called (a row of the table in
     * model/huggingface_passed.c, from 1), and its experts (an mgr_hf_ffn), whose routers are
     * opaque, too, unless they are called as these experts' are. 0: a class with a row. */
    uint8_t passed, passed_experts;
    uint8_t sibling; /* the class with experts that has all else alike (the same file); 0: none */
    uint8_t tower;   /* of a vision-language model: where its decoder lies (a place of the table in
                        model/huggingface_tower.c, from 1) */
    bool passed_router;
    bool mtp;         /* layers for multi-token prediction stand beside it (model/mtp.h), opaque */
    uint8_t kin;      /* an mgr_megatron_kin, of which all but the FFNs is opaque */
    uint64_t ffn;     /* of a dense FFN */
    uint64_t vocab;   /* true size, without padding */
    uint64_t experts; /* 0 for a dense model */
    uint64_t expert_ffn; /* of an expert; 0: as `ffn` */
    uint64_t top_k;
    bool tied;       /* embedding and LM head are one tensor */
    mgr_dtype dtype; /* of most weights; each tensor has its own (mgr_layout.types) */
    mgr_norm norm;
    mgr_activation activation;
    mgr_positions positions;
    mgr_rope rope;
    bool bias_qkv, bias_o, bias_mlp, bias_router;
    bool qk_norm;          /* norms of q and k, per head */
    bool qk_norm_full;     /* they run over all heads together */
    bool post_norm;        /* norms behind attention and FFN, and none before */
    bool rope_interleaved; /* RoPE turns neighbours, not halves */
    mgr_router_kind router;
    uint64_t shared_ffn; /* of the shared expert in each layer with experts; 0: none */
    bool shared_switch;  /* a gate scales what it gives */
    double rotary_part;  /* of a head that RoPE turns, the first of its dimensions; 0: all */
    double norm_epsilon, rotary_base;
    /* Factors of the embeddings, of what is added to the residual, of q times k in place of
     * D^-1/2, and a divisor of the logits; 0: there is none. */
    double embedding_multiplier, residual_multiplier, attention_multiplier, logits_divisor;
    uint64_t max_positions;
    int64_t bos_token_id, eos_token_id; /* -1: unknown */
    double init_std;
    uint8_t dense_layers[MGR_MAX_LAYERS / 8]; /* bit of a layer: its FFN is dense all the same */
    uint64_t
        window; /* positions that a layer with a sliding window looks back on; 0: none has one */
    uint8_t window_layers[MGR_MAX_LAYERS / 8]; /* bit of a layer: it has that window */
    uint8_t nope_layers[MGR_MAX_LAYERS / 8];   /* bit of a layer: it has no RoPE */
} mgr_model;

/* Layers of a stack, and the number in `layers` of its first. */
uint64_t mgr_model_stack_layers(const mgr_model *model, mgr_stack stack);
uint64_t mgr_model_stack_first(const mgr_model *model, mgr_stack stack);
/* The stack of `layer`, and in *within its number there. */
mgr_stack mgr_model_stack(const mgr_model *model, uint64_t layer, uint32_t *within);
/* The key of `layer`, for random streams and names: its number in its stack, and the stack; of
 * MGR_NONE itself. And back. Pure. */
uint32_t mgr_model_layer_key(const mgr_model *model, uint32_t layer);
mgr_stack mgr_layer_key_stack(uint32_t key);
uint32_t mgr_layer_key_layer(uint32_t key);
/* Does `layer` have experts? */
bool mgr_model_is_moe(const mgr_model *model, uint64_t layer);
/* What a layer computes with between its norms: its dense FFN, or the experts that its router
 * chooses from and beside them a shared one. What depends on an FFN asks here, of the layer. */
typedef enum mgr_ffn_kind {
    MGR_FFN_DENSE,
    MGR_FFN_ROUTED,
    MGR_FFN_SHARED,
    MGR_FFN_KINDS
} mgr_ffn_kind;

typedef struct mgr_ffn {
    mgr_ffn_kind kind;
    uint64_t count, width; /* how many of this width, in neurons */
} mgr_ffn;

/* The FFNs of `layer`, into the caller's array; returns how many entries. Pure. */
size_t mgr_model_ffns(const mgr_model *model, uint64_t layer, mgr_ffn out[MGR_FFN_KINDS]);
/* Width of those of one kind; 0 where the layer has none. Pure. */
uint64_t mgr_model_ffn_width(const mgr_model *model, uint64_t layer, mgr_ffn_kind kind);

/* Give `layer` of a mixture of experts a dense FFN. */
void mgr_model_set_dense(mgr_model *model, uint64_t layer);
/* Layers that have experts. */
uint64_t mgr_model_moe_layers(const mgr_model *model);
/* Give `layer` the sliding window; layers that have it. */
void mgr_model_set_window(mgr_model *model, uint64_t layer);
uint64_t mgr_model_window_layers(const mgr_model *model);
/* Take RoPE from `layer`; layers that have none. */
void mgr_model_set_nope(mgr_model *model, uint64_t layer);
uint64_t mgr_model_nope_layers(const mgr_model *model);
/* Has it one of the four multipliers? */
bool mgr_model_is_multiplied(const mgr_model *model);
bool mgr_model_is_gated(const mgr_model *model);
/* Factor of the router's weights, and part of a head that RoPE turns; 1 where nothing is said. */
double mgr_model_router_scale(const mgr_model *model);
double mgr_model_rotary_part(const mgr_model *model);
/* Is it Mixtral's router: softmax, the top-k divided by their sum, and nothing more? */
bool mgr_model_plain_router(const mgr_model *model);
/* Intermediate size of an expert, or of the dense FFN without experts. */
uint64_t mgr_model_expert_ffn(const mgr_model *model);

/* Is it a part of what a checkpoint holds, and all else is opaque? */
bool mgr_model_is_part(const mgr_model *model);

/* What of `model` is not in a Llama-like one ("LayerNorm", "biases of the MLP", ...), or NULL;
 * `idx` counts from 0 through what there is. For refusals. */
const char *mgr_model_feature(const mgr_model *model, size_t idx);

/* A tensor outside of the roles: its name and shape, as every format stores it that can hold it. */
typedef struct mgr_opaque {
    const char *name;
    uint32_t ndim;
    uint64_t shape[MGR_MAX_NDIM];
} mgr_opaque;

/* What there is of a parameter: its weight, and what an optimizer keeps beside it: the weight in
 * float32, where the model's type is another, and Adam's two moments. A plane has the shape of its
 * weight, and is one more tensor for all that moves rows. */
typedef enum mgr_plane {
    MGR_PLANE_WEIGHT,
    MGR_PLANE_MASTER,
    MGR_PLANE_EXP_AVG,
    MGR_PLANE_EXP_AVG_SQ,
    MGR_PLANE_COUNT
} mgr_plane;

/* Sets of planes. */
#define MGR_PLANES_MOMENTS (1u << MGR_PLANE_EXP_AVG | 1u << MGR_PLANE_EXP_AVG_SQ)
#define MGR_PLANES_FOUND (1u << 31) /* of a source: those that there are */
#define MGR_PLANES_KEPT (1u << MGR_PLANE_MASTER | MGR_PLANES_MOMENTS)

/* "master", "exp_avg", "exp_avg_sq". Pure. */
const char *mgr_plane_name(mgr_plane plane);

typedef struct mgr_tensor {
    mgr_role role;
    mgr_plane plane;
    uint32_t layer, expert; /* MGR_NONE where it has none */
    uint32_t source;        /* of several that are joined; else 0 */
    uint32_t ndim;          /* 1 or 2; a 1-D tensor of n elements has rows n and cols 1 */
    uint64_t rows, cols;
    /* Tensors of one bundle are cut into work units together, after each `step` rows: Q, K and V of
     * a layer lie interleaved by group in Megatron's fused matrix, and are read as one extent. The
     * step of down is MGR_CANONICAL_ROWS, so that its column sums have canonical addends. */
    uint32_t bundle; /* index of the bundle's first tensor */
    uint64_t step;
    const mgr_opaque *opaque; /* of MGR_ROLE_OPAQUE; else NULL */
} mgr_tensor;

/* Places of the roles in a layer of one kind; MGR_NONE where it has none. */
typedef struct mgr_layer_index {
    uint32_t at[MGR_ROLE_COUNT]; /* from the layer's first tensor; of FFN roles: from the FFN's */
    uint32_t ffn;                /* first tensor of the FFN, or of expert 0 */
    uint32_t per_ffn;            /* tensors of one FFN */
} mgr_layer_index;

/* All logical tensors of a model: embeddings, layer after layer, final norm, head; then those that
 * are opaque, or else the other planes of them all. */
typedef struct mgr_tensors {
    mgr_tensor *list;
    uint32_t n;
    mgr_model model;
    uint32_t *first_of_layer;     /* [layers] */
    uint32_t top[MGR_ROLE_COUNT]; /* places of the roles outside of layers */
    mgr_layer_index kinds[2];     /* dense layers, layers with experts */
    /* Of several models of one shape, joined: where in `list` tensor i of source s is, at
     * s * n_each + i; MGR_NONE where it is left out. NULL of one model; then places are as they
     * are numbered here. */
    uint32_t *place;
    uint32_t n_each, sources;
    uint32_t first_opaque; /* they are the last of the list, by name */
    uint32_t n_weights;    /* of the list; behind them are planes */
    uint32_t *planes;      /* [MGR_PLANE_COUNT][n_weights]; NULL of weights alone */
    unsigned kept;         /* which planes there are */
    mgr_opaque *opaque;    /* theirs, where they are not another list's */
} mgr_tensors;

/* What becomes of the tensors that several sources have each and the target has once. */
typedef enum mgr_others {
    MGR_OTHERS_AVERAGE, /* all are there, in one bundle */
    MGR_OTHERS_BASE,    /* those of the first source alone */
    MGR_OTHERS_EQUAL,   /* one, of which the other sources have copies */
    MGR_OTHERS_COUNT
} mgr_others;

/* "average", "base", "equal"; MGR_OTHERS_COUNT for another name. Pure. */
mgr_others mgr_others_find(const char *name);

/* The tensors of `sources` models like `model`, which is dense. In the layers that have experts in
 * `target` each source's FFN is there for itself; of all else `others` says what is. Free with
 * mgr_tensors_clear. Local. */
int mgr_tensors_join(mgr_tensors *tensors, const mgr_model *model, uint32_t sources,
                     mgr_others others, const mgr_model *target, mgr_err *err) MGR_NODISCARD;

/* Enumerate the tensors of `model`. Free with mgr_tensors_clear. Local. */
int mgr_tensors_init(mgr_tensors *tensors, const mgr_model *model, mgr_err *err) MGR_NODISCARD;
/* Put `n` opaque tensors behind them, sorted by name. The array is borrowed. Once. Local. */
int mgr_tensors_add_opaque(mgr_tensors *tensors, const mgr_opaque *opaque, size_t n,
                           mgr_err *err) MGR_NODISCARD;
/* Put the `planes` of all parameters behind them; buffers, which no optimizer has, get none.
 * Nothing is found by name or role but weights. Once, and not with opaque tensors. Local. */
int mgr_tensors_add_planes(mgr_tensors *tensors, unsigned planes, mgr_err *err) MGR_NODISCARD;
/* That plane of weight `idx`, itself for MGR_PLANE_WEIGHT; MGR_NONE where it has none. Pure. */
uint32_t mgr_tensors_plane(const mgr_tensors *tensors, uint32_t idx, mgr_plane plane);
/* The list without its planes; what it holds is borrowed. Pure. */
mgr_tensors mgr_tensors_weights(const mgr_tensors *tensors);
/* Those that another list has, which lives longer. Local. */
int mgr_tensors_share_opaque(mgr_tensors *tensors, const mgr_tensors *from,
                             mgr_err *err) MGR_NODISCARD;
void mgr_tensors_clear(mgr_tensors *tensors);

/* Index of a tensor; `layer` and `expert` are MGR_NONE where the role has none. MGR_NONE if the
 * model has no such tensor. Pure. */
uint32_t mgr_tensors_find(const mgr_tensors *tensors, mgr_role role, uint32_t layer,
                          uint32_t expert);

/* The same of the `idx`-th FFN of a layer: expert `idx` of a mixture, that of source `idx` of
 * several, or the dense one that is alone. Pure. */
uint32_t mgr_tensors_ffn(const mgr_tensors *tensors, mgr_role role, uint32_t layer, uint32_t idx);

/* The tensor that is to this model what `tensor` is to another; MGR_NONE if there is none. Pure. */
uint32_t mgr_tensors_match(const mgr_tensors *tensors, const mgr_tensor *tensor);

/* "layer 3 expert 1 gate" into a caller's buffer; returns it. */
const char *mgr_tensor_label(const mgr_tensor *tensor, char *out, size_t size);

/* Elements of the whole model. */
uint64_t mgr_tensors_elements(const mgr_tensors *tensors);

#ifdef __cplusplus
}
#endif
#endif
