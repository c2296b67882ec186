#include "fuzz/lies.h"

#include <string.h>

#define LIES 4

static uint64_t state;

/* splitmix64 */
static uint64_t draw(uint64_t below)
{
    uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return below ? (z ^ (z >> 31)) % below : 0;
}

/* ---- edits ---- */

/* Put `n` bytes in the place of `gone` ones, as far as there is room. */
static void replace(lied *in, size_t at, size_t gone, const void *bytes, size_t n)
{
    if (at > in->len || gone > in->len - at || in->len - gone + n > LIES_MOST)
        return;
    memmove(in->bytes + at + n, in->bytes + at + gone, in->len - at - gone);
    memcpy(in->bytes + at, bytes, n);
    in->len = in->len - gone + n;
}

/* A little-endian number of `width` bytes. */
static void put_number(lied *in, size_t at, size_t width, uint64_t value)
{
    for (size_t i = 0; i < width && at + i < in->len; i++)
        in->bytes[at + i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_number(const lied *in, size_t at, size_t width)
{
    uint64_t value = 0;
    for (size_t i = 0; i < width && at + i < in->len; i++)
        value |= (uint64_t)in->bytes[at + i] << 8 * i;
    return value;
}

/* ---- lies of every format ---- */

static void flip_bit(lied *in, const lied *other)
{
    (void)other;
    in->bytes[draw(in->len)] ^= (uint8_t)(1u << draw(8));
}

static void set_byte(lied *in, const lied *other)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff, '"', '\\', '{', '[', '\n', '.', 0xc0};
    (void)other;
    in->bytes[draw(in->len)] = values[draw(sizeof values)];
}

/* A number in the file, as one that is near it or at a bound. */
static void set_number(lied *in, const lied *other)
{
    static const uint64_t bounds[] = {0,          1,          0x7f,       0x80,       0xff,
                                      0x7fff,     0xffff,     0x7fffffff, 0x80000000, 0xffffffff,
                                      1ull << 32, 1ull << 40, 1ull << 62, 1ull << 63, UINT64_MAX};
    const size_t width = (size_t)1 << draw(4);
    const size_t at = draw(in->len);
    const uint64_t value = get_number(in, at, width);
    switch (draw(4)) {
    case 0:
        put_number(in, at, width, value + 1);
        break;
    case 1:
        put_number(in, at, width, value - 1);
        break;
    case 2: /* what the file's length makes of it */
        put_number(in, at, width, other->len + draw(3) - 1);
        break;
    default:
        put_number(in, at, width, bounds[draw(sizeof bounds / sizeof bounds[0])]);
    }
}

static void cut_end(lied *in, const lied *other)
{
    (void)other;
    in->len = 1 + draw(in->len);
}

static void cut_piece(lied *in, const lied *other)
{
    const size_t at = draw(in->len), n = 1 + draw(in->len - at);
    (void)other;
    if (n < in->len)
        replace(in, at, n < 64 ? n : 1 + n % 64, "", 0);
}

static void repeat_piece(lied *in, const lied *other)
{
    uint8_t piece[256];
    const size_t at = draw(in->len);
    size_t n = 1 + draw(in->len - at);
    (void)other;
    n = n < sizeof piece ? n : sizeof piece;
    memcpy(piece, in->bytes + at, n);
    replace(in, draw(2) ? at : draw(in->len), 0, piece, n);
}

static void swap_pieces(lied *in, const lied *other)
{
    const size_t n = 1 + draw(32);
    (void)other;
    if (in->len < 2 * n)
        return;
    const size_t a = draw(in->len - n), b = draw(in->len - n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t byte = in->bytes[a + i];
        in->bytes[a + i] = in->bytes[b + i];
        in->bytes[b + i] = byte;
    }
}

static void splice_other(lied *in, const lied *other)
{
    const size_t from = draw(other->len), at = draw(in->len);
    size_t n = 1 + draw(other->len - from);
    n = n < 512 ? n : 512;
    replace(in, at, draw(2) && n < in->len - at ? n : 0, other->bytes + from, n);
}

static void clear_range(lied *in, const lied *other)
{
    const size_t at = draw(in->len);
    size_t n = 1 + draw(64);
    (void)other;
    n = n < in->len - at ? n : in->len - at;
    memset(in->bytes + at, draw(2) ? 0 : 0xff, n);
}

static void append_bytes(lied *in, const lied *other)
{
    uint8_t bytes[64];
    (void)other;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)draw(256);
    replace(in, in->len, 0, bytes, 1 + draw(sizeof bytes));
}

/* ---- lies in texts: JSON, YAML, the header of safetensors, names ---- */

/* The place of the next byte of `set` from a random one on; in->len if there is none. */
static size_t find_any(const lied *in, const char *set)
{
    const size_t from = draw(in->len);
    for (size_t i = 0; i < in->len; i++) {
        const size_t at = (from + i) % in->len;
        if (in->bytes[at] && strchr(set, in->bytes[at]))
            return at;
    }
    return in->len;
}

static void change_digits(lied *in, const lied *other)
{
    static const char *const values[] = {"0",
                                         "-1",
                                         "-0",
                                         "01",
                                         "1.5",
                                         "1e999",
                                         "1e-999",
                                         "9223372036854775807",
                                         "9223372036854775808",
                                         "-9223372036854775808",
                                         "18446744073709551615",
                                         "18446744073709551616",
                                         "NaN",
                                         "null",
                                         "true",
                                         "\"1\"",
                                         "[1]",
                                         "{}",
                                         "0x10",
                                         "1_000",
                                         ".5"};
    const char *const value = values[draw(sizeof values / sizeof values[0])];
    const size_t at = find_any(in, "0123456789");
    size_t n = 0;
    (void)other;
    while (at + n < in->len && in->bytes[at + n] >= '0' && in->bytes[at + n] <= '9')
        n++;
    replace(in, at, n, value, strlen(value));
}

static void change_text(lied *in, const lied *other)
{
    static const char *const values[] = {"",
                                         "\\u0000",
                                         "\\ud800",
                                         "\\udc00\\ud800",
                                         "\xff\xfe",
                                         "\xc0\xaf",
                                         "\xed\xa0\x80",
                                         "\x1b[2J",
                                         "\n",
                                         "../../../etc/passwd",
                                         "/",
                                         ".",
                                         "__metadata__",
                                         "dtype",
                                         "data_offsets",
                                         "*x",
                                         "&x",
                                         "<<",
                                         "!!python/object",
                                         "%s%n",
                                         "\\",
                                         "\xf4\x90\x80\x80",
                                         "\xe2\x80\x8b",
                                         "weight_map"};
    const char *const value = values[draw(sizeof values / sizeof values[0])];
    const size_t at = find_any(in, "\"':_.");
    (void)other;
    if (at < in->len)
        replace(in, at + 1, draw(2) ? draw(8) : 0, value, strlen(value));
}

static void nest_deeply(lied *in, const lied *other)
{
    static const char *const opens[] = {"[", "{\"a\":", "(", "- ", "[[", "{a: "};
    const char *const open = opens[draw(sizeof opens / sizeof opens[0])];
    const size_t at = find_any(in, ":,[{ ");
    (void)other;
    for (size_t i = 0, n = (size_t)1 << draw(13); i < n; i++)
        replace(in, at < in->len ? at + 1 : 0, 0, open, strlen(open));
}

static void drop_sign(lied *in, const lied *other)
{
    const size_t at = find_any(in, "{}[]\",:");
    (void)other;
    if (at < in->len)
        replace(in, at, 1, "}", draw(2));
}

/* ---- lies behind signatures: zip, HDF5 ---- */

static void lie_behind_signature(lied *in, const lied *other)
{
    static const char *const signs[] = {"PK\1\2", "PK\3\4", "PK\5\6", "PK\6\6", "PK\6\7", "PK\7\10",
                                        "OHDR",   "OCHK",   "FRHP",   "FHDB",   "FHIB",   "BTHD",
                                        "BTLF",   "BTIN",   "FAHD",   "FADB",   "EAHD",   "TREE",
                                        "SNOD",   "HEAP",   "GCOL",   "\x89HDF"};
    const char *const sign = signs[draw(sizeof signs / sizeof signs[0])];
    const size_t from = draw(in->len);
    for (size_t i = 0; i + 4 < in->len; i++) {
        const size_t at = (from + i) % (in->len - 4);
        if (memcmp(in->bytes + at, sign, 4) != 0)
            continue;
        const size_t field = at + 4 + draw(48), width = (size_t)1 << draw(4);
        put_number(in, field, width, draw(2) ? draw(in->len + 2) : UINT64_MAX >> draw(64));
        return;
    }
    set_number(in, other);
}

/* ---- lies in pickles ---- */

static void change_opcode(lied *in, const lied *other)
{
    static const char opcodes[] =
        "()]}.aetsubcRNKMJIFGTUXV\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e"
        "\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98hjqrpgQPiodl012SBC";
    (void)other;
    in->bytes[draw(in->len)] = (uint8_t)opcodes[draw(sizeof opcodes - 1)];
}

static void call_something(lied *in, const lied *other)
{
    static const char *const calls[] = {"cos\nsystem\n(S'id'\ntR.",
                                        "cbuiltins\neval\n(Vx\ntR.",
                                        "\x8c\x05posix\x8c\x06system\x93",
                                        "cbuiltins\ngetattr\n",
                                        "ctorch\nload\n",
                                        "c__builtin__\nexec\n(",
                                        "(lp0\ng0\na."};
    const char *const call = calls[draw(sizeof calls / sizeof calls[0])];
    (void)other;
    replace(in, draw(in->len), 0, call, strlen(call));
}

static const struct {
    const char *name;
    void (*tell)(lied *in, const lied *other);
} kinds[] = {
    {"a bit flipped", flip_bit},
    {"a byte set", set_byte},
    {"a number of 1 to 8 bytes", set_number},
    {"the end cut off", cut_end},
    {"a piece cut out", cut_piece},
    {"a piece twice", repeat_piece},
    {"two pieces swapped", swap_pieces},
    {"a piece of another file", splice_other},
    {"a range cleared", clear_range},
    {"bytes behind the end", append_bytes},
    {"a number in a text", change_digits},
    {"a text", change_text},
    {"deep nesting", nest_deeply},
    {"a bracket, comma or quote", drop_sign},
    {"a field behind a signature", lie_behind_signature},
    {"an opcode", change_opcode},
    {"a call", call_something},
};

uint64_t lies_told[sizeof kinds / sizeof kinds[0]];

size_t lies_kinds(void)
{
    return sizeof kinds / sizeof kinds[0];
}

const char *lies_name(size_t kind)
{
    return kinds[kind].name;
}

void lies_tell(lied *in, const lied *other, uint64_t number)
{
    state = number * UINT64_C(0x2545f4914f6cdd1d) + 1;
    for (uint64_t i = 0, n = 1 + draw(LIES); i < n && in->len > 0; i++) {
        const size_t kind = draw(lies_kinds());
        kinds[kind].tell(in, other);
        lies_told[kind]++;
    }
}
