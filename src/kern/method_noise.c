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

/* `n` <= CHUNK values: `dense` of type `from`, and their draws. */
static void add_noise(const void *dense, mgr_dtype from, const float *z, float std, size_t n,
                      void *out, mgr_dtype to)
{
    float values[CHUNK];
    mgr_cast(values, MGR_DTYPE_F32, dense, from, n);
    for (size_t i = 0; i < n; i++) {
        const float noise = std * z[i];
        values[i] += noise;
    }
    mgr_cast(out, to, values, MGR_DTYPE_F32, n);
}

/* The k-th selected neuron, a row of gate or up. */
static void noisy_row(const mgr_expert *x, uint32_t k, const unsigned char *dense, mgr_dtype from,
                      unsigned char *out, mgr_dtype to)
{
    const mgr_stream stream = mgr_expert_stream(x, MGR_PURPOSE_NOISE_GATE);
    float z[CHUNK];

    for (uint64_t h = 0; h < x->hidden; h += CHUNK) {
        const size_t n = x->hidden - h < CHUNK ? (size_t)(x->hidden - h) : CHUNK;
        mgr_normals(&stream, k * x->hidden + h, n, z);
        add_noise(dense + h * mgr_dtype_size(from), from, z, x->std, n,
                  out + h * mgr_dtype_size(to), to);
    }
}

static void noise_neuron_rows(const mgr_expert *x, uint32_t first, uint32_t n, const void *dense,
                              uint32_t dense_first, mgr_dtype from, void *out, mgr_dtype to)
{
    const size_t dense_bytes = (size_t)x->hidden * mgr_dtype_size(from);
    const size_t row_bytes = (size_t)x->hidden * mgr_dtype_size(to);
    uint32_t k = mgr_selected_before(x, first);
    unsigned char *row = out;

    for (uint32_t i = first; i - first < n; i++, row += row_bytes) {
        const size_t dense_row = mgr_dense_neuron(x, i) - dense_first;
        if (k < x->n_selected && x->selected[k] == i)
            noisy_row(x, k++, (const unsigned char *)dense + dense_row * dense_bytes, from, row,
                      to);
        else
            mgr_copy_neuron(x, i, dense, dense_first, from, row, to);
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
        origins[j] = mgr_dense_neuron(x, columns[j]);
    for (uint32_t j = 0; j < n; j++)
        mgr_normals(&stream, (k + j) * x->hidden + part->first, part->n_rows, tile[j]);

    for (uint32_t r = 0; r < part->n_rows; r++) {
        const size_t row = (size_t)r * x->n_neurons;
        float z[MGR_TILE_SELECTED];
        uint32_t raw[MGR_TILE_SELECTED];
        unsigned char noisy[MGR_TILE_SELECTED * sizeof(float)];

        for (uint32_t j = 0; j < n; j++)
            z[j] = tile[j][r];
        mgr_gather_columns(origins, n, part->dense + row * mgr_dtype_size(part->from), part->from,
                           raw);
        add_noise(raw, part->from, z, x->std, n, noisy, part->to);
        for (uint32_t j = 0; j < n; j++)
            memcpy(part->out + (row + columns[j]) * to_bytes, noisy + j * to_bytes, to_bytes);
    }
}

static void noise_hidden_rows(const mgr_expert *x, uint64_t first, uint64_t n, const void *dense,
                              mgr_dtype from, void *out, mgr_dtype to)
{
    mgr_down_rows(x, first, n, dense, from, out, to, noise_columns);
}

static const mgr_key keys[] = {
    MGR_ROW_RATIO("has noise in"),
    MGR_ROW_INDEX_SETS,
    MGR_ROW_REAL("upcycle.noise_std", upcycle.noise_std, "0.02", 0, 100,
                 "standard deviation of the noise"),
};

const mgr_method mgr_method_noise = {
    .name = "noise",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "noise", keys),
    .needs_selection = true,
    .needs_moments = false,
    .neuron_rows = noise_neuron_rows,
    .hidden_rows = noise_hidden_rows,
};
