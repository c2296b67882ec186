#include "core/say_run.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/stop.h"
#include "core/str.h"

#define COLUMNS 79

static struct {
    bool json, terminal, shown;
    double start, seconds;
} run;

/* The phase at hand, and what it has to do; no total where that is not known. */
static struct {
    const char *phase, *unit;
    uint64_t total, done;
    uint32_t ranks;
    double start, last;
} work;

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

static void say_line(const char *text)
{
    char clock[16] = "";
    const time_t t = time(NULL);
    struct tm local;
    if (!run.terminal && localtime_r(&t, &local))
        strftime(clock, sizeof clock, "%d %H:%M:%S ", &local);
    if (run.terminal)
        fprintf(stderr, "\r%-*s", COLUMNS, text);
    else
        fprintf(stderr, "%s%s\n", clock, text);
    fflush(stderr);
    run.shown = run.terminal;
}

void mgr_say_phase(const char *phase)
{
    work.phase = phase;
    work.total = work.done = 0;
    work.start = work.last = now(CLOCK_MONOTONIC);
    mgr_say_event("phase", &(mgr_fact){.key = "phase", .text = phase}, 1);
    if (!run.json && run.seconds > 0 && work.start - run.start >= run.seconds)
        say_line(phase);
}

void mgr_say_work(const char *unit, uint64_t total, uint32_t ranks)
{
    work.unit = unit;
    work.total = total;
    work.done = 0;
    work.ranks = ranks;
    work.start = now(CLOCK_MONOTONIC);
}

static const char *format_left(double seconds, char *out, size_t size)
{
    const double most = 99.0 * 3600;
    const unsigned s = (unsigned)(seconds < most ? seconds + 0.5 : most);
    if (s >= 3600)
        snprintf(out, size, "%u:%02u:%02u", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%u:%02u", s / 60, s % 60);
    return out;
}

void mgr_say_bytes(const char *phase, double share, double done, double total, double rate,
                   double left)
{
    char text[160], some[32], all[32], wait[32];
    snprintf(text, sizeof text, "%-5s %5.1f %%  %s of %s  %.2f GiB/s  %s left", phase, 100 * share,
             mgr_format_bytes((uint64_t)done, some, sizeof some),
             mgr_format_bytes((uint64_t)total, all, sizeof all), rate / 0x1p30,
             format_left(left, wait, sizeof wait));
    say_line(text);
}

static void say_share(double done, double elapsed, double left)
{
    const double total = (double)work.total;
    char text[160], wait[32];
    const mgr_fact facts[] = {{.key = "phase", .text = work.phase},
                              {.key = "unit", .text = work.unit ? work.unit : "bytes"},
                              {.key = "done", .number = done},
                              {.key = "done_of", .number = total},
                              {.key = "seconds", .number = elapsed},
                              {.key = "seconds_left", .number = left}};
    mgr_say_event("progress", facts, sizeof facts / sizeof facts[0]);
    if (run.json)
        return;
    if (!work.unit) {
        mgr_say_bytes(work.phase, done / total, done, total, done / elapsed, left);
        return;
    }
    snprintf(text, sizeof text, "%-5s %5.1f %%  %.0f of %.0f %s  %s left", work.phase,
             100 * done / total, done, total, work.unit, format_left(left, wait, sizeof wait));
    say_line(text);
}

int mgr_say_step(uint64_t n, mgr_err *err)
{
    const double t = run.seconds > 0 ? now(CLOCK_MONOTONIC) : 0;
    work.done += n;
    if (run.seconds > 0 && work.total && t - work.last >= run.seconds) {
        const double all = (double)work.done * work.ranks, total = (double)work.total;
        const double done = all < total ? all : total;
        const double elapsed = t - work.start > 1e-3 ? t - work.start : 1e-3;
        work.last = t;
        say_share(done, elapsed, done > 0 ? elapsed * (total - done) / done : 0);
    }
    return mgr_check_stop(err);
}

void mgr_say_no_phase(void)
{
    if (run.shown)
        fprintf(stderr, "\r%*s\r", COLUMNS, "");
    run.shown = false;
}
