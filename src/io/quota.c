/* What a quota leaves, where the system can be asked: io/file.h. The kernel answers for its own
 * file systems (ext4, XFS, tmpfs, f2fs); Lustre, GPFS and NFS keep quotas of their own, of which
 * only a reservation tells. */
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/quota.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "io/file.h"

#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443 /* the same on all architectures */
#endif
#define PROJECT_QUOTA 2 /* not in each libc's header */

/* The device of a mounted file system; kernels before 5.14 ask quota by it. */
static bool find_device(int fd, char *out, size_t size)
{
    struct stat st;
    char line[1024], wanted[32], place[32], source[512];
    bool found = false;
    FILE *const mounts = fstat(fd, &st) == 0 ? fopen("/proc/self/mountinfo", "re") : NULL;
    if (!mounts)
        return false;
    snprintf(wanted, sizeof wanted, "%u:%u", major(st.st_dev), minor(st.st_dev));
    while (!found && fgets(line, sizeof line, mounts)) {
        const char *const rest = strstr(line, " - ");
        found = rest && sscanf(line, "%*s %*s %31s", place) == 1 && strcmp(place, wanted) == 0 &&
                sscanf(rest, " - %*s %511s", source) == 1 && strlen(source) < size;
    }
    fclose(mounts);
    if (found)
        snprintf(out, size, "%s", source);
    return found;
}

static bool ask(int fd, int kind, unsigned id, struct dqblk *q)
{
    char device[512];
    const int command = (int)((unsigned)Q_GETQUOTA << SUBCMDSHIFT | (unsigned)kind); /* QCMD */
    memset(q, 0, sizeof *q);
    if (syscall(SYS_quotactl_fd, fd, command, id, q) == 0)
        return true;
    return find_device(fd, device, sizeof device) &&
           quotactl(command, device, (int)id, (void *)q) == 0;
}

/* The tightest limit stands; a soft one ends nothing for some days. */
static void take(mgr_quota *quota, const struct dqblk *q, const char *whose)
{
    const uint64_t limit = q->dqb_bhardlimit * 1024, used = q->dqb_curspace;
    const uint64_t left = used < limit ? limit - used : 0;
    quota->asked = true;
    if (limit == 0 || (quota->whose && quota->left <= left))
        return;
    quota->whose = whose;
    quota->limit = limit;
    quota->left = left;
}

void mgr_quota_ask(int fd, mgr_quota *quota)
{
    struct stat st;
    struct dqblk q;
    struct fsxattr attributes = {0};
    *quota = (mgr_quota){0};
    const bool inherits = fstat(fd, &st) == 0 && (st.st_mode & S_ISGID);
    if (ask(fd, USRQUOTA, geteuid(), &q))
        take(quota, &q, "user");
    if (ask(fd, GRPQUOTA, inherits ? st.st_gid : getegid(), &q))
        take(quota, &q, "group");
    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0 && attributes.fsx_projid &&
        ask(fd, PROJECT_QUOTA, attributes.fsx_projid, &q))
        take(quota, &q, "project");
}
