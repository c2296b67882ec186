/*
 * Megatron's `torch_dist` layout of a GPT, dense or a mixture of experts: global tensors under keys
 * that do not depend on the split, cut into chunks in any way. Rules:
 * megatron/core/transformer/{transformer_block,transformer_layer,mlp,utils}.py,
 * transformer/moe/experts.py, models/gpt/gpt_layer_specs.py, dist_checkpointing/mapping.py of
 * NVIDIA/Megatron-LM.
 */
#ifndef MGR_MODEL_MEGATRON_DIST_H
#define MGR_MODEL_MEGATRON_DIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "model/megatron.h"

/* What the keys tell; the stored tensors are chunks named "<key>@<offset>,<offset>,...". */
typedef struct mgr_megatron_dist {
    uint64_t padded_vocab;
    bool stacked;         /* layers are an axis of their tensors, otherwise a part of their keys */
    bool singleton;       /* gate and up are tensors of their own */
    bool hybrid;          /* HybridModel's keys: attention and FFN are layers of their own */
    mgr_megatron_kin kin; /* its opaque tensors are model/megatron_kin_dist.h's */
    bool masters; /* source.weights: they are the weights, the weights themselves are left */
} mgr_megatron_dist;

/* The plane that a key is of, MGR_PLANE_WEIGHT unless it is an optimizer's. Pure. */
mgr_plane mgr_megatron_dist_plane(const char *name);

/* The name of the chunk of `key` at `offset`, appended to *out, and back: *key_len bytes of the
 * name are the key. False for a name that is none of a chunk. */
int mgr_megatron_dist_name(mgr_buf *out, const char *key, uint32_t ndim, const uint64_t *offset,
                           mgr_err *err) MGR_NODISCARD;
bool mgr_megatron_dist_parse(const mgr_stored *chunk, size_t *key_len, uint64_t *offset);

/* Derive the model from the chunks' extents, from the args that one of the files holds and from the
 * configuration, each checked against the others. Local. */
int mgr_megatron_dist_model(const mgr_catalogue *cat, const mgr_config *config,
                            mgr_megatron_dist *dist, mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* Put every chunk of a source into `layout`. Chunks are boxes of [layers,] [experts,] rows and
 * columns of a matrix, or of a vector; fused QKV, [gate; up] and vocabulary padding are boxes of
 * rows in them. Errors: MGR_ERR_FORMAT. Local. */
int mgr_megatron_dist_layout(mgr_layout *layout, const mgr_megatron_dist *dist,
                             mgr_err *err) MGR_NODISCARD;

/* How a target is cut. */
typedef struct mgr_megatron_dist_target {
    const char *folder; /* of the iteration, below the target; borrowed */
    uint64_t padded_vocab;
    uint64_t vocab_rows;      /* of a chunk of the vocabulary, at most */
    uint64_t max_shard_size;  /* of the tensors of a file, unless one alone is larger */
    uint32_t expert_parallel; /* above 1: the experts of each such rank have files of their own */
    bool stacked, hybrid;
    bool distributed; /* planes have the names of a distributed optimizer's */
    mgr_norm_names names;
} mgr_megatron_dist_target;

/* Declare files and chunks: one per layer, expert and half of a gated fc1, the vocabulary in blocks
 * of rows. A loader reads a chunk whole for every piece of it that a rank wants, so larger ones
 * would be read many times over. As objects (mgr_layout_object, all of the first file) come the
 * `_extra_state` keys that a GPT of Transformer Engine or of the local spec may ask for, of core
 * 0.13 to 0.19; a loader does not look at more than it asks for. Local. */
int mgr_megatron_dist_declare(mgr_layout *layout, const mgr_megatron_dist_target *target,
                              mgr_err *err) MGR_NODISCARD;

/* Is "auto" stacked for this model? Layers of two kinds cannot share an axis, and the loader asks
 * for a key per layer as soon as moe_layer_freq is a list (transformer_block.py). Pure. */
bool mgr_megatron_dist_can_stack(const mgr_model *model);

#endif
