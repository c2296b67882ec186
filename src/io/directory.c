/* The directory half of io/file.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/fault.h"
#include "io/file.h"

int mgr_make_dir(const char *path, mgr_err *err)
{
    if (mkdir(path, 0777) == 0)
        return MGR_OK;
    return mgr_fail_errno(err, errno == EEXIST ? MGR_ERR_EXISTS : MGR_ERR_CREATE, errno,
                          "cannot create directory '%s'", path);
}

int mgr_make_dirs(const char *path, mgr_err *err)
{
    char *copy;
    MGR_TRY(mgr_strdup(&copy, path, err));
    int rc = MGR_OK;
    for (char *slash = copy + 1; rc == MGR_OK && *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = '\0';
        if (!mgr_is_dir(copy) && mkdir(copy, 0777) != 0 && errno != EEXIST)
            rc = mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot create directory '%s'", copy);
        *slash = '/';
    }
    if (rc == MGR_OK && !mgr_is_dir(copy) && mkdir(copy, 0777) != 0)
        rc = mgr_fail_errno(err, MGR_ERR_CREATE, errno, "cannot create directory '%s'", copy);
    mgr_free(copy);
    return rc;
}

int mgr_sync_dir(const char *path, mgr_err *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot open directory '%s'", path);
    const int fault = mgr_fault("fsync");
    const int sys = fault ? fault : fsync(fd) != 0 ? errno : 0;
    close(fd);
    /* some network file systems cannot sync a directory and say so; their rename is durable */
    if (sys && sys != EINVAL && sys != ENOTSUP)
        return mgr_fail_errno(err, mgr_write_code(sys), sys, "fsync directory '%s'", path);
    return MGR_OK;
}

static int by_name(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static int collect(DIR *dir, mgr_arena *arena, const char ***names, size_t *capacity, size_t *n,
                   mgr_err *err)
{
    for (const struct dirent *e = readdir(dir); e; e = readdir(dir)) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        MGR_TRY(mgr_grow(names, capacity, *n + 1, sizeof **names, err));
        MGR_TRY(mgr_arena_strndup(arena, &(*names)[*n], e->d_name, strlen(e->d_name), err));
        ++*n;
    }
    return MGR_OK;
}

int mgr_list_dir(const char *path, mgr_arena *arena, const char ***names, size_t *n, mgr_err *err)
{
    const char **found = NULL;
    size_t capacity = 0, count = 0;
    DIR *const dir = opendir(path);
    if (!dir)
        return mgr_fail_errno(err, errno == ENOENT ? MGR_ERR_NOT_FOUND : MGR_ERR_IO, errno,
                              "cannot open directory '%s'", path);
    int rc = collect(dir, arena, &found, &capacity, &count, err);
    closedir(dir);
    if (rc == MGR_OK && count) {
        qsort(found, count, sizeof *found, by_name);
        rc = mgr_arena_alloc(arena, names, count * sizeof *found, err);
        if (rc == MGR_OK)
            memcpy(*names, found, count * sizeof *found);
    }
    if (rc == MGR_OK)
        *n = count;
    mgr_free(found);
    return rc;
}

bool mgr_is_plain_file(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0 && S_ISREG(s.st_mode);
}

int mgr_dirname(const char *path, mgr_arena *arena, const char **out, mgr_err *err)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    while (len > 0 && path[len - 1] != '/')
        len--;
    while (len > 1 && path[len - 1] == '/')
        len--;
    return len ? mgr_arena_strndup(arena, out, path, len, err)
               : mgr_arena_strndup(arena, out, ".", 1, err);
}

int mgr_hold_dir(const char *path, int *fd, bool *taken, mgr_err *err)
{
    const int f = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (f < 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot open directory '%s'", path);
    *taken = flock(f, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (*taken)
        close(f);
    else
        *fd = f;
    return MGR_OK;
}

bool mgr_is_held(const char *path, int fd)
{
    struct stat there, held;
    return stat(path, &there) == 0 && fstat(fd, &held) == 0 && there.st_dev == held.st_dev &&
           there.st_ino == held.st_ino;
}

bool mgr_is_inside(const char *path, const char *directory)
{
    char inner[PATH_MAX], outer[PATH_MAX];
    if (!realpath(path, inner) || !realpath(directory, outer))
        return false;
    const size_t len = strlen(outer);
    return strncmp(inner, outer, len) == 0 && (inner[len] == '/' || inner[len] == '\0' || len == 1);
}

int mgr_check_link(const char *path, const char *directory, mgr_err *err)
{
    mgr_buf snapshots = {0}, blobs = {0};
    int rc = mgr_buf_fmt(&snapshots, err, "%s/../../snapshots", directory);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&blobs, err, "%s/../../blobs", directory);
    if (rc == MGR_OK && access(path, F_OK) == 0 && !mgr_is_inside(path, directory) &&
        !(mgr_is_inside(directory, snapshots.data) && mgr_is_inside(path, blobs.data))) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is a link to a place outside of '%s'", path,
                 directory);
        rc = mgr_hint(err, "put a copy or a hard link in its place");
    }
    mgr_buf_clear(&snapshots);
    mgr_buf_clear(&blobs);
    return rc;
}

static int sync_parent(const char *path, mgr_err *err)
{
    mgr_arena arena = {0};
    const char *parent;
    int rc = mgr_dirname(path, &arena, &parent, err);
    if (rc == MGR_OK)
        rc = mgr_sync_dir(parent, err);
    mgr_arena_clear(&arena);
    return rc;
}

/* Rename with renameat2's `flags`; nonzero errno. */
static int rename_flagged(const char *from, const char *to, unsigned flags)
{
    const int fault = mgr_fault("rename");
    return fault ? fault : renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) != 0 ? errno : 0;
}

/* Where the file system has no exchange: the old directory steps aside first. A kill between the
 * two renames leaves it complete under its ".replaced" name. */
static int replace_in_two_steps(const char *from, const char *to, mgr_err *err)
{
    mgr_buf aside = {0};
    int rc = mgr_buf_fmt(&aside, err, "%s.replaced", to);
    if (rc == MGR_OK)
        rc = mgr_rename(to, aside.data, err);
    if (rc == MGR_OK) {
        rc = mgr_rename(from, to, err);
        if (rc != MGR_OK && mgr_path_exists(to)) /* renamed, but not known to be durable */
            (void)rename(to, from);
    }
    if (rc == MGR_OK)
        rc = mgr_remove_tree(aside.data, err);
    else if (!mgr_path_exists(to) && rename(aside.data, to) != 0)
        rc = mgr_wrap(err, "what was '%s' is now '%s'", to, aside.data);
    mgr_buf_clear(&aside);
    return rc;
}

static bool not_offered(int sys)
{
    return sys == EINVAL || sys == ENOSYS || sys == ENOTSUP;
}

int mgr_publish(const char *from, const char *to, bool replace, mgr_err *err)
{
    const bool swap = replace && mgr_path_exists(to);
    int sys = rename_flagged(from, to, swap ? RENAME_EXCHANGE : RENAME_NOREPLACE);
    if (not_offered(sys)) {
        if (swap)
            return replace_in_two_steps(from, to, err);
        sys = mgr_path_exists(to) ? EEXIST : rename_flagged(from, to, 0);
    }
    if (sys)
        return mgr_fail_errno(err, sys == EEXIST ? MGR_ERR_EXISTS : MGR_ERR_CREATE, sys,
                              "rename '%s' to '%s'", from, to);
    int rc = sync_parent(to, err);
    if (rc != MGR_OK) { /* not known to be durable: as if it had not been done */
        (void)renameat2(AT_FDCWD, to, AT_FDCWD, from, swap ? RENAME_EXCHANGE : 0);
        return rc;
    }
    if (swap) /* what `from` holds now is the old output */
        rc = mgr_remove_tree(from, err);
    return rc == MGR_OK ? MGR_OK
                        : mgr_wrap(err, "'%s' is complete, but what it replaced remains", to);
}
