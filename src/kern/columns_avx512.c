/*
 * columns.h for AVX-512 with VBMI2, which moves values apart by a mask; src/CMakeLists.txt gives
 * this file alone the instruction set.
 */
#include "kern/columns.h"

#if defined(__AVX512VBMI2__) && defined(__AVX512BW__)
#include <immintrin.h>

#define GROUP 32

static void plan(mgr_strip *strip)
{
    uint32_t k = 0;

    for (uint32_t g = 0; g * GROUP < strip->n; g++) {
        const uint32_t first = strip->first + g * GROUP;
        uint32_t mask = 0;
        strip->before[g] = (uint16_t)k;
        for (; k < strip->n_drawn && strip->drawn[k] - first < GROUP; k++)
            mask |= 1u << (strip->drawn[k] - first);
        strip->masks[g] = mask;
    }
}

/* The columns of group `g` that are there. */
static inline uint32_t columns_of(const mgr_strip *strip, uint32_t g)
{
    const uint32_t left = strip->n - g * GROUP;
    return left < GROUP ? (1u << left) - 1 : UINT32_MAX;
}

static uint32_t merge_2(const mgr_strip *strip, const void *kept, const void *drawn, void *out)
{
    const uint16_t *const from = kept, *const taken = drawn;
    uint16_t *const to = out;

    for (uint32_t g = 0; g * GROUP < strip->n; g++) {
        const __mmask32 there = columns_of(strip, g);
        const __m512i row = _mm512_maskz_loadu_epi16(there, from + (size_t)g * GROUP);
        __m512i run = _mm512_loadu_si512(taken + strip->before[g]);
        __asm__("" : "+v"(run)); /* expanding what is in memory takes longer */
        _mm512_mask_storeu_epi16(to + (size_t)g * GROUP, there,
                                 _mm512_mask_expand_epi16(row, strip->masks[g], run));
    }
    return strip->n;
}

/* Half of a group. */
static inline void merge_half(uint32_t there, uint32_t mask, const float *kept, const float *drawn,
                              float *out)
{
    const __m512 row = _mm512_maskz_loadu_ps((__mmask16)there, kept);
    const __m512 run = _mm512_loadu_ps(drawn);
    _mm512_mask_storeu_ps(out, (__mmask16)there, _mm512_mask_expand_ps(row, (__mmask16)mask, run));
}

static uint32_t merge_4(const mgr_strip *strip, const void *kept, const void *drawn, void *out)
{
    const float *const from = kept, *const taken = drawn;
    float *const to = out;

    for (uint32_t g = 0; g * GROUP < strip->n; g++) {
        const uint32_t there = columns_of(strip, g), mask = strip->masks[g];
        const size_t at = (size_t)g * GROUP, k = strip->before[g];
        merge_half(there, mask, from + at, taken + k, to + at);
        merge_half(there >> 16, mask >> 16, from + at + GROUP / 2,
                   taken + k + (unsigned)__builtin_popcount(mask & 0xffffu), to + at + GROUP / 2);
    }
    return strip->n;
}

const mgr_columns_path mgr_columns_path_avx512 = {plan, merge_2, merge_4};
#else
const mgr_columns_path mgr_columns_path_avx512 = {NULL, NULL, NULL};
#endif
