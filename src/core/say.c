#include "core/say.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/mem.h"

/* The code point at `text` and its bytes; 0 bytes if it is none (RFC 3629). */
static size_t decode(const unsigned char *text, size_t left, uint32_t *point)
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

/* Marks and overrides of direction, isolates, separators of lines, the byte order mark. */
static bool steers(uint32_t p)
{
    return (p < 0x20 && p != '\n') || (p >= 0x7f && p < 0xa0) || p == 0xad || p == 0x61c ||
           (p >= 0x200b && p <= 0x200f) || (p >= 0x2028 && p <= 0x202e) ||
           (p >= 0x2060 && p <= 0x206f) || p == 0xfeff || (p >= 0xfff9 && p <= 0xfffb);
}

static void put(FILE *to, const char *text, size_t len)
{
    for (size_t at = 0; at < len;) {
        uint32_t point;
        const size_t n = decode((const unsigned char *)text + at, len - at, &point);
        if (n == 0)
            fprintf(to, "\\x%02x", (unsigned char)text[at]);
        else if (point < 0x10000 && steers(point))
            fprintf(to, "\\u%04x", point);
        else
            fwrite(text + at, 1, n, to);
        at += n ? n : 1;
    }
}

int mgr_say(FILE *to, const char *fmt, ...)
{
    char few[1024], *text = few;
    mgr_err ignored = MGR_ERR_INIT;
    va_list args;
    va_start(args, fmt);
    const int len = vsnprintf(few, sizeof few, fmt, args);
    va_end(args);
    if (len >= (int)sizeof few && mgr_alloc(&text, (size_t)len + 1, 1, &ignored) == MGR_OK) {
        va_start(args, fmt);
        vsnprintf(text, (size_t)len + 1, fmt, args);
        va_end(args);
    } else if (len >= (int)sizeof few) {
        text = few; /* without memory: what there is room for */
    }
    put(to, text, strlen(text));
    if (text != few)
        mgr_free(text);
    return len;
}
