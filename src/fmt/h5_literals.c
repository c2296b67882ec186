#include "fmt/h5_literals.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define STORED_MAX ((size_t)65535)
#define BLOCK (2 * STORED_MAX)
#define LITERALS 257 /* and the end of a block */
#define END 256
#define LENGTHS (LITERALS + 1) /* and of the one distance, which is never used */
#define LIMIT 14               /* of 15: then four of them and 7 bits more are 63 */
#define CODES 19               /* of lengths: 0 to 15, and runs of zeros */
#define CODES_LIMIT 7
#define SHORT_RUN 17 /* 3 to 10, in 3 bits */
#define LONG_RUN 18  /* 11 to 138, in 7 bits */

/* A prefix code: the bits of each symbol, the first one lowest. */
typedef struct code {
    uint16_t bits[LITERALS];
    uint8_t length[LITERALS];
} code;

/* ---- bits ---- */

/* Whole bytes go out. */
static inline void flush(mgr_bits *b)
{
    const unsigned whole = b->n / 8;
    memcpy(b->at, &b->held, sizeof b->held);
    assert(b->n < 64);
    b->at += whole;
    b->held >>= 8 * whole;
    b->n &= 7;
}

/* Up to 63 bits may be held. */
static inline void put(mgr_bits *b, uint64_t bits, unsigned n)
{
    b->held |= bits << b->n;
    b->n += n;
}

static void align(mgr_bits *b)
{
    b->n = (b->n + 7) & ~7u;
    flush(b);
}

void mgr_bits_begin(mgr_bits *b, unsigned char *out)
{
    *b = (mgr_bits){.at = out};
    put(b, 0x0178, 16); /* deflate, a window of 32 KiB, quickly */
    flush(b);
}

unsigned char *mgr_bits_end(mgr_bits *b, uint32_t adler)
{
    put(b, 3, 10); /* the last block: empty, with the fixed code */
    align(b);
    for (int i = 24; i >= 0; i -= 8)
        *b->at++ = (unsigned char)(adler >> i);
    return b->at;
}

void mgr_bits_stored(mgr_bits *b, const unsigned char *bytes, size_t n)
{
    while (n > 0) {
        const size_t some = n < STORED_MAX ? n : STORED_MAX;
        put(b, 0, 3);
        align(b);
        put(b, some | (uint64_t)(~some & 0xffff) << 16, 32);
        flush(b);
        memcpy(b->at, bytes, some);
        b->at += some;
        bytes += some;
        n -= some;
    }
}

/* ---- codes ---- */

static int by_weight(const void *x, const void *y)
{
    const uint64_t *const a = x, *const b = y;
    return *a < *b ? -1 : *a > *b;
}

/* Huffman's lengths of the `n` symbols in `leaf`, which are sorted, a weight above 16 bits that are
 * the symbol; the largest length. Inner nodes become known in the order of their weights. */
static unsigned tree_lengths(const uint64_t *leaf, unsigned n, uint8_t *length)
{
    uint64_t weight[LITERALS];
    uint16_t up[2 * LITERALS] = {0};
    uint8_t depth[LITERALS] = {0}; /* of inner nodes */
    unsigned next = 0, inner = 0, most = 0;
    for (unsigned k = 0; k + 1 < n; k++) {
        weight[k] = 0;
        for (int child = 0; child < 2; child++) {
            const bool a_leaf = inner == k || (next < n && leaf[next] >> 16 <= weight[inner]);
            up[a_leaf ? next : LITERALS + inner] = (uint16_t)k;
            weight[k] += a_leaf ? leaf[next] >> 16 : weight[inner];
            next += a_leaf;
            inner += !a_leaf;
        }
    }
    for (unsigned k = n - 1; k-- > 0;)
        depth[k] = (uint8_t)(k + 2 == n ? 0 : depth[up[LITERALS + k]] + 1);
    for (unsigned i = 0; i < n; i++) {
        const unsigned bits = depth[up[i]] + 1u;
        length[leaf[i] & 0xffff] = (uint8_t)bits;
        most = bits > most ? bits : most;
    }
    return most;
}

/* Lengths of at most `limit` bits; where a symbol is so rare that it had more, all are made less
 * unlike. A code has two symbols at least. */
static void find_lengths(const uint32_t *count, unsigned n, unsigned limit, uint8_t *length)
{
    uint64_t leaf[LITERALS];
    memset(length, 0, n);
    for (unsigned less = 0;; less++) {
        unsigned used = 0;
        for (unsigned s = 0; s < n; s++)
            if (count[s])
                leaf[used++] = (uint64_t)(count[s] >> less | 1) << 16 | s;
        for (unsigned s = 0; used < 2; s++)
            if (!count[s])
                leaf[used++] = (uint64_t)1 << 16 | s;
        qsort(leaf, used, sizeof *leaf, by_weight);
        if (tree_lengths(leaf, used, length) <= limit)
            return;
    }
}

/* Symbols of a length follow each other, and are written from their first bit on. */
static void find_bits(const uint8_t *length, unsigned n, uint16_t *bits)
{
    unsigned next = 0;
    for (unsigned len = 1; len <= LIMIT; len++, next <<= 1)
        for (unsigned s = 0; s < n; s++) {
            if (length[s] != len)
                continue;
            unsigned turned = 0;
            for (unsigned k = 0; k < len; k++)
                turned |= (next >> k & 1) << (len - 1 - k);
            bits[s] = (uint16_t)turned;
            next++;
        }
}

/* The lengths of a block's codes, as they are said: symbols, and behind a run how long it is. */
typedef struct said {
    uint8_t symbol[LENGTHS], run[LENGTHS];
    unsigned n;
    code code;
} said;

static unsigned zeros_from(const uint8_t *length, unsigned at)
{
    unsigned n = 0;
    while (at + n < LENGTHS && n < 138 && length[at + n] == 0)
        n++;
    return n;
}

static void say_lengths(const code *c, said *s)
{
    uint8_t all[LENGTHS];
    uint32_t count[CODES] = {0};
    memcpy(all, c->length, LITERALS);
    all[LITERALS] = 1;
    s->n = 0;
    for (unsigned at = 0; at < LENGTHS;) {
        const unsigned zeros = zeros_from(all, at), taken = zeros >= 3 ? zeros : 1;
        s->symbol[s->n] = zeros >= 11 ? LONG_RUN : zeros >= 3 ? SHORT_RUN : all[at];
        s->run[s->n] = (uint8_t)taken;
        count[s->symbol[s->n++]]++;
        at += taken;
    }
    find_lengths(count, CODES, CODES_LIMIT, s->code.length);
    find_bits(s->code.length, CODES, s->code.bits);
}

/* ---- blocks ---- */

static void put_head(mgr_bits *b, const said *s)
{
    static const uint8_t order[CODES] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                         11, 4,  12, 3, 13, 2, 14, 1, 15};
    put(b, 4, 3); /* not the last block, with codes of its own: of 257 symbols, 1 distance */
    put(b, 0 | 0 << 5 | (CODES - 4) << 10, 14);
    flush(b);
    for (unsigned i = 0; i < CODES; i++) {
        put(b, s->code.length[order[i]], 3);
        flush(b);
    }
    for (unsigned i = 0; i < s->n; i++) {
        const unsigned symbol = s->symbol[i];
        put(b, s->code.bits[symbol], s->code.length[symbol]);
        if (symbol == SHORT_RUN)
            put(b, s->run[i] - 3u, 3);
        if (symbol == LONG_RUN)
            put(b, s->run[i] - 11u, 7);
        flush(b);
    }
}

/* A symbol's bits, and above 16 bits how many they are; or of several. */
static inline uint64_t bits_in(uint32_t symbol)
{
    return symbol & 0xffff;
}

static void put_symbols(mgr_bits *b, const code *c, const unsigned char *bytes, size_t n)
{
    uint32_t of[256];
    size_t i = 0;
    for (unsigned s = 0; s < 256; s++)
        of[s] = c->bits[s] | (uint32_t)c->length[s] << 16;
    mgr_bits w = *b;
    for (; i + 4 <= n; i += 4) { /* two pairs, which do not wait for what is before them */
        const uint32_t s0 = of[bytes[i]], s1 = of[bytes[i + 1]], s2 = of[bytes[i + 2]],
                       s3 = of[bytes[i + 3]];
        const unsigned first = (s0 >> 16) + (s1 >> 16), second = (s2 >> 16) + (s3 >> 16);
        const uint64_t pair = bits_in(s0) | bits_in(s1) << (s0 >> 16);
        put(&w, pair | (bits_in(s2) | bits_in(s3) << (s2 >> 16)) << first, first + second);
        flush(&w);
    }
    for (; i < n; i++) {
        put(&w, bits_in(of[bytes[i]]), of[bytes[i]] >> 16);
        flush(&w);
    }
    put(&w, c->bits[END], c->length[END]);
    flush(&w);
    *b = w;
}

static void count_bytes(const unsigned char *bytes, size_t n, uint32_t *count)
{
    uint32_t of[4][256] = {{0}}; /* four, as one would wait for itself */
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        of[0][bytes[i]]++;
        of[1][bytes[i + 1]]++;
        of[2][bytes[i + 2]]++;
        of[3][bytes[i + 3]]++;
    }
    for (; i < n; i++)
        of[0][bytes[i]]++;
    for (unsigned s = 0; s < 256; s++)
        count[s] = of[0][s] + of[1][s] + of[2][s] + of[3][s];
    count[END] = 1;
}

static void put_block(mgr_bits *b, const unsigned char *bytes, size_t n)
{
    uint32_t count[LITERALS];
    code c = {{0}, {0}};
    said s;
    uint64_t bits = 0;
    count_bytes(bytes, n, count);
    find_lengths(count, LITERALS, LIMIT, c.length);
    for (unsigned i = 0; i < LITERALS; i++)
        bits += (uint64_t)count[i] * c.length[i];
    find_bits(c.length, LITERALS, c.bits);
    say_lengths(&c, &s);
    const size_t head = 3 + 14 + 3 * CODES + (CODES_LIMIT + 7) * (size_t)s.n;
    if (bits + head >= 8 * (uint64_t)n) { /* nothing to gain */
        mgr_bits_stored(b, bytes, n);
        return;
    }
    put_head(b, &s);
    put_symbols(b, &c, bytes, n);
}

void mgr_bits_literals(mgr_bits *b, const unsigned char *bytes, size_t n)
{
    for (size_t at = 0; at < n; at += BLOCK)
        put_block(b, bytes + at, n - at < BLOCK ? n - at : BLOCK);
}
