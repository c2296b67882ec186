/*
 * Megatron's --moe-layer-freq: which layers have experts (megatron/training/arguments.py,
 * moe_freq_type; transformer_config.py).
 */
#ifndef MGR_MODEL_MOE_LAYERS_H
#define MGR_MODEL_MOE_LAYERS_H

#include "mgr/model.h"

/* Set the dense layers of a stack of `model`, whose number of layers is known, as `text` says: a
 * number N makes every layer i with i mod N = 0 one with experts; a list gives a 1 for each that
 * has them, with Python's + and * on lists, such as "([0]+[1]*3)*8"; "every-second" (1, 3, 5, ...),
 * "last-half" and "none" are our own. Returns nonzero, and leaves the model as it was, where it is
 * none of them, or where the list has another length. Pure. */
int mgr_moe_layers(const char *text, mgr_stack stack, mgr_model *model);

#endif
