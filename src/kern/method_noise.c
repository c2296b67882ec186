/*
 * Noise upcycling (the paper's baseline): N(0, std^2) is added to the selected neurons.
 *
 * A value is w + std * z in float32, the product and the sum each rounded, then once into the
 * target's type; the element of the stream is numbered as in method_drop.c.
 */
#include "kern/kern.h"
#include "kern/method.h"
#include "kern/method_keys.h"

#define CHUNK 512
#define NEURONS 64 /* whose columns are made together */

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

/* The same of row r of a part and `n` <= NEURONS neurons from k on. */
static void noise_tile_row(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                           uint32_t r, const float (*drawn)[MGR_TILE_HIDDEN], void *to)
{
    const unsigned char *const row =
        part->source + (size_t)r * x->source_width * mgr_dtype_size(part->from);
    uint32_t origins[NEURONS], raw[NEURONS];
    float z[NEURONS];

    for (uint32_t j = 0; j < n; j++) {
        origins[j] = mgr_origin_of(x, x->selected[k + j]);
        z[j] = drawn[j][r];
    }
    mgr_gather_columns(origins, n, row, part->from, raw);
    add_noise(x, raw, part->from, z, n, to, part->to);
}

static void noise_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                          void *tile)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_NOISE_GATE);
    const size_t bytes = mgr_dtype_size(part->to);
    float drawn[NEURONS][MGR_TILE_HIDDEN];

    for (uint32_t done = 0; done < n; done += NEURONS) {
        const uint32_t some = n - done < NEURONS ? n - done : NEURONS;
        unsigned char *to = (unsigned char *)tile + done * bytes;
        for (uint32_t j = 0; j < some; j++)
            mgr_normals(&stream, (k + done + j) * x->hidden + part->first, part->n_rows, drawn[j]);
        for (uint32_t r = 0; r < part->n_rows; r++, to += part->tile_stride * bytes)
            noise_tile_row(x, part, k + done, some, r, (const float(*)[MGR_TILE_HIDDEN])drawn, to);
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
