/*
 * How values that were drawn neuron by neuron become columns of down: mgr_turn makes rows of them,
 * mgr_strip_plan and mgr_merge put these among the columns that are kept. What lies where does not
 * depend on the CPU path (mgr_simd_current); only how fast it gets there does.
 */
#ifndef MGR_KERN_COLUMNS_H
#define MGR_KERN_COLUMNS_H

#include <stddef.h>
#include <stdint.h>

/* Columns at a time, at most. */
#define MGR_STRIP_NEURONS 1024
#define MGR_STRIP_GROUP 8
#define MGR_STRIP_GROUPS (MGR_STRIP_NEURONS / MGR_STRIP_GROUP)
/* Neurons that are turned together. */
#define MGR_TURNED 16

/* `n` <= MGR_STRIP_NEURONS columns of a matrix from `first` on, among them the drawn ones,
 * ascending. The rest is mgr_strip_plan's. */
typedef struct mgr_strip {
    uint32_t first, n;
    const uint32_t *drawn; /* columns of the matrix */
    uint32_t n_drawn;
    /* Of each group of columns: how many drawn ones come before it, the bytes that each of its
     * columns takes of those that follow, and whether it does. */
    uint16_t before[MGR_STRIP_GROUPS];
    uint8_t places[MGR_STRIP_GROUPS][2 * MGR_STRIP_GROUP];
    uint8_t taken[MGR_STRIP_GROUPS][2 * MGR_STRIP_GROUP];
} mgr_strip;

/* Once before any number of rows. Local. */
void mgr_strip_plan(mgr_strip *strip);

/* A row: its columns from strip->first on, `bytes` (2 or 4) each, of `kept` (which may be `out`)
 * with the drawn ones, in their order, from `drawn`, where 8 elements more may be looked at. Local.
 */
void mgr_merge(const mgr_strip *strip, const void *kept, const void *drawn, void *out,
               size_t bytes);

/* out[r][j] = drawn[j][r], r < n_rows, j < n <= MGR_TURNED; strides in elements of `bytes` (2 or
 * 4). All MGR_TURNED places of a row may be written. Local. */
void mgr_turn(const void *drawn, size_t stride, uint32_t n, uint32_t n_rows, void *out,
              size_t out_stride, size_t bytes);

/* ---- one CPU path ---- */

/* Two bytes, whole groups: what is done of strip->n, and of n_rows. */
typedef struct mgr_columns_path {
    uint32_t (*merge)(const mgr_strip *strip, const uint16_t *kept, const uint16_t *drawn,
                      uint16_t *out);
    uint32_t (*turn)(const uint16_t *drawn, size_t stride, uint32_t n_rows, uint16_t *out,
                     size_t out_stride);
} mgr_columns_path;

/* Its functions are NULL where the build has no such path. */
extern const mgr_columns_path mgr_columns_path_avx2;

#endif
