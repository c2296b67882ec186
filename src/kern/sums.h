/*
 * What the files of the per-neuron sums share: one kernel per CPU path, all of which add the same
 * numbers in the same order.
 */
#ifndef MGR_KERN_SUMS_H
#define MGR_KERN_SUMS_H

#include <stddef.h>

#include "mgr/dtype.h"

/* Columns that are summed together down the rows: their accumulators stay in the L1 cache. */
#define MGR_SUMS_STRIP 512

typedef struct mgr_sums_path {
    /* Sum and sum of squares of `cols` values: element i goes to lane i mod 8, and lanes are joined
     * by halves in the end. NULL: not in this build. */
    void (*row)(const unsigned char *data, mgr_dtype dtype, size_t cols, double *sum,
                double *square);
    /* The same of each of `cols` <= MGR_SUMS_STRIP columns, one row after the other, added to what
     * is there. `stride` is in bytes; all MGR_SUMS_STRIP accumulators may be touched. */
    void (*strip)(const unsigned char *data, size_t stride, mgr_dtype dtype, size_t rows,
                  size_t cols, double *sum, double *square);
} mgr_sums_path;

extern const mgr_sums_path mgr_sums_path_plain, mgr_sums_path_avx2, mgr_sums_path_avx512;

#endif
