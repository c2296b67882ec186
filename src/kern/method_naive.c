/*
 * Sparse Upcycling: every expert is a copy. Also the copies that the other methods start from.
 */
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"

static uint32_t min_u32(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

void mgr_copy_neuron(const mgr_expert *x, uint32_t neuron, const void *dense, uint32_t dense_first,
                     mgr_dtype from, void *out, mgr_dtype to)
{
    const size_t row_bytes = (size_t)x->hidden * mgr_dtype_size(from);
    const size_t row = mgr_dense_neuron(x, neuron) - dense_first;
    mgr_cast(out, to, (const unsigned char *)dense + row * row_bytes, from, (size_t)x->hidden);
}

void mgr_gather_neurons(const mgr_expert *x, const uint32_t *neurons, uint32_t n, const void *dense,
                        mgr_dtype from, void *out)
{
    const unsigned char *row = dense;
    unsigned char *to = out;

    if (mgr_dtype_size(from) == 2) {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 2 * (size_t)i, row + 2 * (size_t)mgr_dense_neuron(x, neurons[i]), 2);
    } else {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 4 * (size_t)i, row + 4 * (size_t)mgr_dense_neuron(x, neurons[i]), 4);
    }
}

/* Columns first .. first+n-1 of one row of down. */
static void copy_columns(const mgr_expert *x, const unsigned char *dense, mgr_dtype from,
                         unsigned char *out, mgr_dtype to, uint32_t first, uint32_t n)
{
    uint32_t neurons[MGR_STRIP_NEURONS], gathered[MGR_STRIP_NEURONS];

    out += first * mgr_dtype_size(to);
    if (!x->dense_of) {
        mgr_cast(out, to, dense + first * mgr_dtype_size(from), from, n);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        neurons[i] = first + i;
    mgr_gather_neurons(x, neurons, n, dense, from, gathered);
    mgr_cast(out, to, gathered, from, n);
}

/* The selected columns k .. end-1, a tile at a time. */
static void redraw_tiles(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t end,
                         mgr_redraw_columns *redraw)
{
    while (k < end) {
        const uint32_t n = min_u32(end - k, MGR_TILE_SELECTED);
        redraw(x, part, k, n);
        k += n;
    }
}

static void down_part(const mgr_expert *x, const mgr_down_part *part, mgr_redraw_columns *redraw)
{
    const size_t from_stride = x->n_neurons * mgr_dtype_size(part->from);
    const size_t to_stride = x->n_neurons * mgr_dtype_size(part->to);
    uint32_t k = 0;

    for (uint32_t c = 0; c < x->n_neurons; c += MGR_STRIP_NEURONS) {
        const uint32_t n = min_u32(x->n_neurons - c, MGR_STRIP_NEURONS);
        for (uint32_t r = 0; r < part->n_rows; r++)
            copy_columns(x, part->dense + r * from_stride, part->from, part->out + r * to_stride,
                         part->to, c, n);
        if (redraw) {
            const uint32_t end = mgr_selected_before(x, c + n);
            redraw_tiles(x, part, k, end, redraw);
            k = end;
        }
    }
}

void mgr_down_rows(const mgr_expert *x, uint64_t first, uint64_t n, const void *dense,
                   mgr_dtype from, void *out, mgr_dtype to, mgr_redraw_columns *redraw)
{
    mgr_down_part part = {.dense = dense, .out = out, .from = from, .to = to, .first = first};

    while (n > 0) {
        part.n_rows = min_u32(n, MGR_TILE_HIDDEN);
        down_part(x, &part, redraw);
        part.dense += (size_t)part.n_rows * x->n_neurons * mgr_dtype_size(from);
        part.out += (size_t)part.n_rows * x->n_neurons * mgr_dtype_size(to);
        part.first += part.n_rows;
        n -= part.n_rows;
    }
}

static void naive_neuron_rows(const mgr_expert *x, uint32_t first, uint32_t n, const void *dense,
                              uint32_t dense_first, mgr_dtype from, void *out, mgr_dtype to)
{
    unsigned char *row = out;
    for (uint32_t i = 0; i < n; i++) {
        mgr_copy_neuron(x, first + i, dense, dense_first, from, row, to);
        row += x->hidden * mgr_dtype_size(to);
    }
}

static void naive_hidden_rows(const mgr_expert *x, uint64_t first, uint64_t n, const void *dense,
                              mgr_dtype from, void *out, mgr_dtype to)
{
    mgr_down_rows(x, first, n, dense, from, out, to, NULL);
}

const mgr_method mgr_method_naive = {
    .name = "naive",
    .needs_selection = false,
    .needs_moments = false,
    .neuron_rows = naive_neuron_rows,
    .hidden_rows = naive_hidden_rows,
};
