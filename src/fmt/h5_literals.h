/*
 * Blocks of a zlib stream that hold literals alone: for bytes in which a search for matches would
 * be in vain. Faster than zlib with Z_HUFFMAN_ONLY, and whatever the bytes, no larger than if they
 * were stored.
 */
#ifndef MGR_FMT_H5_LITERALS_H
#define MGR_FMT_H5_LITERALS_H

#include "fmt/h5_bits.h"

/* Two bytes as one symbol, by what they are as a number: room for the coder. Of a code only the
 * pairs that a block uses are made and looked at, so the caches hold it. */
typedef struct mgr_pairs {
    struct mgr_pair {
        uint32_t bits, length;
    } of[1 << 16];
    uint16_t seen[1 << 16];
} mgr_pairs;

/* Bytes in codes of their own, a code for each 128 KiB. *pairs need not be set. Pure but for the
 * room behind. */
void mgr_bits_literals(mgr_bits *b, const unsigned char *bytes, size_t n, mgr_pairs *pairs);

#endif
