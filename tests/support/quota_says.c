/* For LD_PRELOAD: a kernel with quotas. quotactl_fd(2) answers with $QUOTA_LIMIT and $QUOTA_USED
 * bytes for the kind $QUOTA_OF (user, group, project), and with no limit for the others. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/quota.h>

#define QUOTACTL_FD 443

static long answer(int command, struct dqblk *out)
{
    static const char *const kinds[] = {"user", "group", "project"};
    const int kind = command & 0xff;
    const char *const of = getenv("QUOTA_OF");
    if (kind > 2 || command != (int)QCMD(Q_GETQUOTA, kind))
        return -1;
    memset(out, 0, sizeof *out);
    out->dqb_valid = QIF_LIMITS | QIF_SPACE;
    out->dqb_curspace = strtoull(getenv("QUOTA_USED"), NULL, 10);
    if (of && strcmp(of, kinds[kind]) == 0)
        out->dqb_bhardlimit = strtoull(getenv("QUOTA_LIMIT"), NULL, 10) / 1024;
    return 0;
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long a[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number == QUOTACTL_FD)
        return answer((int)a[1], (struct dqblk *)a[3]);
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
