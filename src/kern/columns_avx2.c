/*
 * columns.h for AVX2; src/CMakeLists.txt gives this file alone the instruction set.
 */
#include "kern/columns.h"

#if defined(__AVX2__)
#include <immintrin.h>
#include <string.h>

#define GROUP MGR_STRIP_GROUP

static inline __m128i load(const void *at)
{
    return _mm_loadu_si128((const __m128i *)at);
}

static inline void store(void *at, __m128i x)
{
    _mm_storeu_si128((__m128i *)at, x);
}

static inline __m256i load_256(const void *at)
{
    return _mm256_loadu_si256((const __m256i *)at);
}

static inline void store_256(void *at, __m256i x)
{
    _mm256_storeu_si256((__m256i *)at, x);
}

static void plan(mgr_strip *strip)
{
    uint32_t k = 0;

    for (uint32_t g = 0; g < strip->n / GROUP; g++) {
        const uint32_t first = strip->first + g * GROUP;
        strip->before[g] = (uint16_t)k;
        /* What a shuffle takes from place 0x80 on is zero. */
        memset(strip->places[g], 0xff, sizeof strip->places[g]);
        for (uint32_t taken = 0; k < strip->n_drawn && strip->drawn[k] - first < GROUP; k++) {
            uint8_t *const place = &strip->places[g][2 * (strip->drawn[k] - first)];
            place[0] = (uint8_t)taken++;
            place[1] = (uint8_t)taken++;
        }
    }
}

/* Two groups at a time: the drawn values of each, which follow each other, are moved apart to their
 * columns. */
static uint32_t merge(const mgr_strip *strip, const void *kept, const void *drawn, void *out)
{
    const uint32_t n_groups = strip->n / GROUP & ~1u;
    const uint16_t *const from = kept, *const taken = drawn;
    uint16_t *const to = out;

    for (uint32_t g = 0; g < n_groups; g += 2) {
        const __m256i places = load_256(strip->places[g]), row = load_256(from + (size_t)g * GROUP);
        const __m256i runs =
            _mm256_inserti128_si256(_mm256_castsi128_si256(load(taken + strip->before[g])),
                                    load(taken + strip->before[g + 1]), 1);
        const __m256i apart = _mm256_shuffle_epi8(runs, places);
        const __m256i others =
            _mm256_and_si256(row, _mm256_cmpgt_epi8(_mm256_setzero_si256(), places));
        store_256(to + (size_t)g * GROUP, _mm256_or_si256(apart, others));
    }
    return n_groups * GROUP;
}

/* A square of 8 x 8, in three rounds: neighbours of one element, of two, of four. */
static inline void turn_square(const uint16_t *from, size_t stride, uint16_t *to, size_t to_stride)
{
    __m128i one[8], two[8], row[8];

    for (int i = 0; i < 8; i++)
        row[i] = load(from + (size_t)i * stride);
    for (int i = 0; i < 4; i++) {
        one[2 * i] = _mm_unpacklo_epi16(row[2 * i], row[2 * i + 1]);
        one[2 * i + 1] = _mm_unpackhi_epi16(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        for (int h = 0; h < 2; h++) {
            two[4 * i + 2 * h] = _mm_unpacklo_epi32(one[4 * i + h], one[4 * i + 2 + h]);
            two[4 * i + 2 * h + 1] = _mm_unpackhi_epi32(one[4 * i + h], one[4 * i + 2 + h]);
        }
    }
    for (int i = 0; i < 4; i++) {
        store(to + (size_t)(2 * i) * to_stride, _mm_unpacklo_epi64(two[i], two[4 + i]));
        store(to + (size_t)(2 * i + 1) * to_stride, _mm_unpackhi_epi64(two[i], two[4 + i]));
    }
}

uint32_t mgr_turn_avx2(const uint16_t *drawn, size_t stride, uint32_t n_rows, uint16_t *out,
                       size_t out_stride)
{
    uint32_t r = 0;

    for (; r + 8 <= n_rows; r += 8)
        for (uint32_t j = 0; j < MGR_TURNED; j += 8)
            turn_square(drawn + j * stride + r, stride, out + r * out_stride + j, out_stride);
    return r;
}

const mgr_columns_path mgr_columns_path_avx2 = {plan, merge, NULL};
#else
uint32_t mgr_turn_avx2(const uint16_t *drawn, size_t stride, uint32_t n_rows, uint16_t *out,
                       size_t out_stride)
{
    (void)drawn, (void)stride, (void)n_rows, (void)out, (void)out_stride;
    return 0;
}

const mgr_columns_path mgr_columns_path_avx2 = {NULL, NULL, NULL};
#endif
