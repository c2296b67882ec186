/*
 * How large values are, by their bits without the sign: these are ordered as magnitudes are, with
 * what is not finite above all that is. No floating-point operation, so that no NaN is quietened.
 */
#include "kern/magnitude.h"

#include <string.h>

#include "kern/kern.h"

/* Bytes of a block: four registers of the smallest instruction sets. */
#define BLOCK 64

/* Elements of which it is seen together that none is large. */
#define STRETCH 4096

uint32_t mgr_infinity_bits(mgr_dtype dtype)
{
    return dtype == MGR_DTYPE_F32 ? 0x7f800000u : dtype == MGR_DTYPE_BF16 ? 0x7f80u : 0x7c00u;
}

/* Half of the last place above the largest finite value of `to` rounds to infinity. */
uint32_t mgr_overflow_bits(mgr_dtype from, mgr_dtype to)
{
    if (from == MGR_DTYPE_F32 && to == MGR_DTYPE_F16)
        return 0x477ff000u;
    if (from == MGR_DTYPE_F32 && to == MGR_DTYPE_BF16)
        return 0x7f7f8000u;
    return from == MGR_DTYPE_BF16 && to == MGR_DTYPE_F16 ? 0x4780u : mgr_infinity_bits(from);
}

static uint32_t magnitude_at(const unsigned char *values, mgr_dtype dtype, size_t i)
{
    uint32_t wide;
    uint16_t half;
    if (dtype == MGR_DTYPE_F32) {
        memcpy(&wide, values + i * sizeof wide, sizeof wide);
        return wide & 0x7fffffffu;
    }
    memcpy(&half, values + i * sizeof half, sizeof half);
    return half & 0x7fffu;
}

/* Blocks of a fixed length, which compilers vectorise; signed, as the smallest instruction sets
 * compare. */
static uint32_t largest_of_2(const unsigned char *values, size_t n_blocks)
{
    int16_t most[BLOCK / 2] = {0};
    int16_t result = 0;
    for (size_t b = 0; b < n_blocks; b++, values += sizeof most) {
        int16_t x[BLOCK / 2];
        memcpy(x, values, sizeof x);
        for (int i = 0; i < BLOCK / 2; i++) {
            const int16_t magnitude = (int16_t)(x[i] & 0x7fff);
            most[i] = magnitude > most[i] ? magnitude : most[i];
        }
    }
    for (int i = 0; i < BLOCK / 2; i++)
        result = most[i] > result ? most[i] : result;
    return (uint32_t)result;
}

static uint32_t largest_of_4(const unsigned char *values, size_t n_blocks)
{
    int32_t most[BLOCK / 4] = {0};
    int32_t result = 0;
    for (size_t b = 0; b < n_blocks; b++, values += sizeof most) {
        int32_t x[BLOCK / 4];
        memcpy(x, values, sizeof x);
        for (int i = 0; i < BLOCK / 4; i++) {
            const int32_t magnitude = x[i] & 0x7fffffff;
            most[i] = magnitude > most[i] ? magnitude : most[i];
        }
    }
    for (int i = 0; i < BLOCK / 4; i++)
        result = most[i] > result ? most[i] : result;
    return (uint32_t)result;
}

static const mgr_largest_path plain = {BLOCK, largest_of_2, largest_of_4};

static const mgr_largest_path *current_path(void)
{
    const mgr_simd simd = mgr_simd_current();
    const mgr_largest_path *const path = simd == MGR_SIMD_AVX2     ? &mgr_largest_path_avx2
                                         : simd == MGR_SIMD_AVX512 ? &mgr_largest_path_avx512
                                                                   : &plain;
    return path->block ? path : &plain;
}

uint32_t mgr_largest_magnitude(const void *values, mgr_dtype dtype, size_t n)
{
    const mgr_largest_path *const path = current_path();
    const size_t bytes = mgr_dtype_size(dtype), n_blocks = n * bytes / path->block;
    uint32_t most = bytes == 2 ? path->of_2(values, n_blocks) : path->of_4(values, n_blocks);

    for (size_t i = n_blocks * path->block / bytes; i < n; i++) {
        const uint32_t magnitude = magnitude_at(values, dtype, i);
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* The first in [i, end), or end. */
static size_t find_in(const unsigned char *values, mgr_dtype dtype, size_t i, size_t end,
                      uint32_t low, uint32_t high)
{
    for (; i < end; i++) {
        const uint32_t magnitude = magnitude_at(values, dtype, i);
        if (magnitude >= low && magnitude < high)
            break;
    }
    return i;
}

size_t mgr_find_magnitude(const void *values, mgr_dtype dtype, size_t n, uint32_t low,
                          uint32_t high)
{
    for (size_t at = 0, end; at < n; at = end) {
        const unsigned char *const first =
            (const unsigned char *)values + at * mgr_dtype_size(dtype);
        end = n - at < STRETCH ? n : at + STRETCH;
        if (mgr_largest_magnitude(first, dtype, end - at) < low)
            continue; /* as nearly always */
        const size_t found = find_in(values, dtype, at, end, low, high);
        if (found < end)
            return found;
    }
    return n;
}
