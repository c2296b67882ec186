#include "core/str.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

int mgr_buf_add(mgr_buf *buf, const void *bytes, size_t len, mgr_err *err)
{
    if (len >= SIZE_MAX / 2 - buf->len)
        return mgr_fail(err, MGR_ERR_NOMEM, "text too long");
    MGR_TRY(mgr_grow(&buf->data, &buf->capacity, buf->len + len + 1, 1, err));
    if (len)
        memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
    buf->data[buf->len] = '\0';
    return MGR_OK;
}

int mgr_buf_text(mgr_buf *buf, const char *text, mgr_err *err)
{
    return mgr_buf_add(buf, text, strlen(text), err);
}

int mgr_buf_fmt(mgr_buf *buf, mgr_err *err, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (len < 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "cannot format text");
    MGR_TRY(mgr_grow(&buf->data, &buf->capacity, buf->len + (size_t)len + 1, 1, err));
    va_start(args, fmt);
    vsnprintf(buf->data + buf->len, (size_t)len + 1, fmt, args);
    va_end(args);
    buf->len += (size_t)len;
    return MGR_OK;
}

void mgr_buf_clear(mgr_buf *buf)
{
    mgr_free(buf->data);
    *buf = (mgr_buf){0};
}

#define ARENA_BLOCK 65536

typedef struct mgr_arena_block {
    struct mgr_arena_block *next;
    size_t used, size;
    _Alignas(16) char data[];
} mgr_arena_block;

int mgr_arena_alloc(mgr_arena *arena, void *out, size_t bytes, mgr_err *err)
{
    if (bytes > SIZE_MAX / 4)
        return mgr_fail(err, MGR_ERR_NOMEM, "allocation too large");
    const size_t need = (bytes + 15) & ~(size_t)15;
    mgr_arena_block *block = arena->blocks;
    if (!block || block->size - block->used < need) {
        const size_t size = need > ARENA_BLOCK ? need : ARENA_BLOCK;
        MGR_TRY(mgr_alloc(&block, 1, sizeof *block + size, err));
        block->size = size;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *const p = block->data + block->used;
    block->used += need;
    memcpy(out, &p, sizeof p);
    return MGR_OK;
}

int mgr_arena_strndup(mgr_arena *arena, const char **out, const char *text, size_t len,
                      mgr_err *err)
{
    char *copy;
    MGR_TRY(mgr_arena_alloc(arena, &copy, len + 1, err));
    if (len)
        memcpy(copy, text, len);
    *out = copy;
    return MGR_OK;
}

int mgr_arena_fmt(mgr_arena *arena, const char **out, mgr_err *err, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *text;
    if (len < 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "cannot format text");
    MGR_TRY(mgr_arena_alloc(arena, &text, (size_t)len + 1, err));
    va_start(args, fmt);
    vsnprintf(text, (size_t)len + 1, fmt, args);
    va_end(args);
    *out = text;
    return MGR_OK;
}

void mgr_arena_clear(mgr_arena *arena)
{
    mgr_arena_block *block = arena->blocks;
    while (block) {
        mgr_arena_block *const next = block->next;
        mgr_free(block);
        block = next;
    }
    arena->blocks = NULL;
}

static const struct {
    const char *suffix;
    uint64_t factor;
} units[] = {
    {"", 1},
    {"B", 1},
    {"kB", 1000},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"KiB", UINT64_C(1) << 10},
    {"MiB", UINT64_C(1) << 20},
    {"GiB", UINT64_C(1) << 30},
    {"TiB", UINT64_C(1) << 40},
};

bool mgr_parse_bytes(const char *text, uint64_t *out)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    size_t digits = strspn(text, "0123456789");
    if (text[digits] == '.')
        digits += 1 + strspn(text + digits + 1, "0123456789");
    const char *unit = text + digits;
    while (*unit == ' ')
        unit++;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(unit, units[i].suffix) != 0)
            continue;
        /* whole numbers exactly, fractions in double */
        uint64_t whole = 0;
        if (strspn(text, "0123456789") == digits) {
            for (size_t d = 0; d < digits; d++)
                if (mgr_mul_overflow(whole, 10, &whole) ||
                    mgr_add_overflow(whole, (uint64_t)(text[d] - '0'), &whole))
                    return false;
            return !mgr_mul_overflow(whole, units[i].factor, &whole) && (*out = whole, true);
        }
        const double value = strtod(text, NULL) * (double)units[i].factor;
        if (!(value < 9e18))
            return false;
        *out = (uint64_t)value;
        return true;
    }
    return false;
}

const char *mgr_format_bytes(uint64_t bytes, char *out, size_t size)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    size_t i = 0;
    while (value >= 1024.0 && i + 1 < sizeof names / sizeof names[0]) {
        value /= 1024.0;
        i++;
    }
    snprintf(out, size, i == 0 ? "%.0f %s" : "%.2f %s", value, names[i]);
    return out;
}

const char *mgr_shortest_real(double value, char out[MGR_REAL_BYTES])
{
    int precision = 15; /* as many digits as every double holds */
    do {
        snprintf(out, MGR_REAL_BYTES, "%.*g", precision, value);
    } while (precision++ < 17 && strtod(out, NULL) != value);
    return out;
}

/* Levenshtein distance of two short names; names of 64 bytes and more never match. */
static size_t distance(const char *a, const char *b)
{
    size_t row[65];
    const size_t la = strlen(a), lb = strlen(b);
    if (la > 64 || lb > 64)
        return SIZE_MAX;
    for (size_t j = 0; j <= lb; j++)
        row[j] = j;
    for (size_t i = 1; i <= la; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= lb; j++) {
            const size_t above = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[lb];
}

const char *mgr_nearest(const char *text, const char *const *names, size_t n_names)
{
    const char *best = NULL;
    size_t best_distance = strlen(text) / 3 + 2; /* further away is no suggestion */
    for (size_t i = 0; i < n_names; i++) {
        const size_t d = distance(text, names[i]);
        if (d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

const char *mgr_printable(const char *text, size_t len, char *out, size_t size)
{
    size_t n = 0;
    for (; n < len && n + 1 < size; n++)
        out[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
    if (size)
        out[n] = '\0';
    return out;
}

const char *mgr_shell_word(const char *text, char *out, size_t size)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-+.,:=@%/";
    size_t n = 1;
    if (text[0] && strspn(text, plain) == strlen(text)) {
        snprintf(out, size, "%s", text);
        return out;
    }
    out[0] = '\'';
    for (; *text && n + 6 < size; text++)
        if (*text == '\'')
            n += (size_t)snprintf(out + n, size - n, "'\\''");
        else
            out[n++] = *text;
    snprintf(out + n, size - n, "'");
    return out;
}

bool mgr_has_suffix(const char *text, const char *suffix)
{
    const size_t lt = strlen(text), ls = strlen(suffix);
    return lt >= ls && strcmp(text + lt - ls, suffix) == 0;
}

bool mgr_has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

size_t mgr_utf8(const unsigned char *text, size_t left, uint32_t *point)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char c = text[0];
    const size_t n = c < 0x80 ? 1 : c >> 5 == 6 ? 2 : c >> 4 == 14 ? 3 : c >> 3 == 30 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    *point = n == 1 ? c : c & (0x7fU >> n);
    for (size_t i = 1; i < n; i++) {
        if (text[i] >> 6 != 2)
            return 0;
        *point = *point << 6 | (text[i] & 0x3fU);
    }
    const bool surrogate = *point >= 0xd800 && *point < 0xe000;
    return *point < least[n] || *point > 0x10ffff || surrogate ? 0 : n;
}
