#include "io/cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define BITS 64

uint32_t mgr_cores_quota(const char *line)
{
    char *behind;
    const unsigned long quota = strtoul(line, &behind, 10), period = strtoul(behind, NULL, 10);
    if (behind == line || period == 0)
        return 0;
    const unsigned long cores = quota / period;
    return cores < 1 ? 1 : cores < UINT32_MAX ? (uint32_t)cores : 0;
}

/* The first line of a file that begins so, without that; empty where there is none. */
static void line_of(const char *path, const char *lead, char *out, size_t size)
{
    FILE *const f = fopen(path, "re");
    char line[512];
    const size_t len = strlen(lead);
    out[0] = '\0';
    while (f && out[0] == '\0' && fgets(line, sizeof line, f))
        if (strncmp(line, lead, len) == 0)
            snprintf(out, size, "%.*s", (int)strcspn(line + len, "\n"), line + len);
    if (f)
        (void)fclose(f);
}

/* Of its own group (version 2); groups above it may have less. */
static uint32_t quota_of_group(void)
{
    char group[512], path[600], line[64];
    line_of("/proc/self/cgroup", "0::", group, sizeof group);
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
    line_of(path, "", line, sizeof line);
    return mgr_cores_quota(line);
}

void mgr_cores_ask(mgr_cores *out)
{
    char host[256] = "";
    cpu_set_t set;
    *out = (mgr_cores){0};
    (void)gethostname(host, sizeof host - 1);
    out->host = XXH3_64bits(host, strlen(host));
    out->quota = quota_of_group();
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return;
    for (size_t i = 0; i < CPU_SETSIZE && i < (size_t)MGR_CORES_WORDS * BITS; i++)
        if (CPU_ISSET(i, &set))
            out->mask[i / BITS] |= (uint64_t)1 << i % BITS;
}

static bool overlap(const mgr_cores *a, const mgr_cores *b)
{
    uint64_t both = 0;
    for (size_t i = 0; a->host == b->host && i < MGR_CORES_WORDS; i++)
        both |= a->mask[i] & b->mask[i];
    return both != 0;
}

static uint32_t count(const mgr_cores *c)
{
    uint32_t n = 0;
    for (size_t i = 0; i < MGR_CORES_WORDS; i++)
        n += (uint32_t)__builtin_popcountll(c->mask[i]);
    return c->quota && c->quota < n ? c->quota : n;
}

uint32_t mgr_cores_each(const mgr_cores *all, size_t n)
{
    uint32_t least = n ? UINT32_MAX : 0;
    for (size_t i = 0; i < n && least; i++) {
        uint32_t sharing = 0;
        for (size_t k = 0; k < n; k++)
            sharing += overlap(&all[i], &all[k]);
        const uint32_t own = sharing ? count(&all[i]) / sharing : 0;
        least = own < least ? own : least;
    }
    return least;
}
