/*
 * Drop-Upcycling: the selected neurons are drawn anew from a normal distribution with the mean and
 * standard deviation of what they replace; all others are copied.
 *
 * Element (k-th selected neuron, h) is element k * hidden + h of the matrix's stream.
 */
#include <assert.h>

#include "kern/kern.h"
#include "kern/method.h"
#include "kern/method_keys.h"
#include "rng/normal.h"

#define CHUNK 512

/* Elements first .. first+n-1 of the stream, scaled in the end. */
static void draw(const mgr_expert *x, const mgr_stream *stream, uint64_t first, size_t n, void *out,
                 mgr_dtype to)
{
    unsigned char *into = out;
    if (x->scale == 1.0f) {
        mgr_normals_scaled(stream, first, n, x->mean, x->std, out, to);
        return;
    }
    while (n > 0) {
        float values[CHUNK];
        const size_t part = n < CHUNK ? n : CHUNK;
        mgr_normals_scaled(stream, first, part, x->mean, x->std, values, MGR_DTYPE_F32);
        mgr_store_scaled(x, values, part, into, to);
        first += part;
        into += part * mgr_dtype_size(to);
        n -= part;
    }
}

static void drop_row(const mgr_expert *x, uint32_t k, const void *source, mgr_dtype from, void *out,
                     mgr_dtype to)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_GATE);
    (void)source; /* what is drawn anew */
    (void)from;
    draw(x, &stream, k * x->hidden, (size_t)x->hidden, out, to);
}

/* Rows across neurons, drawn as they lie in a tile. */
static void draw_across(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                        void *tile)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_GATE);
    const mgr_runs runs = {k * x->hidden + part->first, x->hidden, n, part->n_rows};
    const size_t row_bytes = part->tile_stride * mgr_dtype_size(part->to);
    float values[MGR_TILE_FEW][MGR_STRIP_NEURONS + MGR_TILE_BEHIND];

    assert(part->n_rows <= MGR_TILE_FEW && n <= MGR_STRIP_NEURONS);
    if (x->scale == 1.0f && part->to != MGR_DTYPE_F16) {
        mgr_normals_affine_across(&stream, runs, x->mean, x->std, tile, part->tile_stride,
                                  part->to);
        return;
    }
    mgr_normals_affine_across(&stream, runs, x->mean, x->std, values,
                              MGR_STRIP_NEURONS + MGR_TILE_BEHIND, MGR_DTYPE_F32);
    for (uint32_t r = 0; r < part->n_rows; r++)
        mgr_store_scaled(x, values[r], n, (unsigned char *)tile + r * row_bytes, part->to);
}

/* A few neurons at a time: what is drawn is turned while it lies in the L1 cache. */
static void draw_turned(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                        void *tile)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_GATE);
    const size_t bytes = mgr_dtype_size(part->to);
    unsigned char drawn[MGR_TURNED * MGR_TILE_HIDDEN * sizeof(float)] = {0};

    for (uint32_t j = 0; j < n; j += MGR_TURNED) {
        const uint32_t some = n - j < MGR_TURNED ? n - j : MGR_TURNED;
        for (uint32_t i = 0; i < some; i++)
            draw(x, &stream, (k + j + i) * x->hidden + part->first, part->n_rows,
                 drawn + (size_t)i * MGR_TILE_HIDDEN * bytes, part->to);
        mgr_turn(drawn, MGR_TILE_HIDDEN, some, part->n_rows, (unsigned char *)tile + j * bytes,
                 part->tile_stride, bytes);
    }
}

static void drop_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                         void *tile)
{
    if (x->hidden % 4 == 0)
        draw_across(x, part, k, n, tile);
    else
        draw_turned(x, part, k, n, tile);
}

static const mgr_key keys[] = {
    MGR_ROW_RATIO("starts anew"),
    MGR_ROW_LAYER_RATIO,
    MGR_ROW_MATRIX_RATIO,
    MGR_ROW_INDEX_SETS,
    MGR_ROW_CHOICE("upcycle.redraw_mean", upcycle.redraw_mean, "own", "own|zero",
                   "mean of what is drawn anew: that of the entries that it replaces, or 0"),
    MGR_ROW_REAL("upcycle.redraw_std", upcycle.redraw_std, "0", 0, 100,
                 "standard deviation of what is drawn anew; 0: that of the entries that it "
                 "replaces"),
    MGR_ROWS_SHARED,
};

const mgr_method mgr_method_drop = {
    .name = "drop",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "drop", keys),
    .needs_selection = true,
    .needs_moments = true,
    .map = mgr_map_selected,
    .draw_row = drop_row,
    .draw_columns = drop_columns,
    .few_rows = true,
};
