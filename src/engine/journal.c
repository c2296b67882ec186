#include "engine/journal.h"

#include <stdio.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"
#include "io/file.h"
#include "mgr/version.h"

#define MAX_JOURNAL ((uint64_t)1 << 30)

static const char magic[8] = {'M', 'G', 'R', 'J', 'R', 'N', 'L', '1'};

typedef struct header {
    char magic[8];
    uint64_t fingerprint, n_units, n_read, n_written;
} header;

/* Everything that says which unit is which, and that the source is still the same. */
static uint64_t fingerprint_of(const mgr_job *job)
{
    const mgr_plan *const plan = &job->plan;
    const mgr_catalogue *const cat = &job->source.cat;
    XXH64_hash_t h = XXH3_64bits(plan->units, plan->n_units * sizeof *plan->units);
    h = XXH3_64bits_withSeed(plan->pieces, plan->n_pieces * sizeof *plan->pieces, h);
    h = XXH3_64bits_withSeed(MGR_VERSION, sizeof MGR_VERSION, h + MGR_CONTRACT_VERSION);
    for (size_t i = 0; i < cat->n_files; i++) {
        const mgr_file *const f = &cat->files[i];
        const uint64_t facts[2] = {f->bytes, f->modified};
        h = XXH3_64bits_withSeed(f->path, strlen(f->path), h);
        h = XXH3_64bits_withSeed(facts, sizeof facts, h);
    }
    for (size_t i = 0; i < cat->n_records; i++) {
        const uint64_t facts[3] = {cat->records[i].offset, cat->records[i].size,
                                   cat->records[i].crc32};
        h = XXH3_64bits_withSeed(facts, sizeof facts, h);
    }
    return h;
}

/* Bytes of a block behind its header, or 0 if that cannot be. */
static uint64_t body_bytes(const header *h, uint64_t left)
{
    const uint64_t most = left / 4;
    if (h->n_units > most || h->n_read > most || h->n_written > most)
        return 0;
    const uint64_t bytes = h->n_units * sizeof(uint32_t) +
                           (h->n_read + h->n_written) * sizeof(mgr_extent) + sizeof(uint64_t);
    return bytes <= left ? bytes : 0;
}

static int take_extents(mgr_extents *into, const char *at, uint64_t n, mgr_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        mgr_extent e;
        memcpy(&e, at + i * sizeof e, sizeof e);
        MGR_TRY(mgr_extents_add(into, &e, err));
    }
    return MGR_OK;
}

static int take_block(mgr_journal *j, const mgr_job *job, const header *h, const char *at,
                      mgr_extents *read, mgr_extents *written, mgr_err *err)
{
    for (uint64_t i = 0; i < h->n_units; i++) {
        uint32_t unit;
        memcpy(&unit, at + i * sizeof unit, sizeof unit);
        if (unit < job->plan.n_units)
            j->state[unit] = MGR_UNIT_JOURNALED;
    }
    at += h->n_units * sizeof(uint32_t);
    MGR_TRY(take_extents(read, at, h->n_read, err));
    return take_extents(written, at + h->n_read * sizeof(mgr_extent), h->n_written, err);
}

/* Read blocks up to the first that is not whole. */
static int replay(mgr_journal *j, const mgr_job *job, mgr_extents *read, mgr_extents *written,
                  mgr_err *err)
{
    mgr_buf text = {0};
    int rc = mgr_read_file(j->path.data, MAX_JOURNAL, &text, err);
    while (rc == MGR_OK && text.len - j->end >= sizeof(header)) {
        header h;
        const char *const block = text.data + j->end;
        memcpy(&h, block, sizeof h);
        const uint64_t body = body_bytes(&h, text.len - j->end - sizeof h);
        uint64_t hash;
        if (memcmp(h.magic, magic, sizeof magic) != 0 || body == 0)
            break;
        const size_t hashed = sizeof h + (size_t)body - sizeof hash;
        memcpy(&hash, block + hashed, sizeof hash);
        if (hash != XXH3_64bits(block, hashed))
            break;
        if (h.fingerprint != j->fingerprint) {
            rc = mgr_fail(err, MGR_ERR_EXISTS,
                          "cannot resume: '%s' is of another number of ranks, "
                          "memory_per_rank or source",
                          j->path.data);
            mgr_hint(err, "run as it was begun, or begin anew with --force");
            break;
        }
        rc = take_block(j, job, &h, block + sizeof h, read, written, err);
        j->end += hashed + sizeof hash;
    }
    mgr_buf_clear(&text);
    return rc;
}

int mgr_journal_open(mgr_journal *j, const mgr_job *job, const char *directory, double seconds,
                     mgr_extents *read, mgr_extents *written, mgr_err *err)
{
    *j = (mgr_journal){.fd = -1, .seconds = seconds, .last = mgr_now()};
    j->fingerprint = fingerprint_of(job);
    j->n_units = job->plan.n_units;
    MGR_TRY(mgr_alloc(&j->state, job->plan.n_units, 1, err));
    MGR_TRY(
        mgr_buf_fmt(&j->path, err, "%s/" MGR_JOURNAL_FOLDER "/rank-%05u", directory, job->rank));
    if (mgr_path_exists(j->path.data))
        MGR_TRY(replay(j, job, read, written, err));
    else
        MGR_TRY(mgr_create_sized(j->path.data, 0, err));
    return mgr_open_write(j->path.data, &j->fd, err);
}

/* Extents of units that wait for this block. */
static int add_extents(mgr_buf *block, const mgr_journal *j, const mgr_extents *extents,
                       uint64_t *n, mgr_err *err)
{
    for (size_t i = 0; i < extents->n; i++) {
        if (j->state[extents->list[i].unit] != MGR_UNIT_WRITTEN)
            continue;
        MGR_TRY(mgr_buf_add(block, &extents->list[i], sizeof *extents->list, err));
        ++*n;
    }
    return MGR_OK;
}

static int make_block(mgr_buf *block, const mgr_journal *j, const mgr_extents *read,
                      const mgr_extents *written, mgr_err *err)
{
    header h = {.fingerprint = j->fingerprint};
    memcpy(h.magic, magic, sizeof magic);
    MGR_TRY(mgr_buf_add(block, &h, sizeof h, err));
    for (uint32_t u = 0; u < j->n_units; u++) {
        if (j->state[u] != MGR_UNIT_WRITTEN)
            continue;
        MGR_TRY(mgr_buf_add(block, &u, sizeof u, err));
        h.n_units++;
    }
    MGR_TRY(add_extents(block, j, read, &h.n_read, err));
    MGR_TRY(add_extents(block, j, written, &h.n_written, err));
    memcpy(block->data, &h, sizeof h);
    const uint64_t hash = XXH3_64bits(block->data, block->len);
    return mgr_buf_add(block, &hash, sizeof hash, err);
}

int mgr_journal_flush(mgr_journal *j, mgr_open_files *files, const mgr_extents *read,
                      const mgr_extents *written, mgr_err *err)
{
    mgr_buf block = {0};
    MGR_TRY(mgr_open_files_sync(files, err));
    int rc = make_block(&block, j, read, written, err);
    if (rc == MGR_OK)
        rc = mgr_pwrite_full(j->fd, j->path.data, block.data, block.len, j->end, err);
    if (rc == MGR_OK)
        rc = mgr_sync(j->fd, j->path.data, err);
    if (rc == MGR_OK) {
        j->end += block.len;
        j->last = mgr_now();
        for (size_t u = 0; u < j->n_units; u++)
            if (j->state[u] == MGR_UNIT_WRITTEN)
                j->state[u] = MGR_UNIT_JOURNALED;
    }
    mgr_buf_clear(&block);
    return rc;
}

int mgr_journal_unit(mgr_journal *j, uint32_t unit, mgr_open_files *files, const mgr_extents *read,
                     const mgr_extents *written, mgr_err *err)
{
    j->state[unit] = MGR_UNIT_WRITTEN;
    if (j->seconds < 0 || mgr_now() - j->last < j->seconds)
        return MGR_OK;
    return mgr_journal_flush(j, files, read, written, err);
}

void mgr_journal_close(mgr_journal *j)
{
    if (j->fd >= 0)
        mgr_close(j->fd);
    mgr_free(j->state);
    mgr_buf_clear(&j->path);
    *j = (mgr_journal){.fd = -1};
}
