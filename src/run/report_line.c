#include "run/report_line.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/say.h"

/* How many bytes of `text` go into a line that has `room`: up to the last blank that fits. */
static size_t fitting(const char *text, size_t room)
{
    const size_t len = strlen(text);
    size_t cut = 0;
    if (len <= room)
        return len;
    for (size_t i = 1; i <= room; i++)
        if (text[i] == ' ')
            cut = i;
    return cut ? cut : strcspn(text + 1, " ") + 1;
}

void mgr_report_line(const char *label, const char *fmt, ...)
{
    char text[4096];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    const char *at = text;
    do {
        const size_t n = fitting(at, MGR_REPORT_WIDTH - MGR_REPORT_LABEL);
        mgr_say(stdout, "%-*s%.*s\n", MGR_REPORT_LABEL, at == text ? label : "", (int)n, at);
        at += n;
        at += strspn(at, " ");
    } while (*at);
}
