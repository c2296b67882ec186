/* Linked into the programs that tests run, and into nothing that is installed (src/CMakeLists.txt):
 * there io/fault_none.c takes its place. */
#include "io/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Threads may count at once; the rank's own has parsed it by then. */
static struct {
    int parsed, sys, signal, only_rank;
    uint32_t nodes;
    _Atomic long left;
    char call[16];
} plan = {.only_rank = -1};

static int my_rank = -1;

void mgr_fault_set_rank(int rank)
{
    my_rank = rank;
}

static int errno_of(const char *name)
{
    static const struct {
        const char *name;
        int value;
    } names[] = {{"EIO", EIO},     {"ENOSPC", ENOSPC}, {"EACCES", EACCES},
                 {"EINTR", EINTR}, {"EINVAL", EINVAL}, {"EDQUOT", EDQUOT}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i].name, name) == 0)
            return names[i].value;
    return EIO;
}

/* "word:number,": what stands before the fault. */
static int number_before(const char **text, const char *word, long *number)
{
    char *end;
    if (strncmp(*text, word, strlen(word)) != 0)
        return 0;
    *number = strtol(*text + strlen(word), &end, 10);
    *text = *end == ',' ? end + 1 : end;
    return 1;
}

static void parse(const char *text)
{
    long number;
    plan.parsed = 1;
    if (!text)
        return;
    if (number_before(&text, "nodes:", &number))
        plan.nodes = (uint32_t)number;
    if (number_before(&text, "rank:", &number))
        plan.only_rank = (int)number;
    const size_t len = strcspn(text, ":");
    if (text[len] != ':' || len >= sizeof plan.call)
        return;
    char *end;
    memcpy(plan.call, text, len);
    plan.left = strtol(text + len + 1, &end, 10);
    const char *const last = *end == ':' ? end + 1 : "";
    plan.signal = strcmp(last, "kill") == 0 ? SIGKILL : strcmp(last, "term") == 0 ? SIGTERM : 0;
    plan.sys = errno_of(last);
}

uint32_t mgr_fault_nodes(void)
{
    if (!plan.parsed)
        parse(getenv("MGR_FAULT"));
    return plan.nodes;
}

int mgr_fault(const char *call)
{
    if (!plan.parsed)
        parse(getenv("MGR_FAULT"));
    if (strcmp(plan.call, call) != 0 || (plan.only_rank >= 0 && plan.only_rank != my_rank))
        return 0;
    if (plan.left <= 0 || --plan.left != 0)
        return 0;
    if (!plan.signal)
        return plan.sys;
    kill(getpid(), plan.signal); /* not this thread, which may take none */
    return 0;                    /* one that can be caught has been, or will be */
}
