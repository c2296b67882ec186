/*
 * The layers of Megatron-Core's HybridModel, the successor of GPTModel: one symbol, one layer, so
 * that a layer of a transformer is two of them, `*` (attention) and `-` (a dense FFN) or `E` (one
 * of experts). Rules: megatron/core/models/hybrid/{hybrid_block,hybrid_layer_allocation}.py and
 * dist_checkpointing/gpt_checkpoint_interop.py of NVIDIA/Megatron-LM.
 */
#ifndef MGR_MODEL_MEGATRON_HYBRID_H
#define MGR_MODEL_MEGATRON_HYBRID_H

#include <stdbool.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/catalogue.h"
#include "mgr/model.h"

/* What precedes the layers' numbers in the keys of torch_dist. */
#define MGR_MEGATRON_LAYERS "decoder.layers."

/* Layers of a HybridModel in one of ours. */
#define MGR_HYBRID_LAYERS 2

/* Is it a HybridModel's torch_dist, by its keys or its args? Pure. */
bool mgr_megatron_hybrid_is(const mgr_catalogue *cat);

/* Refuse by name every pattern of layers but that of a transformer, whether the keys show it or the
 * args say it, and a pattern that the two disagree on. MGR_ERR_UNSUPPORTED, MGR_ERR_FORMAT. Local.
 */
int mgr_megatron_hybrid_check(const mgr_catalogue *cat, mgr_err *err) MGR_NODISCARD;

/* The layer of a HybridModel that holds `role` of our `layer`. Pure. */
uint64_t mgr_megatron_hybrid_layer(mgr_role role, uint64_t layer);

/* "*-*E" of the model, appended to *out. */
int mgr_megatron_hybrid_pattern(const mgr_model *model, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
