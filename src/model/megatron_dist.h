/*
 * Megatron's `torch_dist` layout of a dense GPT: global tensors under keys that do not depend on
 * the split, cut into chunks in any way. Rules:
 * megatron/core/transformer/{transformer_block,mlp,utils}.py, dist_checkpointing/mapping.py of
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

/* What the keys tell; the stored tensors are chunks named "<key>@<offset>,<offset>,...". */
typedef struct mgr_megatron_dist {
    uint64_t padded_vocab;
    bool stacked;   /* layers are an axis of their tensors, otherwise a part of their keys */
    bool singleton; /* gate and up are tensors of their own */
} mgr_megatron_dist;

/* The name of the chunk of `key` at `offset`, appended to *out, and back: *key_len bytes of the
 * name are the key. False for a name that is none of a chunk. */
int mgr_megatron_dist_name(mgr_buf *out, const char *key, uint32_t ndim, const uint64_t *offset,
                           mgr_err *err) MGR_NODISCARD;
bool mgr_megatron_dist_parse(const mgr_stored *chunk, size_t *key_len, uint64_t *offset);

/* Derive the model from the chunks' extents, from the args that one of the files holds and from the
 * configuration, each checked against the others. Local. */
int mgr_megatron_dist_model(const mgr_catalogue *cat, const mgr_config *config,
                            mgr_megatron_dist *dist, mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* Put every chunk into `layout`. Chunks are boxes of [layers,] rows and columns of a matrix, or of
 * a vector; fused QKV, [gate; up] and vocabulary padding are boxes of rows in them. Errors:
 * MGR_ERR_FORMAT. Local. */
int mgr_megatron_dist_layout(mgr_layout *layout, const mgr_megatron_dist *dist,
                             mgr_err *err) MGR_NODISCARD;

#endif
