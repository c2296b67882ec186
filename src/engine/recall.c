#include "engine/recall.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/say_run.h"
#include "engine/journal.h"
#include "io/file.h"

#define MAX_JOURNAL ((uint64_t)1 << 30)
#define BUFFER_BYTES ((size_t)1 << 20)

/* A unit that a journal of this rank's share names; `idx` is its place in this rank's list. */
typedef struct claim {
    mgr_piece first;
    uint32_t rank, idx;
    bool good;
} claim;

typedef struct recalling {
    const mgr_job *job;
    const char *directory;
    const uint8_t *sealed;
    claim *claims;
    size_t n_claims, cap_claims;
    mgr_extents read, written; /* `unit` is the claim */
    unsigned char *buffer;
} recalling;

/* ---- the journal ---- */

static int take_extents(mgr_extents *into, const char *at, uint64_t n, uint64_t n_units,
                        size_t base, mgr_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        mgr_extent e;
        memcpy(&e, at + i * sizeof e, sizeof e);
        if (e.unit >= n_units)
            continue;
        e.unit += (uint32_t)base;
        MGR_TRY(mgr_extents_add(into, &e, err));
    }
    return MGR_OK;
}

/* Could it have cut these rows of a target tensor, which are gathered? */
static bool is_gathered_unit(const mgr_job *job, const mgr_piece *p)
{
    if (p->target >= job->target.tensors.n || job->defines[p->target].source != p->source ||
        !mgr_op_by_map(job->defines[p->target].op) || !mgr_recipe_has_origin(&job->recipe))
        return false;
    const uint64_t rows = job->target.tensors.list[p->target].rows;
    return p->rows > 0 && p->row < rows && p->rows <= rows - p->row;
}

/* Could the plan have cut a unit that begins with these rows? */
static bool is_unit(const mgr_job *job, const mgr_piece *p)
{
    if (p->source != MGR_NONE && p->target != MGR_NONE && p->target != MGR_GATHERED)
        return is_gathered_unit(job, p);
    const mgr_tensors *const ts =
        p->source == MGR_NONE ? &job->target.tensors : &job->source.tensors;
    const uint32_t idx = p->source == MGR_NONE ? p->target : p->source;
    if (idx >= ts->n || (p->source != MGR_NONE && ts->list[idx].bundle != idx))
        return false;
    const mgr_tensor *const t = &ts->list[idx];
    const uint64_t step = p->source != MGR_NONE                   ? t->step
                          : job->defines[idx].op == MGR_OP_ROUTER ? t->rows
                                                                  : 1;
    if (p->source == MGR_NONE && job->defines[idx].source != MGR_NONE)
        return false;
    if (p->rows == 0 || p->row >= t->rows || p->rows > t->rows - p->row || p->row % step)
        return false;
    return (p->row + p->rows) % step == 0 || p->row + p->rows == t->rows;
}

static int take_block(recalling *r, const mgr_journal_block *b, mgr_err *err)
{
    const size_t base = r->n_claims;
    for (uint64_t i = 0; i < b->n_units; i++) {
        claim c = {.rank = r->job->rank, .idx = (uint32_t)r->n_claims};
        memcpy(&c.first, b->units + i * sizeof c.first, sizeof c.first);
        c.good = is_unit(r->job, &c.first);
        MGR_TRY(mgr_grow(&r->claims, &r->cap_claims, r->n_claims + 1, sizeof c, err));
        r->claims[r->n_claims++] = c;
    }
    MGR_TRY(take_extents(&r->read, b->read, b->n_read, b->n_units, base, err));
    return take_extents(&r->written, b->written, b->n_written, b->n_units, base, err);
}

static int take_file(recalling *r, const char *path, uint64_t fingerprint, mgr_err *err)
{
    mgr_buf text = {0};
    mgr_journal_block block;
    size_t at = 0;
    int rc = mgr_read_file(path, MAX_JOURNAL, &text, err);
    while (rc == MGR_OK && mgr_journal_next(&text, fingerprint, &at, &block))
        rc = take_block(r, &block, err);
    mgr_buf_clear(&text);
    return rc;
}

static int take_journal(recalling *r, const char *folder, uint32_t n, mgr_err *err)
{
    const uint64_t fingerprint = mgr_journal_fingerprint(r->job);
    mgr_buf path = {0};
    int rc = MGR_OK;
    for (uint32_t k = r->job->rank; rc == MGR_OK && k < n; k += r->job->ranks) {
        rc = mgr_journal_path(&path, folder, k, err);
        if (rc == MGR_OK && mgr_path_exists(path.data))
            rc = take_file(r, path.data, fingerprint, err);
    }
    mgr_buf_clear(&path);
    return rc;
}

/* One more than the highest number of a file in the journal's folder. Rank 0. */
static int count_files(const char *folder, uint32_t *n, mgr_err *err)
{
    mgr_arena arena = {0};
    const char **names;
    size_t n_names = 0;
    *n = 0;
    int rc = mgr_list_dir(folder, &arena, &names, &n_names, err);
    for (size_t i = 0; rc == MGR_OK && i < n_names; i++) {
        const unsigned long number =
            mgr_has_prefix(names[i], "rank-") ? strtoul(names[i] + strlen("rank-"), NULL, 10) : 0;
        if (mgr_has_prefix(names[i], "rank-") && number < UINT32_MAX && number >= *n)
            *n = (uint32_t)number + 1;
    }
    mgr_arena_clear(&arena);
    return rc;
}

static int share_count(const mgr_job *job, const char *folder, uint32_t *n, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = job->rank == 0 ? count_files(folder, n, err) : MGR_OK;
    if (rc == MGR_OK && job->rank == 0)
        rc = mgr_buf_add(&text, n, sizeof *n, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &text, err);
    if (rc == MGR_OK)
        memcpy(n, text.data, sizeof *n);
    mgr_buf_clear(&text);
    return rc;
}

/* ---- the files ---- */

static int same_crc(const recalling *r, int fd, const char *name, uint64_t offset,
                    const mgr_extent *e, bool *same, mgr_err *err)
{
    uint32_t crc = 0;
    for (uint64_t at = 0; at < e->bytes;) {
        const uint64_t left = e->bytes - at;
        const size_t n = left < BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
        MGR_TRY(mgr_say_step(n, err));
        MGR_TRY(mgr_pread_full(fd, name, r->buffer, n, offset + at, err));
        crc = mgr_crc32(crc, r->buffer, n);
        at += n;
    }
    *same = crc == e->crc32;
    return MGR_OK;
}

/* Notes are of no place in a file; they go the way of their unit's other extents. */
static int check_extent(recalling *r, mgr_open_files *files, const mgr_extent *e, mgr_err *err)
{
    const mgr_catalogue *const cat = &r->job->target.cat;
    claim *const c = &r->claims[e->unit];
    int fd;
    if (!c->good || e->what >= cat->n_stored)
        return MGR_OK;
    const mgr_stored *const s = &cat->stored[e->what];
    const uint64_t bytes = s->shape[0] * s->stride[0] * mgr_dtype_size(s->dtype);
    c->good = e->offset <= bytes && e->bytes <= bytes - e->offset;
    if (!c->good || (r->sealed && r->sealed[s->file]))
        return MGR_OK;
    MGR_TRY(mgr_open_files_get(files, s->file, &fd, err));
    return same_crc(r, fd, cat->files[s->file].path, s->offset + e->offset, e, &c->good, err);
}

static int by_place(const void *x, const void *y)
{
    const mgr_extent *const a = x, *const b = y;
    if (a->what != b->what)
        return a->what < b->what ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static int check_written(recalling *r, mgr_err *err)
{
    mgr_open_files files = {.cat = &r->job->target.cat, .directory = r->directory};
    mgr_err ignored = MGR_ERR_INIT;
    if (r->written.n == 0)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&r->buffer, BUFFER_BYTES, 1, err));
    MGR_TRY(mgr_open_files_init(&files, &r->job->target.cat, r->directory, false, err));
    qsort(r->written.list, r->written.n, sizeof *r->written.list, by_place);
    uint64_t bytes = 0;
    for (size_t i = 0; i < r->written.n; i++)
        bytes += r->written.list[i].bytes;
    mgr_say_work(NULL, bytes, 1);
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < r->written.n; i++)
        rc = check_extent(r, &files, &r->written.list[i], err);
    const int closed = mgr_open_files_close(&files, true, &ignored);
    mgr_free(files.list);
    return rc != MGR_OK ? rc : closed;
}

/* ---- what all agree on ---- */

static int by_claim(const void *x, const void *y)
{
    const claim *const a = x, *const b = y;
    const int order = mgr_piece_order(&a->first, &b->first);
    if (order)
        return order;
    if (a->first.rows != b->first.rows)
        return a->first.rows > b->first.rows ? -1 : 1;
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    return a->idx < b->idx ? -1 : a->idx > b->idx;
}

/* Rows that two units have, as after a redone one, are the first one's. Only units that are kept
 * stay good among this rank's own. */
static int choose(recalling *r, mgr_buf *all, mgr_recall *out, mgr_err *err)
{
    claim *const list = (claim *)(void *)all->data;
    const size_t n = all->len / sizeof *list;
    const mgr_piece *last = NULL;
    MGR_TRY(mgr_alloc(&out->done, n + 1, sizeof *out->done, err));
    for (size_t i = 0; i < r->n_claims; i++)
        r->claims[i].good = false;
    if (n)
        qsort(list, n, sizeof *list, by_claim);
    for (size_t i = 0; i < n; i++) {
        assert(list);
        const mgr_piece *const p = &list[i].first;
        if (last && last->source == p->source && last->target == p->target &&
            p->row < last->row + last->rows)
            continue;
        out->done[out->n_done] = *p;
        last = &out->done[out->n_done++];
        if (list[i].rank == r->job->rank) {
            assert(r->claims && list[i].idx < r->n_claims);
            r->claims[list[i].idx].good = true;
        }
    }
    return MGR_OK;
}

static int share_claims(recalling *r, mgr_recall *out, mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < r->n_claims; i++)
        if (r->claims[i].good)
            rc = mgr_buf_add(&mine, &r->claims[i], sizeof *r->claims, err);
    rc = mgr_agree(r->job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_allgather_bytes(r->job->comm, &mine, &all, err);
    if (rc == MGR_OK)
        rc = mgr_agree(r->job->comm, choose(r, &all, out, err), err);
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}

/* Extents of the kept units. Moments are of the source alone, and hold whatever became of the unit
 * that they were noted with. */
static int keep_extents(const recalling *r, const mgr_extents *from, mgr_extents *to, bool written,
                        mgr_err *err)
{
    const uint32_t first = mgr_note_what(r->job, MGR_NOTE_TARGET_MOMENT, 0);
    const uint32_t end = mgr_note_what(r->job, MGR_NOTE_SOURCE_ZERO, 0);
    for (size_t i = 0; i < from->n; i++) {
        mgr_extent e = from->list[i];
        const bool moment = written && e.what >= first && e.what < end;
        if (!r->claims[e.unit].good && !moment)
            continue;
        e.unit = MGR_NONE;
        MGR_TRY(mgr_extents_add(to, &e, err));
    }
    return MGR_OK;
}

static int keep(const recalling *r, mgr_recall *out, mgr_err *err)
{
    MGR_TRY(keep_extents(r, &r->read, &out->read, false, err));
    return keep_extents(r, &r->written, &out->written, true, err);
}

int mgr_recall_make(mgr_recall *out, const mgr_job *job, const char *folder, const char *directory,
                    const uint8_t *sealed, mgr_err *err)
{
    recalling r = {.job = job, .directory = directory, .sealed = sealed};
    *out = (mgr_recall){0};
    int rc = share_count(job, folder, &out->next_number, err);
    if (rc == MGR_OK) {
        rc = take_journal(&r, folder, out->next_number, err);
        if (rc == MGR_OK)
            rc = check_written(&r, err);
        rc = mgr_agree(job->comm, rc, err);
    }
    if (rc == MGR_OK)
        rc = share_claims(&r, out, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, keep(&r, out, err), err);
    mgr_free(r.claims);
    mgr_free(r.read.list);
    mgr_free(r.written.list);
    mgr_free(r.buffer);
    return rc;
}

void mgr_recall_clear(mgr_recall *recall)
{
    mgr_free(recall->done);
    mgr_free(recall->read.list);
    mgr_free(recall->written.list);
    *recall = (mgr_recall){0};
}
