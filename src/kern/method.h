/*
 * What the methods share: maps, streams, and the copies of neurons that they leave alone.
 */
#ifndef MGR_KERN_METHOD_H
#define MGR_KERN_METHOD_H

#include <stddef.h>
#include <stdint.h>

#include "kern/columns.h"
#include "mgr/upcycle.h"

extern const mgr_method mgr_method_concat;
extern const mgr_method mgr_method_drop;
extern const mgr_method mgr_method_mix;
extern const mgr_method mgr_method_naive;
extern const mgr_method mgr_method_noise;
extern const mgr_method mgr_method_scratch;

/* ---- maps ---- */

/* Cut from copies of the source, neuron for neuron, in the order that the recipe says. Local. */
int mgr_map_copies(const mgr_recipe *recipe, uint32_t layer, uint32_t expert, mgr_map *map,
                   mgr_err *err) MGR_NODISCARD;

/* The same, with its S; where that has no room, with its size alone. Local. */
int mgr_map_selected(const mgr_recipe *recipe, uint32_t layer, uint32_t expert, mgr_map *map,
                     mgr_err *err) MGR_NODISCARD;

/* ---- drawing ---- */

/* Rows along the hidden dimension and selected columns that are drawn together: long runs along a
 * stream, and a tile that stays in the L2 cache. */
#define MGR_TILE_HIDDEN 128
#define MGR_TILE_SELECTED 256
/* Rows where runs need not be long (mgr_method.few_rows), of as many columns as a strip has: one
 * block of numbers of each neuron, in a tile that stays in the L1 cache. */
#define MGR_TILE_FEW 4
/* What may be written behind the columns of a row (MGR_NORMAL_ACROSS), and looked at. It makes the
 * distance of rows no power of two: they would share few sets of a cache. */
#define MGR_TILE_BEHIND MGR_MERGE_BEHIND
#define MGR_TILE_BYTES (MGR_TILE_HIDDEN * (MGR_TILE_SELECTED + MGR_TILE_BEHIND) * sizeof(float))

/* A part of down, as a rectangle of rows and expert neurons (columns). */
typedef struct mgr_down_part {
    const unsigned char *source; /* row 0 of the part, column 0 of the matrix */
    unsigned char *out;          /* the same place in the expert */
    mgr_dtype from, to;
    uint64_t first; /* row 0 in the hidden dimension */
    uint32_t n_rows;
    uint32_t tile_stride; /* elements from a row of a tile to the next */
} mgr_down_part;

static inline uint32_t mgr_origin_of(const mgr_expert *x, uint32_t neuron)
{
    return x->origin ? x->origin[neuron] : neuron;
}

/* The stream of the values drawn for this matrix. `base` is the purpose of the gate matrix; up and
 * down follow it. Local. */
mgr_stream mgr_expert_stream(const mgr_expert *x, mgr_purpose base);

/* `n` values in float32, times the expert's scale, into `to`; they are overwritten. */
void mgr_store_scaled(const mgr_expert *x, float *values, size_t n, void *out, mgr_dtype to);

/* Raw elements `columns[0..n-1]` of a row into `out`, without a cast. */
void mgr_gather_columns(const uint32_t *columns, uint32_t n, const void *row, mgr_dtype from,
                        void *out);

#endif
