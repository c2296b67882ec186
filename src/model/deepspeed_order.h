/*
 * The order in which a model of transformers registers its parameters, which is that of ZeRO-3's
 * flat tensors: they have no names.
 */
#ifndef MGR_MODEL_DEEPSPEED_ORDER_H
#define MGR_MODEL_DEEPSPEED_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "model/huggingface.h"

/* Is it known of this class? Pure. */
bool mgr_deepspeed_has_order(mgr_hf_class class);

/* order[k] is the stored tensor of `params` that comes k-th; a caller's array of n_stored. Of a
 * class whose order is not known it is one of no meaning, but the same each time. Local. */
int mgr_deepspeed_order(const mgr_catalogue *params, const mgr_huggingface *hf, uint32_t *order,
                        mgr_err *err) MGR_NODISCARD;

#endif
