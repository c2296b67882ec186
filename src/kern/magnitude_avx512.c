/*
 * magnitude_body.h for AVX-512; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX512BW__)
#include <immintrin.h>

#define LARGEST_REGISTER __m512i
#define largest_load(at) _mm512_loadu_si512(at)
#define largest_store(at, x) _mm512_storeu_si512(at, x)
#define largest_and(x, y) _mm512_and_si512(x, y)
#define largest_of_16(x, y) _mm512_max_epi16(x, y)
#define largest_of_32(x, y) _mm512_max_epi32(x, y)
#define largest_set(word) _mm512_set1_epi32(word)

#include "kern/magnitude_body.h"

const mgr_largest_path mgr_largest_path_avx512 = {BLOCK, largest_2, largest_4};
#else
#include "kern/magnitude.h"

const mgr_largest_path mgr_largest_path_avx512 = {0, NULL, NULL};
#endif
