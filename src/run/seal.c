#include "run/seal.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zlib.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "engine/journal.h"
#include "io/fault.h"
#include "io/file.h"

#define BUFFER_BYTES ((size_t)1 << 20)

static const char magic[8] = {'M', 'G', 'R', 'S', 'E', 'A', 'L', '1'};

typedef struct record {
    char magic[8];
    uint64_t fingerprint, bytes;
    uint32_t file, crc32;
    uint64_t hash;
} record;

/* A part of a file. */
typedef struct part {
    uint64_t bytes;
    uint32_t crc32, pad;
} part;

static int path_of(mgr_buf *out, const char *directory, const mgr_job *job, uint32_t file,
                   mgr_err *err)
{
    out->len = 0;
    return mgr_buf_fmt(out, err, "%s/%s", directory, job->target.cat.files[file].path);
}

static int record_path(mgr_buf *out, const char *journal, uint32_t file, mgr_err *err)
{
    out->len = 0;
    return mgr_buf_fmt(out, err, "%s/sealed-%05u", journal, file);
}

/* ---- the checksum of a file: each rank reads a stretch ---- */

static int crc_of_part(int fd, const char *path, uint64_t at, uint64_t end, part *out, mgr_err *err)
{
    unsigned char *buffer;
    int rc = MGR_OK;
    *out = (part){.bytes = end - at};
    MGR_TRY(mgr_alloc(&buffer, BUFFER_BYTES, 1, err));
    while (rc == MGR_OK && at < end) {
        const size_t n = end - at < BUFFER_BYTES ? (size_t)(end - at) : BUFFER_BYTES;
        rc = mgr_say_step(0, err);
        if (rc == MGR_OK)
            rc = mgr_pread_full(fd, path, buffer, n, at, err);
        if (rc == MGR_OK)
            out->crc32 = mgr_crc32(out->crc32, buffer, n);
        at += n;
    }
    mgr_free(buffer);
    return rc;
}

static int crc_of_share(const mgr_job *job, const char *path, mgr_buf *mine, mgr_err *err)
{
    uint64_t bytes;
    part p;
    int fd;
    MGR_TRY(mgr_file_bytes(path, &bytes, err));
    MGR_TRY(mgr_open_read(path, &fd, err));
    const uint64_t each = bytes / job->ranks, first = each * job->rank;
    const uint64_t end = job->rank + 1 == job->ranks ? bytes : first + each;
    const int rc = crc_of_part(fd, path, first, end, &p, err);
    mgr_close(fd);
    return rc == MGR_OK ? mgr_buf_add(mine, &p, sizeof p, err) : rc;
}

/* Collective. */
static int crc_of_file(const mgr_job *job, const char *path, uint64_t *bytes, uint32_t *crc,
                       mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    int rc = mgr_agree(job->comm, crc_of_share(job, path, &mine, err), err);
    if (rc == MGR_OK)
        rc = mgr_allgather_bytes(job->comm, &mine, &all, err);
    *bytes = *crc = 0;
    for (size_t at = 0; rc == MGR_OK && at < all.len; at += sizeof(part)) {
        part p;
        memcpy(&p, all.data + at, sizeof p);
        *crc = (uint32_t)crc32_combine64(*crc, p.crc32, (z_off64_t)p.bytes);
        *bytes += p.bytes;
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}

/* ---- records ---- */

static uint64_t hash_of(const record *r)
{
    return XXH3_64bits(r, sizeof *r - sizeof r->hash);
}

static int write_record(const mgr_job *job, const char *journal, uint32_t file,
                        const mgr_sealed_sum *sum, mgr_err *err)
{
    record r = {.fingerprint = mgr_journal_fingerprint(job),
                .bytes = sum->bytes,
                .file = file,
                .crc32 = sum->crc32};
    mgr_buf path = {0};
    memcpy(r.magic, magic, sizeof magic);
    r.hash = hash_of(&r);
    int rc = record_path(&path, journal, file, err);
    if (rc == MGR_OK)
        rc = mgr_remove_tree(path.data, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, &r, sizeof r, err);
    mgr_buf_clear(&path);
    return rc;
}

/* Is there a record of `file`, and a file of its size? Rank 0. */
static bool find_record(const mgr_job *job, const char *journal, const char *path, uint32_t file,
                        record *r)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf name = {0}, text = {0};
    uint64_t bytes = 0;
    const bool found = mgr_path_exists(path) && mgr_file_bytes(path, &bytes, &ignored) == MGR_OK &&
                       record_path(&name, journal, file, &ignored) == MGR_OK &&
                       mgr_read_file(name.data, sizeof *r, &text, &ignored) == MGR_OK &&
                       text.len == sizeof *r;
    if (found)
        memcpy(r, text.data, sizeof *r);
    mgr_buf_clear(&name);
    mgr_buf_clear(&text);
    return found && memcmp(r->magic, magic, sizeof magic) == 0 && r->hash == hash_of(r) &&
           r->fingerprint == mgr_journal_fingerprint(job) && r->file == file && r->bytes == bytes;
}

/* ---- what a stopped run packed ---- */

/* All files' records, from rank 0 to all; where there is none, hash is 0. */
static int find_records(const mgr_job *job, const char *journal, const char *directory,
                        mgr_buf *all, mgr_err *err)
{
    mgr_buf path = {0};
    int rc = MGR_OK;
    for (uint32_t f = 0; rc == MGR_OK && f < job->target.cat.n_files; f++) {
        record r = {.hash = 0};
        rc = path_of(&path, directory, job, f, err);
        if (rc == MGR_OK && !find_record(job, journal, path.data, f, &r))
            r = (record){.hash = 0};
        if (rc == MGR_OK)
            rc = mgr_buf_add(all, &r, sizeof r, err);
    }
    mgr_buf_clear(&path);
    return rc;
}

/* Collective. */
static int check_file(mgr_seal *s, const mgr_job *job, const char *directory, uint32_t file,
                      const record *r, mgr_err *err)
{
    mgr_buf path = {0};
    uint64_t bytes = 0;
    uint32_t crc = 0;
    int rc = mgr_agree(job->comm, path_of(&path, directory, job, file, err), err);
    if (rc == MGR_OK)
        rc = crc_of_file(job, path.data, &bytes, &crc, err);
    s->whole[file] = rc == MGR_OK && bytes == r->bytes && crc == r->crc32;
    s->crc[file] = crc;
    mgr_buf_clear(&path);
    return rc;
}

static int seal_init(mgr_seal *s, const mgr_job *job, mgr_err *err)
{
    if (s->whole)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&s->whole, job->target.cat.n_files, sizeof *s->whole, err));
    return mgr_alloc(&s->crc, job->target.cat.n_files, sizeof *s->crc, err);
}

int mgr_seal_recall(mgr_seal *s, mgr_job *job, const char *journal, const char *directory,
                    mgr_err *err)
{
    mgr_buf all = {0};
    if (!job->container->seal)
        return MGR_OK;
    int rc = seal_init(s, job, err);
    if (rc == MGR_OK && job->rank == 0)
        rc = find_records(job, journal, directory, &all, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &all, err);
    for (uint32_t f = 0; rc == MGR_OK && f < job->target.cat.n_files; f++) {
        record r;
        memcpy(&r, all.data + f * sizeof r, sizeof r);
        if (r.hash)
            rc = check_file(s, job, directory, f, &r, err);
    }
    mgr_buf_clear(&all);
    return rc;
}

/* ---- packing ---- */

/* What has gone wrong on this rank, or on all. Collective. */
static int pack(mgr_seal *s, mgr_job *job, const char *journal, const char *from, const char *path,
                uint32_t file, mgr_err *err)
{
    mgr_sealed_sum sum = {0};
    int rc = job->container->seal(&job->target.layout, file, job->target_state, from, path,
                                  job->comm, &sum, err);
    if (rc == MGR_OK && job->rank == 0)
        rc = write_record(job, journal, file, &sum, err);
    s->crc[file] = sum.crc32;
    return rc;
}

/* Collective. */
static int seal_file(mgr_seal *s, mgr_job *job, const char *journal, const char *plain,
                     const char *directory, uint32_t file, mgr_err *err)
{
    mgr_buf from = {0}, path = {0};
    const bool whole = s->whole[file];
    int rc = path_of(&from, plain, job, file, err);
    if (rc == MGR_OK)
        rc = path_of(&path, directory, job, file, err);
    rc = mgr_agree(job->comm, rc == MGR_OK ? mgr_check_stop(err) : rc, err);
    if (rc == MGR_OK && !whole)
        rc = pack(s, job, journal, from.data, path.data, file, err);
    if (rc == MGR_OK && job->rank == 0)
        rc = job->container->sealed(&job->target.layout, file, path.data, err);
    rc = mgr_agree(job->comm, rc, err);
    s->whole[file] = rc == MGR_OK;
    if (!whole)
        (void)mgr_fault("phase");
    mgr_buf_clear(&from);
    mgr_buf_clear(&path);
    return rc;
}

int mgr_seal_files(mgr_seal *s, mgr_job *job, const char *journal, const char *plain,
                   const char *directory, mgr_err *err)
{
    if (!job->container->seal)
        return MGR_OK;
    int rc = mgr_agree(job->comm, seal_init(s, job, err), err);
    uint64_t bytes = 0;
    for (uint32_t f = 0; rc == MGR_OK && f < job->target.cat.n_files; f++)
        bytes += s->whole[f] ? 0 : job->target.cat.files[f].bytes;
    mgr_say_work(NULL, bytes, job->ranks);
    for (uint32_t f = 0; rc == MGR_OK && f < job->target.cat.n_files; f++)
        rc = seal_file(s, job, journal, plain, directory, f, err);
    if (rc == MGR_OK) { /* checksums of the files as they are now */
        mgr_free(job->file_crc);
        job->file_crc = s->crc;
        s->crc = NULL;
    }
    return rc;
}

void mgr_seal_clear(mgr_seal *seal)
{
    mgr_free(seal->whole);
    mgr_free(seal->crc);
    *seal = (mgr_seal){0};
}
