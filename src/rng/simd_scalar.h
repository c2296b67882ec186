/*
 * The operations of normal_body.h in plain C: two 32-bit lanes, which are one Philox block.
 */
#ifndef MGR_RNG_SIMD_SCALAR_H
#define MGR_RNG_SIMD_SCALAR_H

#include <stdint.h>
#include <string.h>

#include "mgr/dtype.h"
#include "rng/root.h"

#define SIMD_LANES 2

typedef struct vec_int {
    uint32_t a, b; /* as one 64-bit lane: a is the low half */
} vec_int;

typedef struct vec_float {
    float a, b;
} vec_float;

/* 64-bit lanes: only the low half of an operand counts, but for wide_high. */
static inline vec_int wide_set(uint32_t x)
{
    return (vec_int){x, 0};
}

static inline vec_int wide_count(uint32_t first)
{
    return (vec_int){first, 0};
}

/* Those of first + step * j where bit 0 of j is clear, for wide_rows. */
static inline vec_int wide_places(uint32_t first, uint32_t step)
{
    (void)step;
    return (vec_int){first, 0};
}

static inline vec_int wide_product(vec_int x, vec_int y)
{
    const uint64_t product = (uint64_t)x.a * y.a;
    return (vec_int){(uint32_t)product, (uint32_t)(product >> 32)};
}

static inline vec_int wide_high(vec_int x)
{
    return (vec_int){x.b, 0};
}

static inline vec_int wide_join(vec_int low, vec_int high)
{
    return (vec_int){low.a, high.a};
}

/* x in the places of wide_places and y in those between, as 32-bit lanes for store_row. */
static inline vec_int wide_rows(vec_int x, vec_int y)
{
    return (vec_int){x.a, y.a};
}

/* 32-bit lanes, modulo 2^32. */
static inline vec_int int_set(uint32_t x)
{
    return (vec_int){x, x};
}

static inline vec_int int_add(vec_int x, vec_int y)
{
    return (vec_int){x.a + y.a, x.b + y.b};
}

static inline vec_int int_sub(vec_int x, vec_int y)
{
    return (vec_int){x.a - y.a, x.b - y.b};
}

static inline vec_int int_and(vec_int x, vec_int y)
{
    return (vec_int){x.a & y.a, x.b & y.b};
}

static inline vec_int int_or(vec_int x, vec_int y)
{
    return (vec_int){x.a | y.a, x.b | y.b};
}

static inline vec_int int_xor(vec_int x, vec_int y)
{
    return (vec_int){x.a ^ y.a, x.b ^ y.b};
}

static inline vec_int int_xor3(vec_int x, vec_int y, vec_int z)
{
    return int_xor(int_xor(x, y), z);
}

static inline vec_int int_shift_left(vec_int x, int n)
{
    return (vec_int){x.a << n, x.b << n};
}

static inline vec_int int_shift_right(vec_int x, int n)
{
    return (vec_int){x.a >> n, x.b >> n};
}

/* Every compiler we take shifts signed numbers arithmetically (C11 leaves it to them). */
static inline vec_int int_shift_right_signed(vec_int x, int n)
{
    return (vec_int){(uint32_t)((int32_t)x.a >> n), (uint32_t)((int32_t)x.b >> n)};
}

static inline vec_float float_set(float x)
{
    return (vec_float){x, x};
}

static inline vec_float float_add(vec_float x, vec_float y)
{
    return (vec_float){x.a + y.a, x.b + y.b};
}

static inline vec_float float_sub(vec_float x, vec_float y)
{
    return (vec_float){x.a - y.a, x.b - y.b};
}

static inline vec_float float_mul(vec_float x, vec_float y)
{
    return (vec_float){x.a * y.a, x.b * y.b};
}

static inline vec_float float_sqrt(vec_float x)
{
    return (vec_float){mgr_root_f32(x.a), mgr_root_f32(x.b)};
}

/* From signed integers, to nearest even. */
static inline vec_float float_from_int(vec_int x)
{
    return (vec_float){(float)(int32_t)x.a, (float)(int32_t)x.b};
}

static inline vec_float float_from_bits(vec_int x)
{
    return (vec_float){mgr_bits_f32(x.a), mgr_bits_f32(x.b)};
}

static inline vec_int bits_from_float(vec_float x)
{
    return (vec_int){mgr_f32_bits(x.a), mgr_f32_bits(x.b)};
}

/* `set` where the top bit of `sign` is set, `clear` elsewhere. */
static inline vec_float float_pick(vec_int sign, vec_float clear, vec_float set)
{
    return (vec_float){sign.a >> 31 ? set.a : clear.a, sign.b >> 31 ? set.b : clear.b};
}

/* Exclusive or with the bits: changes signs. */
static inline vec_float float_flip(vec_float x, vec_int bits)
{
    return float_from_bits(int_xor(bits_from_float(x), bits));
}

/* Lanes of x and y in turn, 32 bits each. */
static inline void store_pairs(unsigned char *to, vec_int x, vec_int y)
{
    const uint32_t lanes[4] = {x.a, y.a, x.b, y.b};
    memcpy(to, lanes, sizeof lanes);
}

/* The upper halves of x and y in turn, 16 bits each. */
static inline void store_halves(unsigned char *to, vec_int x, vec_int y)
{
    const uint16_t lanes[4] = {(uint16_t)(x.a >> 16), (uint16_t)(y.a >> 16), (uint16_t)(x.b >> 16),
                               (uint16_t)(y.b >> 16)};
    memcpy(to, lanes, sizeof lanes);
}

/* SIMD_LANES places of a row: lanes of 32 bits, or their upper halves. */
static inline void store_row(unsigned char *to, vec_int x)
{
    const uint32_t lanes[2] = {x.a, x.b};
    memcpy(to, lanes, sizeof lanes);
}

static inline void store_row_halves(unsigned char *to, vec_int x)
{
    const uint16_t lanes[2] = {(uint16_t)(x.a >> 16), (uint16_t)(x.b >> 16)};
    memcpy(to, lanes, sizeof lanes);
}

#endif
