/*
 * magnitude_body.h for AVX2; src/CMakeLists.txt gives this file alone the instruction set.
 */
#if defined(__AVX2__)
#include <immintrin.h>

#define LARGEST_REGISTER __m256i
#define largest_load(at) _mm256_loadu_si256((const __m256i *)(const void *)(at))
#define largest_store(at, x) _mm256_storeu_si256((__m256i *)(void *)(at), x)
#define largest_and(x, y) _mm256_and_si256(x, y)
#define largest_of_16(x, y) _mm256_max_epi16(x, y)
#define largest_of_32(x, y) _mm256_max_epi32(x, y)
#define largest_set(word) _mm256_set1_epi32(word)

#include "kern/magnitude_body.h"

const mgr_largest_path mgr_largest_path_avx2 = {BLOCK, largest_2, largest_4};
#else
#include "kern/magnitude.h"

const mgr_largest_path mgr_largest_path_avx2 = {0, NULL, NULL};
#endif
