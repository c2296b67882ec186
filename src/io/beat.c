/* A sign of life in a file: io/file.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/file.h"
#include "io/thread.h"

#define PERIOD 1 /* seconds */
#define PATIENCE 6
#define SIGN 128 /* bytes of one: its size never changes, so that no cache of sizes misleads */

struct mgr_beat {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t stop;
    bool stopped;
    unsigned count;
    char path[]; /* the thread takes no memory */
};

static void host_name(char *out, size_t size)
{
    if (gethostname(out, size - 1) != 0)
        snprintf(out, size, "?");
    out[size - 1] = '\0';
}

/* Opened and closed each time: a network file system shows to others what was closed. */
static bool write_sign(struct mgr_beat *b, int how)
{
    char sign[SIGN] = "", host[65] = "";
    const int fd = open(b->path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | how, 0666);
    if (fd < 0)
        return false;
    host_name(host, sizeof host);
    snprintf(sign, sizeof sign, "%s %ld %u", host, (long)getpid(), ++b->count);
    const bool written = pwrite(fd, sign, sizeof sign, 0) == (ssize_t)sizeof sign;
    return close(fd) == 0 && written;
}

static void *beat(void *context)
{
    struct mgr_beat *const b = context;
    pthread_mutex_lock(&b->lock);
    while (!b->stopped) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += PERIOD;
        if (pthread_cond_timedwait(&b->stop, &b->lock, &until) == ETIMEDOUT)
            (void)write_sign(b, 0); /* the run has other ways to notice a broken disk */
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static bool start_thread(struct mgr_beat *b)
{
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->stop, NULL);
    return mgr_thread_start(&b->thread, beat, b) == 0;
}

mgr_beat *mgr_beat_start(const char *path)
{
    mgr_err ignored = MGR_ERR_INIT;
    unsigned char *memory = NULL;
    const size_t len = strlen(path) + 1;
    if (mgr_alloc(&memory, sizeof(struct mgr_beat) + len, 1, &ignored) != MGR_OK)
        return NULL;
    mgr_beat *const b = (mgr_beat *)(void *)memory;
    memcpy(b->path, path, len);
    (void)unlink(path);
    if (write_sign(b, O_CREAT | O_EXCL) && start_thread(b))
        return b;
    mgr_free(memory);
    return NULL;
}

void mgr_beat_stop(mgr_beat **beat)
{
    mgr_beat *b = *beat;
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stopped = true;
    pthread_cond_signal(&b->stop);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    (void)unlink(b->path);
    mgr_free(b);
    *beat = NULL;
}

static bool read_sign(const char *path, char out[SIGN])
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    const bool read_all = fd >= 0 && pread(fd, out, SIGN, 0) == SIGN;
    if (fd >= 0)
        close(fd);
    out[SIGN - 1] = '\0';
    return read_all;
}

bool mgr_beat_is_there(const char *path, char *host, size_t size)
{
    char first[SIGN], now[SIGN], mine[65];
    const struct timespec pause = {0, 250000000};
    if (!read_sign(path, first))
        return false;
    host_name(mine, sizeof mine);
    snprintf(host, size, "%.*s", (int)strcspn(first, " "), first);
    if (strcmp(host, mine) == 0) /* there the lock tells */
        return false;
    for (int i = 0; i < 4 * PATIENCE; i++) {
        nanosleep(&pause, NULL);
        if (!read_sign(path, now))
            return false; /* it has just ended */
        if (memcmp(first, now, SIGN) != 0)
            return true;
    }
    return false;
}
