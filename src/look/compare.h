/*
 * Two checkpoints compared logically, whatever their formats and splits. Serial, without MPI.
 */
#ifndef MGR_LOOK_COMPARE_H
#define MGR_LOOK_COMPARE_H

#include <stdbool.h>

#include "mgr/err.h"

/* Compare logical tensors where both are checkpoints of a dense model that could be a source, else
 * stored tensors by name. Prints to stdout the tensors that differ (the first `most` of them), and
 * a count. Two weights are equal if they are the same number, whatever the types; NaN equals NaN.
 * Of types that weights do not have, the bytes are compared, where their size is known
 * (mgr_dtype_size). Stored tensors are taken for contiguous.
 * *same tells whether all are there on both sides and equal. Errors: as the formats' readers.
 * Local. */
int mgr_compare(const char *path_a, const char *path_b, unsigned most, bool *same,
                mgr_err *err) MGR_NODISCARD;

#endif
