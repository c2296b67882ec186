/*
 * Drop-Upcycling: the selected neurons are drawn anew from a normal distribution with the mean and
 * standard deviation of what they replace; all others are copied.
 *
 * Element (k-th selected neuron, h) is element k * hidden + h of the matrix's stream.
 */
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"
#include "kern/method_keys.h"

static void drop_neuron_rows(const mgr_expert *x, uint32_t first, uint32_t n, const void *dense,
                             uint32_t dense_first, mgr_dtype from, void *out, mgr_dtype to)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_GATE);
    const size_t row_bytes = (size_t)x->hidden * mgr_dtype_size(to);
    uint32_t k = mgr_selected_before(x, first);
    unsigned char *row = out;

    for (uint32_t i = first; i - first < n; i++, row += row_bytes) {
        if (k < x->n_selected && x->selected[k] == i)
            mgr_normals_scaled(&stream, k++ * x->hidden, (size_t)x->hidden, x->mean, x->std, row,
                               to);
        else
            mgr_copy_neuron(x, i, dense, dense_first, from, row, to);
    }
}

/* Turn a tile [n][MGR_TILE_HIDDEN] into columns of a matrix. Inlined with constant `bytes`. */
static inline __attribute__((always_inline)) void scatter_tile(const unsigned char *tile,
                                                               const uint32_t *columns, uint32_t n,
                                                               uint32_t n_rows, unsigned char *out,
                                                               size_t stride, size_t bytes)
{
    for (uint32_t r = 0; r < n_rows; r++, out += stride) {
        for (uint32_t j = 0; j < n; j++)
            memcpy(out + columns[j] * bytes, tile + (j * (size_t)MGR_TILE_HIDDEN + r) * bytes,
                   bytes);
    }
}

static void drop_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_GATE);
    const size_t bytes = mgr_dtype_size(part->to), stride = x->n_neurons * bytes;
    unsigned char tile[MGR_TILE_SELECTED * MGR_TILE_HIDDEN * sizeof(float)];

    for (uint32_t j = 0; j < n; j++)
        mgr_normals_scaled(&stream, (k + j) * x->hidden + part->first, part->n_rows, x->mean,
                           x->std, tile + (size_t)j * MGR_TILE_HIDDEN * bytes, part->to);
    if (bytes == 2)
        scatter_tile(tile, x->selected + k, n, part->n_rows, part->out, stride, 2);
    else
        scatter_tile(tile, x->selected + k, n, part->n_rows, part->out, stride, 4);
}

static void drop_hidden_rows(const mgr_expert *x, uint64_t first, uint64_t n, const void *dense,
                             mgr_dtype from, void *out, mgr_dtype to)
{
    mgr_down_rows(x, first, n, dense, from, out, to, drop_columns);
}

static const mgr_key keys[] = {MGR_ROW_RATIO("starts anew"), MGR_ROW_INDEX_SETS};

const mgr_method mgr_method_drop = {
    .name = "drop",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "drop", keys),
    .needs_selection = true,
    .needs_moments = true,
    .neuron_rows = drop_neuron_rows,
    .hidden_rows = drop_hidden_rows,
};
