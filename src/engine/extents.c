#include "engine/extents.h"

#include "core/mem.h"
#include "core/str.h"
#include "io/file.h"

/* Some systems allow a process 1024 files; a rank seldom needs more than a few at a time. */
#define MAX_OPEN 256

int mgr_open_files_init(mgr_open_files *files, const mgr_catalogue *cat, const char *directory,
                        bool for_writing, mgr_err *err)
{
    *files = (mgr_open_files){.cat = cat, .directory = directory, .for_writing = for_writing};
    MGR_TRY(mgr_alloc(&files->list, cat->n_files, sizeof *files->list, err));
    for (size_t i = 0; i < cat->n_files; i++)
        files->list[i].fd = -1;
    return MGR_OK;
}

bool mgr_open_files_is_full(const mgr_open_files *files, uint32_t file)
{
    return files->list[file].fd < 0 && files->n_open >= MAX_OPEN;
}

int mgr_open_files_get(mgr_open_files *files, uint32_t file, int *fd, mgr_err *err)
{
    mgr_open_file *const f = &files->list[file];
    if (f->fd < 0) {
        if (mgr_open_files_is_full(files, file))
            MGR_TRY(mgr_open_files_close(files, false, err));
        mgr_buf path = {0};
        int rc = MGR_OK;
        if (files->directory)
            rc = mgr_buf_fmt(&path, err, "%s/", files->directory);
        if (rc == MGR_OK)
            rc = mgr_buf_text(&path, files->cat->files[file].path, err);
        if (rc == MGR_OK)
            rc = files->for_writing ? mgr_open_write(path.data, &f->fd, err)
                                    : mgr_open_read(path.data, &f->fd, err);
        mgr_buf_clear(&path);
        MGR_TRY(rc);
        files->n_open++;
    }
    f->written = files->for_writing;
    *fd = f->fd;
    return MGR_OK;
}

int mgr_open_files_close(mgr_open_files *files, bool failed, mgr_err *err)
{
    int rc = MGR_OK;
    for (size_t i = 0; files->list && i < files->cat->n_files; i++) {
        mgr_open_file *const f = &files->list[i];
        if (f->fd < 0)
            continue;
        if (f->written && !failed && rc == MGR_OK)
            rc = mgr_sync_close(f->fd, files->cat->files[i].path, err);
        else
            mgr_close(f->fd);
        *f = (mgr_open_file){.fd = -1};
    }
    files->n_open = 0;
    files->unsafe |= rc != MGR_OK;
    return rc;
}

int mgr_open_files_sync(mgr_open_files *files, mgr_err *err)
{
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < files->cat->n_files; i++) {
        mgr_open_file *const f = &files->list[i];
        if (f->written)
            rc = mgr_sync(f->fd, files->cat->files[i].path, err);
        f->written &= rc != MGR_OK;
    }
    files->unsafe |= rc != MGR_OK;
    return rc;
}

int mgr_extents_add(mgr_extents *extents, const mgr_extent *extent, mgr_err *err)
{
    MGR_TRY(
        mgr_grow(&extents->list, &extents->capacity, extents->n + 1, sizeof *extents->list, err));
    extents->list[extents->n++] = *extent;
    return MGR_OK;
}

size_t mgr_extents_find(const mgr_extents *extents, uint32_t what)
{
    size_t low = 0, high = extents->n;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (extents->list[middle].what < what)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
