/*
 * What all methods do: neurons of the source are copied or cast, those in S handed to the method's
 * rule, and a scale is the last thing.
 */
#include <assert.h>
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"

#define CHUNK 512

static uint32_t min_u32(uint64_t a, uint32_t b)
{
    return a < b ? (uint32_t)a : b;
}

void mgr_store_scaled(const mgr_expert *x, float *values, size_t n, void *out, mgr_dtype to)
{
    if (x->scale != 1.0f)
        for (size_t i = 0; i < n; i++)
            values[i] *= x->scale;
    mgr_cast(out, to, values, MGR_DTYPE_F32, n);
}

/* Without a scale bit for bit, or cast once. */
static void copy(const mgr_expert *x, const void *source, mgr_dtype from, void *out, mgr_dtype to,
                 size_t n)
{
    const unsigned char *at = source;
    unsigned char *into = out;
    if (x->scale == 1.0f) {
        mgr_cast(out, to, source, from, n);
        return;
    }
    while (n > 0) {
        float values[CHUNK];
        const size_t part = n < CHUNK ? n : CHUNK;
        mgr_cast(values, MGR_DTYPE_F32, at, from, part);
        mgr_store_scaled(x, values, part, into, to);
        at += part * mgr_dtype_size(from);
        into += part * mgr_dtype_size(to);
        n -= part;
    }
}

/* How many selected neurons come before expert neuron `neuron`. */
static uint32_t selected_before(const mgr_expert *x, uint32_t neuron)
{
    uint32_t low = 0, high = x->n_selected;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (x->selected[middle] < neuron)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void mgr_expert_rows(const mgr_method *method, const mgr_expert *x, uint32_t first, uint32_t n,
                     const void *source, uint32_t source_first, mgr_dtype from, void *out,
                     mgr_dtype to)
{
    const size_t from_row = (size_t)x->hidden * mgr_dtype_size(from);
    const size_t to_row = (size_t)x->hidden * mgr_dtype_size(to);
    uint32_t k = method->draw_row ? selected_before(x, first) : x->n_selected;
    unsigned char *into = out;

    for (uint32_t i = first; i - first < n; i++, into += to_row) {
        const unsigned char *const row =
            (const unsigned char *)source + (mgr_origin_of(x, i) - source_first) * from_row;
        if (k < x->n_selected && x->selected[k] == i) {
            assert(method->draw_row);
            method->draw_row(x, k++, row, from, into, to);
        } else {
            copy(x, row, from, into, to, (size_t)x->hidden);
        }
    }
}

void mgr_gather_columns(const uint32_t *columns, uint32_t n, const void *row, mgr_dtype from,
                        void *out)
{
    const unsigned char *const source = row;
    unsigned char *to = out;

    if (mgr_dtype_size(from) == 2) {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 2 * (size_t)i, source + 2 * (size_t)columns[i], 2);
    } else {
        for (uint32_t i = 0; i < n; i++)
            memcpy(to + 4 * (size_t)i, source + 4 * (size_t)columns[i], 4);
    }
}

/* Columns first .. first+n-1, n <= MGR_STRIP_NEURONS, of all rows of a part. */
static void copy_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t first, uint32_t n)
{
    const size_t from_bytes = mgr_dtype_size(part->from), to_bytes = mgr_dtype_size(part->to);
    uint32_t gathered[MGR_STRIP_NEURONS];

    for (uint32_t r = 0; r < part->n_rows; r++) {
        const unsigned char *source = part->source + (size_t)r * x->source_width * from_bytes;
        unsigned char *out = part->out + ((size_t)r * x->width + first) * to_bytes;
        if (x->origin) {
            mgr_gather_columns(x->origin + first, n, source, part->from, gathered);
            copy(x, gathered, part->from, out, part->to, n);
        } else {
            copy(x, source + first * from_bytes, part->from, out, part->to, n);
        }
    }
}

/* The selected columns k .. end-1, a tile at a time. */
static void draw_tiles(const mgr_method *method, const mgr_expert *x, const mgr_down_part *part,
                       uint32_t k, uint32_t end)
{
    while (k < end) {
        const uint32_t n = min_u32(end - k, MGR_TILE_SELECTED);
        method->draw_columns(x, part, k, n);
        k += n;
    }
}

/* With origins anywhere every row is gathered as a whole, or each strip would visit all of it. */
static void copy_gathered(const mgr_expert *x, const mgr_down_part *part)
{
    mgr_down_part row = *part;

    row.n_rows = 1;
    for (uint32_t r = 0; r < part->n_rows; r++) {
        for (uint32_t c = 0; c < x->width; c += MGR_STRIP_NEURONS)
            copy_columns(x, &row, c, min_u32(x->width - c, MGR_STRIP_NEURONS));
        row.source += x->source_width * mgr_dtype_size(part->from);
        row.out += x->width * mgr_dtype_size(part->to);
    }
}

static void down_part(const mgr_method *method, const mgr_expert *x, const mgr_down_part *part)
{
    uint32_t k = 0;

    if (x->origin)
        copy_gathered(x, part);
    for (uint32_t c = 0; c < x->width; c += MGR_STRIP_NEURONS) {
        const uint32_t n = min_u32(x->width - c, MGR_STRIP_NEURONS);
        if (!x->origin)
            copy_columns(x, part, c, n);
        if (method->draw_columns) {
            const uint32_t end = selected_before(x, c + n);
            draw_tiles(method, x, part, k, end);
            k = end;
        }
    }
}

void mgr_expert_down_rows(const mgr_method *method, const mgr_expert *x, uint64_t first, uint64_t n,
                          const void *source, mgr_dtype from, void *out, mgr_dtype to)
{
    mgr_down_part part = {.source = source, .out = out, .from = from, .to = to, .first = first};

    while (n > 0) {
        part.n_rows = min_u32(n, MGR_TILE_HIDDEN);
        down_part(method, x, &part);
        part.source += (size_t)part.n_rows * x->source_width * mgr_dtype_size(from);
        part.out += (size_t)part.n_rows * x->width * mgr_dtype_size(to);
        part.first += part.n_rows;
        n -= part.n_rows;
    }
}
