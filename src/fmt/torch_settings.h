/*
 * What a torch.save archive says beside its tensors, as attributes of the catalogue: scalars, and
 * the settings of an optimizer.
 */
#ifndef MGR_FMT_TORCH_SETTINGS_H
#define MGR_FMT_TORCH_SETTINGS_H

#include <stdbool.h>

#include "fmt/torch_archive.h"

/* Is it a number, a text, True, False or None? Pure. */
bool mgr_torch_attr_is_scalar(const mgr_node *node);

/* One value as the attribute `key` of the archive's file. Local. */
int mgr_torch_attr_add(mgr_torch_archive *t, const char *key, const mgr_node *node) MGR_NODISCARD;

/* A number in a tensor, as torch's optimizers count steps, as the attribute t->name. Local. */
int mgr_torch_number_add(mgr_torch_archive *t, const mgr_node *node) MGR_NODISCARD;

/* All scalars of a dict or list as attributes below t->name: keys and places in lists joined with
 * '.'. Local. */
int mgr_torch_settings_add(mgr_torch_archive *t, const mgr_node *node) MGR_NODISCARD;

#endif
