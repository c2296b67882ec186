/*
 * The operations of normal_body.h for NEON (aarch64): four 32-bit lanes. What each does:
 * simd_scalar.h.
 */
#ifndef MGR_RNG_SIMD_NEON_H
#define MGR_RNG_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define SIMD_LANES 4
#define SIMD_HOLD(x) __asm__("" : "+w"(x))

typedef uint32x4_t vec_int;
typedef float32x4_t vec_float;

static inline vec_int int_set(uint32_t x)
{
    return vdupq_n_u32(x);
}

static inline vec_int wide_set(uint32_t x)
{
    return vdupq_n_u32(x);
}

static inline vec_int wide_count(uint32_t first)
{
    const uint64x2_t lane = vcombine_u64(vcreate_u64(0), vcreate_u64(1));
    return vreinterpretq_u32_u64(vaddq_u64(vdupq_n_u64(first), lane));
}

static inline vec_int wide_places(uint32_t first, uint32_t step)
{
    return vcombine_u32(vdup_n_u32(first), vdup_n_u32(first + 2 * step));
}

static inline vec_int wide_product(vec_int x, vec_int y)
{
    const uint32x2_t x_low = vmovn_u64(vreinterpretq_u64_u32(x));
    const uint32x2_t y_low = vmovn_u64(vreinterpretq_u64_u32(y));
    return vreinterpretq_u32_u64(vmull_u32(x_low, y_low));
}

static inline vec_int wide_high(vec_int x)
{
    return vreinterpretq_u32_u64(vshrq_n_u64(vreinterpretq_u64_u32(x), 32));
}

static inline vec_int wide_join(vec_int low, vec_int high)
{
    return vtrn1q_u32(low, high);
}

static inline vec_int wide_join_high(vec_int low, vec_int high)
{
    return vtrn2q_u32(low, high);
}

static inline void wide_regroup(vec_int *x, vec_int *y)
{
    (void)x, (void)y;
}

static inline vec_int int_add(vec_int x, vec_int y)
{
    return vaddq_u32(x, y);
}

static inline vec_int int_sub(vec_int x, vec_int y)
{
    return vsubq_u32(x, y);
}

static inline vec_int int_and(vec_int x, vec_int y)
{
    return vandq_u32(x, y);
}

static inline vec_int int_and_or(vec_int x, vec_int y, vec_int z)
{
    return vorrq_u32(vandq_u32(x, y), z);
}

static inline vec_int int_not_and_or(vec_int x, vec_int y, vec_int z)
{
    return vorrq_u32(vbicq_u32(y, x), z);
}

static inline vec_int int_xor(vec_int x, vec_int y)
{
    return veorq_u32(x, y);
}

static inline vec_int int_xor3(vec_int x, vec_int y, vec_int z)
{
    return veorq_u32(x, veorq_u32(y, z));
}

/* A shift by a negative count is one to the right. */
static inline vec_int int_shift_left(vec_int x, int n)
{
    return vshlq_u32(x, vdupq_n_s32(n));
}

static inline vec_int int_shift_right(vec_int x, int n)
{
    return vshlq_u32(x, vdupq_n_s32(-n));
}

static inline vec_float float_set(float x)
{
    return vdupq_n_f32(x);
}

static inline vec_float float_add(vec_float x, vec_float y)
{
    return vaddq_f32(x, y);
}

static inline vec_float float_sub(vec_float x, vec_float y)
{
    return vsubq_f32(x, y);
}

static inline vec_float float_mul(vec_float x, vec_float y)
{
    return vmulq_f32(x, y);
}

static inline vec_float float_sqrt(vec_float x)
{
    return vsqrtq_f32(x);
}

static inline vec_float float_from_int(vec_int x)
{
    return vcvtq_f32_s32(vreinterpretq_s32_u32(x));
}

static inline vec_float float_from_bits(vec_int x)
{
    return vreinterpretq_f32_u32(x);
}

static inline vec_int bits_from_float(vec_float x)
{
    return vreinterpretq_u32_f32(x);
}

static inline vec_float float_pick(vec_int word, vec_float clear, vec_float set)
{
    return vbslq_f32(vtstq_u32(word, vdupq_n_u32(2)), set, clear);
}

static inline vec_float float_flip(vec_float x, vec_int bits)
{
    return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), bits));
}

static inline void store_pairs(unsigned char *to, vec_int x, vec_int y)
{
    unsigned char *out = to;
    vst1q_u8(out, vreinterpretq_u8_u32(vzip1q_u32(x, y)));
    vst1q_u8(out + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
}

static inline void store_halves(unsigned char *to, vec_int x, vec_int y)
{
    vst1q_u8(to, vreinterpretq_u8_u32(vsriq_n_u32(y, x, 16)));
}

static inline void store_row(unsigned char *to, vec_int x)
{
    vst1q_u8(to, vreinterpretq_u8_u32(x));
}

static inline void store_row_halves(unsigned char *to, vec_int x)
{
    vst1_u8(to, vreinterpret_u8_u16(vshrn_n_u32(x, 16)));
}

#endif
