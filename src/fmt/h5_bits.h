/*
 * A zlib stream (RFC 1950, 1951) bit by bit (private to fmt/h5_*.c): its frame, and blocks that
 * need no code: of bytes as they are, and of zeros.
 */
#ifndef MGR_FMT_H5_BITS_H
#define MGR_FMT_H5_BITS_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Where the stream has got to. What is behind `at` may be overwritten, 8 bytes of it. */
typedef struct mgr_bits {
    unsigned char *at;
    uint64_t held; /* bits that are not written yet, the next one lowest */
    unsigned n;    /* how many, below 8 between two calls */
} mgr_bits;

/* Up to 63 bits may be held. */
static inline void mgr_bits_put(mgr_bits *b, uint64_t bits, unsigned n)
{
    b->held |= bits << b->n;
    b->n += n;
}

/* Whole bytes go out. */
static inline void mgr_bits_flush(mgr_bits *b)
{
    const unsigned whole = b->n / 8;
    memcpy(b->at, &b->held, sizeof b->held);
    assert(b->n < 64);
    b->at += whole;
    b->held >>= 8 * whole;
    b->n &= 7;
}

/* The stream's header; blocks of bytes as they are, and of zeros, 258 of which take 2 bits; and the
 * end, with the Adler-32 of all bytes, which returns where that is. Pure but for the room behind.
 */
void mgr_bits_begin(mgr_bits *b, unsigned char *out);
void mgr_bits_stored(mgr_bits *b, const unsigned char *bytes, size_t n);
void mgr_bits_zeros(mgr_bits *b, size_t n);
unsigned char *mgr_bits_end(mgr_bits *b, uint32_t adler);

#endif
