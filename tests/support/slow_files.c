/* For LD_PRELOAD: a slow file system, so that each phase of a small run lasts as long as a large
 * one's. Sizing, reading, writing, syncing, renaming and removing a file below $SLOW_UNDER takes
 * $SLOW_MS milliseconds each, and twenty times as long once there is a file $SLOW_MORE. What the
 * process ended with is a line in $SLOW_ENDS: a launcher may lose it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void wait_for(const char *path)
{
    const char *const under = getenv("SLOW_UNDER"), *const ms = getenv("SLOW_MS");
    if (!under || !ms || strncmp(path, under, strlen(under)) != 0)
        return;
    const int each =
        atoi(ms) * (getenv("SLOW_MORE") && access(getenv("SLOW_MORE"), F_OK) == 0 ? 20 : 1);
    struct timespec left = {each / 1000, each % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0) /* a signal does not make a disk faster */
        continue;
}

static void note_end(int status, void *unused)
{
    const int log =
        getenv("SLOW_ENDS") ? open(getenv("SLOW_ENDS"), O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
    (void)unused;
    if (log >= 0) {
        dprintf(log, "%d\n", status);
        close(log);
    }
}

__attribute__((constructor)) static void begin(void)
{
    on_exit(note_end, NULL);
}

static void wait_for_fd(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) {
        path[n] = '\0';
        wait_for(path);
    }
}

#define SLOW(type, name, arguments, pass, wait)                                                    \
    type name arguments                                                                            \
    {                                                                                              \
        static type(*next) arguments;                                                              \
        if (!next)                                                                                 \
            next = (type(*) arguments)dlsym(RTLD_NEXT, #name);                                     \
        wait;                                                                                      \
        return next pass;                                                                          \
    }
SLOW(ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), wait_for_fd(fd))
SLOW(ssize_t, pread64, (int fd, void *to, size_t n, off_t at), (fd, to, n, at), wait_for_fd(fd))
SLOW(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at),
     wait_for_fd(fd))
SLOW(ssize_t, pwrite64, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at),
     wait_for_fd(fd))
SLOW(int, ftruncate, (int fd, off_t n), (fd, n), wait_for_fd(fd))
SLOW(int, ftruncate64, (int fd, off_t n), (fd, n), wait_for_fd(fd))
SLOW(int, fsync, (int fd), (fd), wait_for_fd(fd))
SLOW(int, unlinkat, (int folder, const char *name, int how), (folder, name, how),
     wait_for_fd(folder))
SLOW(int, rename, (const char *from, const char *to), (from, to), wait_for(to))
