/*
 * Sparse Upcycling: every expert is a copy. Also the copies that the other methods start from.
 */
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"
#include "kern/method_keys.h"

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

void mgr_gather_columns(const uint32_t *columns, uint32_t n, const void *dense, mgr_dtype from,
                        void *out)
{
    const unsigned char *row = dense;
    unsigned char *to = out;

    if (mgr_dtype_size(from) == 2) {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 2 * (size_t)i, row + 2 * (size_t)columns[i], 2);
    } else {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 4 * (size_t)i, row + 4 * (size_t)columns[i], 4);
    }
}

/* Columns first .. first+n-1, n <= MGR_STRIP_NEURONS, of all rows of a part. */
static void copy_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t first, uint32_t n)
{
    const size_t from_bytes = mgr_dtype_size(part->from), to_bytes = mgr_dtype_size(part->to);
    uint32_t gathered[MGR_STRIP_NEURONS];

    for (uint32_t r = 0; r < part->n_rows; r++) {
        const size_t row = (size_t)r * x->n_neurons;
        const unsigned char *dense = part->dense + row * from_bytes;
        unsigned char *out = part->out + (row + first) * to_bytes;
        if (x->dense_of) {
            mgr_gather_columns(x->dense_of + first, n, dense, part->from, gathered);
            mgr_cast(out, part->to, gathered, part->from, n);
        } else {
            mgr_cast(out, part->to, dense + first * from_bytes, part->from, n);
        }
    }
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

/* With a permutation every row is gathered as a whole, or each strip would visit all of it. */
static void copy_permuted(const mgr_expert *x, const mgr_down_part *part)
{
    mgr_down_part row = *part;

    row.n_rows = 1;
    for (uint32_t r = 0; r < part->n_rows; r++) {
        for (uint32_t c = 0; c < x->n_neurons; c += MGR_STRIP_NEURONS)
            copy_columns(x, &row, c, min_u32(x->n_neurons - c, MGR_STRIP_NEURONS));
        row.dense += x->n_neurons * mgr_dtype_size(part->from);
        row.out += x->n_neurons * mgr_dtype_size(part->to);
    }
}

static void down_part(const mgr_expert *x, const mgr_down_part *part, mgr_redraw_columns *redraw)
{
    uint32_t k = 0;

    if (x->dense_of)
        copy_permuted(x, part);
    for (uint32_t c = 0; c < x->n_neurons; c += MGR_STRIP_NEURONS) {
        const uint32_t n = min_u32(x->n_neurons - c, MGR_STRIP_NEURONS);
        if (!x->dense_of)
            copy_columns(x, part, c, n);
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
    .keys = MGR_NO_KEYS(MGR_OWNER_METHOD, "naive"),
    .needs_selection = false,
    .needs_moments = false,
    .neuron_rows = naive_neuron_rows,
    .hidden_rows = naive_hidden_rows,
};
