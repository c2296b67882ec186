/*
 * Prefix codes of deflate (RFC 1951) for given symbols (private to fmt/h5_*.c): lengths by
 * Huffman's method, and the bits that follow from them.
 */
#ifndef MGR_FMT_H5_CODES_H
#define MGR_FMT_H5_CODES_H

#include <stddef.h>
#include <stdint.h>

#define MGR_PREFIX_SYMBOLS 257 /* bytes, and the end of a block */
#define MGR_PREFIX_LIMIT 14    /* bits */

/* The bits of each symbol, the first one lowest; length 0: not used. */
typedef struct mgr_prefix_code {
    uint16_t bits[MGR_PREFIX_SYMBOLS];
    uint8_t length[MGR_PREFIX_SYMBOLS];
} mgr_prefix_code;

/* Add how often each byte is seen. Pure. */
void mgr_count_bytes(const unsigned char *bytes, size_t n, uint32_t count[256]);

/* A code of lengths of at most `limit` bits for the `n` symbols, each seen count[symbol] times. It
 * has two symbols at least. Pure. */
void mgr_prefix_code_make(mgr_prefix_code *code, const uint32_t *count, unsigned n, unsigned limit);

#endif
