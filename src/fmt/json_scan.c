#include "fmt/json_scan.h"

#include <inttypes.h>
#include <string.h>

#define MAX_DEPTH 128 /* as serde_json has it */
#define NONE (-1)     /* no byte: the end */

void mgr_json_scan_start(mgr_json_scan *s, const mgr_reader *reader, uint64_t from, uint64_t end,
                         mgr_err *err)
{
    *s = (mgr_json_scan){.reader = reader, .at = from, .end = end, .keep = SIZE_MAX, .err = err};
}

void mgr_json_scan_stop(mgr_json_scan *s)
{
    mgr_buf_clear(&s->text);
}

static int fail_at(mgr_json_scan *s, uint64_t byte, const char *what)
{
    return mgr_fail(s->err, MGR_ERR_FORMAT, "'%s' is not valid JSON at byte %" PRIu64 ": %s",
                    s->reader->name, byte, what);
}

/* ---- bytes ---- */

/* The byte at s->at, or NONE. */
static int look(mgr_json_scan *s, int *c)
{
    if (s->at >= s->end) {
        *c = NONE;
        return MGR_OK;
    }
    if (s->at < s->window_at || s->at >= s->window_at + s->window_len) {
        const uint64_t left = s->end - s->at;
        const size_t len = left < sizeof s->window ? (size_t)left : sizeof s->window;
        s->window_len = 0;
        MGR_TRY(mgr_reader_read(s->reader, s->at, s->window, len, s->err));
        s->window_at = s->at;
        s->window_len = len;
    }
    *c = s->window[s->at - s->window_at];
    return MGR_OK;
}

static int take(mgr_json_scan *s, int *c)
{
    MGR_TRY(look(s, c));
    s->at += *c != NONE;
    return MGR_OK;
}

/* The next byte that is no white space; it is not taken. */
static int look_past_space(mgr_json_scan *s, int *c)
{
    for (;; s->at++) {
        MGR_TRY(look(s, c));
        if (*c != ' ' && *c != '\n' && *c != '\t' && *c != '\r')
            return MGR_OK;
    }
}

static int expect(mgr_json_scan *s, char wanted)
{
    int c;
    const char what[] = {'\'', wanted, '\'', ' ', 'e', 'x', 'p', 'e', 'c', 't', 'e', 'd', '\0'};
    MGR_TRY(look_past_space(s, &c));
    if (c != wanted)
        return fail_at(s, s->at, what);
    s->at++;
    return MGR_OK;
}

/* ---- strings ---- */

static int keep(mgr_json_scan *s, const void *bytes, size_t len)
{
    if (s->cut || len > s->keep - s->text.len) {
        s->cut = true;
        return MGR_OK;
    }
    return mgr_buf_add(&s->text, bytes, len, s->err);
}

static int keep_point(mgr_json_scan *s, uint32_t p)
{
    unsigned char bytes[4] = {(unsigned char)p};
    size_t n = 1;
    if (p >= 0x80) {
        n = p < 0x800 ? 2 : p < 0x10000 ? 3 : 4;
        static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
        for (size_t i = n; i-- > 1; p >>= 6)
            bytes[i] = (unsigned char)(0x80 | (p & 0x3f));
        bytes[0] = (unsigned char)(lead[n] | p);
    }
    return keep(s, bytes, n);
}

static int take_hex(mgr_json_scan *s, uint32_t *out)
{
    static const char digits[] = "0123456789abcdef";
    *out = 0;
    for (int i = 0; i < 4; i++) {
        int c;
        MGR_TRY(take(s, &c));
        const char *const digit = c > 0 ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;
        if (!digit)
            return fail_at(s, s->at, "four hexadecimal digits expected");
        *out = *out << 4 | (uint32_t)(digit - digits);
    }
    return MGR_OK;
}

/* Behind "\u". */
static int take_point(mgr_json_scan *s)
{
    uint32_t p, low = 0;
    int c = NONE;
    MGR_TRY(take_hex(s, &p));
    if (p == 0)
        return fail_at(s, s->at, "a NUL in a text");
    if (p >= 0xd800 && p < 0xdc00) {
        MGR_TRY(take(s, &c));
        if (c == '\\')
            MGR_TRY(take(s, &c));
        if (c == 'u')
            MGR_TRY(take_hex(s, &low));
        p = 0x10000 + ((p - 0xd800) << 10) + (low - 0xdc00);
        if (low < 0xdc00 || low >= 0xe000)
            return fail_at(s, s->at, "half of a surrogate pair");
    }
    if (p >= 0xd800 && p < 0xe000)
        return fail_at(s, s->at, "half of a surrogate pair");
    return keep_point(s, p);
}

static int take_escape(mgr_json_scan *s)
{
    static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    int c;
    MGR_TRY(take(s, &c));
    if (c == 'u')
        return take_point(s);
    const char *const name = c > 0 ? strchr(names, c) : NULL;
    return name ? keep(s, &means[name - names], 1) : fail_at(s, s->at, "unknown escape");
}

/* A character of more than one byte, `first` of which has been taken. */
static int take_utf8(mgr_json_scan *s, int first)
{
    unsigned char bytes[4] = {(unsigned char)first};
    const size_t n = first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 1;
    const uint64_t at = s->at - 1;
    uint32_t point;
    for (size_t i = 1; i < n; i++) {
        int c;
        MGR_TRY(take(s, &c));
        bytes[i] = (unsigned char)(c == NONE ? 0 : c);
    }
    if (mgr_utf8(bytes, n, &point) != n)
        return fail_at(s, at, "no UTF-8");
    return keep(s, bytes, n);
}

int mgr_json_scan_string(mgr_json_scan *s)
{
    MGR_TRY(expect(s, '"'));
    s->text.len = 0;
    s->cut = s->fresh = false;
    MGR_TRY(mgr_buf_add(&s->text, "", 0, s->err)); /* a text even if it is empty */
    for (;;) {
        int c;
        MGR_TRY(take(s, &c));
        if (c == '"')
            return MGR_OK;
        if (c == NONE)
            return fail_at(s, s->at, "a text without an end");
        if (c < 0x20)
            return fail_at(s, s->at - 1, "a control character in a text");
        const char byte = (char)c;
        MGR_TRY(c == '\\' ? take_escape(s) : c >= 0x80 ? take_utf8(s, c) : keep(s, &byte, 1));
    }
}

/* ---- other values ---- */

/* Digits, at least one; their value, capped above int64, into *value. */
static int take_digits(mgr_json_scan *s, uint64_t *value)
{
    const uint64_t from = s->at;
    int c;
    *value = 0;
    for (;; s->at++) {
        MGR_TRY(look(s, &c));
        if (c < '0' || c > '9')
            return s->at > from ? MGR_OK : fail_at(s, s->at, "a digit expected");
        const uint64_t digit = (uint64_t)(c - '0');
        *value = *value > (UINT64_MAX - digit) / 10 ? UINT64_MAX : *value * 10 + digit;
    }
}

/* ".5", "e-3"; *whole says that there is none of it. */
static int take_fraction(mgr_json_scan *s, bool *whole)
{
    uint64_t ignored;
    int c;
    *whole = true;
    MGR_TRY(look(s, &c));
    if (c == '.') {
        *whole = false;
        s->at++;
        MGR_TRY(take_digits(s, &ignored));
        MGR_TRY(look(s, &c));
    }
    if (c != 'e' && c != 'E')
        return MGR_OK;
    *whole = false;
    s->at++;
    MGR_TRY(look(s, &c));
    s->at += c == '+' || c == '-';
    return take_digits(s, &ignored);
}

int mgr_json_scan_number(mgr_json_scan *s, int64_t *out, bool *whole)
{
    int c;
    uint64_t value;
    MGR_TRY(look_past_space(s, &c));
    const bool negative = c == '-';
    const uint64_t from = s->at;
    s->fresh = false;
    s->at += negative;
    MGR_TRY(look(s, &c));
    const uint64_t first = s->at;
    MGR_TRY(take_digits(s, &value));
    if (c == '0' && s->at > first + 1)
        return fail_at(s, first, "a number that begins with 0");
    MGR_TRY(take_fraction(s, whole));
    if (!*whole)
        return MGR_OK;
    if (value > (uint64_t)INT64_MAX + negative)
        return fail_at(s, from, "a number outside 64 bits");
    *out = negative ? (int64_t)(0 - value) : (int64_t)value;
    return MGR_OK;
}

static int take_word(mgr_json_scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    const uint64_t from = s->at;
    char word[8] = "";
    int c;
    for (size_t n = 0; n < sizeof word - 1; n++, s->at++) {
        MGR_TRY(look(s, &c));
        if (c < 'a' || c > 'z')
            break;
        word[n] = (char)c;
    }
    s->fresh = false;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(word, words[i]) == 0)
            return MGR_OK;
    return fail_at(s, from, "a value expected");
}

int mgr_json_scan_kind(mgr_json_scan *s, mgr_json_kind *kind)
{
    int c;
    MGR_TRY(look_past_space(s, &c));
    *kind = c == '{'                             ? MGR_JSON_OBJECT
            : c == '['                           ? MGR_JSON_ARRAY
            : c == '"'                           ? MGR_JSON_STRING
            : c == '-' || (c >= '0' && c <= '9') ? MGR_JSON_NUMBER
                                                 : MGR_JSON_WORD;
    return MGR_OK;
}

int mgr_json_scan_open(mgr_json_scan *s, char bracket)
{
    MGR_TRY(expect(s, bracket));
    s->fresh = true;
    return MGR_OK;
}

/* A comma, but before the first; or the bracket that closes. */
static int next(mgr_json_scan *s, char bracket, bool *more)
{
    int c;
    MGR_TRY(look_past_space(s, &c));
    *more = c != bracket;
    if (*more && !s->fresh)
        return c == ',' ? expect(s, ',')
                        : fail_at(s, s->at,
                                  bracket == '}' ? "',' or '}' expected" : "',' or ']' expected");
    s->fresh = false;
    s->at += !*more;
    return MGR_OK;
}

int mgr_json_scan_member(mgr_json_scan *s, bool *more)
{
    MGR_TRY(next(s, '}', more));
    if (!*more)
        return MGR_OK;
    MGR_TRY(mgr_json_scan_string(s));
    return expect(s, ':');
}

int mgr_json_scan_element(mgr_json_scan *s, bool *more)
{
    return next(s, ']', more);
}

/* The brackets that are open: no recursion over what a file says. */
typedef struct nest {
    char open[MAX_DEPTH];
    size_t n;
} nest;

/* One value, or the bracket that opens one. */
static int skip_one(mgr_json_scan *s, nest *in)
{
    mgr_json_kind kind;
    int64_t ignored;
    bool whole;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind == MGR_JSON_STRING)
        return mgr_json_scan_string(s);
    if (kind == MGR_JSON_NUMBER)
        return mgr_json_scan_number(s, &ignored, &whole);
    if (kind == MGR_JSON_WORD)
        return take_word(s);
    if (in->n == MAX_DEPTH)
        return fail_at(s, s->at, "it is nested too deeply");
    const char bracket = kind == MGR_JSON_OBJECT ? '{' : '[';
    in->open[in->n++] = bracket;
    return mgr_json_scan_open(s, bracket);
}

int mgr_json_scan_skip(mgr_json_scan *s)
{
    const size_t kept = s->keep;
    nest in = {.n = 0};
    s->keep = 0;
    int rc = skip_one(s, &in);
    while (rc == MGR_OK && in.n > 0) {
        bool more = false;
        rc = in.open[in.n - 1] == '{' ? mgr_json_scan_member(s, &more)
                                      : mgr_json_scan_element(s, &more);
        if (rc == MGR_OK && !more)
            in.n--;
        else if (rc == MGR_OK)
            rc = skip_one(s, &in);
    }
    s->keep = kept;
    return rc;
}

int mgr_json_scan_end(mgr_json_scan *s)
{
    int c;
    MGR_TRY(look_past_space(s, &c));
    return c == NONE ? MGR_OK : fail_at(s, s->at, "the end expected");
}
