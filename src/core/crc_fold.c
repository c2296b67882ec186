/*
 * crc_fold_body.h for registers of 256 bits; src/CMakeLists.txt gives this file alone the
 * instruction set.
 */
#include "core/crc.h"

#if defined(__AVX2__) && defined(__VPCLMULQDQ__)
#include <immintrin.h>

#define FOLD_REGISTER __m256i
#define FOLD_STEP MGR_CRC32_STEP
/* x^(8 D + 32) and x^(8 D - 32) mod P, reflected, times x. */
#define FOLD_FIRST 0x1e88ef372
#define FOLD_SECOND 0x14a7fe880
#define fold_load(at) _mm256_loadu_si256((const __m256i *)(const void *)(at))
#define fold_store(at, x) _mm256_storeu_si256((__m256i *)(void *)(at), x)
#define fold_pairs(first, second) _mm256_set_epi64x(second, first, second, first)
#define fold_add(x, y, z) _mm256_xor_si256(_mm256_xor_si256(x, y), z)
#define fold_begin(word) _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, (int)(word))
#define fold_product(x, y, which) _mm256_clmulepi64_epi128(x, y, which)

#include "core/crc_fold_body.h"

mgr_crc32_kernel *const mgr_crc32_fold_256 = fold;
#else
mgr_crc32_kernel *const mgr_crc32_fold_256 = NULL;
#endif
