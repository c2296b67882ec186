/* Walking a folder of our own without following anything: io/file.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/mem.h"
#include "io/file.h"

#define MAX_DEPTH 16

typedef struct sweep {
    const char *root;
    mgr_judge *judge;
    const void *context;
    mgr_buf path; /* below the root, of the entry at hand */
} sweep;

static mgr_entry kind_of(const struct stat *st)
{
    if (S_ISDIR(st->st_mode))
        return MGR_ENTRY_FOLDER;
    return S_ISREG(st->st_mode) && st->st_nlink == 1 ? MGR_ENTRY_FILE : MGR_ENTRY_OTHER;
}

static const char *name_of(mgr_entry kind, const struct stat *st)
{
    return S_ISLNK(st->st_mode)   ? "a symbolic link"
           : S_ISREG(st->st_mode) ? kind == MGR_ENTRY_FILE ? "a file" : "a file with another name"
           : kind == MGR_ENTRY_FOLDER ? "a folder"
                                      : "no regular file";
}

static int sweep_folder(sweep *s, int fd, int depth, mgr_err *err);

static int enter(sweep *s, int parent, const char *name, int depth, mgr_err *err)
{
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || depth >= MAX_DEPTH) {
        const int sys = fd < 0 ? errno : ELOOP;
        if (fd >= 0)
            close(fd);
        return mgr_fail_errno(err, MGR_ERR_IO, sys, "cannot open directory '%s/%s'", s->root,
                              s->path.data);
    }
    return sweep_folder(s, fd, depth + 1, err);
}

static int take_entry(sweep *s, int parent, const char *name, int depth, mgr_err *err)
{
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot look at '%s/%s'", s->root,
                              s->path.data);
    const mgr_entry kind = kind_of(&st);
    switch (s->judge(s->context, s->path.data, kind)) {
    case MGR_KEEP:
        return MGR_OK;
    case MGR_ENTER:
        return enter(s, parent, name, depth, err);
    case MGR_DROP:
        if (unlinkat(parent, name, kind == MGR_ENTRY_FOLDER ? AT_REMOVEDIR : 0) != 0)
            return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot remove '%s/%s'", s->root,
                                  s->path.data);
        return MGR_OK;
    default:
        return mgr_fail(err, MGR_ERR_EXISTS, "cannot resume: '%s/%s' is %s that no run put there",
                        s->root, s->path.data, name_of(kind, &st));
    }
}

/* Closes fd. */
static int sweep_folder(sweep *s, int fd, int depth, mgr_err *err)
{
    DIR *const dir = fdopendir(fd);
    const size_t len = s->path.len;
    int rc = MGR_OK;
    if (!dir) {
        rc = mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot read directory '%s'", s->root);
        close(fd);
        return rc;
    }
    for (const struct dirent *e = readdir(dir); rc == MGR_OK && e; e = readdir(dir)) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        s->path.len = len;
        rc = mgr_buf_fmt(&s->path, err, "%s%s", len ? "/" : "", e->d_name);
        if (rc == MGR_OK)
            rc = take_entry(s, fd, e->d_name, depth, err);
    }
    s->path.len = len;
    closedir(dir);
    return rc;
}

int mgr_sweep(const char *root, mgr_judge *judge, const void *context, mgr_err *err)
{
    sweep s = {.root = root, .judge = judge, .context = context};
    const int fd = open(root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return mgr_fail_errno(err, MGR_ERR_IO, errno, "cannot open directory '%s'", root);
    const int rc = sweep_folder(&s, fd, 0, err);
    mgr_buf_clear(&s.path);
    return rc;
}
