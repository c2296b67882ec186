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
/* See body_hold. Here compilers keep the order by themselves. */
#define SIMD_HOLD(x) (void)(x)

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

/* first + step * j for the even j of SIMD_LANES; what lies between them is `step` more. */
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

/* The same of the high halves. */
static inline vec_int wide_join_high(vec_int low, vec_int high)
{
    return (vec_int){low.b, high.b};
}

/* Of the lanes of wide_places and of those between them, what wide_join makes vectors of in order:
 * a vector of two registers has every second of its lanes in each. */
static inline void wide_regroup(vec_int *x, vec_int *y)
{
    (void)x, (void)y;
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

/* (x & y) | z */
static inline vec_int int_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){(x.a & y.a) | z.a, (x.b & y.b) | z.b};
}

/* (~x & y) | z */
static inline vec_int int_not_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){(~x.a & y.a) | z.a, (~x.b & y.b) | z.b};
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

/* `set` where bit 1 of `word` is set, `clear` elsewhere. */
static inline vec_float float_pick(vec_int word, vec_float clear, vec_float set)
{
    return (vec_float){word.a & 2 ? set.a : clear.a, word.b & 2 ? set.b : clear.b};
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
