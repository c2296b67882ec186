#include "fmt/h5_literals.h"

#include "fmt/h5_codes.h"

#define BLOCK ((size_t)131070) /* as two stored blocks are */
#define END 256
#define LENGTHS (MGR_PREFIX_SYMBOLS + 1) /* and of the one distance, which is never used */
#define CODES 19                         /* of lengths: 0 to 15, and runs of zeros */
#define CODES_LIMIT 7
#define SHORT_RUN 17 /* 3 to 10, in 3 bits */
#define LONG_RUN 18  /* 11 to 138, in 7 bits */

static_assert(BLOCK / 2 <= UINT16_MAX, "so often a pair is seen at most");
static_assert(4 * MGR_PREFIX_LIMIT + 7 <= 63, "two pairs are held at once");

/* The lengths of a block's codes, as they are said: symbols, and behind a run how long it is. */
typedef struct said {
    uint8_t symbol[LENGTHS], run[LENGTHS];
    unsigned n;
    mgr_prefix_code code;
} said;

static unsigned zeros_from(const uint8_t *length, unsigned at)
{
    unsigned n = 0;
    while (at + n < LENGTHS && n < 138 && length[at + n] == 0)
        n++;
    return n;
}

static void say_lengths(const mgr_prefix_code *c, said *s)
{
    uint8_t all[LENGTHS];
    uint32_t count[CODES] = {0};
    memcpy(all, c->length, MGR_PREFIX_SYMBOLS);
    all[MGR_PREFIX_SYMBOLS] = 1;
    s->n = 0;
    for (unsigned at = 0; at < LENGTHS;) {
        const unsigned zeros = zeros_from(all, at), taken = zeros >= 3 ? zeros : 1;
        s->symbol[s->n] = zeros >= 11 ? LONG_RUN : zeros >= 3 ? SHORT_RUN : all[at];
        s->run[s->n] = (uint8_t)taken;
        count[s->symbol[s->n++]]++;
        at += taken;
    }
    mgr_prefix_code_make(&s->code, count, CODES, CODES_LIMIT);
}

static void put_head(mgr_bits *b, const said *s)
{
    static const uint8_t order[CODES] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                         11, 4,  12, 3, 13, 2, 14, 1, 15};
    /* not the last block, with codes of its own: of 257 symbols, 1 distance */
    mgr_bits_put(b, 4, 3);
    mgr_bits_put(b, 0 | 0 << 5 | (CODES - 4) << 10, 14);
    mgr_bits_flush(b);
    for (unsigned i = 0; i < CODES; i++) {
        mgr_bits_put(b, s->code.length[order[i]], 3);
        mgr_bits_flush(b);
    }
    for (unsigned i = 0; i < s->n; i++) {
        const unsigned symbol = s->symbol[i];
        mgr_bits_put(b, s->code.bits[symbol], s->code.length[symbol]);
        if (symbol == SHORT_RUN)
            mgr_bits_put(b, s->run[i] - 3u, 3);
        if (symbol == LONG_RUN)
            mgr_bits_put(b, s->run[i] - 11u, 7);
        mgr_bits_flush(b);
    }
}

static void put_symbol(mgr_bits *b, const mgr_prefix_code *c, unsigned symbol)
{
    mgr_bits_put(b, c->bits[symbol], c->length[symbol]);
    mgr_bits_flush(b);
}

/* Two bytes as a number, whichever this machine makes of them. */
static inline unsigned number_of(const unsigned char *bytes)
{
    uint16_t number;
    memcpy(&number, bytes, sizeof number);
    return number;
}

/* All pairs of the bytes that have a code. */
static void make_pairs(const mgr_prefix_code *c, mgr_pairs *pairs)
{
    unsigned char used[END];
    unsigned n = 0;
    for (unsigned s = 0; s < END; s++)
        if (c->length[s])
            used[n++] = (unsigned char)s;
    for (unsigned i = 0; i < n; i++)
        for (unsigned k = 0; k < n; k++) {
            const unsigned char two[2] = {used[i], used[k]};
            const unsigned length = c->length[two[0]];
            pairs->of[number_of(two)] = (struct mgr_pair){
                c->bits[two[0]] | (uint32_t)c->bits[two[1]] << length, length + c->length[two[1]]};
        }
}

static void put_symbols(mgr_bits *b, const mgr_prefix_code *c, const unsigned char *bytes, size_t n,
                        mgr_pairs *pairs)
{
    size_t i = 0;
    mgr_bits w = *b; /* in registers */
    make_pairs(c, pairs);
    for (; i + 4 <= n; i += 4) { /* what does not wait for what is before it comes first */
        const struct mgr_pair first = pairs->of[number_of(bytes + i)],
                              second = pairs->of[number_of(bytes + i + 2)];
        mgr_bits_put(&w, first.bits | (uint64_t)second.bits << first.length,
                     first.length + second.length);
        mgr_bits_flush(&w);
    }
    for (; i < n; i++)
        put_symbol(&w, c, bytes[i]);
    put_symbol(&w, c, END);
    *b = w;
}

/* How often each byte is seen, by pairs: half as much to count. No pair has been seen before, nor
 * has one after that. */
static void count_pairs(const unsigned char *bytes, size_t n, mgr_pairs *pairs, uint32_t *count)
{
    uint16_t *const seen = pairs->seen;
    uint32_t second[END] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8) { /* the loop itself would take as long as the counting */
        seen[number_of(bytes + i)]++;
        seen[number_of(bytes + i + 2)]++;
        seen[number_of(bytes + i + 4)]++;
        seen[number_of(bytes + i + 6)]++;
    }
    for (; i < n; i++)
        count[bytes[i]]++;
    for (unsigned one = 0; one < END; one++) {
        uint16_t *const row = seen + (size_t)one * END;
        uint32_t first = 0;
        unsigned any = 0;
        for (unsigned k = 0; k < END; k++)
            any |= row[k];
        if (!any)
            continue;
        for (unsigned k = 0; k < END; k++) {
            first += row[k];
            second[k] += row[k];
        }
        count[one] += first;
        memset(row, 0, END * sizeof *row);
    }
    for (unsigned k = 0; k < END; k++)
        count[k] += second[k];
}

static void put_block(mgr_bits *b, const unsigned char *bytes, size_t n, mgr_pairs *pairs)
{
    uint32_t count[MGR_PREFIX_SYMBOLS] = {[END] = 1};
    mgr_prefix_code c = {{0}, {0}};
    said s = {.n = 0};
    uint64_t bits = 0;
    count_pairs(bytes, n, pairs, count);
    mgr_prefix_code_make(&c, count, MGR_PREFIX_SYMBOLS, MGR_PREFIX_LIMIT);
    for (unsigned i = 0; i < MGR_PREFIX_SYMBOLS; i++)
        bits += (uint64_t)count[i] * c.length[i];
    say_lengths(&c, &s);
    const size_t head = 3 + 14 + 3 * CODES + (CODES_LIMIT + 7) * (size_t)s.n;
    if (bits + head >= 8 * (uint64_t)n) { /* nothing to gain */
        mgr_bits_stored(b, bytes, n);
        return;
    }
    put_head(b, &s);
    put_symbols(b, &c, bytes, n, pairs);
}

void mgr_bits_literals(mgr_bits *b, const unsigned char *bytes, size_t n, mgr_pairs *pairs)
{
    memset(pairs->seen, 0, sizeof pairs->seen);
    for (size_t at = 0; at < n; at += BLOCK)
        put_block(b, bytes + at, n - at < BLOCK ? n - at : BLOCK, pairs);
}
