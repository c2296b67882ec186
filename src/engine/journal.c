#include "engine/journal.h"

#include <stdio.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"
#include "io/file.h"
#include "mgr/version.h"

static const char magic[8] = {'M', 'G', 'R', 'J', 'R', 'N', 'L', '2'};

typedef struct header {
    char magic[8];
    uint64_t fingerprint, n_units, n_read, n_written;
} header;

static uint64_t hash_text(const char *text, uint64_t h)
{
    return XXH3_64bits_withSeed(text, strlen(text) + 1, h);
}

static uint64_t hash_source(const mgr_catalogue *cat, uint64_t h)
{
    for (size_t i = 0; i < cat->n_files; i++) {
        const mgr_file *const f = &cat->files[i];
        const uint64_t facts[3] = {f->bytes, f->modified, f->inode};
        h = XXH3_64bits_withSeed(facts, sizeof facts, hash_text(f->path, h));
    }
    for (size_t i = 0; i < cat->n_records; i++) {
        const uint64_t facts[3] = {cat->records[i].offset, cat->records[i].size,
                                   cat->records[i].crc32};
        h = XXH3_64bits_withSeed(facts, sizeof facts, h);
    }
    return h;
}

/* Places within a file are left out: a library may give them only when the file is made. */
static uint64_t hash_target(const mgr_catalogue *cat, uint64_t h)
{
    for (size_t i = 0; i < cat->n_files; i++)
        h = hash_text(cat->files[i].path, h);
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const uint64_t facts[3] = {s->file, (uint64_t)s->dtype, s->ndim};
        h = XXH3_64bits_withSeed(facts, sizeof facts, hash_text(s->name, h));
        h = XXH3_64bits_withSeed(s->shape, s->ndim * sizeof *s->shape, h);
    }
    return h;
}

uint64_t mgr_journal_fingerprint(const mgr_job *job)
{
    const uint64_t counts[3] = {MGR_CONTRACT_VERSION, job->source.tensors.n, job->target.tensors.n};
    uint64_t h = hash_text(MGR_VERSION, XXH3_64bits(counts, sizeof counts));
    h = hash_text(job->id, h);
    h = hash_source(&job->source.cat, h);
    return hash_target(&job->target.cat, h);
}

/* Bytes of a block behind its header, or 0 if that cannot be. */
static uint64_t body_bytes(const header *h, uint64_t left)
{
    const uint64_t most = left / sizeof(mgr_piece);
    if (h->n_units > most || h->n_read > most || h->n_written > most)
        return 0;
    const uint64_t bytes = h->n_units * sizeof(mgr_piece) +
                           (h->n_read + h->n_written) * sizeof(mgr_extent) + sizeof(uint64_t);
    return bytes <= left ? bytes : 0;
}

bool mgr_journal_next(const mgr_buf *text, uint64_t fingerprint, size_t *at,
                      mgr_journal_block *block)
{
    header h;
    uint64_t hash;
    if (text->len - *at < sizeof h)
        return false;
    const char *const start = text->data + *at;
    memcpy(&h, start, sizeof h);
    const uint64_t body = body_bytes(&h, text->len - *at - sizeof h);
    if (memcmp(h.magic, magic, sizeof magic) != 0 || h.fingerprint != fingerprint || body == 0)
        return false;
    const size_t hashed = sizeof h + (size_t)body - sizeof hash;
    memcpy(&hash, start + hashed, sizeof hash);
    if (hash != XXH3_64bits(start, hashed))
        return false;
    const char *const units = start + sizeof h;
    const char *const read = units + h.n_units * sizeof(mgr_piece);
    *block = (mgr_journal_block){h.n_units, h.n_read, h.n_written,
                                 units,     read,     read + h.n_read * sizeof(mgr_extent)};
    *at += hashed + sizeof hash;
    return true;
}

int mgr_journal_path(mgr_buf *out, const char *folder, uint32_t number, mgr_err *err)
{
    out->len = 0;
    return mgr_buf_fmt(out, err, "%s/rank-%05u", folder, number);
}

int mgr_journal_open(mgr_journal *j, const mgr_job *job, const char *folder, uint32_t number,
                     double seconds, mgr_err *err)
{
    *j = (mgr_journal){.fd = -1, .seconds = seconds, .last = mgr_now()};
    j->fingerprint = mgr_journal_fingerprint(job);
    j->plan = &job->plan;
    MGR_TRY(mgr_alloc(&j->state, job->plan.n_units, 1, err));
    for (size_t u = 0; u < job->plan.n_units; u++)
        if (job->plan.units[u].done)
            j->state[u] = MGR_UNIT_JOURNALED;
    if (seconds < 0)
        return MGR_OK;
    MGR_TRY(mgr_journal_path(&j->path, folder, number, err));
    MGR_TRY(mgr_create_sized(j->path.data, 0, err));
    return mgr_open_write(j->path.data, &j->fd, err);
}

/* Extents of units that wait for this block, their unit as its place in it. Recalled ones have
 * none. */
static int add_extents(mgr_buf *block, const mgr_journal *j, const uint32_t *place,
                       const mgr_extents *extents, uint64_t *n, mgr_err *err)
{
    for (size_t i = 0; i < extents->n; i++) {
        mgr_extent extent = extents->list[i];
        if (extent.unit == MGR_NONE || j->state[extent.unit] != MGR_UNIT_WRITTEN)
            continue;
        extent.unit = place[extent.unit];
        MGR_TRY(mgr_buf_add(block, &extent, sizeof extent, err));
        ++*n;
    }
    return MGR_OK;
}

static int make_block(mgr_buf *block, const mgr_journal *j, uint32_t *place,
                      const mgr_extents *read, const mgr_extents *written, mgr_err *err)
{
    header h = {.fingerprint = j->fingerprint};
    memcpy(h.magic, magic, sizeof magic);
    MGR_TRY(mgr_buf_add(block, &h, sizeof h, err));
    for (uint32_t u = 0; u < j->plan->n_units; u++) {
        if (j->state[u] != MGR_UNIT_WRITTEN)
            continue;
        const mgr_piece *const first = &j->plan->pieces[j->plan->units[u].piece];
        place[u] = (uint32_t)h.n_units++;
        MGR_TRY(mgr_buf_add(block, first, sizeof *first, err));
    }
    MGR_TRY(add_extents(block, j, place, read, &h.n_read, err));
    MGR_TRY(add_extents(block, j, place, written, &h.n_written, err));
    memcpy(block->data, &h, sizeof h);
    const uint64_t hash = XXH3_64bits(block->data, block->len);
    return mgr_buf_add(block, &hash, sizeof hash, err);
}

int mgr_journal_flush(mgr_journal *j, mgr_open_files *files, const mgr_extents *read,
                      const mgr_extents *written, mgr_err *err)
{
    mgr_buf block = {0};
    uint32_t *place = NULL;
    MGR_TRY(mgr_open_files_sync(files, err));
    const double start = mgr_now();
    int rc = mgr_alloc(&place, j->plan->n_units, sizeof *place, err);
    if (rc == MGR_OK)
        rc = make_block(&block, j, place, read, written, err);
    if (rc == MGR_OK)
        rc = mgr_pwrite_full(j->fd, j->path.data, block.data, block.len, j->end, err);
    if (rc == MGR_OK)
        rc = mgr_sync(j->fd, j->path.data, err);
    if (rc == MGR_OK) {
        j->end += block.len;
        j->last = mgr_now();
        for (size_t u = 0; u < j->plan->n_units; u++)
            if (j->state[u] == MGR_UNIT_WRITTEN)
                j->state[u] = MGR_UNIT_JOURNALED;
    }
    mgr_buf_clear(&block);
    mgr_free(place);
    j->spent += mgr_now() - start;
    return rc;
}

void mgr_journal_unit(mgr_journal *j, uint32_t unit)
{
    j->state[unit] = MGR_UNIT_WRITTEN;
}

void mgr_journal_lose(mgr_journal *j, uint32_t unit)
{
    assert(j->state[unit] != MGR_UNIT_JOURNALED);
    j->state[unit] = MGR_UNIT_PENDING;
}

bool mgr_journal_is_due(const mgr_journal *j)
{
    return j->seconds >= 0 && mgr_now() - j->last >= j->seconds;
}

void mgr_journal_close(mgr_journal *j)
{
    if (j->fd >= 0)
        mgr_close(j->fd);
    mgr_free(j->state);
    mgr_buf_clear(&j->path);
    *j = (mgr_journal){.fd = -1};
}
