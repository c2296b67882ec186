/*
 * The largest magnitude of whole blocks, written once for registers of 256 and of 512 bits: a file
 * that includes this first defines LARGEST_REGISTER and the operations below.
 *
 *   largest_load(at)       a register of values
 *   largest_and(x, y)
 *   largest_of_16(x, y)    the larger of each two signed lanes of 16 bits
 *   largest_of_32(x, y)    the same of 32 bits
 *   largest_set(word)      32 bits in all lanes
 *   largest_store(at, x)
 */
#include "kern/magnitude.h"

#include <string.h>

/* So many run beside each other. */
#define REGISTERS 4
#define BLOCK (REGISTERS * sizeof(LARGEST_REGISTER))

/* In lanes of 16 bits, or of 32. */
static inline __attribute__((always_inline)) void
largest_lanes(const unsigned char *values, size_t n_blocks, int bits, unsigned char lanes[BLOCK])
{
    const LARGEST_REGISTER magnitude = largest_set(bits == 16 ? 0x7fff7fff : 0x7fffffff);
    LARGEST_REGISTER most[REGISTERS];

    for (size_t i = 0; i < REGISTERS; i++)
        most[i] = largest_set(0);
    for (size_t b = 0; b < n_blocks; b++, values += BLOCK)
        for (size_t i = 0; i < REGISTERS; i++) {
            const LARGEST_REGISTER x =
                largest_and(largest_load(values + i * sizeof(LARGEST_REGISTER)), magnitude);
            most[i] = bits == 16 ? largest_of_16(most[i], x) : largest_of_32(most[i], x);
        }
    for (size_t i = 0; i < REGISTERS; i++)
        largest_store(lanes + i * sizeof(LARGEST_REGISTER), most[i]);
}

static uint32_t largest_2(const unsigned char *values, size_t n_blocks)
{
    uint16_t lanes[BLOCK / 2], most = 0;
    largest_lanes(values, n_blocks, 16, (unsigned char *)lanes);
    for (size_t i = 0; i < BLOCK / 2; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}

static uint32_t largest_4(const unsigned char *values, size_t n_blocks)
{
    uint32_t lanes[BLOCK / 4], most = 0;
    largest_lanes(values, n_blocks, 32, (unsigned char *)lanes);
    for (size_t i = 0; i < BLOCK / 4; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}
