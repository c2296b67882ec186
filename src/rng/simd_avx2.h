/*
 * The operations of normal_body.h for AVX2: two times eight 32-bit lanes. What each does:
 * simd_scalar.h.
 *
 * A vector is two registers: every step then has two independent chains next to each other, which
 * hides the latency of a product better than the reach of the CPU's scheduler does.
 */
#ifndef MGR_RNG_SIMD_AVX2_H
#define MGR_RNG_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_LANES 16
#define SIMD_HOLD(x) __asm__("" : "+x"((x).a), "+x"((x).b))

typedef struct vec_int {
    __m256i a, b;
} vec_int;

typedef struct vec_float {
    __m256 a, b;
} vec_float;

static inline vec_int int_set(uint32_t x)
{
    return (vec_int){_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};
}

static inline vec_int wide_set(uint32_t x)
{
    return (vec_int){_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};
}

static inline vec_int wide_count(uint32_t first)
{
    return (vec_int){
        _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_set_epi64x(3, 2, 1, 0)),
        _mm256_add_epi64(_mm256_set1_epi64x((long long)first), _mm256_set_epi64x(7, 6, 5, 4))};
}

static inline vec_int wide_places(uint32_t first, uint32_t step)
{
    const __m256i by = _mm256_set1_epi32((int)step);
    const __m256i a = _mm256_mul_epu32(by, _mm256_set_epi64x(12, 8, 4, 0));
    const __m256i second = _mm256_set1_epi32((int)(first + 2 * step));
    return (vec_int){_mm256_add_epi32(a, _mm256_set1_epi32((int)first)),
                     _mm256_add_epi32(a, second)};
}

static inline vec_int wide_product(vec_int x, vec_int y)
{
    return (vec_int){_mm256_mul_epu32(x.a, y.a), _mm256_mul_epu32(x.b, y.b)};
}

static inline vec_int wide_high(vec_int x)
{
    return (vec_int){_mm256_srli_epi64(x.a, 32), _mm256_srli_epi64(x.b, 32)};
}

static inline vec_int wide_join(vec_int low, vec_int high)
{
    return (vec_int){_mm256_blend_epi32(low.a, _mm256_slli_epi64(high.a, 32), 0xAA),
                     _mm256_blend_epi32(low.b, _mm256_slli_epi64(high.b, 32), 0xAA)};
}

static inline vec_int wide_join_high(vec_int low, vec_int high)
{
    return (vec_int){_mm256_blend_epi32(_mm256_srli_epi64(low.a, 32), high.a, 0xAA),
                     _mm256_blend_epi32(_mm256_srli_epi64(low.b, 32), high.b, 0xAA)};
}

static inline void wide_regroup(vec_int *x, vec_int *y)
{
    const __m256i x_b = x->b;
    x->b = y->a;
    y->a = x_b;
}

static inline vec_int int_add(vec_int x, vec_int y)
{
    return (vec_int){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}

static inline vec_int int_sub(vec_int x, vec_int y)
{
    return (vec_int){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}

static inline vec_int int_and(vec_int x, vec_int y)
{
    return (vec_int){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}

static inline vec_int int_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm256_or_si256(_mm256_and_si256(x.a, y.a), z.a),
                     _mm256_or_si256(_mm256_and_si256(x.b, y.b), z.b)};
}

static inline vec_int int_not_and_or(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm256_or_si256(_mm256_andnot_si256(x.a, y.a), z.a),
                     _mm256_or_si256(_mm256_andnot_si256(x.b, y.b), z.b)};
}

static inline vec_int int_xor(vec_int x, vec_int y)
{
    return (vec_int){_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)};
}

static inline vec_int int_xor3(vec_int x, vec_int y, vec_int z)
{
    return (vec_int){_mm256_xor_si256(x.a, _mm256_xor_si256(y.a, z.a)),
                     _mm256_xor_si256(x.b, _mm256_xor_si256(y.b, z.b))};
}

static inline vec_int int_shift_left(vec_int x, int n)
{
    return (vec_int){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}

static inline vec_int int_shift_right(vec_int x, int n)
{
    return (vec_int){_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};
}

static inline vec_float float_set(float x)
{
    return (vec_float){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

static inline vec_float float_add(vec_float x, vec_float y)
{
    return (vec_float){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

static inline vec_float float_sub(vec_float x, vec_float y)
{
    return (vec_float){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}

static inline vec_float float_mul(vec_float x, vec_float y)
{
    return (vec_float){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

static inline vec_float float_sqrt(vec_float x)
{
    return (vec_float){_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)};
}

static inline vec_float float_from_int(vec_int x)
{
    return (vec_float){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

static inline vec_float float_from_bits(vec_int x)
{
    return (vec_float){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}

static inline vec_int bits_from_float(vec_float x)
{
    return (vec_int){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}

static inline vec_float float_pick(vec_int word, vec_float clear, vec_float set)
{
    const vec_int sign = int_shift_left(word, 30);
    return (vec_float){_mm256_blendv_ps(clear.a, set.a, _mm256_castsi256_ps(sign.a)),
                       _mm256_blendv_ps(clear.b, set.b, _mm256_castsi256_ps(sign.b))};
}

static inline vec_float float_flip(vec_float x, vec_int bits)
{
    return (vec_float){_mm256_xor_ps(x.a, _mm256_castsi256_ps(bits.a)),
                       _mm256_xor_ps(x.b, _mm256_castsi256_ps(bits.b))};
}

static inline void store_pairs_8(unsigned char *to, __m256i x, __m256i y)
{
    const __m256i low = _mm256_unpacklo_epi32(x, y);  /* pairs 0, 1, 4, 5 */
    const __m256i high = _mm256_unpackhi_epi32(x, y); /* pairs 2, 3, 6, 7 */
    _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(to + 32), _mm256_permute2x128_si256(low, high, 0x31));
}

static inline void store_pairs(unsigned char *to, vec_int x, vec_int y)
{
    store_pairs_8(to, x.a, y.a);
    store_pairs_8(to + 64, x.b, y.b);
}

static inline void store_halves(unsigned char *to, vec_int x, vec_int y)
{
    const __m256i a = _mm256_blend_epi16(_mm256_srli_epi32(x.a, 16), y.a, 0xAA);
    const __m256i b = _mm256_blend_epi16(_mm256_srli_epi32(x.b, 16), y.b, 0xAA);
    _mm256_storeu_si256((__m256i *)to, a);
    _mm256_storeu_si256((__m256i *)(to + 32), b);
}

static inline void store_row(unsigned char *to, vec_int x)
{
    store_pairs_8(to, x.a, x.b);
}

static inline void store_row_halves(unsigned char *to, vec_int x)
{
    const __m256i row = _mm256_blend_epi16(_mm256_srli_epi32(x.a, 16), x.b, 0xAA);
    _mm256_storeu_si256((__m256i *)to, row);
}

#endif
