#include "fmt/h5_codes.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void mgr_count_bytes(const unsigned char *bytes, size_t n, uint32_t count[256])
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
        count[s] += of[0][s] + of[1][s] + of[2][s] + of[3][s];
}

static int by_weight(const void *x, const void *y)
{
    const uint64_t *const a = x, *const b = y;
    return *a < *b ? -1 : *a > *b;
}

/* Huffman's lengths of the `n` symbols in `leaf`, which are sorted, a weight above 16 bits that are
 * the symbol; the largest length. Inner nodes become known in the order of their weights. */
static unsigned tree_lengths(const uint64_t *leaf, unsigned n, uint8_t *length)
{
    uint64_t weight[MGR_PREFIX_SYMBOLS];
    uint16_t up[2 * MGR_PREFIX_SYMBOLS] = {0};
    uint8_t depth[MGR_PREFIX_SYMBOLS] = {0}; /* of inner nodes */
    unsigned next = 0, inner = 0, most = 0;
    for (unsigned k = 0; k + 1 < n; k++) {
        weight[k] = 0;
        for (int child = 0; child < 2; child++) {
            const bool a_leaf = inner == k || (next < n && leaf[next] >> 16 <= weight[inner]);
            up[a_leaf ? next : MGR_PREFIX_SYMBOLS + inner] = (uint16_t)k;
            weight[k] += a_leaf ? leaf[next] >> 16 : weight[inner];
            next += a_leaf;
            inner += !a_leaf;
        }
    }
    for (unsigned k = n - 1; k-- > 0;)
        depth[k] = (uint8_t)(k + 2 == n ? 0 : depth[up[MGR_PREFIX_SYMBOLS + k]] + 1);
    for (unsigned i = 0; i < n; i++) {
        const unsigned bits = depth[up[i]] + 1u;
        length[leaf[i] & 0xffff] = (uint8_t)bits;
        most = bits > most ? bits : most;
    }
    return most;
}

/* Where a symbol is so rare that it had more bits than may be, all counts are made less unlike. */
static void find_lengths(const uint32_t *count, unsigned n, unsigned limit, uint8_t *length)
{
    uint64_t leaf[MGR_PREFIX_SYMBOLS];
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
static void find_bits(mgr_prefix_code *code, unsigned n)
{
    unsigned next = 0;
    for (unsigned len = 1; len <= MGR_PREFIX_LIMIT; len++, next <<= 1)
        for (unsigned s = 0; s < n; s++) {
            if (code->length[s] != len)
                continue;
            unsigned turned = 0;
            for (unsigned k = 0; k < len; k++)
                turned |= (next >> k & 1) << (len - 1 - k);
            code->bits[s] = (uint16_t)turned;
            next++;
        }
}

void mgr_prefix_code_make(mgr_prefix_code *code, const uint32_t *count, unsigned n, unsigned limit)
{
    find_lengths(count, n, limit, code->length);
    find_bits(code, n);
}
