/* What lies below a directory: listed, and removed. Half of io/file.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/file.h"

/* Our own outputs are three levels deep; deeper trees are walked as well, up to a bound. */
#define DEPTH 16

/* Where the kernel does not tell (before 5.8), what lies on another device. */
static bool is_mount(int directory, int parent)
{
    struct statx st;
    struct stat here, above;
    if (statx(directory, "", AT_EMPTY_PATH, 0, &st) == 0 &&
        (st.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT))
        return st.stx_attributes & STATX_ATTR_MOUNT_ROOT;
    return parent != AT_FDCWD && fstat(directory, &here) == 0 && fstat(parent, &above) == 0 &&
           here.st_dev != above.st_dev;
}

/* A directory below `parent` for reading, never by a link and never a mount: -1 and errno. */
static int open_below(int parent, const char *name)
{
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || !is_mount(fd, parent))
        return fd;
    close(fd);
    errno = EXDEV;
    return -1;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* ---- listing ---- */

typedef struct walk {
    mgr_arena *arena;
    const char **names;
    size_t n, capacity;
} walk;

static int note(walk *w, const char *prefix, const char *name, const char *end, mgr_err *err)
{
    MGR_TRY(mgr_grow(&w->names, &w->capacity, w->n + 1, sizeof *w->names, err));
    MGR_TRY(mgr_arena_fmt(w->arena, &w->names[w->n], err, "%s%s%s", prefix, name, end));
    w->n++;
    return MGR_OK;
}

static int cannot_enter(const char *path, const char *prefix, const char *name, mgr_err *err)
{
    const int sys = errno;
    if (sys == EXDEV)
        return mgr_fail(err, MGR_ERR_EXISTS, "'%s/%s%s' is a mount of something else", path, prefix,
                        name);
    return mgr_fail_errno(err, MGR_ERR_IO, sys, "cannot open directory '%s/%s%s'", path, prefix,
                          name);
}

static int walk_below(walk *w, const char *path, DIR *dir, const char *prefix, int depth,
                      mgr_err *err);

static int walk_entry(walk *w, const char *path, int parent, const char *prefix, const char *name,
                      int depth, mgr_err *err)
{
    struct stat st;
    const char *inner;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode))
        return note(w, prefix, name, "", err);
    if (depth == DEPTH)
        return mgr_fail(err, MGR_ERR_EXISTS, "'%s' has more than %d levels of directories", path,
                        DEPTH);
    const int fd = open_below(parent, name);
    if (fd < 0)
        return cannot_enter(path, prefix, name, err);
    int rc = mgr_arena_fmt(w->arena, &inner, err, "%s%s/", prefix, name);
    DIR *const dir = rc == MGR_OK ? fdopendir(fd) : NULL;
    if (!dir) {
        close(fd);
        return rc != MGR_OK ? rc : cannot_enter(path, prefix, name, err);
    }
    const size_t before = w->n;
    rc = walk_below(w, path, dir, inner, depth + 1, err);
    closedir(dir);
    return rc == MGR_OK && w->n == before ? note(w, prefix, name, "/", err) : rc;
}

static int walk_below(walk *w, const char *path, DIR *dir, const char *prefix, int depth,
                      mgr_err *err)
{
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir))
        if (!is_dots(e->d_name))
            MGR_TRY(walk_entry(w, path, dirfd(dir), prefix, e->d_name, depth, err));
    return MGR_OK;
}

static int by_text(const void *a, const void *b)
{
    const char *const *const x = a, *const *const y = b;
    return strcmp(*x, *y);
}

int mgr_list_tree(const char *path, mgr_arena *arena, const char ***names, size_t *n, mgr_err *err)
{
    walk w = {.arena = arena};
    const int fd = open_below(AT_FDCWD, path);
    DIR *const dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        const int rc = errno == EXDEV ? mgr_fail(err, MGR_ERR_EXISTS, "'%s' is a mount", path)
                                      : mgr_fail_errno(err, MGR_ERR_IO, errno,
                                                       "cannot open directory '%s'", path);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    int rc = walk_below(&w, path, dir, "", 0, err);
    closedir(dir);
    if (rc == MGR_OK)
        rc = mgr_arena_alloc(arena, names, (w.n + 1) * sizeof *w.names, err);
    if (rc == MGR_OK && w.n) {
        qsort(w.names, w.n, sizeof *w.names, by_text);
        memcpy(*names, w.names, w.n * sizeof *w.names);
    }
    *n = rc == MGR_OK ? w.n : 0;
    mgr_free(w.names);
    return rc;
}

/* ---- removing ---- */

static int remove_below(int parent, const char *name, int depth)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return 0;
    const int fd = depth > DEPTH ? -1 : open_below(parent, name);
    DIR *const dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    int rc = 0;
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir))
        if (!is_dots(e->d_name) && remove_below(fd, e->d_name, depth + 1) != 0)
            rc = -1;
    closedir(dir);
    return rc == 0 ? unlinkat(parent, name, AT_REMOVEDIR) : -1;
}

int mgr_remove_tree(const char *path, mgr_err *err)
{
    if (remove_below(AT_FDCWD, path, 0) != 0 && mgr_path_exists(path))
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot remove '%s'", path);
    return MGR_OK;
}
