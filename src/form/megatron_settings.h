/*
 * Settings of Megatron's optimizers for moments that another trainer has stepped.
 */
#ifndef MGR_FORM_MEGATRON_SETTINGS_H
#define MGR_FORM_MEGATRON_SETTINGS_H

#include <stdbool.h>

#include "form/target.h"

/* Are the source's settings not Megatron's, but such as can be made Megatron's? Pure. */
bool mgr_megatron_settings_foreign(const mgr_origin *origin);

/* Attributes like those of a Megatron source: the two groups that its trainer forms, one of which
 * decays, with the learning rate and the like of the source, its count of steps, and a schedule,
 * which the run has to override. Clear `made` also after an error. Local. */
int mgr_megatron_settings_make(const mgr_origin *origin, mgr_catalogue *made,
                               mgr_err *err) MGR_NODISCARD;

/* The learning rate that --lr has to say, since groups are found by it. Pure. */
double mgr_megatron_settings_lr(const mgr_origin *origin);

#endif
