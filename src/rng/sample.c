/*
 * Sampling without replacement and permutations, by keys: an index's key depends on nothing but
 * the stream and the index, so the result is a pure function of the contract.
 */
#include <assert.h>
#include <string.h>

#include "core/mem.h"
#include "rng/normal.h"

#define DIGIT_BITS 11
#define N_DIGITS (1u << DIGIT_BITS)
#define KEY_BITS 64
#define WORDS_PER_KEY 2
#define KEYS_PER_CHUNK 512

typedef struct keyed_idx {
    uint64_t key;
    uint32_t idx;
} keyed_idx;

/* The `n` keys from `first` on. */
static void draw_keys(const mgr_stream *stream, uint32_t first, uint32_t n, uint64_t *keys)
{
    uint32_t words[WORDS_PER_KEY * KEYS_PER_CHUNK];
    for (uint32_t done = 0; done < n; done += KEYS_PER_CHUNK) {
        const uint32_t chunk = n - done < KEYS_PER_CHUNK ? n - done : KEYS_PER_CHUNK;
        mgr_words(stream, (uint64_t)WORDS_PER_KEY * (first + done), (size_t)chunk * WORDS_PER_KEY,
                  words);
        for (uint32_t i = 0; i < chunk; i++)
            keys[done + i] = words[2 * i] | (uint64_t)words[2 * i + 1] << 32;
    }
}

/* The digit of `width` bits whose lowest bit is `shift`. */
static uint32_t digit_of(uint64_t key, unsigned shift, unsigned width)
{
    return (uint32_t)(key >> shift) & ((1u << width) - 1);
}

/* The largest key of the n smallest, 0 < n <= population, and how many of the keys equal to it
 * belong to them. Narrows the keys down digit by digit from the top; mostly two digits do. */
static uint64_t nth_key(const uint64_t *keys, uint32_t population, uint32_t n, uint32_t *n_equal)
{
    uint64_t prefix = 0;
    unsigned shift = KEY_BITS;

    while (shift > 0) {
        const unsigned width = shift % DIGIT_BITS ? shift % DIGIT_BITS : DIGIT_BITS;
        const unsigned above = shift;
        uint32_t count[N_DIGITS] = {0}, digit = 0;

        shift -= width;
        for (uint32_t i = 0; i < population; i++) {
            if (above == KEY_BITS || keys[i] >> above == prefix)
                count[digit_of(keys[i], shift, width)]++;
        }
        while (count[digit] < n)
            n -= count[digit++];
        prefix = prefix << width | digit;
        if (count[digit] == n) { /* all keys with this prefix */
            *n_equal = population;
            return shift ? (prefix << shift) | ((UINT64_C(1) << shift) - 1) : prefix;
        }
    }
    *n_equal = n;
    return prefix;
}

int mgr_sample(const mgr_stream *stream, uint32_t population, uint32_t n, uint32_t *out,
               mgr_err *err)
{
    uint64_t *keys;
    uint32_t n_equal, n_out = 0;

    assert(n <= population);
    if (n == 0)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&keys, population, sizeof *keys, err));
    draw_keys(stream, 0, population, keys);

    const uint64_t last = nth_key(keys, population, n, &n_equal);
    for (uint32_t i = 0; i < population && n_out < n; i++) {
        if (keys[i] < last || (keys[i] == last && n_equal > 0)) {
            n_equal -= keys[i] == last;
            out[n_out++] = i;
        }
    }
    mgr_free(keys);
    return MGR_OK;
}

/* One stable pass over a digit, from `in` to `out`. */
static void sort_by_digit(const keyed_idx *in, keyed_idx *out, uint32_t n, unsigned shift)
{
    uint32_t start[N_DIGITS] = {0}, sum = 0;

    for (uint32_t i = 0; i < n; i++)
        start[digit_of(in[i].key, shift, DIGIT_BITS)]++;
    for (uint32_t d = 0; d < N_DIGITS; d++) {
        const uint32_t count = start[d];
        start[d] = sum;
        sum += count;
    }
    for (uint32_t i = 0; i < n; i++)
        out[start[digit_of(in[i].key, shift, DIGIT_BITS)]++] = in[i];
}

int mgr_permutation(const mgr_stream *stream, uint32_t n, uint32_t *out, mgr_err *err)
{
    keyed_idx *entries;
    uint64_t keys[KEYS_PER_CHUNK];

    MGR_TRY(mgr_alloc(&entries, 2 * (size_t)n, sizeof *entries, err));
    for (uint32_t first = 0; first < n; first += KEYS_PER_CHUNK) {
        const uint32_t chunk = n - first < KEYS_PER_CHUNK ? n - first : KEYS_PER_CHUNK;
        draw_keys(stream, first, chunk, keys);
        for (uint32_t i = 0; i < chunk; i++)
            entries[first + i] = (keyed_idx){keys[i], first + i};
    }

    /* Least significant digit first; stable, so that equal keys stay in the order of indices. */
    keyed_idx *from = entries, *to = entries + n;
    for (unsigned shift = 0; shift < KEY_BITS; shift += DIGIT_BITS) {
        sort_by_digit(from, to, n, shift);
        keyed_idx *const swap = from;
        from = to;
        to = swap;
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = from[i].idx;
    mgr_free(entries);
    return MGR_OK;
}
