/*
 * Noise upcycling (the paper's baseline): N(0, std^2) is added to the selected neurons.
 *
 * A value is w + std * z in float32, the product and the sum each rounded, then once into the
 * target's type; the element of the stream is numbered as in method_drop.c.
 */
#include <string.h>

#include "kern/kern.h"
#include "kern/method.h"
#include "kern/method_keys.h"

#define CHUNK 512

/* `n` <= CHUNK values: `source` of type `from`, and their draws. */
static void add_noise(const mgr_expert *x, const void *source, mgr_dtype from, const float *z,
                      size_t n, void *out, mgr_dtype to)
{
    float values[CHUNK];
    mgr_cast(values, MGR_DTYPE_F32, source, from, n);
    for (size_t i = 0; i < n; i++) {
        const float noise = x->std * z[i];
        values[i] += noise;
    }
    mgr_store_scaled(x, values, n, out, to);
}

static void noise_row(const mgr_expert *x, uint32_t k, const void *source, mgr_dtype from,
                      void *out, mgr_dtype to)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_NOISE_GATE);
    const unsigned char *const row = source;
    unsigned char *const into = out;
    float z[CHUNK];

    for (uint64_t h = 0; h < x->hidden; h += CHUNK) {
        const size_t n = x->hidden - h < CHUNK ? (size_t)(x->hidden - h) : CHUNK;
        mgr_normals(&stream, k * x->hidden + h, n, z);
        add_noise(x, row + h * mgr_dtype_size(from), from, z, n, into + h * mgr_dtype_size(to), to);
    }
}

static void noise_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_NOISE_GATE);
    const size_t to_bytes = mgr_dtype_size(part->to);
    const uint32_t *columns = x->selected + k;
    float tile[MGR_TILE_SELECTED][MGR_TILE_HIDDEN];
    uint32_t origins[MGR_TILE_SELECTED];

    for (uint32_t j = 0; j < n; j++)
        origins[j] = mgr_origin_of(x, columns[j]);
    for (uint32_t j = 0; j < n; j++)
        mgr_normals(&stream, (k + j) * x->hidden + part->first, part->n_rows, tile[j]);

    for (uint32_t r = 0; r < part->n_rows; r++) {
        const size_t row = (size_t)r * x->width, source = (size_t)r * x->source_width;
        float z[MGR_TILE_SELECTED];
        uint32_t raw[MGR_TILE_SELECTED];
        unsigned char noisy[MGR_TILE_SELECTED * sizeof(float)];

        for (uint32_t j = 0; j < n; j++)
            z[j] = tile[j][r];
        mgr_gather_columns(origins, n, part->source + source * mgr_dtype_size(part->from),
                           part->from, raw);
        add_noise(x, raw, part->from, z, n, noisy, part->to);
        for (uint32_t j = 0; j < n; j++)
            memcpy(part->out + (row + columns[j]) * to_bytes, noisy + j * to_bytes, to_bytes);
    }
}

static const mgr_key keys[] = {
    MGR_ROW_RATIO("has noise in"),
    MGR_ROW_LAYER_RATIO,
    MGR_ROW_MATRIX_RATIO,
    MGR_ROW_INDEX_SETS,
    MGR_ROW_REAL("upcycle.noise_std", upcycle.noise_std, "0.02", 0, 100,
                 "standard deviation of the noise"),
    MGR_ROWS_SHARED,
};

const mgr_method mgr_method_noise = {
    .name = "noise",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "noise", keys),
    .needs_selection = true,
    .needs_moments = false,
    .map = mgr_map_selected,
    .draw_row = noise_row,
    .draw_columns = noise_columns,
};
