/* --verify: the engine's results against an output that is there. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/say.h"
#include "engine/progress.h"
#include "engine/sink_compare.h"
#include "run/found.h"
#include "run/run.h"
#include "run/settle.h"

/* A file's path below the output's folder. */
static const char *below(const mgr_job *job, const char *path)
{
    const char *const root = job->config.target.path;
    if (!mgr_has_prefix(path, root))
        return path;
    path += strlen(root);
    return path + strspn(path, "/");
}

/* ---- padding: rows that no tensor of the model has are zeros ---- */

/* The planned tensor among those found; NULL where the output has its rows elsewhere. */
static const mgr_stored *same_stored(const mgr_job *job, const mgr_catalogue *planned,
                                     const mgr_stored *s)
{
    const mgr_catalogue *const cat = &job->target.cat;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const f = &cat->stored[i];
        if (strcmp(f->name, s->name) == 0 && f->dtype == s->dtype && f->ndim == s->ndim &&
            memcmp(f->shape, s->shape, s->ndim * sizeof *s->shape) == 0 &&
            memcmp(f->stride, s->stride, s->ndim * sizeof *s->stride) == 0 &&
            strcmp(below(job, cat->files[f->file].path), planned->files[s->file].path) == 0)
            return f;
    }
    return NULL;
}

static int compare_fill(const mgr_job *job, mgr_compare *compare, const mgr_fill *fill,
                        const mgr_layout *planned, mgr_err *err)
{
    static const unsigned char zeros[65536];
    const mgr_stored *const s = same_stored(job, planned->cat, &planned->cat->stored[fill->stored]);
    if (!s)
        return MGR_OK;
    const uint64_t row = s->stride[0] * mgr_dtype_size(s->dtype);
    const uint64_t end = s->offset + (fill->row + fill->rows) * row;
    for (uint64_t at = s->offset + fill->row * row; at < end;) {
        const size_t len = end - at < sizeof zeros ? (size_t)(end - at) : sizeof zeros;
        const mgr_stretch stretch = {(uint32_t)(s - job->target.cat.stored), at, zeros, len};
        MGR_TRY(mgr_compare_put(compare, &stretch, err));
        at += len;
    }
    return MGR_OK;
}

static int compare_fills(const mgr_job *job, mgr_compare *compare, mgr_err *err)
{
    const mgr_layout *const planned = &job->found->side.layout;
    for (size_t i = job->rank; i < planned->n_fills; i += job->ranks)
        MGR_TRY(compare_fill(job, compare, &planned->fills[i], planned, err));
    return MGR_OK;
}

/* ---- the run ---- */

/* Rank 0. */
static int note_difference(const mgr_job *job, const mgr_difference *d, mgr_err *err)
{
    const mgr_stored *const s = &job->target.cat.stored[d->stored];
    const bool placed = s->offset < MGR_VIRTUAL_OFFSET;
    char what[200], where[64] = "";
    if (!placed)
        snprintf(where, sizeof where, ", the first at byte %llu of what is packed",
                 (unsigned long long)d->first);
    snprintf(what, sizeof what, "%llu of %llu weights are not what source and seed give%s",
             (unsigned long long)d->elements,
             (unsigned long long)(mgr_stored_bytes(s) / mgr_dtype_size(s->dtype)), where);
    return mgr_findings_add(&job->found->findings, below(job, job->target.cat.files[d->file].path),
                            s->name, placed ? s->offset + d->first : UINT64_MAX, what, err);
}

static int note_differences(mgr_job *job, const mgr_compare *compare, mgr_err *err)
{
    mgr_difference *list = NULL;
    size_t n = 0;
    int rc = mgr_compare_gather(compare, job->comm, &list, &n, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        rc = note_difference(job, &list[i], err);
    mgr_free(list);
    return mgr_agree(job->comm, rc, err);
}

/* Was the source itself read as it was saved? Collective. */
static int settle(mgr_job *job, mgr_extents *read, mgr_err *err)
{
    const int rc = mgr_settle_gather(job->comm, read, err);
    return rc != MGR_OK
               ? rc
               : mgr_agree_root(job, job->rank == 0 ? mgr_settle_source(job, read, err) : MGR_OK,
                                err);
}

static int run_engine(mgr_job *job, mgr_compare *compare, double seconds, mgr_err *err)
{
    const mgr_sink sink = {mgr_compare_put, compare};
    mgr_engine_options options = {.sink = &sink, .seconds = -1};
    mgr_extents read = {0}, noted = {0};
    int rc = mgr_progress_start(&options.progress, job->comm, seconds, &job->plan, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc != MGR_OK) {
        mgr_progress_drop(options.progress); /* some ranks have none, so nothing collective */
        return rc;
    }
    rc = mgr_engine_run(job, &options, &read, &noted, err);
    mgr_progress_stop(options.progress);
    if (rc == MGR_OK)
        rc = settle(job, &read, err);
    mgr_free(read.list);
    mgr_free(noted.list);
    return rc;
}

static int compare_all(mgr_job *job, double seconds, mgr_err *err)
{
    mgr_compare compare;
    int rc = mgr_compare_init(&compare, &job->target.layout, job->found->format, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = run_engine(job, &compare, seconds, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, compare_fills(job, &compare, err), err);
    if (rc == MGR_OK)
        rc = note_differences(job, &compare, err);
    mgr_compare_clear(&compare);
    return rc;
}

/* ---- what is said of it: rank 0 ---- */

static void print_text(const mgr_job *job, bool all)
{
    const mgr_found *const f = job->found;
    char read[32], compared[32];
    mgr_say(stdout, "\nread      %10s\n",
            mgr_format_bytes(job->tally.bytes_read, read, sizeof read));
    if (f->comparable)
        mgr_say(stdout, "compared  %10s, %zu tensors of '%s'\n",
                mgr_format_bytes(job->tally.bytes_written, compared, sizeof compared),
                job->target.cat.n_stored, job->config.target.path);
    mgr_say(stdout, "checked   %llu of %llu source records by CRC-32\n",
            (unsigned long long)job->tally.records_checked,
            (unsigned long long)job->tally.records_total);
    if (!f->manifest)
        mgr_say(stdout, "note      no manifest tells of the configuration that made it\n");
    mgr_findings_print(&f->findings, all);
    if (json_array_size(f->findings.list) == 0)
        mgr_say(stdout, "verified  all weights are what source and seed give\n");
}

static int print_json(const mgr_job *job, mgr_err *err)
{
    const mgr_found *const f = job->found;
    json_t *const more =
        json_pack("{s:b,s:I,s:I,s:b}", "compared", f->comparable, "tensors",
                  (json_int_t)job->target.cat.n_stored, "bytes",
                  (json_int_t)job->tally.bytes_written, "manifest", f->manifest != NULL);
    return mgr_findings_json(&f->findings, job->config.target.path, more, err);
}

static int tell(const mgr_job *job, const mgr_run_options *o, mgr_err *err)
{
    if (o->json)
        return print_json(job, err);
    if (o->verbosity >= 0)
        print_text(job, o->verbosity > 0);
    return MGR_OK;
}

/* Collective. */
static int verify(mgr_job *job, const mgr_run_options *o, bool *good, mgr_err *err)
{
    int64_t findings = 0;
    int rc = mgr_run_begin(job, o, err);
    if (rc == MGR_OK && job->found->comparable)
        rc = compare_all(job, o->write.progress, err);
    if (rc == MGR_OK)
        rc = mgr_run_tally(job, err);
    if (job->rank == 0)
        findings = (int64_t)json_array_size(job->found->findings.list);
    if (rc == MGR_OK)
        rc = mgr_sum_i64(job->comm, &findings, 1, err);
    *good = findings == 0;
    return rc == MGR_OK ? mgr_agree_root(job, job->rank == 0 ? tell(job, o, err) : MGR_OK, err)
                        : rc;
}

int mgr_run_verify(mgr_comm *comm, const mgr_run_options *o, bool *good, mgr_tally *tally,
                   mgr_err *err)
{
    mgr_job *job = NULL;
    mgr_found *found = NULL;
    int rc = mgr_alloc(&job, 1, sizeof *job, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&found, 1, sizeof *found, err);
    rc = mgr_agree(comm, rc, err);
    *good = false;
    if (rc == MGR_OK) {
        job->comm = comm;
        job->found = found;
        rc = verify(job, o, good, err);
        if (tally)
            *tally = job->tally;
        mgr_job_clear(job);
        mgr_found_clear(found);
    }
    mgr_free(job);
    mgr_free(found);
    return rc;
}
