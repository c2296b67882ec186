#include "run/hashes.h"

#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "fmt/sha256.h"

/* One file's digest on its way to rank 0. */
typedef struct digest {
    uint32_t file;
    char text[MGR_SHA256_TEXT];
} digest;

static int hash_mine(const mgr_job *job, const char *directory, mgr_buf *mine, mgr_err *err)
{
    for (uint32_t f = job->rank; f < job->target.cat.n_files; f += job->ranks) {
        mgr_buf path = {0};
        digest d = {.file = f};
        int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, job->target.cat.files[f].path);
        if (rc == MGR_OK)
            rc = mgr_sha256_file(path.data, d.text, err);
        if (rc == MGR_OK)
            rc = mgr_buf_add(mine, &d, sizeof d, err);
        mgr_buf_clear(&path);
        MGR_TRY(rc);
    }
    return MGR_OK;
}

static int keep(mgr_job *job, const mgr_buf *all, mgr_err *err)
{
    MGR_TRY(mgr_alloc(&job->file_sha256, job->target.cat.n_files, MGR_SHA256_TEXT, err));
    for (size_t at = 0; at + sizeof(digest) <= all->len; at += sizeof(digest)) {
        digest d;
        memcpy(&d, all->data + at, sizeof d);
        memcpy(job->file_sha256[d.file], d.text, sizeof d.text);
    }
    return MGR_OK;
}

int mgr_hash_files(mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    uint64_t bytes = 0;
    if (!job->config.target.sha256)
        return MGR_OK;
    for (size_t f = 0; f < job->target.cat.n_files; f++)
        bytes += job->target.cat.files[f].bytes;
    mgr_say_phase("hash");
    mgr_say_work(NULL, bytes, job->ranks);
    int rc = mgr_agree(job->comm, hash_mine(job, directory, &mine, err), err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(job->comm, &mine, &all, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, job->rank == 0 ? keep(job, &all, err) : MGR_OK, err);
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}
