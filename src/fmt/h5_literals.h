/*
 * A zlib stream (RFC 1950, 1951) of stored and of literal-only blocks: for bytes in which a search
 * for matches would be in vain. Faster than zlib with Z_HUFFMAN_ONLY, and whatever the bytes, no
 * larger than if they were stored.
 */
#ifndef MGR_FMT_H5_LITERALS_H
#define MGR_FMT_H5_LITERALS_H

#include <stddef.h>
#include <stdint.h>

/* Where the stream has got to. What is behind `at` may be overwritten, 8 bytes of it. */
typedef struct mgr_bits {
    unsigned char *at;
    uint64_t held; /* bits that are not written yet, the next one lowest */
    unsigned n;    /* how many, below 8 between two calls */
} mgr_bits;

/* The stream's header; bytes as they are; bytes in codes of their own, a code for each 128 KiB; and
 * its end, with the Adler-32 of all bytes. Returns where it ends. Pure but for the room behind. */
void mgr_bits_begin(mgr_bits *b, unsigned char *out);
void mgr_bits_stored(mgr_bits *b, const unsigned char *bytes, size_t n);
void mgr_bits_literals(mgr_bits *b, const unsigned char *bytes, size_t n);
unsigned char *mgr_bits_end(mgr_bits *b, uint32_t adler);

#endif
