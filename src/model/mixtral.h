/*
 * The Hugging Face layouts that we write: Mixtral, which moe-recipes starts from, with per-expert
 * names and safetensors shards partitioned by expert-parallel rank; and, of a dense model, Llama.
 * Names: transformers' models/llama/modeling_llama.py, models/mixtral/modeling_mixtral.py up
 * to 4.57; transformers 5 converts them on loading (conversion_mapping.py, entry "mixtral").
 */
#ifndef MGR_MODEL_MIXTRAL_H
#define MGR_MODEL_MIXTRAL_H

#include <stdint.h>

#include "mgr/layout.h"

typedef struct mgr_mixtral {
    uint32_t expert_parallel; /* divides the number of experts; 1 for a dense model */
    uint64_t max_shard_size;  /* bytes of tensors in a shard; one larger tensor stands alone */
} mgr_mixtral;

/* Declare the shard files and every tensor. Shared weights come first, in shards of their own, then
 * the experts of rank 0, of rank 1, and so on; layout->file_owner says whose a shard is. A single
 * file is "model.safetensors". Local. */
int mgr_mixtral_layout(mgr_layout *layout, const mgr_mixtral *mixtral, mgr_err *err) MGR_NODISCARD;

#endif
