/*
 * What all methods do: neurons of the source are copied or cast, those in S handed to the method's
 * rule, and a scale is the last thing.
 */
#include <assert.h>
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"

#define CHUNK 512
#define AHEAD 2 /* rows */

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
    const bool as_it_is = part->from == part->to && x->scale == 1.0f;
    uint32_t gathered[MGR_STRIP_NEURONS];

    for (uint32_t r = 0; r < part->n_rows; r++) {
        const unsigned char *source = part->source + (size_t)r * x->source_width * from_bytes;
        unsigned char *out = part->out + ((size_t)r * x->width + first) * to_bytes;
        if (x->origin && as_it_is) {
            mgr_gather_columns(x->origin + first, n, source, part->from, out);
        } else if (x->origin) {
            mgr_gather_columns(x->origin + first, n, source, part->from, gathered);
            copy(x, gathered, part->from, out, part->to, n);
        } else {
            copy(x, source + first * from_bytes, part->from, out, part->to, n);
        }
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

/* `n` bytes `ahead` of `at`, a cache line at a time. No CPU does it alone: each row is on pages of
 * its own. (Behind the last row nothing is there to be read, and a prefetch of it is none.) */
static void prefetch(const unsigned char *at, size_t ahead, size_t n)
{
    const uintptr_t place = (uintptr_t)at + ahead;
    for (size_t b = 0; b < n; b += 64)
        __builtin_prefetch((const void *)(place + b));
}

/* Are tiles of few rows and many columns the right ones? */
static bool draws_few(const mgr_method *method, const mgr_expert *x)
{
    return method->few_rows && x->hidden % 4 == 0;
}

/* Rows of a strip. A row is copied and drawn into at once: rows far apart push each other out of
 * the caches. Where it was long ago that the rows before were there, they are asked for early. */
static void merge_rows(const mgr_expert *x, const mgr_down_part *part, const mgr_strip *strip,
                       const unsigned char *tile)
{
    const size_t from = mgr_dtype_size(part->from), to = mgr_dtype_size(part->to);
    const bool as_it_is = !x->origin && part->from == part->to && x->scale == 1.0f;
    mgr_down_part row = *part;

    row.n_rows = 1;
    for (uint32_t r = 0; r < part->n_rows; r++, tile += part->tile_stride * to) {
        unsigned char *const out = row.out + strip->first * to;
        const unsigned char *const source = x->origin ? out : row.source + strip->first * from;
        if (!x->origin && part->n_rows > MGR_TILE_FEW)
            prefetch(source, AHEAD * x->source_width * from, strip->n * from);
        if (part->n_rows > MGR_TILE_FEW)
            prefetch(out, AHEAD * x->width * to, strip->n * to);
        if (!as_it_is && !x->origin)
            copy_columns(x, &row, strip->first, strip->n);
        mgr_merge(strip, as_it_is ? source : out, tile, out, to);
        row.source += x->source_width * from;
        row.out += x->width * to;
    }
}

/* The rows of `part` that a tile holds of strip `strip`, whose drawn ones are the k-th of S and
 * those that follow. */
static void down_tile(const mgr_method *method, const mgr_expert *x, mgr_down_part *part,
                      const mgr_strip *strip, uint32_t k)
{
    unsigned char tile[MGR_TILE_BYTES];
    _Static_assert(sizeof tile >=
                       MGR_TILE_FEW * (MGR_STRIP_NEURONS + MGR_TILE_BEHIND) * sizeof(float),
                   "either shape of a tile");

    assert(strip->n > 0 && (strip->n_drawn == 0 || method->draw_columns));
    if (strip->n_drawn == strip->n && strip->n % MGR_TILE_BEHIND == 0) {
        part->tile_stride = x->width; /* nothing is merged, and nothing written behind them */
        method->draw_columns(x, part, k, strip->n,
                             part->out + strip->first * mgr_dtype_size(part->to));
        return;
    }
    if (strip->n_drawn > 0)
        method->draw_columns(x, part, k, strip->n_drawn, tile);
    merge_rows(x, part, strip, tile);
}

/* All rows of a strip. */
static void down_strip(const mgr_method *method, const mgr_expert *x, const mgr_down_part *part,
                       mgr_strip *strip, uint32_t k)
{
    mgr_down_part some = *part;

    mgr_strip_plan(strip);
    for (uint32_t r = 0; r < part->n_rows; r += some.n_rows) {
        /* From one multiple of the tile's rows to the next, whatever the part begins with. */
        const uint64_t first = part->first + r;
        const uint32_t most =
            draws_few(method, x) ? MGR_TILE_FEW - first % MGR_TILE_FEW : part->n_rows;
        some = *part;
        some.source += (size_t)r * x->source_width * mgr_dtype_size(part->from);
        some.out += (size_t)r * x->width * mgr_dtype_size(part->to);
        some.first = first;
        some.n_rows = min_u32(part->n_rows - r, most);
        down_tile(method, x, &some, strip, k);
    }
}

/* The columns from `first` on that have no more than `most` drawn ones, which are the k-th of S and
 * those behind it. */
static mgr_strip next_strip(const mgr_expert *x, uint32_t first, uint32_t k, uint32_t n_drawn,
                            uint32_t most)
{
    mgr_strip strip;

    strip.first = first;
    strip.n = min_u32(x->width - first, MGR_STRIP_NEURONS);
    strip.drawn = x->selected + k;
    strip.n_drawn = 0;
    while (k + strip.n_drawn < n_drawn && strip.drawn[strip.n_drawn] - first < strip.n) {
        if (strip.n_drawn == most)
            strip.n = strip.drawn[strip.n_drawn] - first;
        else
            strip.n_drawn++;
    }
    return strip;
}

static void down_part(const mgr_method *method, const mgr_expert *x, mgr_down_part *part)
{
    const uint32_t n_drawn = method->draw_columns ? x->n_selected : 0;
    const uint32_t most = draws_few(method, x) ? MGR_STRIP_NEURONS : MGR_TILE_SELECTED;
    uint32_t k = 0;

    part->tile_stride = most + MGR_TILE_BEHIND;
    if (x->origin)
        copy_gathered(x, part);
    for (uint32_t c = 0; c < x->width;) {
        mgr_strip strip = next_strip(x, c, k, n_drawn, most);
        down_strip(method, x, part, &strip, k);
        k += strip.n_drawn;
        c += strip.n;
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
