/*
 * Deflating the bytes of weights, shuffled: first bytes of all elements, then the second ones, ...
 *
 * Such a plane is either noise (mantissas), which no coder makes smaller; or bytes of few values
 * without order (signs and exponents), for which Huffman's code is all that helps; or it repeats
 * itself (zeros, copies of rows), which a search for matches finds. Looking which it is costs a
 * small part of searching in vain, and one stream of deflate may hold blocks of all three kinds.
 */
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <zlib.h>

#include "fmt/h5_filter.h"

#define VALUES 256
/* Bits that a byte holds from which on nothing is gained: a code saves less than 2 %. */
#define NOISE_BITS 7.85
/* Blocks that are compared with the last one of the same hash. */
#define WORD ((size_t)8)
#define HASH_BITS 12
/* One in so many known blocks is more than chance. */
#define REPEATS_MIN 64

/* How a plane is packed: level and strategy of zlib. */
typedef struct coder {
    int level, strategy;
} coder;

size_t mgr_h5_packed_bound(size_t len)
{
    return compressBound(len) + 64; /* planes end blocks early */
}

static double bits_of_byte(const unsigned char *plane, size_t n)
{
    uint32_t count[4][VALUES] = {{0}}; /* four, as one would wait for itself */
    double bits = 0;
    for (size_t i = 0; i < n; i++)
        count[i % 4][plane[i]]++;
    for (size_t v = 0; v < VALUES; v++) {
        const double part =
            (double)(count[0][v] + count[1][v] + count[2][v] + count[3][v]) / (double)n;
        bits -= part > 0 ? part * log2(part) : 0;
    }
    return bits;
}

static bool repeats_itself(const unsigned char *plane, size_t n)
{
    uint64_t seen[1 << HASH_BITS] = {0};
    size_t known = 0;
    const size_t words = n / WORD;
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, plane + i * WORD, WORD);
        uint64_t *const last = &seen[word * 0x9E3779B97F4A7C15u >> (64 - HASH_BITS)];
        known += *last == word;
        *last = word;
    }
    return known > words / REPEATS_MIN;
}

static coder choose(const unsigned char *plane, size_t n, unsigned level)
{
    if (n < WORD || repeats_itself(plane, n))
        return (coder){(int)level, Z_DEFAULT_STRATEGY};
    return bits_of_byte(plane, n) >= NOISE_BITS ? (coder){0, Z_DEFAULT_STRATEGY}
                                                : (coder){(int)level, Z_HUFFMAN_ONLY};
}

/* The planes of `len` bytes in `from`, in turn, through one stream. */
static int deflate_planes(z_stream *z, unsigned char *from, size_t len, size_t element,
                          unsigned level)
{
    const size_t plane = len / element;
    for (size_t b = 0; b < element; b++) {
        const bool last = b + 1 == element;
        const size_t n = last ? len - b * plane : plane;
        if (n == 0 && !last)
            continue;
        const coder with = choose(from + b * plane, n, level);
        if (deflateParams(z, with.level, with.strategy) != Z_OK)
            return Z_STREAM_ERROR;
        z->next_in = from + b * plane;
        z->avail_in = (uInt)n;
        const int rc = deflate(z, last ? Z_FINISH : Z_NO_FLUSH);
        if (rc != (last ? Z_STREAM_END : Z_OK) || z->avail_in)
            return Z_STREAM_ERROR;
    }
    return Z_OK;
}

/* The first bytes of all elements, then the second ones, ... */
static void shuffle(const unsigned char *bytes, size_t len, size_t element, unsigned char *out)
{
    const size_t n = len / element;
    for (size_t b = 0; b < element; b++)
        for (size_t i = 0; i < n; i++)
            out[b * n + i] = bytes[i * element + b];
    memcpy(out + n * element, bytes + n * element, len - n * element);
}

int mgr_h5_pack(const void *bytes, size_t len, size_t element, unsigned level, void *scratch,
                void *out, size_t *out_len, mgr_err *err)
{
    z_stream z = {.next_out = out, .avail_out = (uInt)mgr_h5_packed_bound(len)};
    shuffle(bytes, len, element, scratch);
    if (deflateInit(&z, (int)level) != Z_OK)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory to deflate %zu bytes", len);
    const int rc = deflate_planes(&z, scratch, len, element, level);
    *out_len = z.total_out;
    deflateEnd(&z);
    return rc == Z_OK ? MGR_OK
                      : mgr_fail(err, MGR_ERR_INTERNAL, "zlib does not deflate %zu bytes", len);
}
