/*
 * Runs a fuzz target over every file of a folder, the corpus, and then over as many malformed
 * inputs made of them: usage: fuzz_NAME CORPUS [LIES [FIRST]]. A crash, a hang of SECONDS of
 * processor time, or what a sanitizer sees ends it; FIRST is the number to begin with, as the last
 * line before a crash has it.
 */
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "fuzz/lies.h"

#define SECONDS 10
#define SEEDS 256

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
    lied *list;
    size_t n;
} seeds;

/* Exactly `len` bytes on the heap, so that a sanitizer sees a read past the end. */
static void run_bytes(const uint8_t *bytes, size_t len)
{
    uint8_t *const copy = malloc(len ? len : 1);
    if (!copy)
        abort();
    memcpy(copy, bytes, len);
    LLVMFuzzerTestOneInput(copy, len);
    free(copy);
}

static int run_file(const char *path)
{
    lied *const seed = &seeds.list[seeds.n];
    FILE *f = fopen(path, "rb");
    if (!f)
        return -1;
    uint8_t *const all = malloc(1 << 24);
    const size_t len = all ? fread(all, 1, 1 << 24, f) : 0;
    const int bad = ferror(f);
    fclose(f);
    if (!bad && all)
        run_bytes(all, len);
    if (!bad && all && len > 0 && len <= LIES_MOST && seeds.n + 1 < SEEDS) {
        memcpy(seed->bytes, all, len);
        seed->len = len;
        seeds.n++;
    }
    free(all);
    return bad ? -1 : 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int run_folder(const char *folder)
{
    struct dirent **list;
    const int found = scandir(folder, &list, NULL, by_name);
    int n = 0;
    for (int i = 0; i < found; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name);
        if (list[i]->d_name[0] != '.' && run_file(path) == 0)
            n++;
        free(list[i]);
    }
    if (found >= 0)
        free(list);
    return n;
}

/* What a signal's handler says. */
static char at_work[63];

static void say_number(int signal_number)
{
    const size_t len = sizeof at_work - 1;
    if (write(STDERR_FILENO, at_work, len) != (ssize_t)len)
        _exit(2);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* SECONDS of this process's own time from now on; a busy machine is no hang. */
static void wind_up(void)
{
    const struct itimerval limit = {.it_value = {.tv_sec = SECONDS}};
    setitimer(ITIMER_PROF, &limit, NULL);
}

static double tell(uint64_t number, lied *in)
{
    const clock_t start = clock();
    const lied *const seed = &seeds.list[number % seeds.n];
    memcpy(in->bytes, seed->bytes, seed->len);
    in->len = seed->len;
    lies_tell(in, &seeds.list[number / seeds.n % seeds.n], number);
    snprintf(at_work, sizeof at_work, "ended at lie %-48" PRIu64 "\n", number);
    run_bytes(in->bytes, in->len);
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

static void tell_all(uint64_t first, uint64_t n)
{
    double longest = 0;
    lied *const in = malloc(sizeof *in);
    if (!in || seeds.n == 0)
        abort();
    signal(SIGPROF, say_number);
    signal(SIGABRT, say_number);
    for (uint64_t i = first; i < first + n; i++) {
        if (i % 64 == 0)
            wind_up();
        const double seconds = tell(i, in);
        longest = seconds > longest ? seconds : longest;
    }
    setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
    free(in);
    printf("malformed inputs: %" PRIu64 ", crashes: 0, hangs: 0, longest: %.3f s\n", n, longest);
    for (size_t k = 0; k < lies_kinds() && n >= 10000; k++)
        printf("  %8" PRIu64 "  %s\n", lies_told[k], lies_name(k));
}

int main(int argc, char **argv)
{
    const uint64_t n = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    const uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    seeds.list = calloc(SEEDS, sizeof *seeds.list);
    if (argc < 2 || !seeds.list)
        return 2;
    const int files = run_folder(argv[1]);
    printf("%s: %d inputs\n", argv[1], files);
    if (files > 0 && n > 0)
        tell_all(first, n);
    free(seeds.list);
    return files > 0 ? 0 : 1;
}
