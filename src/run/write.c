/* The writing phases of run/run.h, the same for every source and target. */
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "engine/engine.h"
#include "engine/progress.h"
#include "engine/recall.h"
#include "engine/sink_compare.h"
#include "io/fault.h"
#include "io/file.h"
#include "look/verify.h"
#include "run/branches.h"
#include "run/found.h"
#include "run/hashes.h"
#include "run/ledger.h"
#include "run/manifest.h"
#include "run/record.h"
#include "run/run.h"
#include "run/seal.h"
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

/* For tests of the self-check: the k-th name of the target with another last letter; "name" before
 * anything is written, "key" when all is, so that only the comparison of keys can notice. */
static int plant_misspelling(mgr_job *job, const char *fault, mgr_err *err)
{
    for (size_t i = 0; i < job->target.cat.n_stored; i++) {
        mgr_stored *const s = &job->target.cat.stored[i];
        mgr_buf name = {0};
        if (!mgr_fault(fault))
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
    MGR_TRY(plant_misspelling(job, "name", err));
    job->container = format->choose ? format->choose(&job->config) : format->container;
    for (uint32_t f = 0; f < job->target.cat.n_files; f++)
        MGR_TRY(job->container->place(&job->target.layout, f, job->target_state, err));
    return MGR_OK;
}

/* Is it an expert or a layer that was not asked for, or the router of a mixture that gets another
 * one? */
static bool is_left_out(const mgr_job *job, const mgr_tensor *t)
{
    const bool router = t->role == MGR_ROLE_ROUTER || t->role == MGR_ROLE_ROUTER_BIAS ||
                        t->role == MGR_ROLE_SELECTION_BIAS;
    bool used = !job->layers_from || t->layer == MGR_NONE;
    for (uint32_t l = 0; !used && l < job->n_layers; l++)
        used = job->layers_from[l] == t->layer;
    return !used || (job->recipe.from && (router || t->expert != MGR_NONE));
}

/* Does it go into a mean, which is defined by the first source's? */
static bool is_averaged(const mgr_job *job, const mgr_tensor *t)
{
    const uint32_t first = job->plan.first_target[t->bundle];
    return t->source && first < job->plan.first_target[t->bundle + 1] &&
           job->defines[job->plan.targets[first]].op == MGR_OP_AVERAGE;
}

/* Nothing of the source may be left unused. */
static int check_consumed(const mgr_job *job, mgr_err *err)
{
    char label[96];
    if (job->method && job->method->draws_all)
        return MGR_OK;
    for (uint32_t i = 0; i < job->source.tensors.n; i++)
        if (job->plan.first_target[i] == job->plan.first_target[i + 1] &&
            !is_left_out(job, &job->source.tensors.list[i]) &&
            !is_averaged(job, &job->source.tensors.list[i]))
            return mgr_fail(err, MGR_ERR_INTERNAL, "nothing is made of %s",
                            mgr_tensor_label(&job->source.tensors.list[i], label, sizeof label));
    return MGR_OK;
}

int mgr_run_replan(mgr_job *job, const mgr_piece *done, size_t n_done, mgr_err *err)
{
    const mgr_plan_request request = {
        .source = job->source_format ? &job->source.layout : NULL,
        .target = &job->target.layout,
        .defines = job->defines,
        .ranks = job->plan_ranks ? job->plan_ranks : job->ranks,
        .order = job->places.rank,
        .moments = job->moments,
        .ffns = job->recipe.from ? job->recipe.sources : 0,
        .neurons = job->recipe.source_width,
        .shuffle = job->recipe.shuffle || job->recipe.replicas || job->recipe.neurons,
        .selection_bytes = mgr_selection_bytes(job),
        .memory = job->memory,
        .done = done,
        .n_done = n_done,
        .unit_min = job->unit_min,
        .io_threads = job->io_threads,
    };
    mgr_plan_clear(&job->plan);
    return mgr_plan_make(&job->plan, &request, err);
}

/* What is compared lies where it was found, and passes through one buffer more. */
static void take_found(mgr_job *job)
{
    job->memory -= job->memory < MGR_COMPARE_BYTES ? job->memory : MGR_COMPARE_BYTES;
    if (job->found->comparable)
        mgr_found_take(job, job->found);
}

/* What is there, the buffers, and as much again as the lists take: the output is read back. */
static uint64_t expect_memory(const mgr_job *job, uint64_t baseline)
{
    const uint64_t compared = job->found ? MGR_COMPARE_BYTES : 0;
    const uint64_t sum =
        baseline + job->plan.memory_bytes + compared + mgr_mem_held() + RESERVE_MIN;
    return sum < job->config.memory_per_rank ? sum : job->config.memory_per_rank;
}

/* Threads that were not asked for are given up before a run is refused, by all ranks or by none:
 * not for memory that this one cannot get. */
static int plan_within(mgr_job *job, mgr_err *err)
{
    mgr_err first = MGR_ERR_INIT;
    if (mgr_run_replan(job, NULL, 0, &first) == MGR_OK)
        return MGR_OK;
    if (first.code == MGR_ERR_CONFIG && mgr_io_threads_give_up(job))
        return plan_within(job, err);
    *err = first;
    return mgr_hint(err, "raise memory_per_rank%s",
                    job->io_threads ? ", or set 'io_threads: 0'" : "");
}

int mgr_run_plan(mgr_job *job, uint64_t baseline, mgr_err *err)
{
    const uint64_t all = job->config.memory_per_rank;
    const uint64_t sixteenth = all / 16;
    const uint64_t reserve = baseline + (sixteenth > RESERVE_MIN ? sixteenth : RESERVE_MIN);
    job->memory = all > reserve ? all - reserve : 0;
    MGR_TRY(place_files(job, err));
    if (job->found)
        take_found(job);
    MGR_TRY(plan_within(job, err));
    job->memory_expected = expect_memory(job, baseline);
    return job->source_format ? check_consumed(job, err) : MGR_OK;
}

/* Everything that will be there at some time, the journal's few bytes apart. */
uint64_t mgr_run_output_bytes(const mgr_job *job)
{
    uint64_t sum = mgr_ledger_bytes(job);
    for (size_t f = 0; f < job->target.cat.n_files; f++)
        sum += job->target.cat.files[f].bytes;
    return sum;
}

/* Before the output gets its name, so that nothing that can fail is left behind that. */
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
        job->tally.calls_read += other.calls_read;
        job->tally.calls_written += other.calls_written;
        if (other.peak_rss > job->tally.peak_rss)
            job->tally.peak_rss = other.peak_rss;
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return rc;
}

/* Where things are written, on all ranks. */
typedef struct writing {
    mgr_buf directory, weights, journal;
    mgr_recall recall;
    mgr_seal seal;
    mgr_progress *progress;
    mgr_extents read, written;
} writing;

static void writing_clear(writing *w)
{
    mgr_buf_clear(&w->directory);
    mgr_buf_clear(&w->weights);
    mgr_buf_clear(&w->journal);
    mgr_recall_clear(&w->recall);
    mgr_seal_clear(&w->seal);
    mgr_free(w->read.list);
    mgr_free(w->written.list);
}

/* A place between two steps, where tests stop a run: all ranks pass it together. `next` is the
 * phase that begins. */
static int step(mgr_job *job, const char *next, mgr_err *err)
{
    (void)mgr_fault("phase");
    const int rc = mgr_agree(job->comm, mgr_check_stop(err), err);
    if (rc == MGR_OK && next)
        mgr_say_phase(next);
    return rc;
}

/* Rank 0, after the engine: checksums and headers. */
static int settle(mgr_job *job, writing *w, mgr_err *err)
{
    if (job->source_format)
        MGR_TRY(mgr_settle_source(job, &w->read, err));
    return mgr_settle_target(job, w->weights.data, &w->written, err);
}

/* Rank 0: the small files. */
static int write_sidecars(mgr_job *job, mgr_stage *stage, mgr_err *err)
{
    MGR_TRY(mgr_stage_finish(stage, err));
    MGR_TRY(mgr_manifest_begin(job, stage->directory, err)); /* HDF5 holds a copy */
    const mgr_output out = {.config = &job->config,
                            .layout = &job->target.layout,
                            .state = job->target_state,
                            .origin = job->origin.model ? &job->origin : NULL,
                            .file_sha256 = (const char(*)[65])job->file_sha256};
    return job->target_format->sidecars(&out, stage->directory, err);
}

/* Rank 0, at the end: a second look, the final name. */
static int publish(mgr_job *job, mgr_stage *stage, mgr_err *err)
{
    (void)mgr_fault("phase");
    mgr_say_phase("verify");
    MGR_TRY(plant_misspelling(job, "key", err));
    MGR_TRY(
        mgr_verify_output(job->target_format->name, &job->target.layout, stage->directory, err));
    (void)mgr_fault("phase");
    MGR_TRY(mgr_check_stop(err));
    mgr_say_phase("publish");
    MGR_TRY(mgr_stage_publish(stage, err));
    job->replaced = stage->replaced;
    return MGR_OK;
}

/* Extents of all ranks to rank 0, and what follows from them. Collective. */
static int settle_all(mgr_job *job, writing *w, mgr_err *err)
{
    int rc = mgr_settle_gather(job->comm, &w->read, err);
    if (rc == MGR_OK)
        rc = mgr_settle_gather(job->comm, &w->written, err);
    if (rc == MGR_OK)
        rc = mgr_agree_root(job, job->rank == 0 ? settle(job, w, err) : MGR_OK, err);
    return rc;
}

/* Everything behind the engine. Collective. */
static int complete(mgr_job *job, mgr_stage *stage, writing *w, mgr_err *err)
{
    const double start = mgr_now();
    int rc = step(job, "settle", err);
    if (rc == MGR_OK)
        rc = settle_all(job, w, err);
    if (rc == MGR_OK)
        rc = step(job, "ledger", err);
    if (rc == MGR_OK && job->source_format) /* what is made of nothing has no provenance */
        rc = mgr_ledger_write(job, w->directory.data, start, err);
    if (rc == MGR_OK)
        rc = step(job, job->container->seal ? "pack" : "seal", err);
    if (rc == MGR_OK)
        rc =
            mgr_seal_files(&w->seal, job, w->journal.data, w->weights.data, w->directory.data, err);
    if (rc == MGR_OK)
        rc = mgr_hash_files(job, w->directory.data, err);
    if (rc == MGR_OK)
        rc = step(job, NULL, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, mgr_record_look_again(job, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree_root(job, job->rank == 0 ? write_sidecars(job, stage, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = mgr_manifest_finish(job, w->directory.data, err);
    if (rc == MGR_OK)
        rc = mgr_run_tally(job, err);
    if (rc == MGR_OK)
        rc = mgr_agree_root(job, job->rank == 0 ? publish(job, stage, err) : MGR_OK, err);
    job->tally.seconds_publish = mgr_now() - start;
    return rc;
}

/* The engine, and everything behind it. Collective. */
static int write_all(mgr_job *job, mgr_stage *stage, writing *w, const mgr_write_options *o,
                     mgr_err *err)
{
    const mgr_engine_options options = {.directory = w->weights.data,
                                        .journal = w->journal.data,
                                        .number = w->recall.next_number + job->rank,
                                        .seconds = o->journal,
                                        .progress = w->progress};
    w->read = w->recall.read;
    w->written = w->recall.written;
    w->recall.read = w->recall.written = (mgr_extents){0};
    mgr_say_phase("weights");
    const int rc = mgr_engine_run(job, &options, &w->read, &w->written, err);
    return rc == MGR_OK ? complete(job, stage, w, err) : rc;
}

/* Rank 0: everything below the staging directory. */
static int make_stage(mgr_job *job, mgr_stage *stage, mgr_err *err)
{
    const bool by_library = job->container->create != NULL;
    bool known = !stage->leftover;
    if (stage->leftover && job->source_format)
        MGR_TRY(mgr_record_check(job, stage->journal, &known, err));
    MGR_TRY(mgr_stage_make(stage, &job->target.cat, !by_library, known, err));
    if (job->source_format && !(stage->leftover && known))
        MGR_TRY(mgr_record_write(job, stage->journal, err));
    return by_library
               ? job->container->create(&job->target.layout, job->target_state, stage->weights, err)
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

/* Rank 0's text to all; empty where rank 0 has none. Collective. */
static int share_text(mgr_job *job, const char *text, mgr_buf *out, mgr_err *err)
{
    int rc = job->rank == 0 ? mgr_buf_text(out, text, err) : MGR_OK;
    rc = mgr_agree_root(job, rc, err);
    return rc == MGR_OK ? mgr_bcast_bytes(job->comm, out, err) : rc;
}

/* Padding is never written: it is the zeros of a new file. What a stopped run left gets them. */
static int renew_fills(const mgr_job *job, const writing *w, mgr_err *err)
{
    static const unsigned char zeros[65536];
    const mgr_layout *const layout = &job->target.layout;
    mgr_open_files files;
    int rc = mgr_open_files_init(&files, layout->cat, w->weights.data, true, err);
    for (size_t i = job->rank; rc == MGR_OK && i < layout->n_fills; i += job->ranks) {
        const mgr_fill *const f = &layout->fills[i];
        const mgr_stored *const s = &layout->cat->stored[f->stored];
        const uint64_t row = s->stride[0] * mgr_dtype_size(s->dtype);
        const uint64_t end = s->offset + (f->row + f->rows) * row;
        int fd;
        rc = mgr_open_files_get(&files, s->file, &fd, err);
        for (uint64_t at = s->offset + f->row * row; rc == MGR_OK && at < end;) {
            const size_t n = end - at < sizeof zeros ? (size_t)(end - at) : sizeof zeros;
            rc = mgr_pwrite_full(fd, layout->cat->files[s->file].path, zeros, n, at, err);
            if (rc == MGR_OK)
                rc = mgr_check_stop(err);
            at += n;
        }
    }
    const int closed = mgr_open_files_close(&files, rc != MGR_OK, err);
    mgr_free(files.list);
    return rc != MGR_OK ? rc : closed;
}

/* What a stopped run did, and the plan of what is left. Collective. */
static int recall(mgr_job *job, writing *w, mgr_err *err)
{
    mgr_say_phase("read back");
    int rc = mgr_seal_recall(&w->seal, job, w->journal.data, w->directory.data, err);
    if (rc == MGR_OK)
        rc = mgr_recall_make(&w->recall, job, w->journal.data, w->weights.data, w->seal.whole, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, renew_fills(job, w, err), err);
    if (rc == MGR_OK)
        rc = mgr_run_replan(job, w->recall.done, w->recall.n_done, err);
    return mgr_agree(job->comm, rc, err);
}

/* From nothing, or from what a stopped run left, to where the engine can begin. Collective. */
static int begin(mgr_job *job, mgr_stage *stage, writing *w, const mgr_write_options *o,
                 mgr_err *err)
{
    mgr_buf leftover = {0};
    mgr_say_phase("make files");
    int rc = mgr_agree_root(job, job->rank == 0 ? make_stage(job, stage, err) : MGR_OK, err);
    if (rc == MGR_OK && job->container->create)
        rc = share_places(job, err);
    if (rc == MGR_OK)
        rc = share_text(job, stage->directory, &w->directory, err);
    if (rc == MGR_OK)
        rc = share_text(job, stage->weights, &w->weights, err);
    if (rc == MGR_OK)
        rc = share_text(job, stage->journal, &w->journal, err);
    if (rc == MGR_OK)
        rc = share_text(job, stage->leftover ? "yes" : "", &leftover, err);
    if (rc == MGR_OK && leftover.len)
        rc = recall(job, w, err);
    mgr_buf_clear(&leftover);
    if (rc != MGR_OK)
        return rc;
    rc = mgr_progress_start(&w->progress, job->comm, o->progress, &job->plan, err);
    if (mgr_agree(job->comm, rc, err) == MGR_OK)
        return MGR_OK;
    mgr_progress_drop(w->progress); /* some ranks have none, so nothing collective */
    return err->code;
}

/* A later run may end well what ended like this. */
static bool can_go_on(int rc)
{
    return rc == MGR_ERR_INTERRUPTED || rc == MGR_ERR_IO || rc == MGR_ERR_SPACE ||
           rc == MGR_ERR_CREATE || rc == MGR_ERR_NOMEM || rc == MGR_ERR_MPI;
}

/* Once the engine has begun, a failure leaves what there is for --resume. */
static int keep_or_remove(mgr_stage *stage, const mgr_write_options *o, int rc, mgr_err *err)
{
    stage->discard = o->discard;
    stage->keep = o->journal >= 0 && !o->discard && can_go_on(rc);
    if (stage->keep)
        mgr_hint(err, "%scontinue with --resume", rc == MGR_ERR_SPACE ? "make room, then " : "");
    return rc;
}

/* Is any part of a source in the folder `out`? */
static bool holds(const mgr_source_files *s, const char *path, const char *out)
{
    bool inside = mgr_is_inside(path, out) || mgr_is_inside(s->directory, out);
    for (size_t i = 0; i < s->n && !inside; i++)
        inside = mgr_is_inside(s->paths[i], out);
    return inside;
}

/* What is read must not be replaced. */
static int check_apart(const mgr_job *job, const char *out, mgr_err *err)
{
    bool inside = job->source_format && holds(&job->source_files, job->config.source.path, out);
    for (uint32_t i = 0; i < job->n_branches && !inside; i++)
        inside = holds(&job->branches[i].files, job->config.sources[i].is.path, out);
    if (!inside)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_EXISTS, "target.path '%s' holds the source", out);
    return mgr_hint(err, "choose another target.path");
}

/* Rank 0: everything that can be known before the first byte is written. */
static int check(mgr_job *job, mgr_stage *stage, const char *out, bool quiet, mgr_err *err)
{
    mgr_stage_plan plan = {.files = &job->target.cat,
                           .bytes = job->sparse ? 0 : mgr_run_output_bytes(job)};
    if (stage->resume && job->source_format && mgr_record_is_complete(job, out)) {
        job->complete = true;
        return stage->dry_run ? MGR_OK : mgr_stage_forget(out, job->id, err);
    }
    MGR_TRY(check_apart(job, out, err));
    MGR_TRY(mgr_stage_check(stage, out, job->id, &plan, err));
    job->replaced = stage->replaced;
    job->room = stage->room;
    if (stage->others && !quiet)
        mgr_print_others(stage->others);
    return MGR_OK;
}

/* Is there anything to do? Collective. */
static int check_all(mgr_job *job, mgr_stage *stage, const char *out, bool quiet, mgr_err *err)
{
    mgr_buf done = {0};
    int rc = mgr_agree_root(job, job->rank == 0 ? check(job, stage, out, quiet, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = share_text(job, job->complete ? "yes" : "", &done, err);
    job->complete = done.len > 0;
    mgr_buf_clear(&done);
    return rc;
}

int mgr_run_write(mgr_job *job, const char *out, const mgr_write_options *o, mgr_err *err)
{
    mgr_stage stage = {.replace = o->force,
                       .resume = o->resume,
                       .dry_run = o->dry_run,
                       .packs = job->container->seal != NULL,
                       .hold = -1};
    writing w = {0};
    int rc = check_all(job, &stage, out, o->quiet, err);
    if (rc == MGR_OK && (o->dry_run || job->complete))
        rc = mgr_run_tally(job, err);
    else if (rc == MGR_OK) {
        rc = begin(job, &stage, &w, o, err);
        if (rc == MGR_OK) {
            rc = write_all(job, &stage, &w, o, err);
            mgr_progress_stop(w.progress);
            rc = keep_or_remove(&stage, o, rc, err);
        }
    }
    writing_clear(&w);
    mgr_stage_clear(&stage);
    return rc;
}

void mgr_forget_source(mgr_job *job)
{
    if (job->source_format && job->source_format->forget)
        job->source_format->forget(job->source_files.held);
    job->source_files.held = NULL;
}

void mgr_job_clear(mgr_job *job)
{
    mgr_forget_source(job);
    mgr_branches_clear(job);
    if (job->source_format && job->source_state)
        job->source_format->release(job->source_state);
    if (job->target_format && job->target_format->release)
        job->target_format->release(job->target_state);
    mgr_plan_clear(&job->plan);
    mgr_places_clear(&job->places);
    mgr_side *const sides[] = {&job->source, &job->target};
    for (int i = 0; i < 2; i++) {
        mgr_layout_clear(&sides[i]->layout);
        mgr_tensors_clear(&sides[i]->tensors);
        mgr_catalogue_clear(&sides[i]->cat);
    }
    mgr_catalogue_clear(&job->router_file);
    mgr_buf_clear(&job->lists);
    mgr_free(job->router_of_layer);
    mgr_free(job->defines);
    mgr_free(job->stored_crc);
    mgr_free(job->file_crc);
    mgr_free(job->file_sha256);
    mgr_free(job->tensor_crc);
    mgr_free(job->target_moment);
    mgr_free(job->source_moment);
    mgr_free(job->events);
    mgr_remarks_clear(&job->remarks);
    mgr_arena_clear(&job->arena);
}
