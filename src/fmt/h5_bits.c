#include "fmt/h5_bits.h"

#define STORED_MAX ((size_t)65535)
#define MATCH_MAX ((size_t)258)

static void align(mgr_bits *b)
{
    b->n = (b->n + 7) & ~7u;
    mgr_bits_flush(b);
}

void mgr_bits_begin(mgr_bits *b, unsigned char *out)
{
    *b = (mgr_bits){.at = out};
    mgr_bits_put(b, 0x0178, 16); /* deflate, a window of 32 KiB, quickly */
    mgr_bits_flush(b);
}

unsigned char *mgr_bits_end(mgr_bits *b, uint32_t adler)
{
    mgr_bits_put(b, 3, 10); /* the last block: empty, with the fixed code */
    align(b);
    for (int i = 24; i >= 0; i -= 8)
        *b->at++ = (unsigned char)(adler >> i);
    return b->at;
}

void mgr_bits_stored(mgr_bits *b, const unsigned char *bytes, size_t n)
{
    while (n > 0) {
        const size_t some = n < STORED_MAX ? n : STORED_MAX;
        mgr_bits_put(b, 0, 3);
        align(b);
        mgr_bits_put(b, some | (uint64_t)(~some & 0xffff) << 16, 32);
        mgr_bits_flush(b);
        memcpy(b->at, bytes, some);
        b->at += some;
        bytes += some;
        n -= some;
    }
}

/* A block whose codes are always these: a match of 258 bytes has 1 bit, 0; the byte zero and the
 * end have 2, 01 and 11; and the one distance, which is 1, has 1 bit, 0. */
static void put_head_of_zeros(mgr_bits *b)
{
    /* not the last block, with codes of its own: of 286 symbols, 1 distance */
    mgr_bits_put(b, 4, 3);
    mgr_bits_put(b, 29 | 0 << 5 | 14 << 10, 14);
    mgr_bits_flush(b);
    /* lengths of codes of lengths: a run of zeros has 1 bit, 0; lengths 1 and 2 have 01 and 11 */
    mgr_bits_put(b, (uint64_t)1 << 6 | (uint64_t)2 << 45 | (uint64_t)2 << 51, 54);
    mgr_bits_flush(b);
    mgr_bits_put(b, 3, 2); /* the byte zero; 138 and 117 that are not used; the end */
    mgr_bits_put(b, 127 << 1, 8);
    mgr_bits_put(b, 106 << 1, 8);
    mgr_bits_put(b, 3, 2);
    mgr_bits_put(b, 17 << 1, 8); /* 28 that are not used; the longest match, and the distance */
    mgr_bits_put(b, 1 | 1 << 2, 4);
    mgr_bits_flush(b);
}

void mgr_bits_zeros(mgr_bits *b, size_t n)
{
    if (n == 0)
        return;
    put_head_of_zeros(b);
    for (size_t i = (n - 1) % MATCH_MAX + 1; i > 0; i--) {
        mgr_bits_put(b, 1, 2);
        mgr_bits_flush(b);
    }
    for (size_t i = (n - 1) / MATCH_MAX; i > 0; i--) {
        mgr_bits_put(b, 0, 2);
        mgr_bits_flush(b);
    }
    mgr_bits_put(b, 3, 2);
    mgr_bits_flush(b);
}
