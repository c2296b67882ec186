/*
 * crc_fold_body.h for registers of 512 bits; src/CMakeLists.txt gives this file alone the
 * instruction set.
 */
#include "core/crc.h"

#if defined(__AVX512F__) && defined(__VPCLMULQDQ__)
#include <immintrin.h>

#define FOLD_REGISTER __m512i
#define FOLD_STEP MGR_CRC32_STEP_512
/* x^(8 D + 32) and x^(8 D - 32) mod P, reflected, times x. */
#define FOLD_FIRST 0x01072db28
#define FOLD_SECOND 0x1d741f35c
#define fold_load(at) _mm512_loadu_si512(at)
#define fold_store(at, x) _mm512_storeu_si512(at, x)
#define fold_pairs(first, second)                                                                  \
    _mm512_set_epi64(second, first, second, first, second, first, second, first)
#define fold_add(x, y, z) _mm512_ternarylogic_epi64(x, y, z, 0x96)
#define fold_begin(word) _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)(word)))
#define fold_product(x, y, which) _mm512_clmulepi64_epi128(x, y, which)

#include "core/crc_fold_body.h"

mgr_crc32_kernel *const mgr_crc32_fold_512 = fold;
#else
mgr_crc32_kernel *const mgr_crc32_fold_512 = NULL;
#endif
