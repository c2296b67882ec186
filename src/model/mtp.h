/*
 * Layers for multi-token prediction: what a model has beside the layers that its logits come from.
 * No class of transformers has them as modules (its _keys_to_ignore_on_load_unexpected), so that
 * they are moved where all else is unread, refused by name, or left out on request.
 */
#ifndef MGR_MODEL_MTP_H
#define MGR_MODEL_MTP_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "mgr/config.h"

#define MGR_MTP_HINT "set 'source.mtp: drop' to leave them out"

/* Are they to be left out ('source.mtp: drop')? Pure. */
bool mgr_mtp_is_dropped(const mgr_config *config);

/* The first of their tensors, or NULL: "mtp" in a name, or a layer behind the first `layers`,
 * unless that is 0. Pure. */
const mgr_stored *mgr_mtp_find(const mgr_catalogue *cat, uint64_t layers);

/* Take them out of the catalogue, and out of what its index and args say; counted as skipped. */
void mgr_mtp_drop(mgr_catalogue *cat);

/* Refuse what `s` is of, with the way on; MGR_ERR_UNSUPPORTED. */
int mgr_mtp_refuse(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err) MGR_NODISCARD;

/* Is it an arg of Megatron that says that there are such layers? Pure. */
bool mgr_mtp_is_arg(const char *key);

/* Is `key` of config.json the number of these layers? Pure. */
bool mgr_mtp_is_count(const char *key);

#endif
