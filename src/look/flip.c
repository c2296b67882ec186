#include "look/flip.h"

#include <stddef.h>

#define POLYNOMIAL UINT32_C(0xedb88320) /* reflected, as in zlib */
#define MOST_BYTES (UINT32_MAX / 8)

bool mgr_find_flip(uint32_t diff, uint64_t bytes, uint64_t *at)
{
    if (bytes > MOST_BYTES)
        return false;
    /* back from the end: undo one bit at a time until only the flipped bit itself is left */
    uint32_t state = diff;
    for (uint64_t bit = bytes * 8; bit-- > 0;) {
        const bool high = state >> 31;
        state = high ? (state ^ POLYNOMIAL) << 1 | 1 : state << 1;
        if (state == 1) {
            *at = bit / 8;
            return true;
        }
    }
    return false;
}
