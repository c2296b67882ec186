/*
 * The output read back before it gets its name: Megatron's loader reports a misspelt or missing
 * weight with a line in a log and trains on with random numbers, so nobody else would notice
 * (megatron/training/checkpointing.py, the second load with strict=False).
 */
#ifndef MGR_LOOK_VERIFY_H
#define MGR_LOOK_VERIFY_H

#include "mgr/layout.h"

/* Open the finished output in `directory` with the source named `format`, from headers alone,
 * and compare: the model that it shows with the one that was meant; files, keys, shapes, types and
 * places of all tensors with the planned ones. Nothing is done for a format that is no source.
 * Errors: MGR_ERR_INTERNAL, naming the first difference. Rank 0 only. */
int mgr_verify_output(const char *format, const mgr_layout *planned, const char *directory,
                      mgr_err *err) MGR_NODISCARD;

/* Do consumers compute the same with two models, as far as that is not in the tensors? Pure. */
bool mgr_same_kind(const mgr_model *a, const mgr_model *b);

#endif
