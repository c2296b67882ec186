/*
 * CRC-32 by carry-less products, written once for registers of 256 and of 512 bits: a file that
 * includes this first defines FOLD_REGISTER, the operations below, and FOLD_FIRST and FOLD_SECOND.
 *
 * Modulo the polynomial P, 16 bytes may be replaced by a multiple of them further on: the half that
 * comes first times x^(8 D + 32), the other times x^(8 D - 32), added to the 16 bytes that lie D
 * bytes behind. (Bits are reflected, so a product is 1 bit short, which the constants make good;
 * V. Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009.) So many
 * registers that products need not wait fold at a distance of D = FOLD_STEP bytes, until D bytes
 * are left that have the same CRC as all that came before. Those and the tail go the slow way.
 *
 *   fold_load(at)              a register of bytes
 *   fold_store(at, x)
 *   fold_pairs(first, second)  of 64 bits each, in all pairs of lanes
 *   fold_add(x, y, z)          exclusive or of three
 *   fold_begin(word)           32 bits in the first lane, zeros behind
 *   fold_product(x, y, which)  of each pair's first (0x00) or second (0x11) lanes
 */
#include "core/crc.h"

#include <assert.h>
#include <libdeflate.h>

#define FOLD_REGISTERS (FOLD_STEP / sizeof(FOLD_REGISTER))

static uint32_t fold(uint32_t crc, const unsigned char *bytes, size_t n)
{
    const FOLD_REGISTER ahead = fold_pairs(FOLD_FIRST, FOLD_SECOND);
    FOLD_REGISTER left[FOLD_REGISTERS];
    unsigned char last[FOLD_STEP];

    assert(n >= FOLD_STEP);
    for (size_t i = 0; i < FOLD_REGISTERS; i++)
        left[i] = fold_load(bytes + sizeof *left * i);
    /* What came before this call is added to the first bits. */
    left[0] = fold_add(left[0], fold_begin(~crc), fold_begin(0));
    for (bytes += FOLD_STEP, n -= FOLD_STEP; n >= FOLD_STEP; n -= FOLD_STEP) {
        for (size_t i = 0; i < FOLD_REGISTERS; i++)
            left[i] =
                fold_add(fold_product(left[i], ahead, 0x00), fold_product(left[i], ahead, 0x11),
                         fold_load(bytes + sizeof *left * i));
        bytes += FOLD_STEP;
    }
    for (size_t i = 0; i < FOLD_REGISTERS; i++)
        fold_store(last + sizeof *left * i, left[i]);
    /* ~0: a register of zeros to begin with, for the one given is in the bytes by now. */
    return libdeflate_crc32(libdeflate_crc32(UINT32_MAX, last, sizeof last), bytes, n);
}
