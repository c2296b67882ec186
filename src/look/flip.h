/*
 * Which bit was flipped: CRC-32 is linear, so what one bit changes in it tells where that bit was.
 */
#ifndef MGR_LOOK_FLIP_H
#define MGR_LOOK_FLIP_H

#include <stdbool.h>
#include <stdint.h>

/* If flipping a single bit of `bytes` bytes changes their CRC-32 by `diff` (the two sums xored),
 * *at is the byte that holds it. The polynomial is primitive, so up to 2^32 - 2 bits there is at
 * most one such bit; in more than that nothing is looked for. Pure. */
bool mgr_find_flip(uint32_t diff, uint64_t bytes, uint64_t *at);

#endif
