/*
 * Two checkpoints compared logically, whatever their formats and splits. Serial, without MPI.
 */
#ifndef MGR_RUN_COMPARE_H
#define MGR_RUN_COMPARE_H

#include <stdbool.h>

#include "mgr/err.h"

/* Compare logical tensors where both are checkpoints of a dense model that could be a source, else
 * stored tensors by name. Prints to stdout the tensors that differ (the first `most` of them), and
 * a count. Two values are equal if they are the same number, whatever the types; NaN equals NaN.
 * *same tells whether all are there on both sides and equal. Errors: as the formats' readers.
 * Local. */
int mgr_compare(const char *path_a, const char *path_b, unsigned most, bool *same,
                mgr_err *err) MGR_NODISCARD;

#endif
