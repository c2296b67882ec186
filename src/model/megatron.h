/*
 * Megatron-Core's legacy `torch` layout of a dense GPT: names, shapes and TP x PP partition.
 * Rules: megatron/core/models/gpt/gpt_layer_specs.py, transformer/{attention,mlp}.py,
 * tensor_parallel/layers.py, transformer/transformer_block.py of NVIDIA/Megatron-LM.
 */
#ifndef MGR_MODEL_MEGATRON_H
#define MGR_MODEL_MEGATRON_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"

/* Where the pre-MLP and attention norms live: fused into the linears (Transformer Engine) or as
 * modules of their own (local). */
typedef enum mgr_norm_names { MGR_NAMES_TE, MGR_NAMES_LOCAL } mgr_norm_names;

typedef struct mgr_megatron {
    uint32_t tensor_parallel, pipeline_parallel;
    uint64_t padded_vocab;
    mgr_norm_names names;         /* targets; a source is asked tensor by tensor */
    const uint32_t *stage_layers; /* [pipeline_parallel] decoder layers of each stage; borrowed */
    const uint32_t *files; /* [pipeline_parallel * tensor_parallel], pp-major: file of the layout */
} mgr_megatron;

/* Put every tensor of every (pp, tp) file into `layout`. Fused QKV, [gate; up] per TP rank, row and
 * column splits and vocabulary padding are all boxes. Errors: MGR_ERR_FORMAT. Local. */
int mgr_megatron_layout(mgr_layout *layout, const mgr_megatron *megatron,
                        mgr_err *err) MGR_NODISCARD;

/* The sizes do not split over the tensor-parallel ranks: MGR_ERR_FORMAT naming the size. Pure. */
int mgr_megatron_check(const mgr_model *model, const mgr_megatron *megatron,
                       mgr_err *err) MGR_NODISCARD;

/* Derive model and partition from the catalogue of all files (files[] as in mgr_megatron): from
 * args, from the tensors' shapes and from the configuration's `model:` section, each checked
 * against the others; kinds that are not supported are refused by name. `stage_layers` has room
 * for pipeline_parallel entries. Local. */
int mgr_megatron_model(const mgr_catalogue *cat, const mgr_config *config, mgr_megatron *megatron,
                       uint32_t *stage_layers, mgr_model *model, mgr_err *err) MGR_NODISCARD;

#endif
