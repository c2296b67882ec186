/*
 * Prefix codes of deflate (RFC 1951) for given symbols (private to fmt/h5_*.c): lengths by
 * Huffman's method, and the bits that follow from them.
 */
#ifndef MGR_FMT_H5_CODES_H
#define MGR_FMT_H5_CODES_H

#include <stdint.h>

#define MGR_CODE_SYMBOLS 257 /* bytes, and the end of a block */
#define MGR_CODE_LIMIT 14    /* bits */

/* The bits of each symbol, the first one lowest; length 0: not used. */
typedef struct mgr_code {
    uint16_t bits[MGR_CODE_SYMBOLS];
    uint8_t length[MGR_CODE_SYMBOLS];
} mgr_code;

/* A code of lengths of at most `limit` bits for the `n` symbols, each seen count[symbol] times. It
 * has two symbols at least. Pure. */
void mgr_code_make(mgr_code *code, const uint32_t *count, unsigned n, unsigned limit);

#endif
