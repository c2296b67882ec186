/*
 * How values that were drawn neuron by neuron become columns of down: mgr_turn makes rows of them,
 * mgr_strip_plan and mgr_merge put these among the columns that are kept. What lies where does not
 * depend on the CPU path (mgr_simd_current); only how fast it gets there does.
 */
#ifndef MGR_KERN_COLUMNS_H
#define MGR_KERN_COLUMNS_H

#include <stddef.h>
#include <stdint.h>

/* Columns at a time, at most: long enough that a CPU sees a row as a stream of its own. */
#define MGR_STRIP_NEURONS 4096
#define MGR_STRIP_GROUP 8
#define MGR_STRIP_GROUPS (MGR_STRIP_NEURONS / MGR_STRIP_GROUP)
#define MGR_MERGE_BEHIND 32
/* Neurons that are turned together. */
#define MGR_TURNED 16

/* `n` <= MGR_STRIP_NEURONS columns of a matrix from `first` on, among them the drawn ones,
 * ascending. The rest is mgr_strip_plan's. */
typedef struct mgr_strip {
    uint32_t first, n;
    const uint32_t *drawn; /* columns of the matrix */
    uint32_t n_drawn;
    /* Of each group of columns: how many drawn ones come before it; and the bytes that each of its
     * columns takes of those that follow, or, in groups of 32, which of them do. */
    uint16_t before[MGR_STRIP_GROUPS];
    union {
        uint8_t places[MGR_STRIP_GROUPS][2 * MGR_STRIP_GROUP];
        uint32_t masks[MGR_STRIP_NEURONS / 32];
    };
} mgr_strip;

/* Once before any number of rows. Local. */
void mgr_strip_plan(mgr_strip *strip);

/* A row: its columns from strip->first on, `bytes` (2 or 4) each, of `kept` (which may be `out`)
 * with the drawn ones, in their order, from `drawn`, where MGR_MERGE_BEHIND elements more may be
 * looked at. Local. */
void mgr_merge(const mgr_strip *strip, const void *kept, const void *drawn, void *out,
               size_t bytes);

/* out[r][j] = drawn[j][r], r < n_rows, j < n <= MGR_TURNED; strides in elements of `bytes` (2 or
 * 4). All MGR_TURNED places of a row may be written. Local. */
void mgr_turn(const void *drawn, size_t stride, uint32_t n, uint32_t n_rows, void *out,
              size_t out_stride, size_t bytes);

/* ---- one CPU path ---- */

/* What mgr_strip_plan and mgr_merge do of two bytes and of four, the latter as much of strip->n as
 * they return. NULL: nothing. */
typedef struct mgr_columns_path {
    void (*plan)(mgr_strip *strip);
    uint32_t (*merge_2)(const mgr_strip *strip, const void *kept, const void *drawn, void *out);
    uint32_t (*merge_4)(const mgr_strip *strip, const void *kept, const void *drawn, void *out);
} mgr_columns_path;

/* All is NULL where the build has no such path. */
extern const mgr_columns_path mgr_columns_path_avx2, mgr_columns_path_avx512;

/* mgr_turn of two bytes: how many rows are done, whole groups of them; 0 in a build without it. */
uint32_t mgr_turn_avx2(const uint16_t *drawn, size_t stride, uint32_t n_rows, uint16_t *out,
                       size_t out_stride);

#endif
