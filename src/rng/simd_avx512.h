/*
 * The operations of normal_body.h for AVX-512 (F, DQ, BW, VL): two times sixteen 32-bit lanes. What
 * each does: simd_scalar.h.
 *
 * A vector is two registers: every step then has two independent chains next to each other, which
 * hides the latency of a product better than the reach of the CPU's scheduler does.
 */
#ifndef MGR_RNG_SIMD_AVX512_H
#define MGR_RNG_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_LANES 32
#define SIMD_HOLD(x) __asm__("" : "+v"((x).a), "+v"((x).b))

typedef struct vec_int {
    __m512i a, b;
} vec_int;

typedef struct vec_float {
    __m512 a, b;
} vec_float;

static inline vec_int int_set(uint32_t x)
{
    return (vec_int){_mm512_set1_epi32((int)x), _mm512_set1_epi32((int)x)};
}

static inline vec_int wide_set(uint32_t x)
{
    return (vec_int){_mm512_set1_epi32((int)x), _mm512_set1_epi32((int)x)};
}

static inline vec_int wide_count(uint32_t first)
{
    return (vec_int){_mm512_add_epi64(_mm512_set1_epi64((long long)first),
                                      _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0)),
                     _mm512_add_epi64(_mm512_set1_epi64((long long)first),
                                      _mm512_set_epi64(15, 14, 13, 12, 11, 10, 9, 8))};
}

static inline vec_int wide_places(uint32_t first, uint32_t step)
{
    const __m512i by = _mm512_set1_epi32((int)step);
    const __m512i a = _mm512_mul_epu32(by, _mm512_set_epi64(28, 24, 20, 16, 12, 8, 4, 0));
    const __m512i second = _mm512_set1_epi32((int)(first + 2 * step));
    return (vec_int){_mm512_add_epi32(a, _mm512_set1_epi32((int)first)),
                     _mm512_add_epi32(a, second)};
}

static inline vec_int wide_product(vec_int x, vec_int y)
{
    return (vec_int){_mm512_mul_epu32(x.a, y.a), _mm512_mul_epu32(x.b, y.b)};
}

static inline vec_int wide_high(vec_int x)
{
    return (vec_int){_mm512_srli_epi64(x.a, 32), _mm512_srli_epi64(x.b, 32)};
}

static inline vec_int wide_join(vec_int low, vec_int high)
{
    return (vec_int){_mm512_mask_shuffle_epi32(low.a, 0xAAAA, high.a, _MM_PERM_CCAA),
                     _mm512_mask_shuffle_epi32(low.b, 0xAAAA, high.b, _MM_PERM_CCAA)};
}

static inline vec_int wide_join_high(vec_int low, vec_int high)
{
    return (vec_int){_mm512_mask_shuffle_epi32(high.a, 0x5555, low.a, _MM_PERM_DDBB),
                     _mm512_mask_shuffle_epi32(high.b, 0x5555, low.b, _MM_PERM_DDBB)};
}

static inline void wide_regroup(vec_int *x, vec_int *y)
{
    const __m512i x_b = x->b;
    x->b = y->a;
    y->a = x_b;
}

static inline vec_int int_add(vec_int x, vec_int y)
{
    return (vec_int){_mm512_add_epi32(x.a, y.a), _mm512_add_epi32(x.b, y.b)};
}

static inline vec_int int_sub(vec_int x, vec_int y)
{
    return (vec_int){_mm512_sub_epi32(x.a, y.a), _mm512_sub_epi32(x.b, y.b)};
}

static inline vec_int int_and(vec_int x, vec_int y)
{
    return (vec_int){_mm512_and_si512(x.a, y.a), _mm512_and_si512(x.b, y.b)};
}

static inline vec_int int_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm512_ternarylogic_epi32(x.a, y.a, z.a, 0xEA),
                     _mm512_ternarylogic_epi32(x.b, y.b, z.b, 0xEA)};
}

static inline vec_int int_not_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm512_ternarylogic_epi32(x.a, y.a, z.a, 0xAE),
                     _mm512_ternarylogic_epi32(x.b, y.b, z.b, 0xAE)};
}

static inline vec_int int_xor(vec_int x, vec_int y)
{
    return (vec_int){_mm512_xor_si512(x.a, y.a), _mm512_xor_si512(x.b, y.b)};
}

static inline vec_int int_xor3(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm512_ternarylogic_epi32(x.a, y.a, z.a, 0x96),
                     _mm512_ternarylogic_epi32(x.b, y.b, z.b, 0x96)};
}

static inline vec_int int_shift_left(vec_int x, unsigned n)
{
    return (vec_int){_mm512_slli_epi32(x.a, n), _mm512_slli_epi32(x.b, n)};
}

static inline vec_int int_shift_right(vec_int x, unsigned n)
{
    return (vec_int){_mm512_srli_epi32(x.a, n), _mm512_srli_epi32(x.b, n)};
}

static inline vec_float float_set(float x)
{
    return (vec_float){_mm512_set1_ps(x), _mm512_set1_ps(x)};
}

static inline vec_float float_add(vec_float x, vec_float y)
{
    return (vec_float){_mm512_add_ps(x.a, y.a), _mm512_add_ps(x.b, y.b)};
}

static inline vec_float float_sub(vec_float x, vec_float y)
{
    return (vec_float){_mm512_sub_ps(x.a, y.a), _mm512_sub_ps(x.b, y.b)};
}

static inline vec_float float_mul(vec_float x, vec_float y)
{
    return (vec_float){_mm512_mul_ps(x.a, y.a), _mm512_mul_ps(x.b, y.b)};
}

static inline vec_float float_sqrt(vec_float x)
{
    return (vec_float){_mm512_sqrt_ps(x.a), _mm512_sqrt_ps(x.b)};
}

static inline vec_float float_from_int(vec_int x)
{
    return (vec_float){_mm512_cvtepi32_ps(x.a), _mm512_cvtepi32_ps(x.b)};
}

static inline vec_float float_from_bits(vec_int x)
{
    return (vec_float){_mm512_castsi512_ps(x.a), _mm512_castsi512_ps(x.b)};
}

static inline vec_int bits_from_float(vec_float x)
{
    return (vec_int){_mm512_castps_si512(x.a), _mm512_castps_si512(x.b)};
}

static inline vec_float float_pick(vec_int word, vec_float clear, vec_float set)
{
    const __m512i bit = _mm512_set1_epi32(2);
    return (vec_float){_mm512_mask_blend_ps(_mm512_test_epi32_mask(word.a, bit), clear.a, set.a),
                       _mm512_mask_blend_ps(_mm512_test_epi32_mask(word.b, bit), clear.b, set.b)};
}

static inline vec_float float_flip(vec_float x, vec_int bits)
{
    return (vec_float){_mm512_xor_ps(x.a, _mm512_castsi512_ps(bits.a)),
                       _mm512_xor_ps(x.b, _mm512_castsi512_ps(bits.b))};
}

static inline void store_pairs_16(unsigned char *to, __m512i x, __m512i y)
{
    /* Index 16 + i is lane i of y. */
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(x, low, y));
    _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi32(x, high, y));
}

static inline void store_pairs(unsigned char *to, vec_int x, vec_int y)
{
    store_pairs_16(to, x.a, y.a);
    store_pairs_16(to + 128, x.b, y.b);
}

static inline void store_halves(unsigned char *to, vec_int x, vec_int y)
{
    const __mmask32 odd = 0xAAAAAAAAu;
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(x.a, 16), y.a));
    _mm512_storeu_si512(to + 64, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(x.b, 16), y.b));
}

static inline void store_row(unsigned char *to, vec_int x)
{
    store_pairs_16(to, x.a, x.b);
}

static inline void store_row_halves(unsigned char *to, vec_int x)
{
    const __mmask32 odd = 0xAAAAAAAAu;
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(x.a, 16), x.b));
}

#endif
