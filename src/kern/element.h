/*
 * Blocks of weights to and from float32, branch-free and of fixed length, so that compilers
 * vectorise them without being asked; the same results as mgr/dtype.h, element by element.
 */
#ifndef MGR_KERN_ELEMENT_H
#define MGR_KERN_ELEMENT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "mgr/dtype.h"

#define ELEMENT_BLOCK 64

/* Exact. */
static inline float element_from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    /* The exponent's bias grows by 112; infinity and NaN go to the top, 112 more. */
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const uint32_t top = -(uint32_t)(magnitude >= 0x7c00u) & (112u << 23);
    const uint32_t subnormal = mgr_f32_bits((float)(int32_t)magnitude * 0x1p-24f);
    const uint32_t is_subnormal = -(uint32_t)(magnitude < 0x0400u);
    return mgr_bits_f32(sign | (is_subnormal & subnormal) | (~is_subnormal & (normal + top)));
}

/* The nearest BF16, ties to even, in the low half. */
static inline uint32_t element_to_bf16(float x)
{
    const uint32_t bits = mgr_f32_bits(x);
    const uint32_t is_nan = -(uint32_t)((int32_t)(bits & 0x7fffffffu) > 0x7f800000);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (is_nan & (bits >> 16 | 0x40u)) | (~is_nan & rounded);
}

/* The nearest F16, ties to even, in the low half. */
static inline uint32_t element_to_f16(float x)
{
    const uint32_t bits = mgr_f32_bits(x);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const int32_t magnitude = (int32_t)(bits & 0x7fffffffu);
    const uint32_t is_nan = -(uint32_t)(magnitude > 0x7f800000);
    const uint32_t is_large = -(uint32_t)(magnitude >= 0x477ff000); /* rounds to 2^16 or more */
    const uint32_t is_small = -(uint32_t)(magnitude < 0x38800000);  /* below the normal halves */
    const uint32_t odd = (uint32_t)magnitude >> 13 & 1u;
    const uint32_t normal = ((uint32_t)magnitude - (112u << 23) + 0xfffu + odd) >> 13;
    /* Adding 0.5 puts the last bit of a subnormal half at the end of the sum, which rounds there.
     * A large operand is masked away: its sum would be an invalid operation on a NaN. */
    const float shifted = mgr_bits_f32((uint32_t)magnitude & is_small) + 0.5f;
    const uint32_t subnormal = mgr_f32_bits(shifted) & 0x7ffu;
    const uint32_t nan = 0x7e00u | ((uint32_t)magnitude >> 13 & 0x1ffu);
    uint32_t half = (is_small & subnormal) | (~is_small & normal);
    half = (is_large & 0x7c00u) | (~is_large & half);
    return sign | (is_nan & nan) | (~is_nan & half);
}

/* Element i of halves without alignment. */
static inline uint16_t element_half(const unsigned char *halves, int i)
{
    uint16_t half;
    memcpy(&half, halves + 2 * i, sizeof half);
    return half;
}

static inline float element_float(const unsigned char *floats, int i)
{
    float x;
    memcpy(&x, floats + 4 * i, sizeof x);
    return x;
}

/* A block as float32. `src` needs no alignment. (It is not copied as a whole first: what is stored
 * in short registers and loaded in longer ones waits.) */
static inline void element_load(float x[ELEMENT_BLOCK], const void *src, mgr_dtype from)
{
    const unsigned char *const at = src;

    if (from == MGR_DTYPE_F32) {
        for (int i = 0; i < ELEMENT_BLOCK; i++)
            x[i] = element_float(at, i);
    } else if (from == MGR_DTYPE_BF16) {
        for (int i = 0; i < ELEMENT_BLOCK; i++)
            x[i] = mgr_bf16_to_f32(element_half(at, i));
    } else {
        for (int i = 0; i < ELEMENT_BLOCK; i++)
            x[i] = element_from_f16(element_half(at, i));
    }
}

static inline void element_store(void *dst, mgr_dtype to, const float x[ELEMENT_BLOCK])
{
    uint16_t half[ELEMENT_BLOCK];

    if (to == MGR_DTYPE_F32) {
        memcpy(dst, x, ELEMENT_BLOCK * sizeof *x);
        return;
    }
    if (to == MGR_DTYPE_BF16) {
        for (int i = 0; i < ELEMENT_BLOCK; i++)
            half[i] = (uint16_t)element_to_bf16(x[i]);
    } else {
        for (int i = 0; i < ELEMENT_BLOCK; i++)
            half[i] = (uint16_t)element_to_f16(x[i]);
    }
    memcpy(dst, half, sizeof half);
}

/* The first `n` < ELEMENT_BLOCK elements of a block, the rest zero. */
static inline void element_load_part(float x[ELEMENT_BLOCK], const void *src, mgr_dtype from,
                                     size_t n)
{
    uint32_t padded[ELEMENT_BLOCK] = {0};
    memcpy(padded, src, n * mgr_dtype_size(from));
    element_load(x, padded, from);
}

static inline void element_store_part(void *dst, mgr_dtype to, const float x[ELEMENT_BLOCK],
                                      size_t n)
{
    uint32_t padded[ELEMENT_BLOCK];
    element_store(padded, to, x);
    memcpy(dst, padded, n * mgr_dtype_size(to));
}

#endif
