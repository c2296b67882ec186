/*
 * Layers for multi-token prediction: what a model has beside the layers that its logits come from.
 * No class of transformers has them as modules (its _keys_to_ignore_on_load_unexpected names them;
 * generate(use_mtp=True) of release 5 reads them beside the model). So they are opaque tensors that
 * resharding moves to where the same class is stored, and else they are refused by name, or left
 * out on request.
 */
#ifndef MGR_MODEL_MTP_H
#define MGR_MODEL_MTP_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "mgr/config.h"
#include "mgr/model.h"

#define MGR_MTP_HINT "set 'source.mtp: drop' to leave them out"

/* In the description of a model in HDF5: there are such layers. */
#define MGR_MTP_ATTR "mtp"

/* Are they to be left out ('source.mtp: drop')? Pure. */
bool mgr_mtp_is_dropped(const mgr_config *config);

/* The first of their tensors, or NULL: "mtp" in a name, or a layer behind the first `layers`,
 * unless that is 0. Pure. */
const mgr_stored *mgr_mtp_find(const mgr_catalogue *cat, uint64_t layers);

/* How many layers behind the first `layers` join two tokens, as those for multi-token prediction
 * do: any other is one that the configuration does not count. Pure. */
uint64_t mgr_mtp_joins(const mgr_catalogue *cat, uint64_t layers);

/* Is a tensor none of them? For mgr_opaque_find, of a model of which all else is known. Pure. */
bool mgr_mtp_is_other(const mgr_catalogue *cat, const mgr_model *model, const mgr_stored *s);

/* A run that makes something of the model makes nothing of such layers: refuse them there. Local.
 */
int mgr_mtp_check(const mgr_catalogue *cat, const mgr_config *config, const mgr_model *model,
                  mgr_err *err) MGR_NODISCARD;

/* Take them out of the catalogue, and out of what its index and args say; counted as skipped. */
void mgr_mtp_drop(mgr_catalogue *cat);

/* Refuse what `s` is of, or NULL for one that is not named, with the way on; MGR_ERR_UNSUPPORTED.
 */
int mgr_mtp_refuse(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err) MGR_NODISCARD;

/* Is it an arg of Megatron that says that there are such layers? Pure. */
bool mgr_mtp_is_arg(const char *key);

/* Is `key` of config.json the number of these layers? Pure. */
bool mgr_mtp_is_count(const char *key);

#endif
