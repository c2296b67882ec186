/*
 * The keys of Megatron's `torch_dist`: one table of names for sources and targets, what a chunk is
 * in the terms of a matrix or vector, and the boxes that follow. For model/megatron_dist.c and
 * model/megatron_dist_write.c alone.
 */
#ifndef MGR_MODEL_MEGATRON_DIST_KEY_H
#define MGR_MODEL_MEGATRON_DIST_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/layout.h"

#define MGR_DIST_FFN "mlp."
#define MGR_DIST_EXPERTS "mlp.experts.experts."

/* Where a key is: at the top, below "decoder.layers.[<i>.]", or there below "mlp." or
 * "mlp.experts.experts.[<e>.]". */
typedef enum mgr_dist_place { MGR_DIST_TOP, MGR_DIST_LAYER, MGR_DIST_INNER } mgr_dist_place;

/* How its rows are those of logical tensors. */
typedef enum mgr_dist_form {
    MGR_DIST_PLAIN,
    MGR_DIST_VOCABULARY, /* with padding behind */
    MGR_DIST_FUSED_QKV,  /* per group its query heads, then K, then V; the roles follow one another
                          */
    MGR_DIST_GATE_UP     /* all gate rows, then all up rows; without a gate only up */
} mgr_dist_form;

/* When a target spells it like this. */
typedef enum mgr_dist_use {
    MGR_DIST_ALWAYS,
    MGR_DIST_NEVER, /* files of other writers may */
    MGR_DIST_OF_GPT,
    MGR_DIST_OF_HYBRID, /* HybridModel has another name for it */
    MGR_DIST_WITH_FC1,  /* a norm in front of dense FFNs; the local spec calls all of them so */
    MGR_DIST_BY_ITSELF  /* the same in front of experts, with Transformer Engine */
} mgr_dist_use;

typedef struct mgr_dist_key {
    const char *name;
    mgr_dist_place place;
    mgr_dist_form form;
    mgr_role role; /* the first of the form's */
    mgr_dist_use use;
} mgr_dist_key;

#define MGR_DIST_KEYS 39

extern const mgr_dist_key mgr_dist_keys[MGR_DIST_KEYS];

/* Whose keys they are. */
typedef enum mgr_dist_family {
    MGR_DIST_FAMILY_GPT,
    MGR_DIST_FAMILY_HYBRID,
    MGR_DIST_FAMILY_KIN /* model/megatron_kin.h: two stacks */
} mgr_dist_family;

/* One chunk, in the terms of its matrix or vector. */
typedef struct mgr_dist_piece {
    const mgr_stored *stored;
    const mgr_dist_key *key;
    mgr_plane plane;
    bool instead; /* a master in the place of its weight */
    mgr_stack stack;
    uint64_t layer, layers;   /* of the stack's: more than one only where they are stacked */
    uint64_t expert, experts; /* the same; 0 experts: not of an expert */
    bool stacked;
    uint32_t ndim; /* without the axes of layers and experts; a vector has one column */
    uint64_t row, rows, col, cols;
} mgr_dist_piece;

/* What precedes the key of a weight where it is that plane's; "" of weights themselves. The name of
 * masters is that of distributed optimizers, or of the others. Pure. */
const char *mgr_dist_prefix(mgr_plane plane, bool distributed);

/* The chunk `s` as a piece; false for a tensor that is none of ours. Pure. */
bool mgr_dist_read_piece(const mgr_stored *s, mgr_dist_family family, mgr_dist_piece *p);

/* Behind "model." and "module.", which some put before keys; *len is what is left. Pure. */
const char *mgr_dist_skip_wrappers(const char *key, size_t *len);

/* Is the piece's tensor understood where only FFNs are? Pure. */
bool mgr_dist_is_of_ffns(const mgr_dist_piece *p);

/* One matrix or vector of a piece. */
typedef struct mgr_dist_spot {
    mgr_layout *layout;
    const mgr_dist_piece *piece;
    uint32_t stored;
    uint64_t layer, expert; /* of those in the piece; the layer within its stack */
    uint8_t *there; /* [tensors]: a plane is, or a master in the place of a weight; or NULL */
    bool mark;      /* say so, and put no box */
} mgr_dist_spot;

/* The tensor that says how long the rows are; NULL where the model has none. Pure. */
const mgr_tensor *mgr_dist_leading(const mgr_dist_spot *at);

/* Rows of the whole tensor of which `t` is the leading one. Pure. */
uint64_t mgr_dist_whole_rows(const mgr_model *m, uint64_t padded_vocab, mgr_dist_form form,
                             const mgr_tensor *t);

/* Put the boxes of all layers and experts of the stored tensor. Local. */
int mgr_dist_put(mgr_dist_spot *at, mgr_err *err) MGR_NODISCARD;

#endif
