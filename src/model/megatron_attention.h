/*
 * Args of Megatron that say of a model's layers how far they look and where they have RoPE
 * (transformer_config.py; transformer/utils.py, is_layer_window_attention; attention.py). They
 * count the layers of a GPTModel, of which a HybridModel makes two each.
 */
#ifndef MGR_MODEL_MEGATRON_ATTENTION_H
#define MGR_MODEL_MEGATRON_ATTENTION_H

#include <stdbool.h>

#include "mgr/catalogue.h"
#include "mgr/model.h"

/* Is `a`, whose name begins with "args.", one of those, at a value that the model can hold? Pure.
 */
bool mgr_megatron_is_attention(const mgr_attr *a);

/* What the args of `file` say of the layers of `model`, which are counted. MGR_ERR_FORMAT. */
int mgr_megatron_attention_read(const mgr_catalogue *cat, uint32_t file, mgr_model *model,
                                mgr_err *err) MGR_NODISCARD;

#endif
