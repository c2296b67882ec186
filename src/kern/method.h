/*
 * What the methods share: the copies of neurons that they leave alone.
 */
#ifndef MGR_KERN_METHOD_H
#define MGR_KERN_METHOD_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/upcycle.h"

extern const mgr_method mgr_method_drop;
extern const mgr_method mgr_method_naive;
extern const mgr_method mgr_method_noise;

/* Rows along the hidden dimension and selected columns that are drawn together: long runs along a
 * stream, and a tile that stays in the L1 cache while it is turned. */
#define MGR_TILE_HIDDEN 128
#define MGR_TILE_SELECTED 64
/* Columns that are copied and then redrawn while they are in the L2 cache. */
#define MGR_STRIP_NEURONS 1024

/* The dense neuron that expert neuron `neuron` comes from. */
static inline uint32_t mgr_dense_neuron(const mgr_expert *x, uint32_t neuron)
{
    return x->dense_of ? x->dense_of[neuron] : neuron;
}

/* The stream of the values drawn for this matrix. `base` is the purpose of the gate matrix; up and
 * down follow it. Local. */
mgr_stream mgr_expert_stream(const mgr_expert *x, mgr_purpose base);

/* How many selected neurons come before expert neuron `neuron`. Local. */
uint32_t mgr_selected_before(const mgr_expert *x, uint32_t neuron);

/* One expert neuron of gate or up, copied or cast. Arguments as of mgr_method.neuron_rows. */
void mgr_copy_neuron(const mgr_expert *x, uint32_t neuron, const void *dense, uint32_t dense_first,
                     mgr_dtype from, void *out, mgr_dtype to);

/* Raw elements `columns[0..n-1]` of a dense row into `out`, without a cast. */
void mgr_gather_columns(const uint32_t *columns, uint32_t n, const void *dense, mgr_dtype from,
                        void *out);

/* A part of down, as a rectangle of rows and expert neurons (columns). */
typedef struct mgr_down_part {
    const unsigned char *dense; /* row 0 of the part, column 0 of the matrix */
    unsigned char *out;         /* the same place in the expert */
    mgr_dtype from, to;
    uint64_t first; /* row 0 in the hidden dimension */
    uint32_t n_rows;
} mgr_down_part;

/* What a method does to the selected columns `k .. k+n-1` of a part, n <= MGR_TILE_SELECTED and
 * part->n_rows <= MGR_TILE_HIDDEN. */
typedef void mgr_redraw_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k,
                                uint32_t n);

/* Copy `n` rows of down and redraw the selected columns, tile by tile. */
void mgr_down_rows(const mgr_expert *x, uint64_t first, uint64_t n, const void *dense,
                   mgr_dtype from, void *out, mgr_dtype to, mgr_redraw_columns *redraw);

#endif
