/*
 * Models that Megatron trains beside its decoders, by what their tensors are called; args do not
 * say what a model is.
 */
#ifndef MGR_MODEL_MEGATRON_FAMILIES_H
#define MGR_MODEL_MEGATRON_FAMILIES_H

#include "mgr/catalogue.h"

/* Refuse, by name, T5, vision transformers, what has a vision tower, and layers for multi-token
 * prediction. Pure. */
int mgr_megatron_families_check(const mgr_catalogue *cat, mgr_err *err) MGR_NODISCARD;

#endif
