/*
 * Deflating the bytes of weights, shuffled: first bytes of all elements, then the second ones, ...
 *
 * Such a plane is either noise (mantissas), which no coder makes smaller; or bytes of few values
 * without order (signs and exponents), for which Huffman's code is all that helps; or it repeats
 * itself (zeros, copies of rows), which a search for matches finds. Looking which it is costs a
 * small part of searching in vain, and one stream of deflate may hold blocks of all three kinds.
 * zlib is asked where something repeats itself; all else is so simple that it is done here.
 */
#include <assert.h>
#include <libdeflate.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <zlib.h>

#include "fmt/h5_codes.h"
#include "fmt/h5_filter.h"
#include "fmt/h5_literals.h"

#define VALUES 256
/* Bits that a byte holds from which on nothing is gained: a code saves less than 2 %. */
#define NOISE_BITS 7.85
/* Blocks that are compared with the last one of the same hash. */
#define WORD ((size_t)8)
#define HASH_BITS 12
/* One in so many known blocks is more than chance. */
#define REPEATS_MIN 64

/* How many of the bytes are looked at to tell which kind a plane is: the first of each stretch. */
#define LOOKED_AT ((size_t)4096)
#define STRETCH ((size_t)32768)
#define ELEMENT_MAX 8
#define VECTOR ((size_t)64) /* elements */
/* Elements that are zeros at the end, from which on they have a block of their own. */
#define ZEROS_MIN ((size_t)256)

typedef enum kind { NOISE, LITERALS, REPEATED } kind;

size_t mgr_h5_packed_bound(size_t len)
{
    return compressBound(len) + 64; /* planes end blocks early */
}

static double bits_of_byte(const unsigned char *plane, size_t n)
{
    uint32_t count[VALUES] = {0};
    double bits = 0;
    size_t seen = 0;
    for (size_t from = 0; from < n; from += STRETCH) {
        const size_t some = n - from < LOOKED_AT ? n - from : LOOKED_AT;
        mgr_count_bytes(plane + from, some, count);
        seen += some;
    }
    for (size_t v = 0; v < VALUES; v++) {
        const double part = (double)count[v] / (double)seen;
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

static kind kind_of(const unsigned char *plane, size_t n)
{
    if (n == 0)
        return NOISE;
    if (n < WORD || repeats_itself(plane, n))
        return REPEATED;
    return bits_of_byte(plane, n) >= NOISE_BITS ? NOISE : LITERALS;
}

/* `len` bytes, shuffled: a plane has one byte of each of n elements, and the last one the rest as
 * well. From element `used` on all are zeros, unless that is n. */
typedef struct planes {
    unsigned char *bytes;
    size_t len, element, n, used;
    kind kinds[ELEMENT_MAX];
} planes;

static size_t plane_bytes(const planes *p, size_t b)
{
    return b + 1 < p->element ? p->n : p->len - b * p->n;
}

static size_t used_bytes(const planes *p, size_t b)
{
    return p->used < p->n ? p->used : plane_bytes(p, b);
}

/* Zeros that fill up the end: as much as is worth a block. */
static size_t used_elements(const unsigned char *bytes, size_t len, size_t element)
{
    size_t end = len;
    for (uint64_t word = 0; end >= sizeof word; end -= sizeof word) {
        memcpy(&word, bytes + end - sizeof word, sizeof word);
        if (word)
            break;
    }
    const size_t n = len / element, used = (end + element - 1) / element;
    return used + ZEROS_MIN <= n ? used : n;
}

/* Of what is used; does a plane repeat itself? */
static bool find_kinds(planes *p)
{
    bool repeated = false;
    for (size_t b = 0; b < p->element; b++) {
        p->kinds[b] = kind_of(p->bytes + b * p->n, used_bytes(p, b));
        repeated = repeated || p->kinds[b] == REPEATED;
    }
    return repeated;
}

/* The planes in turn, through one stream of zlib's. */
static int deflate_planes(z_stream *z, const planes *p, unsigned level)
{
    for (size_t b = 0; b < p->element; b++) {
        const bool last = b + 1 == p->element;
        const size_t n = plane_bytes(p, b);
        if (n == 0 && !last)
            continue;
        if (deflateParams(z, p->kinds[b] == NOISE ? 0 : (int)level,
                          p->kinds[b] == LITERALS ? Z_HUFFMAN_ONLY : Z_DEFAULT_STRATEGY) != Z_OK)
            return Z_STREAM_ERROR;
        z->next_in = p->bytes + b * p->n;
        z->avail_in = (uInt)n;
        const int rc = deflate(z, last ? Z_FINISH : Z_NO_FLUSH);
        if (rc != (last ? Z_STREAM_END : Z_OK) || z->avail_in)
            return Z_STREAM_ERROR;
    }
    return Z_OK;
}

/* Of two bytes: in stretches of a length that the compiler knows, so that it needs no others. */
static void shuffle_pairs(const unsigned char *restrict bytes, size_t n,
                          unsigned char *restrict low, unsigned char *restrict high)
{
    size_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        for (size_t k = i; k < i + VECTOR; k++) {
            low[k] = bytes[2 * k];
            high[k] = bytes[2 * k + 1];
        }
    for (; i < n; i++) {
        low[i] = bytes[2 * i];
        high[i] = bytes[2 * i + 1];
    }
}

/* The first bytes of all elements, then the second ones, ... */
static void shuffle(const unsigned char *bytes, size_t len, size_t element, unsigned char *out)
{
    const size_t n = len / element;
    if (element == 2)
        shuffle_pairs(bytes, n, out, out + n);
    else
        for (size_t b = 0; b < element; b++)
            for (size_t i = 0; i < n; i++)
                out[b * n + i] = bytes[i * element + b];
    memcpy(out + n * element, bytes + n * element, len - n * element);
}

/* Zeros at the end are then as other bytes. */
static int pack_by_zlib(planes *p, unsigned level, void *out, size_t *out_len, mgr_err *err)
{
    z_stream z = {.next_out = out, .avail_out = (uInt)mgr_h5_packed_bound(p->len)};
    if (deflateInit(&z, (int)level) != Z_OK)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory to deflate %zu bytes", p->len);
    p->used = p->n;
    (void)find_kinds(p);
    const int rc = deflate_planes(&z, p, level);
    *out_len = z.total_out;
    deflateEnd(&z);
    return rc == Z_OK ? MGR_OK
                      : mgr_fail(err, MGR_ERR_INTERNAL, "zlib does not deflate %zu bytes", p->len);
}

static size_t pack_by_bytes(const planes *p, mgr_pairs *pairs, unsigned char *out)
{
    mgr_bits bits;
    mgr_bits_begin(&bits, out);
    for (size_t b = 0; b < p->element; b++) {
        const unsigned char *const plane = p->bytes + b * p->n;
        const size_t used = used_bytes(p, b);
        if (p->kinds[b] == NOISE)
            mgr_bits_stored(&bits, plane, used);
        else
            mgr_bits_literals(&bits, plane, used, pairs);
        mgr_bits_zeros(&bits, plane_bytes(p, b) - used);
    }
    return (size_t)(mgr_bits_end(&bits, libdeflate_adler32(1, p->bytes, p->len)) - out);
}

/* Where in the scratch bytes the coder's room begins. */
static size_t behind_planes(size_t len)
{
    return (len + 63) & ~(size_t)63;
}

size_t mgr_h5_pack_scratch(size_t len)
{
    return behind_planes(len) + sizeof(mgr_pairs);
}

int mgr_h5_pack(const void *bytes, size_t len, size_t element, unsigned level, void *scratch,
                void *out, size_t *out_len, mgr_err *err)
{
    planes p = {.bytes = scratch, .len = len, .element = element};
    void *const pairs = p.bytes + behind_planes(len);
    assert(element > 0 && element <= ELEMENT_MAX);
    p.n = len / element;
    p.used = used_elements(bytes, len, element);
    shuffle(bytes, len, element, p.bytes);
    if (find_kinds(&p))
        return pack_by_zlib(&p, level, out, out_len, err);
    *out_len = pack_by_bytes(&p, pairs, out);
    return MGR_OK;
}
