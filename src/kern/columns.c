#include "kern/columns.h"

#include <assert.h>
#include <string.h>

#include "mgr/rng.h"

/* NULL where no path but the plain one is there. A CPU with AVX-512 has AVX2. */
static const mgr_columns_path *current_path(void)
{
    const mgr_simd simd = mgr_simd_current();
    return (simd == MGR_SIMD_AVX2 || simd == MGR_SIMD_AVX512) && mgr_columns_path_avx2.merge
               ? &mgr_columns_path_avx2
               : NULL;
}

void mgr_strip_plan(mgr_strip *strip)
{
    uint32_t k = 0;

    assert(strip->n <= MGR_STRIP_NEURONS);
    if (strip->n_drawn == 0 || !current_path())
        return;
    for (uint32_t g = 0; g < strip->n / MGR_STRIP_GROUP; g++) {
        strip->before[g] = (uint16_t)k;
        memset(strip->taken[g], 0, sizeof strip->taken[g]);
        memset(strip->places[g], 0, sizeof strip->places[g]);
        for (uint32_t i = 0, taken = 0; i < MGR_STRIP_GROUP; i++) {
            if (k == strip->n_drawn || strip->drawn[k] != strip->first + g * MGR_STRIP_GROUP + i)
                continue;
            for (uint32_t b = 0; b < 2; b++) {
                strip->places[g][2 * i + b] = (uint8_t)(2 * taken + b);
                strip->taken[g][2 * i + b] = 0xff;
            }
            taken++;
            k++;
        }
    }
}

/* The first `done` columns and `k` drawn ones are merged. Inlined with constant `bytes`. */
static inline __attribute__((always_inline)) void merge_rest(const mgr_strip *strip, uint32_t done,
                                                             uint32_t k, const unsigned char *kept,
                                                             const unsigned char *drawn,
                                                             unsigned char *out, size_t bytes)
{
    if (kept != out)
        memcpy(out + done * bytes, kept + done * bytes, (strip->n - done) * bytes);
    for (; k < strip->n_drawn; k++)
        memcpy(out + (strip->drawn[k] - strip->first) * bytes, drawn + k * bytes, bytes);
}

/* How many drawn columns lie in the first `done`. */
static uint32_t drawn_before(const mgr_strip *strip, uint32_t done)
{
    uint32_t k = strip->n_drawn;
    while (k > 0 && strip->drawn[k - 1] - strip->first >= done)
        k--;
    return k;
}

void mgr_merge(const mgr_strip *strip, const void *kept, const void *drawn, void *out, size_t bytes)
{
    const mgr_columns_path *path = current_path();

    if (bytes == 4) {
        merge_rest(strip, 0, 0, kept, drawn, out, 4);
    } else if (path && strip->n_drawn > 0) {
        const uint32_t done = path->merge(strip, kept, drawn, out);
        merge_rest(strip, done, drawn_before(strip, done), kept, drawn, out, 2);
    } else {
        merge_rest(strip, 0, 0, kept, drawn, out, 2);
    }
}

/* From row `r` on. Inlined with constant `bytes`. */
static inline __attribute__((always_inline)) void turn_rest(const unsigned char *drawn,
                                                            size_t stride, uint32_t n, uint32_t r,
                                                            uint32_t n_rows, unsigned char *out,
                                                            size_t out_stride, size_t bytes)
{
    for (; r < n_rows; r++)
        for (uint32_t j = 0; j < n; j++)
            memcpy(out + (r * out_stride + j) * bytes, drawn + (j * stride + r) * bytes, bytes);
}

void mgr_turn(const void *drawn, size_t stride, uint32_t n, uint32_t n_rows, void *out,
              size_t out_stride, size_t bytes)
{
    const mgr_columns_path *path = current_path();

    assert(n <= MGR_TURNED);
    if (bytes == 4) {
        turn_rest(drawn, stride, n, 0, n_rows, out, out_stride, 4);
    } else {
        const uint32_t done = path ? path->turn(drawn, stride, n_rows, out, out_stride) : 0;
        turn_rest(drawn, stride, n, done, n_rows, out, out_stride, 2);
    }
}
