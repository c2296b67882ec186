/* What a file system takes, asked before anything is written: io/file.h. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/fault.h"
#include "io/file.h"

#define TMPFS_MAGIC 0x01021994
#define LUSTRE_MAGIC 0x0BD00BD0

size_t mgr_name_max(const char *directory)
{
    const long most = pathconf(directory, _PC_NAME_MAX);
    return most > 0 ? (size_t)most : NAME_MAX;
}

size_t mgr_path_max(void)
{
    return PATH_MAX - 1;
}

uint64_t mgr_file_room(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : 0;
}

bool mgr_is_on_lustre(const char *directory)
{
    struct statfs fs;
    return mgr_fault("lustre") || (statfs(directory, &fs) == 0 && fs.f_type == LUSTRE_MAGIC);
}

static int refuse(const mgr_quota *quota, const char *path, uint64_t bytes, mgr_err *err)
{
    char wants[32], left[32], limit[32];
    mgr_fail(err, MGR_ERR_SPACE, "the plan writes %s, the %s quota of '%s' leaves %s of %s",
             mgr_format_bytes(bytes, wants, sizeof wants), quota->whose, path,
             mgr_format_bytes(quota->left, left, sizeof left),
             mgr_format_bytes(quota->limit, limit, sizeof limit));
    return mgr_hint(err, "free space, ask for more, or choose another target.path");
}

/* Is there a quota that would end the run? Where the kernel does not say, only a reservation tells;
 * where that would take much of what others may want, or real memory, it is not asked. */
static int check_quota(int fd, const char *path, uint64_t bytes, mgr_room *room, mgr_err *err)
{
    struct statfs fs;
    mgr_quota_ask(fd, &room->quota);
    if (room->quota.whose && room->quota.left < bytes)
        return refuse(&room->quota, path, bytes, err);
    char wants[32];
    const int fault = mgr_fault("probe");
    if (!fault && (fstatfs(fd, &fs) != 0 || fs.f_type == TMPFS_MAGIC || bytes == 0 ||
                   bytes > (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize / 2))
        return MGR_OK;
    const int sys = fault                                                      ? fault
                    : fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) != 0 ? errno
                                                                               : 0;
    room->reserved = sys == 0;
    if (sys != EDQUOT)
        return MGR_OK;
    mgr_fail_errno(err, MGR_ERR_SPACE, sys, "the plan writes %s, '%s' cannot take it",
                   mgr_format_bytes(bytes, wants, sizeof wants), path);
    return mgr_hint(err, "free space, ask for more, or choose another target.path");
}

static int check_size(int fd, const char *path, uint64_t largest, mgr_err *err)
{
    struct rlimit limit;
    char wants[32];
    mgr_format_bytes(largest, wants, sizeof wants);
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        limit.rlim_cur < largest) {
        mgr_fail(err, MGR_ERR_SPACE, "a file of the plan has %s, this process may write no such",
                 wants);
        return mgr_hint(err, "raise the limit: ulimit -f");
    }
    if (ftruncate(fd, (off_t)largest) == 0 && ftruncate(fd, 0) == 0)
        return MGR_OK;
    mgr_fail_errno(err, MGR_ERR_SPACE, errno, "a file of the plan has %s, '%s' takes no such",
                   wants, path);
    return mgr_hint(err, "choose another target.path");
}

/* A place that takes no such call is one where nothing can be created; a broken disk is none. */
static mgr_code call_code(int sys)
{
    const mgr_code code = mgr_write_code(sys);
    return code == MGR_ERR_IO && sys != EIO ? MGR_ERR_CREATE : code;
}

static bool write_byte(int fd)
{
    ssize_t n;
    do
        n = pwrite(fd, "", 1, 4096);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        errno = EIO;
    return n == 1;
}

/* The calls that a run makes, each once: what fails here would fail after hours. */
static int try_calls(int folder, int fd, const char *path, mgr_err *err)
{
    const char *call = "write";
    bool ok = write_byte(fd);
    if (ok)
        ok = (call = "fsync", fsync(fd) == 0);
    if (ok)
        ok = (call = "rename", renameat(folder, "a", folder, "b") == 0);
    if (ok)
        ok = (call = "remove", unlinkat(folder, "b", 0) == 0);
    const int fault = mgr_fault("probe");
    if (ok && !fault)
        return MGR_OK;
    const int sys = ok ? fault : errno;
    mgr_fail_errno(err, call_code(sys), sys, "cannot %s a file in '%s'", call, path);
    return mgr_hint(err, "choose another target.path");
}

static int try_file(int folder, const char *path, uint64_t largest, uint64_t bytes, mgr_room *room,
                    mgr_err *err)
{
    const int fd = openat(folder, "a", O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot create a file in '%s'", path);
    int rc = check_size(fd, path, largest, err);
    if (rc == MGR_OK)
        rc = check_quota(fd, path, bytes, room, err);
    if (rc == MGR_OK)
        rc = try_calls(folder, fd, path, err);
    close(fd);
    (void)unlinkat(folder, "a", 0);
    (void)unlinkat(folder, "b", 0);
    return rc;
}

int mgr_try_folder(const char *path, uint64_t largest, uint64_t bytes, mgr_room *room, mgr_err *err)
{
    *room = (mgr_room){0};
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot create directory '%s'", path);
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot open directory '%s'", path);
    const int rc = try_file(fd, path, largest, bytes, room, err);
    room->tried = rc == MGR_OK;
    close(fd);
    (void)rmdir(path);
    return rc;
}
