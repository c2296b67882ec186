#include "kern/columns.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "mgr/rng.h"

/* A CPU with AVX-512 has AVX2. */
static bool has_avx2(void)
{
    const mgr_simd simd = mgr_simd_current();
    return simd == MGR_SIMD_AVX2 || simd == MGR_SIMD_AVX512;
}

static const mgr_columns_path *current_path(void)
{
    static const mgr_columns_path plain = {NULL, NULL, NULL};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (mgr_simd_current() == MGR_SIMD_AVX512 && __builtin_cpu_supports("avx512vbmi2") &&
        mgr_columns_path_avx512.plan)
        return &mgr_columns_path_avx512;
#endif
    return has_avx2() ? &mgr_columns_path_avx2 : &plain;
}

void mgr_strip_plan(mgr_strip *strip)
{
    const mgr_columns_path *path = current_path();

    assert(strip->n <= MGR_STRIP_NEURONS);
    if (strip->n_drawn > 0 && path->plan)
        path->plan(strip);
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
    uint32_t (*const merge)(const mgr_strip *, const void *, const void *, void *) =
        bytes == 4 ? path->merge_4 : path->merge_2;
    const uint32_t done = merge && strip->n_drawn > 0 ? merge(strip, kept, drawn, out) : 0;

    if (done == strip->n)
        return;
    const uint32_t k = done > 0 ? drawn_before(strip, done) : 0;
    if (bytes == 4)
        merge_rest(strip, done, k, kept, drawn, out, 4);
    else
        merge_rest(strip, done, k, kept, drawn, out, 2);
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
    assert(n <= MGR_TURNED);
    if (bytes == 4) {
        turn_rest(drawn, stride, n, 0, n_rows, out, out_stride, 4);
    } else {
        const uint32_t done =
            has_avx2() ? mgr_turn_avx2(drawn, stride, n_rows, out, out_stride) : 0;
        turn_rest(drawn, stride, n, done, n_rows, out, out_stride, 2);
    }
}
