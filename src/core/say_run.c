#include "core/say_run.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/str.h"

#define COLUMNS 79

static struct {
    bool json, terminal, shown;
    double start, seconds;
} run;

static double now(clockid_t clock)
{
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void mgr_say_run(bool json, double seconds)
{
    run.json = json;
    run.terminal = isatty(STDERR_FILENO);
    run.seconds = run.terminal && seconds > 1 ? 1 : seconds;
    run.start = now(CLOCK_MONOTONIC);
}

bool mgr_says_json(void)
{
    return run.json;
}

/* A JSON string: what is no printable ASCII as its number, broken UTF-8 as U+FFFD. */
static void put_text(const char *text)
{
    const size_t len = strlen(text);
    putchar('"');
    for (size_t at = 0; at < len;) {
        uint32_t p = 0xfffd;
        const size_t n = mgr_utf8((const unsigned char *)text + at, len - at, &p);
        if (n > 0 && p >= 0x20 && p < 0x7f)
            printf("%s%c", p == '"' || p == '\\' ? "\\" : "", (int)p);
        else if (n == 0 || p < 0x10000)
            printf("\\u%04x", n ? p : 0xfffd);
        else
            printf("\\u%04x\\u%04x", 0xd800 + ((p - 0x10000) >> 10), 0xdc00 + (p & 0x3ff));
        at += n ? n : 1;
    }
    putchar('"');
}

void mgr_say_event(const char *event, const mgr_fact *facts, size_t n)
{
    if (!run.json)
        return;
    printf("{\"event\":\"%s\",\"time\":%.3f", event, now(CLOCK_REALTIME));
    for (size_t i = 0; i < n; i++) {
        printf(",\"%s\":", facts[i].key);
        if (facts[i].text)
            put_text(facts[i].text);
        else /* whole up to 2^53, as bytes are */
            printf("%.16g", facts[i].number);
    }
    printf("}\n");
    fflush(stdout);
}

void mgr_say_phase(const char *phase)
{
    char clock[16] = "";
    const time_t t = time(NULL);
    struct tm local;
    mgr_say_event("phase", &(mgr_fact){.key = "phase", .text = phase}, 1);
    if (run.json || run.seconds <= 0 || now(CLOCK_MONOTONIC) - run.start < run.seconds)
        return;
    if (run.terminal) {
        fprintf(stderr, "\r%-*s", COLUMNS, phase);
    } else if (localtime_r(&t, &local)) {
        strftime(clock, sizeof clock, "%d %H:%M:%S", &local);
        fprintf(stderr, "%s %s\n", clock, phase);
    }
    fflush(stderr);
    run.shown = run.terminal;
}

void mgr_say_no_phase(void)
{
    if (run.shown)
        fprintf(stderr, "\r%*s\r", COLUMNS, "");
    run.shown = false;
}
