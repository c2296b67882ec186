#include "run/bandwidth.h"

#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "io/file.h"

#define PIECE ((size_t)4 << 20)
#define MOST ((uint64_t)256 << 20)
#define SECONDS 2.0

/* A file too small for a clock says nothing. */
#define LEAST ((uint64_t)1 << 20)

static double rate(uint64_t bytes, double seconds)
{
    return (double)bytes / (seconds > 1e-6 ? seconds : 1e-6);
}

static const mgr_file *largest_of(const mgr_catalogue *cat)
{
    const mgr_file *largest = NULL;
    for (size_t i = 0; i < cat->n_files; i++)
        if (!largest || cat->files[i].bytes > largest->bytes)
            largest = &cat->files[i];
    return largest;
}

static int measure_read(const mgr_file *file, char *piece, double *out, mgr_err *err)
{
    int fd;
    uint64_t at = 0;
    if (!file || file->bytes < LEAST)
        return MGR_OK;
    MGR_TRY(mgr_drop_cached(file->path, err));
    MGR_TRY(mgr_open_read(file->path, &fd, err));
    int rc = MGR_OK;
    const double start = mgr_now();
    while (rc == MGR_OK && at < file->bytes && at < MOST && mgr_now() - start < SECONDS) {
        const size_t n = file->bytes - at < PIECE ? (size_t)(file->bytes - at) : PIECE;
        rc = mgr_pread_full(fd, file->path, piece, n, at, err);
        at += n;
    }
    *out = rate(at, mgr_now() - start);
    mgr_close(fd);
    return rc;
}

static int write_for(const char *path, const char *piece, double *out, mgr_err *err)
{
    int fd;
    uint64_t at = 0;
    MGR_TRY(mgr_create_open(path, &fd, err));
    int rc = MGR_OK;
    const double start = mgr_now();
    while (rc == MGR_OK && at < MOST && mgr_now() - start < SECONDS) {
        rc = mgr_pwrite_full(fd, path, piece, PIECE, at, err);
        at += PIECE;
    }
    if (rc != MGR_OK) {
        mgr_close(fd);
        return rc;
    }
    rc = mgr_sync_close(fd, path, err);
    *out = rate(at, mgr_now() - start);
    return rc;
}

static int measure_write(const mgr_job *job, const char *piece, double *out, mgr_err *err)
{
    mgr_buf path = {0};
    size_t len = strlen(job->config.target.path);
    while (len > 1 && job->config.target.path[len - 1] == '/')
        len--;
    int rc = mgr_buf_fmt(&path, err, "%.*s.partial-%s.speed", (int)len, job->config.target.path,
                         job->id);
    if (rc == MGR_OK)
        rc = mgr_remove_tree(path.data, err); /* of one that was killed here */
    if (rc == MGR_OK) {
        mgr_err ignored = MGR_ERR_INIT;
        rc = write_for(path.data, piece, out, err);
        if (mgr_remove_tree(path.data, &ignored) != MGR_OK && rc == MGR_OK) {
            *err = ignored;
            rc = err->code;
        }
    }
    mgr_buf_clear(&path);
    return rc;
}

int mgr_bandwidth_measure(const mgr_job *job, mgr_bandwidth *out, mgr_err *err)
{
    char *piece = NULL;
    *out = (mgr_bandwidth){0, 0};
    MGR_TRY(mgr_alloc(&piece, PIECE, 1, err));
    memset(piece, 0x5a, PIECE); /* not zeros, which a file system may not store */
    int rc = measure_write(job, piece, &out->write, err);
    if (rc == MGR_OK)
        rc = measure_read(largest_of(&job->source.cat), piece, &out->read, err);
    mgr_free(piece);
    return rc;
}
