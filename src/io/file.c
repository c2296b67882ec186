#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "io/fault.h"

/* One pread or pwrite moves at most 0x7ffff000 bytes on Linux; we ask for no more than this. */
#define TRANSFER_MAX ((size_t)1 << 30)

mgr_code mgr_write_code(int sys)
{
    return sys == ENOSPC || sys == EDQUOT || sys == EFBIG ? MGR_ERR_SPACE : MGR_ERR_IO;
}

int mgr_pread_full(int fd, const char *name, void *out, size_t len, uint64_t offset, mgr_err *err)
{
    char *at = out;
    while (len > 0) {
        const int fault = mgr_fault("pread");
        const ssize_t n =
            fault ? (errno = fault, -1)
                  : pread(fd, at, len < TRANSFER_MAX ? len : TRANSFER_MAX, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return mgr_fail_errno(err, MGR_ERR_IO, errno, "read '%s' at byte %llu", name,
                                  (unsigned long long)offset);
        if (n == 0)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is truncated at byte %llu", name,
                            (unsigned long long)offset);
        at += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return MGR_OK;
}

int mgr_pwrite_full(int fd, const char *name, const void *bytes, size_t len, uint64_t offset,
                    mgr_err *err)
{
    const char *at = bytes;
    while (len > 0) {
        const int fault = mgr_fault("pwrite");
        const ssize_t n =
            fault ? (errno = fault, -1)
                  : pwrite(fd, at, len < TRANSFER_MAX ? len : TRANSFER_MAX, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) /* nothing taken, and nothing said: never try for ever */
            return mgr_fail_errno(err, mgr_write_code(n < 0 ? errno : EIO), n < 0 ? errno : EIO,
                                  "write '%s' at byte %llu", name, (unsigned long long)offset);
        at += n;
        len -= (size_t)n;
        offset += (uint64_t)n;
    }
    return MGR_OK;
}

void mgr_begin_writeback(int fd, uint64_t offset, size_t len)
{
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(fd, (off_t)offset, (off_t)len, SYNC_FILE_RANGE_WRITE);
#else
    (void)fd, (void)offset, (void)len;
#endif
}

int mgr_drop_cached(const char *path, mgr_err *err)
{
    int fd;
    MGR_TRY(mgr_open_read(path, &fd, err));
#ifdef POSIX_FADV_DONTNEED
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
#endif
    mgr_close(fd);
    return MGR_OK;
}

int mgr_open_read(const char *path, int *fd, mgr_err *err)
{
    /* without O_NONBLOCK a FIFO in the place of a file would make us wait for its writer */
    const int f = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f < 0)
        return mgr_fail_errno(err, errno == ENOENT ? MGR_ERR_NOT_FOUND : MGR_ERR_IO, errno,
                              "cannot open '%s'", path);
    *fd = f;
    return MGR_OK;
}

static int open_existing(const char *path, int how, int *fd, mgr_err *err)
{
    const int f = open(path, how | O_CLOEXEC | O_NOFOLLOW);
    if (f < 0)
        return mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot open '%s' for writing", path);
    *fd = f;
    return MGR_OK;
}

int mgr_open_write(const char *path, int *fd, mgr_err *err)
{
    return open_existing(path, O_WRONLY, fd, err);
}

int mgr_open_both(const char *path, int *fd, mgr_err *err)
{
    return open_existing(path, O_RDWR, fd, err);
}

int mgr_sync(int fd, const char *name, mgr_err *err)
{
    const int fault = mgr_fault("fsync");
    const int sys = fault ? fault : fsync(fd) != 0 ? errno : 0;
    return sys ? mgr_fail_errno(err, mgr_write_code(sys), sys, "fsync '%s'", name) : MGR_OK;
}

int mgr_sync_close(int fd, const char *name, mgr_err *err)
{
    const int fault = mgr_fault("fsync");
    const int sync_errno = fault ? fault : (fsync(fd) != 0 ? errno : 0);
    const int close_errno = close(fd) != 0 ? errno : 0;
    if (sync_errno)
        return mgr_fail_errno(err, mgr_write_code(sync_errno), sync_errno, "fsync '%s'", name);
    if (close_errno)
        return mgr_fail_errno(err, mgr_write_code(close_errno), close_errno, "close '%s'", name);
    return MGR_OK;
}

void mgr_close(int fd)
{
    close(fd);
}

int mgr_create_open(const char *path, int *fd, mgr_err *err)
{
    const int fault = mgr_fault("create");
    const int f =
        fault ? (errno = fault, -1) : open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f < 0)
        return mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot create '%s'", path);
    *fd = f;
    return MGR_OK;
}

int mgr_set_size(int fd, const char *name, uint64_t bytes, mgr_err *err)
{
    if (ftruncate(fd, (off_t)bytes) != 0)
        return mgr_fail_errno(err, mgr_write_code(errno), errno, "cannot size '%s'", name);
    return MGR_OK;
}

int mgr_reserve(int fd, const char *name, uint64_t bytes, mgr_err *err)
{
    if (bytes == 0 || fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) == 0)
        return MGR_OK;
    return mgr_fail_errno(
        err, mgr_write_code(errno) == MGR_ERR_SPACE ? MGR_ERR_SPACE : MGR_ERR_UNSUPPORTED, errno,
        "cannot reserve '%s'", name);
}

int mgr_create_sized(const char *path, uint64_t bytes, mgr_err *err)
{
    int fd;
    MGR_TRY(mgr_create_open(path, &fd, err));
    const int sys = ftruncate(fd, (off_t)bytes) != 0 ? errno : 0;
    close(fd);
    if (sys)
        return mgr_fail_errno(err, MGR_ERR_CREATE, sys, "cannot size '%s'", path);
    return MGR_OK;
}

int mgr_write_file(const char *path, const void *bytes, size_t len, mgr_err *err)
{
    int fd;
    MGR_TRY(mgr_create_open(path, &fd, err));
    const int rc = mgr_pwrite_full(fd, path, bytes, len, 0, err);
    const int sync = mgr_sync_close(fd, path, err);
    return rc != MGR_OK ? rc : sync;
}

/* A regular file of at most `limit` bytes. */
static int open_small(const char *path, uint64_t limit, int *fd, uint64_t *bytes, mgr_err *err)
{
    struct stat st;
    int f;
    MGR_TRY(mgr_open_read(path, &f, err));
    int rc = MGR_OK;
    if (fstat(f, &st) != 0 || !S_ISREG(st.st_mode))
        rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not a regular file", path);
    else if ((uint64_t)st.st_size > limit)
        rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' has %llu bytes, more than the %llu allowed", path,
                      (unsigned long long)st.st_size, (unsigned long long)limit);
    if (rc != MGR_OK) {
        close(f);
        return rc;
    }
    *fd = f;
    *bytes = (uint64_t)st.st_size;
    return MGR_OK;
}

int mgr_read_file(const char *path, uint64_t limit, mgr_buf *out, mgr_err *err)
{
    int fd, rc = MGR_OK;
    uint64_t bytes;
    char chunk[65536];
    MGR_TRY(open_small(path, limit, &fd, &bytes, err));
    for (uint64_t at = 0; rc == MGR_OK && at < bytes;) {
        const uint64_t left = bytes - at;
        const size_t n = left < sizeof chunk ? (size_t)left : sizeof chunk;
        rc = mgr_pread_full(fd, path, chunk, n, at, err);
        if (rc == MGR_OK)
            rc = mgr_buf_add(out, chunk, n, err);
        at += n;
    }
    close(fd);
    return rc;
}

int mgr_check_file(const char *path, uint64_t limit, mgr_err *err)
{
    int fd;
    uint64_t bytes;
    MGR_TRY(open_small(path, limit, &fd, &bytes, err));
    close(fd);
    return MGR_OK;
}

int mgr_rename(const char *from, const char *to, mgr_err *err)
{
    const int fault = mgr_fault("rename");
    if (fault || rename(from, to) != 0)
        return mgr_fail_errno(err, MGR_ERR_CREATE, fault ? fault : errno, "rename '%s' to '%s'",
                              from, to);
    mgr_arena arena = {0};
    const char *parent;
    int rc = mgr_dirname(to, &arena, &parent, err);
    if (rc == MGR_OK)
        rc = mgr_sync_dir(parent, err);
    mgr_arena_clear(&arena);
    return rc;
}

int mgr_file_bytes(const char *path, uint64_t *bytes, mgr_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot look at '%s'", path);
    *bytes = (uint64_t)st.st_size;
    return MGR_OK;
}

bool mgr_path_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

bool mgr_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool mgr_is_link(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

int mgr_free_space(const char *path, uint64_t *bytes, mgr_err *err)
{
    struct statvfs fs;
    if (mgr_fault("space")) {
        *bytes = 0;
        return MGR_OK;
    }
    if (statvfs(path, &fs) != 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot ask the free space of '%s'", path);
    *bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_frsize;
    return MGR_OK;
}

/* ru_maxrss counts the process that this one was before exec, too; VmHWM begins with the program.
 */
uint64_t mgr_peak_rss(void)
{
    char line[256] = "";
    uint64_t kib = 0;
    FILE *const f = fopen("/proc/self/status", "r");
    while (f && kib == 0 && fgets(line, sizeof line, f))
        if (strncmp(line, "VmHWM:", 6) == 0)
            kib = strtoull(line + 6, NULL, 10);
    if (f)
        fclose(f);
    if (kib)
        return kib * 1024;
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

void mgr_forget_peak_rss(void)
{
    const int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "5", 1);
    close(fd);
}

const char *mgr_cpu_name(char *out, size_t size)
{
    char line[256] = "", *name = NULL;
    FILE *const f = fopen("/proc/cpuinfo", "r");
    while (f && !name && fgets(line, sizeof line, f))
        name = strncmp(line, "model name", 10) == 0 ? strstr(line, ": ") : NULL;
    if (f)
        fclose(f);
    snprintf(out, size, "%s", name ? name + 2 : "unknown");
    out[strcspn(out, "\n")] = '\0';
    return out;
}

uint64_t mgr_current_rss(void)
{
    char text[128] = "", *end = text; /* "total resident ...", in pages */
    FILE *const f = fopen("/proc/self/statm", "r");
    if (!f)
        return 0;
    if (fgets(text, sizeof text, f))
        (void)strtoull(text, &end, 10);
    fclose(f);
    return strtoull(end, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

void mgr_say_from_handler(const char *text, size_t len)
{
    while (len > 0) {
        const ssize_t n = write(STDERR_FILENO, text, len);
        if (n <= 0)
            break;
        text += n;
        len -= (size_t)n;
    }
}
