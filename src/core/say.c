#include "core/say.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/mem.h"
#include "core/str.h"

/* Marks and overrides of direction, isolates, separators of lines, the byte order mark. */
static bool steers(uint32_t p)
{
    return p < 0x20 || (p >= 0x7f && p < 0xa0) || p == 0xad || p == 0x61c ||
           (p >= 0x200b && p <= 0x200f) || (p >= 0x2028 && p <= 0x202e) ||
           (p >= 0x2060 && p <= 0x206f) || p == 0xfeff || (p >= 0xfff9 && p <= 0xfffb) ||
           p == 0x180e || (p >= 0xe0000 && p < 0xe0080);
}

/* Newlines pass in the first `head` bytes and from `tail` on; in between they came with a value.
 * What lies between two escapes goes out at once: each write to a pipe wakes the launcher. */
static void put(FILE *to, const char *text, size_t len, size_t head, size_t tail)
{
    size_t plain = 0; /* where what has not been written begins */
    for (size_t at = 0; at < len;) {
        uint32_t point;
        const size_t n = mgr_utf8((const unsigned char *)text + at, len - at, &point);
        const bool steering = n && steers(point) && (point != '\n' || (at >= head && at < tail));
        if (n == 0 || steering) {
            fwrite(text + plain, 1, at - plain, to);
            fprintf(to, n ? "\\u%04x" : "\\x%02x", n ? point : (uint32_t)(unsigned char)text[at]);
            plain = at + (n ? n : 1);
        }
        at += n ? n : 1;
    }
    fwrite(text + plain, 1, len - plain, to);
}

static size_t newlines(const char *text)
{
    size_t n = 0;
    for (; (text = strchr(text, '\n')) != NULL; text++)
        n++;
    return n;
}

/* The format's newlines are ours. Where values have some, those at its ends alone are known. */
static void put_formatted(FILE *to, const char *fmt, const char *text)
{
    const size_t len = strlen(text);
    size_t tail = len;
    for (const char *end = fmt + strlen(fmt); end > fmt && end[-1] == '\n' && tail > 0; end--)
        tail--;
    const bool ours = newlines(text) == newlines(fmt);
    put(to, text, len, ours ? len : strspn(fmt, "\n"), tail);
}

void mgr_say_lines(FILE *to, const char *text)
{
    put(to, text, strlen(text), strlen(text), 0);
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
    put_formatted(to, fmt, text);
    if (text != few)
        mgr_free(text);
    return len;
}

int mgr_say_columns(int fd)
{
    struct winsize size = {0};
    if (!isatty(fd) || ioctl(fd, TIOCGWINSZ, &size) != 0 || !size.ws_col)
        return 80;
    return size.ws_col < 60 ? 60 : size.ws_col > 120 ? 120 : size.ws_col;
}

void mgr_say_fitting(const char *label, const char *message)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf text = {0};
    const size_t width =
        isatty(STDERR_FILENO) ? (size_t)mgr_say_columns(STDERR_FILENO) - 1 : SIZE_MAX;
    if (mgr_buf_fmt(&text, &ignored, "%s: %s", label, message) != MGR_OK) {
        mgr_buf_clear(&text);
        mgr_say(stderr, "%s: %s\n", label, message);
        return;
    }
    const char *at = text.data;
    while (strlen(at) > width) {
        size_t n = width;
        while (n > 0 && at[n] != ' ')
            n--;
        if (n == 0) /* a word that is longer, as a path may be */
            n = strcspn(at, " ");
        if (at[n] == '\0')
            break;
        mgr_say(stderr, "%.*s\n", (int)n, at);
        at += n + 1;
    }
    mgr_say(stderr, "%s\n", at);
    mgr_buf_clear(&text);
}
