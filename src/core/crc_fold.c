/*
 * CRC-32 by carry-less products of 2 x 128 bits; src/CMakeLists.txt gives this file alone the
 * instruction set.
 *
 * Modulo the polynomial P, 16 bytes may be replaced by a multiple of them further on: the half that
 * comes first times x^(8 D + 32), the other times x^(8 D - 32), added to the 16 bytes that lie D
 * bytes behind. (Bits are reflected, so a product is 1 bit short, which the constants make good;
 * V. Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009.) Four
 * registers fold at a distance of D = 128 bytes, until 128 bytes are left that have the same CRC as
 * all that came before. Those and the tail go the slow way.
 */
#include "core/crc.h"

#include <assert.h>

#if defined(__AVX2__) && defined(__VPCLMULQDQ__)
#include <immintrin.h>
#include <libdeflate.h>

#define REGISTERS (MGR_CRC32_STEP / 32)
/* x^(8 D + 32) and x^(8 D - 32) mod P, reflected, times x. */
#define AHEAD_FIRST 0x1e88ef372
#define AHEAD_SECOND 0x14a7fe880

const bool mgr_crc32_fold_built = true;

static inline __m256i load(const unsigned char *at)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

uint32_t mgr_crc32_fold(uint32_t crc, const unsigned char *bytes, size_t n)
{
    const __m256i ahead = _mm256_set_epi64x(AHEAD_SECOND, AHEAD_FIRST, AHEAD_SECOND, AHEAD_FIRST);
    __m256i left[REGISTERS];
    unsigned char last[MGR_CRC32_STEP];

    assert(n >= MGR_CRC32_STEP);
    for (int i = 0; i < REGISTERS; i++)
        left[i] = load(bytes + 32 * i);
    /* What came before this call is added to the first bits. */
    left[0] = _mm256_xor_si256(left[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, (int)~crc));
    for (bytes += sizeof last, n -= sizeof last; n >= sizeof last; n -= sizeof last) {
        for (int i = 0; i < REGISTERS; i++) {
            const __m256i first = _mm256_clmulepi64_epi128(left[i], ahead, 0x00);
            const __m256i second = _mm256_clmulepi64_epi128(left[i], ahead, 0x11);
            left[i] = _mm256_xor_si256(_mm256_xor_si256(first, second), load(bytes + 32 * i));
        }
        bytes += sizeof last;
    }
    for (int i = 0; i < REGISTERS; i++)
        _mm256_storeu_si256((__m256i *)(void *)(last + 32 * i), left[i]);
    /* ~0: a register of zeros to begin with, for the one given is in the bytes by now. */
    return libdeflate_crc32(libdeflate_crc32(UINT32_MAX, last, sizeof last), bytes, n);
}
#else
const bool mgr_crc32_fold_built = false;

uint32_t mgr_crc32_fold(uint32_t crc, const unsigned char *bytes, size_t n)
{
    (void)bytes, (void)n;
    assert(!"not in this build");
    return crc;
}
#endif
