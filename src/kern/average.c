/*
 * The mean of several tensors, element by element.
 */
#include <string.h>

#include "kern/kern.h"

#define BLOCK 256

/* To odd: what is not exact gets a last bit of 1, so that rounding it again, to a type with two
 * bits less or fewer, gives what one rounding of `x` would. */
static float to_odd(double x)
{
    const float near = (float)x;
    uint32_t bits = mgr_f32_bits(near);
    if ((double)near == x || x != x || (bits & 1u))
        return near;
    if ((bits & 0x7fffffffu) == 0x7f800000u) /* an overflow: the largest finite one is odd */
        return mgr_bits_f32(bits - 1);
    const double size = x < 0 ? -x : x;
    const double rounded = near < 0 ? -(double)near : (double)near;
    return mgr_bits_f32(rounded > size ? bits - 1 : bits + 1);
}

static void store(void *out, mgr_dtype to, const double *sum, double count, size_t n)
{
    float values[BLOCK];
    for (size_t i = 0; i < n; i++) {
        const double mean = sum[i] / count;
        values[i] = to == MGR_DTYPE_F32 ? (float)mean : to_odd(mean);
    }
    mgr_cast(out, to, values, MGR_DTYPE_F32, n);
}

void mgr_average(void *out, mgr_dtype to, const void *const *sources, const mgr_dtype *from,
                 uint32_t n_sources, size_t n)
{
    unsigned char *into = out;
    for (size_t at = 0, part; at < n; at += part) {
        double sum[BLOCK] = {0};
        float values[BLOCK];
        part = n - at < BLOCK ? n - at : BLOCK;
        for (uint32_t s = 0; s < n_sources; s++) {
            const unsigned char *const bytes = sources[s];
            mgr_cast(values, MGR_DTYPE_F32, bytes + at * mgr_dtype_size(from[s]), from[s], part);
            for (size_t i = 0; i < part; i++)
                sum[i] += (double)values[i];
        }
        store(into + at * mgr_dtype_size(to), to, sum, n_sources, part);
    }
}
