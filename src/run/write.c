/* The writing phases of run/run.h, the same for every source and target. */
#include <string.h>

#include "core/mem.h"
#include "core/stop.h"
#include "engine/engine.h"
#include "engine/progress.h"
#include "io/fault.h"
#include "io/file.h"
#include "look/verify.h"
#include "run/hashes.h"
#include "run/ledger.h"
#include "run/manifest.h"
#include "run/run.h"
#include "run/settle.h"
#include "run/stage.h"

/* Beside the planned buffers a rank needs room for lists, MPI and the C library. */
#define RESERVE_MIN ((uint64_t)12 << 20)

int mgr_agree_root(mgr_job *job, int local, mgr_err *err)
{
    if (job->rank == 0 && local != MGR_OK)
        err->rank = 0;
    return mgr_agree(job->comm, job->rank == 0 ? local : MGR_OK, err);
}

/* For tests of the self-check: the k-th name of the target with another last letter. */
static int plant_misspelling(mgr_job *job, mgr_err *err)
{
    for (size_t i = 0; i < job->target.cat.n_stored; i++) {
        mgr_stored *const s = &job->target.cat.stored[i];
        mgr_buf name = {0};
        if (!mgr_fault("name"))
            continue;
        int rc = mgr_buf_add(&name, s->name, strlen(s->name) - 1, err);
        if (rc == MGR_OK)
            rc = mgr_buf_text(&name, "_", err);
        s->name = name.data;
        if (rc == MGR_OK)
            rc = mgr_catalogue_own(&job->target.cat, &s->name, err);
        mgr_buf_clear(&name);
        MGR_TRY(rc);
    }
    return MGR_OK;
}

static int place_files(mgr_job *job, mgr_err *err)
{
    const mgr_target_format *const format = job->target_format;
    MGR_TRY(plant_misspelling(job, err));
    job->container = format->choose ? format->choose(&job->config) : format->container;
    for (uint32_t f = 0; f < job->target.cat.n_files; f++)
        MGR_TRY(job->container->place(&job->target.layout, f, job->target_state, err));
    return MGR_OK;
}

/* Nothing of the source may be left unused. */
static int check_consumed(const mgr_job *job, mgr_err *err)
{
    char label[96];
    for (uint32_t i = 0; i < job->source.tensors.n; i++)
        if (job->plan.first_target[i] == job->plan.first_target[i + 1])
            return mgr_fail(err, MGR_ERR_INTERNAL, "nothing is made of %s",
                            mgr_tensor_label(&job->source.tensors.list[i], label, sizeof label));
    return MGR_OK;
}

int mgr_run_plan(mgr_job *job, uint64_t baseline, mgr_err *err)
{
    const uint64_t all = job->config.memory_per_rank;
    const uint64_t sixteenth = all / 16;
    const uint64_t reserve = baseline + (sixteenth > RESERVE_MIN ? sixteenth : RESERVE_MIN);
    const mgr_plan_request request = {
        .source = job->source_format ? &job->source.layout : NULL,
        .target = &job->target.layout,
        .defines = job->defines,
        .ranks = job->ranks,
        .moments = job->moments,
        .shuffle = job->config.upcycle.shuffle && job->method,
        .selection_bytes = mgr_selection_bytes(job),
        .memory = all > reserve ? all - reserve : 0,
    };
    MGR_TRY(place_files(job, err));
    if (mgr_plan_make(&job->plan, &request, err) != MGR_OK)
        return mgr_hint(err, "raise memory_per_rank");
    return job->source_format ? check_consumed(job, err) : MGR_OK;
}

static uint64_t output_bytes(const mgr_job *job)
{
    uint64_t sum = 0;
    for (size_t f = 0; f < job->target.cat.n_files; f++)
        sum += job->target.cat.files[f].bytes;
    return sum;
}

int mgr_run_tally(mgr_job *job, mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    job->tally.peak_rss = mgr_peak_rss();
    int rc = mgr_buf_add(&mine, &job->tally, sizeof job->tally, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(job->comm, &mine, &all, err);
    for (size_t at = sizeof(mgr_tally); rc == MGR_OK && at < all.len; at += sizeof(mgr_tally)) {
        mgr_tally other; /* times are rank 0's; counts are added up */
        memcpy(&other, all.data + at, sizeof other);
        job->tally.bytes_read += other.bytes_read;
        job->tally.bytes_written += other.bytes_written;
        if (other.peak_rss > job->tally.peak_rss)
            job->tally.peak_rss = other.peak_rss;
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}

/* Rank 0, after the engine: checksums and headers. */
static int settle(mgr_job *job, const mgr_stage *stage, mgr_extents *read, mgr_extents *written,
                  mgr_err *err)
{
    if (job->source_format)
        MGR_TRY(mgr_settle_source(job, read, err));
    return mgr_settle_target(job, stage->directory, written, err);
}

/* The files' checksums are of what they were. Collective. */
static int seal(mgr_job *job, const char *directory, mgr_err *err)
{
    mgr_free(job->file_crc);
    mgr_free(job->file_sha256);
    job->file_crc = NULL;
    return job->container->seal(&job->target.layout, directory, job->comm, err);
}

/* Rank 0, at the end: small files, the final name. */
static int publish(mgr_job *job, mgr_stage *stage, mgr_err *err)
{
    MGR_TRY(mgr_manifest_write(job, stage->directory, false, err)); /* HDF5 holds a copy */
    const mgr_output out = {.config = &job->config,
                            .layout = &job->target.layout,
                            .state = job->target_state,
                            .origin = job->source_format ? &job->origin : NULL,
                            .file_sha256 = (const char(*)[65])job->file_sha256};
    MGR_TRY(job->target_format->sidecars(&out, stage->directory, err));
    MGR_TRY(mgr_manifest_write(job, stage->directory, true, err));
    MGR_TRY(
        mgr_verify_output(job->target_format->name, &job->target.layout, stage->directory, err));
    MGR_TRY(mgr_check_stop(err));
    MGR_TRY(mgr_stage_publish(stage, err));
    job->replaced = stage->replaced;
    return MGR_OK;
}

static int write_all(mgr_job *job, mgr_stage *stage, double journal_seconds, mgr_progress *progress,
                     mgr_err *err)
{
    mgr_extents read = {0}, written = {0};
    mgr_buf directory = {0};
    int rc = MGR_OK;
    if (job->rank == 0)
        rc = mgr_buf_text(&directory, stage->directory, err);
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &directory, err);
    if (rc == MGR_OK)
        rc = mgr_engine_run(job, directory.data, journal_seconds, progress, &read, &written, err);
    const double start = mgr_now();
    if (rc == MGR_OK)
        rc = mgr_settle_gather(job->comm, &read, err);
    if (rc == MGR_OK)
        rc = mgr_settle_gather(job->comm, &written, err);
    if (rc == MGR_OK) {
        if (job->rank == 0)
            rc = settle(job, stage, &read, &written, err);
        rc = mgr_agree_root(job, rc, err);
    }
    if (rc == MGR_OK && job->source_format) /* what is made of nothing has no provenance */
        rc = mgr_ledger_write(job, directory.data, start, err);
    if (rc == MGR_OK && job->container->seal)
        rc = seal(job, directory.data, err);
    if (rc == MGR_OK)
        rc = mgr_hash_files(job, directory.data, err);
    if (rc == MGR_OK) {
        if (job->rank == 0)
            rc = publish(job, stage, err);
        rc = mgr_agree_root(job, rc, err);
    }
    job->tally.seconds_publish = mgr_now() - start;
    mgr_free(read.list);
    mgr_free(written.list);
    mgr_buf_clear(&directory);
    return rc;
}

/* Rank 0: everything below the staging directory. */
static int make_stage(mgr_job *job, mgr_stage *stage, mgr_err *err)
{
    const bool by_library = job->container->create != NULL;
    MGR_TRY(mgr_stage_make(stage, &job->target.cat, !by_library, err));
    return by_library ? job->container->create(&job->target.layout, job->target_state,
                                               stage->directory, err)
                      : MGR_OK;
}

/* Where the library put the tensors of the files that rank 0 made, to all. Collective. */
static int share_places(mgr_job *job, mgr_err *err)
{
    mgr_catalogue *const cat = &job->target.cat;
    mgr_buf places = {0};
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        rc = mgr_buf_add(&places, &cat->stored[i].offset, sizeof cat->stored[i].offset, err);
    for (size_t f = 0; rc == MGR_OK && f < cat->n_files; f++)
        rc = mgr_buf_add(&places, &cat->files[f].bytes, sizeof cat->files[f].bytes, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &places, err);
    const char *at = places.data;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++, at += sizeof(uint64_t))
        memcpy(&cat->stored[i].offset, at, sizeof(uint64_t));
    for (size_t f = 0; rc == MGR_OK && f < cat->n_files; f++, at += sizeof(uint64_t))
        memcpy(&cat->files[f].bytes, at, sizeof(uint64_t));
    mgr_buf_clear(&places);
    return rc;
}

/* What a signal stopped can be continued; so can what was being continued when it failed. Anything
 * else that fails leaves nothing behind. */
static int keep_or_remove(mgr_stage *stage, bool journaled, int rc, mgr_err *err)
{
    stage->keep = rc == MGR_ERR_INTERRUPTED && journaled;
    if (stage->keep)
        mgr_hint(err, "continue with --resume");
    return rc;
}

/* What is read must not be replaced. */
static int check_apart(const mgr_job *job, const char *out, mgr_err *err)
{
    const mgr_source_files *const s = &job->source_files;
    bool inside = job->source_format &&
                  (mgr_is_inside(job->config.source.path, out) || mgr_is_inside(s->directory, out));
    for (size_t i = 0; job->source_format && i < s->n && !inside; i++)
        inside = mgr_is_inside(s->paths[i], out);
    if (!inside)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_EXISTS, "target.path '%s' holds the source", out);
    return mgr_hint(err, "choose another target.path");
}

int mgr_run_write(mgr_job *job, const char *out, const char *id, const mgr_write_options *o,
                  mgr_err *err)
{
    mgr_stage stage = {.replace = o->force, .resume = o->resume, .dry_run = o->dry_run, .hold = -1};
    mgr_progress *progress = NULL;
    int rc = MGR_OK;
    if (job->rank == 0)
        rc = check_apart(job, out, err);
    if (job->rank == 0 && rc == MGR_OK)
        rc = mgr_stage_check(&stage, out, id, output_bytes(job), err);
    rc = mgr_agree_root(job, rc, err);
    job->replaced = stage.replaced;
    if (rc != MGR_OK || o->dry_run)
        goto out;
    if (job->rank == 0)
        rc = make_stage(job, &stage, err);
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK && job->container->create)
        rc = share_places(job, err);
    if (rc != MGR_OK)
        goto out;
    rc = mgr_agree(job->comm,
                   mgr_progress_start(&progress, job->comm, o->progress, job->plan.total_in,
                                      job->plan.total_out, err),
                   err);
    if (rc != MGR_OK) {
        mgr_progress_drop(progress); /* some ranks have none, so nothing collective */
        goto out;
    }
    rc = write_all(job, &stage, o->journal, progress, err);
    mgr_progress_stop(progress);
    rc = keep_or_remove(&stage, o->journal >= 0, rc, err);
out:
    mgr_stage_clear(&stage);
    return rc;
}

void mgr_job_clear(mgr_job *job)
{
    if (job->source_format && job->source_state)
        job->source_format->release(job->source_state);
    if (job->target_format && job->target_format->release)
        job->target_format->release(job->target_state);
    mgr_plan_clear(&job->plan);
    mgr_side *const sides[] = {&job->source, &job->target};
    for (int i = 0; i < 2; i++) {
        mgr_layout_clear(&sides[i]->layout);
        mgr_tensors_clear(&sides[i]->tensors);
        mgr_catalogue_clear(&sides[i]->cat);
    }
    mgr_free(job->defines);
    mgr_free(job->stored_crc);
    mgr_free(job->file_crc);
    mgr_free(job->tensor_crc);
    mgr_free(job->target_moment);
    mgr_free(job->source_moment);
    mgr_free(job->events);
    mgr_remarks_clear(&job->remarks);
    mgr_arena_clear(&job->arena);
}
