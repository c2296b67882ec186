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

/* What a logical tensor is. Shapes as in the table of model.c; H hidden, F ffn, V vocabulary,
 * Nq query heads, G key/value groups, D head dimension, E experts. */
typedef enum mgr_role {
    MGR_ROLE_EMBEDDING,  /* [V, H] */
    MGR_ROLE_ATTN_NORM,  /* [H] */
    MGR_ROLE_Q,          /* [Nq*D, H] */
    MGR_ROLE_K,          /* [G*D, H] */
    MGR_ROLE_V,          /* [G*D, H] */
    MGR_ROLE_O,          /* [H, Nq*D] */
    MGR_ROLE_MLP_NORM,   /* [H] */
    MGR_ROLE_ROUTER,     /* [E, H] */
    MGR_ROLE_GATE,       /* [F, H], of an expert where the tensor has one */
    MGR_ROLE_UP,         /* [F, H] */
    MGR_ROLE_DOWN,       /* [H, F] */
    MGR_ROLE_FINAL_NORM, /* [H] */
    MGR_ROLE_LM_HEAD,    /* [V, H]; absent where the embeddings are tied */
    MGR_ROLE_COUNT
} mgr_role;

const char *mgr_role_name(mgr_role role);

/* The sizes and the few scalars that consumers need. Plain data. */
typedef struct mgr_model {
    uint64_t layers, hidden, ffn, heads, kv_groups, head_dim;
    uint64_t vocab;   /* true size, without padding */
    uint64_t experts; /* 0 for a dense model */
    uint64_t top_k;
    bool tied;       /* embedding and LM head are one tensor */
    mgr_dtype dtype; /* of the weights as stored */
    double norm_epsilon, rotary_base;
    uint64_t max_positions;
    int64_t bos_token_id, eos_token_id; /* -1: unknown */
    double init_std;
} mgr_model;

typedef struct mgr_tensor {
    mgr_role role;
    uint32_t layer, expert; /* MGR_NONE where it has none */
    uint32_t ndim;          /* 1 or 2; a 1-D tensor of n elements has rows n and cols 1 */
    uint64_t rows, cols;
    /* Tensors of one bundle are cut into work units together, after each `step` rows: Q, K and V of
     * a layer lie interleaved by group in Megatron's fused matrix, and are read as one extent. The
     * step of down is MGR_CANONICAL_ROWS, so that its column sums have canonical addends. */
    uint32_t bundle; /* index of the bundle's first tensor */
    uint64_t step;
} mgr_tensor;

/* All logical tensors of a model: embedding, layer after layer, final norm, head. */
typedef struct mgr_tensors {
    mgr_tensor *list;
    uint32_t n;
    uint32_t per_layer; /* tensors of one layer */
    mgr_model model;
} mgr_tensors;

/* Enumerate the tensors of `model`. Free with mgr_tensors_clear. Local. */
int mgr_tensors_init(mgr_tensors *tensors, const mgr_model *model, mgr_err *err) MGR_NODISCARD;
void mgr_tensors_clear(mgr_tensors *tensors);

/* Index of a tensor; `layer` and `expert` are MGR_NONE where the role has none. MGR_NONE if the
 * model has no such tensor. Pure. */
uint32_t mgr_tensors_find(const mgr_tensors *tensors, mgr_role role, uint32_t layer,
                          uint32_t expert);

/* "layer 3 expert 1 gate" into a caller's buffer; returns it. */
const char *mgr_tensor_label(const mgr_tensor *tensor, char *out, size_t size);

/* Elements of the whole model. */
uint64_t mgr_tensors_elements(const mgr_tensors *tensors);

#ifdef __cplusplus
}
#endif
#endif
