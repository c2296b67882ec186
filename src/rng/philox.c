/*
 * Philox4x32-10, one block at a time. The vector paths (normal_body.h) compute the same words.
 */
#include "rng/normal.h"

void mgr_philox_schedule(uint64_t seed, uint32_t key[MGR_PHILOX_ROUNDS][2])
{
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
    for (int r = 0; r < MGR_PHILOX_ROUNDS; r++) {
        key[r][0] = low;
        key[r][1] = high;
        low += MGR_PHILOX_WEYL_0;
        high += MGR_PHILOX_WEYL_1;
    }
}

void mgr_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t keys[MGR_PHILOX_ROUNDS][2];

    mgr_philox_schedule(key[0] | (uint64_t)key[1] << 32, keys);
    for (int r = 0; r < MGR_PHILOX_ROUNDS; r++) {
        const uint64_t p0 = (uint64_t)c0 * MGR_PHILOX_MULTIPLIER_0;
        const uint64_t p1 = (uint64_t)c2 * MGR_PHILOX_MULTIPLIER_1;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ keys[r][0];
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ keys[r][1];
        c3 = (uint32_t)p0;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}
