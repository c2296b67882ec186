/*
 * mgr_checkpoint_writer: a run of the program in which the engine asks a callback for its rows, so
 * that staging, checksums, proof, manifest and publishing are the program's.
 */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "kern/kern.h"
#include "lib/handle.h"
#include "lib/locale.h"
#include "model/mtp.h"
#include "par/comm.h"
#include "run/ledger.h"
#include "run/recipe.h"
#include "run/run.h"

struct mgr_checkpoint_writer {
    mgr_job *job;
    const char **names; /* of the tensors to write */
    mgr_checkpoint_rows *rows;
    void *context;
    mgr_aside aside; /* while it runs */
};

/* What is made of no source has no provenance, and the ledger's library asks for MPI. */
uint64_t mgr_ledger_bytes(const mgr_job *job)
{
    (void)job;
    return 0;
}

int mgr_ledger_write(mgr_job *job, const char *directory, double settled, mgr_err *err)
{
    (void)job, (void)directory, (void)settled;
    return mgr_fail(err, MGR_ERR_INTERNAL, "a callback has no ledger");
}

/* The model that is written, and the type of each of its tensors as the settings want it. */
static int describe(mgr_job *job, const mgr_view *from, mgr_model *model, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    if (strcmp(c->mode, "upcycle") == 0) {
        job->method = mgr_method_find(c->upcycle.method);
        job->router.kind = mgr_router_find(c->upcycle.router);
        if (job->method->takes_sources)
            return mgr_config_fail(c, "upcycle.method", err,
                                   "method '%s' makes experts of several models, and there is one",
                                   job->method->name);
    }
    job->source.tensors = from->tensors; /* for these two alone: they are the checkpoint's */
    job->source.layout = from->layout;
    int rc = mgr_run_recipe(job, err);
    if (rc == MGR_OK)
        rc = mgr_run_model(job, model, err);
    job->source = (mgr_side){0};
    /* how a method would make experts is the callback's affair */
    job->method = NULL;
    job->recipe = (mgr_recipe){0};
    job->moments = false;
    return rc;
}

/* With target.dtype 'source' a tensor has the type of the one that it is made of. */
static void take_types(mgr_layout *to, const mgr_layout *from)
{
    const mgr_tensors *const ts = to->tensors;
    for (uint32_t i = 0; i < ts->n; i++) {
        const mgr_tensor *const t = &ts->list[i];
        uint32_t idx = mgr_tensors_match(from->tensors, t);
        if (idx == MGR_NONE && (t->expert != MGR_NONE || mgr_role_is_shared(t->role)))
            idx = mgr_tensors_find(from->tensors, mgr_role_unshared(t->role), t->layer, MGR_NONE);
        if (idx != MGR_NONE)
            to->types[i] = from->types[idx];
    }
}

static int lay_out(mgr_job *job, const mgr_view *from, mgr_model *model, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    mgr_side *const t = &job->target;
    const bool as_source = strcmp(c->target.dtype, "source") == 0;
    const mgr_dtype dtype = as_source ? model->dtype : mgr_dtype_from_name(c->target.dtype);
    if (job->target_format->settle)
        job->target_format->settle(&job->origin, &job->config);
    MGR_TRY(mgr_target_check(job->target_format, c, &job->origin, model, err));
    MGR_TRY(mgr_tensors_init(&t->tensors, model, err));
    MGR_TRY(mgr_tensors_share_opaque(&t->tensors, &from->tensors, err));
    MGR_TRY(mgr_alloc(&job->defines, t->tensors.n, sizeof *job->defines, err));
    for (uint32_t i = 0; i < t->tensors.n; i++)
        job->defines[i] = (mgr_define){MGR_OP_GIVEN, MGR_NONE};
    MGR_TRY(mgr_layout_init(&t->layout, &t->tensors, &t->cat, true, dtype, err));
    if (as_source)
        take_types(&t->layout, &from->layout);
    MGR_TRY(job->target_format->layout(c, &job->origin, &t->layout, &job->target_state, err));
    MGR_TRY(mgr_layout_finish(&t->layout, err));
    return mgr_run_plan(job, 0, err);
}

static int review(mgr_job *job, mgr_err *err)
{
    const mgr_output out = {.config = &job->config,
                            .layout = &job->target.layout,
                            .state = job->target_state,
                            .origin = &job->origin};
    return job->target_format->review ? job->target_format->review(&out, &job->remarks, err)
                                      : MGR_OK;
}

static int set_up(mgr_checkpoint_writer *w, const mgr_checkpoint *like, const char *path,
                  const char *settings, mgr_err *err)
{
    mgr_job *const job = w->job;
    const mgr_view *const from = &like->view;
    mgr_model model = from->tensors.model;
    if (!from->has_model)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of no model that is known: %s",
                        like->path, like->about.data);
    MGR_TRY(mgr_settings_parse(&job->config, settings, like->path, path, err));
    if (strcmp(job->config.target.optimizer, "keep") == 0)
        return mgr_config_fail(&job->config, "target.optimizer", err,
                               "'target.optimizer: keep' is for mgr-upcycle; a callback gives "
                               "weights");
    MGR_TRY(mgr_comm_alone(&job->comm, err));
    job->ranks = 1;
    snprintf(job->id, sizeof job->id, "libmgr");
    job->target_format = mgr_target_find(job->config.target.format);
    job->source_files.directory = from->directory;
    job->origin = (mgr_origin){from->format, from->directory, &from->cat, &from->tensors.model};
    MGR_TRY(mgr_mtp_check(&from->cat, &job->config, &model, err));
    MGR_TRY(describe(job, from, &model, err));
    MGR_TRY(lay_out(job, from, &model, err));
    MGR_TRY(review(job, err));
    return mgr_name_tensors(&job->target.tensors, &job->arena, &w->names, err);
}

static int open_writer(const mgr_checkpoint *like, const char *path, const char *settings,
                       mgr_checkpoint_writer **out, mgr_err *err)
{
    mgr_checkpoint_writer *w = NULL;
    *out = NULL;
    MGR_TRY(mgr_alloc(&w, 1, sizeof *w, err));
    int rc = mgr_alloc(&w->job, 1, sizeof *w->job, err);
    if (rc == MGR_OK)
        rc = set_up(w, like, path, settings, err);
    if (rc == MGR_OK)
        *out = w;
    else
        mgr_checkpoint_writer_close(w);
    return rc;
}

int mgr_checkpoint_writer_open(const mgr_checkpoint *like, const char *path, const char *settings,
                               mgr_checkpoint_writer **out, mgr_err *err)
{
    MGR_ASIDE(open_writer(like, path, settings, out, err));
}

void mgr_checkpoint_writer_close(mgr_checkpoint_writer *w)
{
    if (!w)
        return;
    if (w->job) {
        mgr_comm_stop(w->job->comm);
        mgr_job_clear(w->job);
    }
    mgr_free(w->job);
    mgr_free(w);
}

uint32_t mgr_checkpoint_writer_count(const mgr_checkpoint_writer *w)
{
    return w->job->target.tensors.n;
}

bool mgr_checkpoint_writer_at(const mgr_checkpoint_writer *w, uint32_t idx,
                              mgr_checkpoint_tensor *out)
{
    if (idx >= w->job->target.tensors.n)
        return false;
    *out = mgr_logical_tensor(&w->job->target.layout, w->names, idx);
    return true;
}

/* As in a source, values that are not finite are refused with their place. */
static int look(const mgr_checkpoint_writer *w, const mgr_checkpoint_tensor *t, uint64_t row,
                uint64_t n, const void *rows, mgr_err *err)
{
    const uint64_t cols = t->ndim == 2 ? t->shape[1] : 1;
    if (w->job->config.source.allow_nonfinite || !mgr_dtype_is_weight(t->dtype))
        return MGR_OK;
    const size_t all = (size_t)(n * cols);
    const size_t i =
        mgr_find_magnitude(rows, t->dtype, all, mgr_infinity_bits(t->dtype), UINT32_MAX);
    if (i == all)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s', row %llu, column %llu, is given as NaN or infinite",
             t->name, (unsigned long long)(row + i / cols), (unsigned long long)(i % cols));
    return mgr_hint(err, "set 'source: {allow_nonfinite: true}' to write such values");
}

static int give(void *context, uint32_t idx, uint64_t row, uint64_t n, void *out, mgr_err *err)
{
    const mgr_checkpoint_writer *const w = context;
    const mgr_checkpoint_tensor t = mgr_logical_tensor(&w->job->target.layout, w->names, idx);
    mgr_aside_call(&w->aside);
    const int rc = w->rows(w->context, idx, &t, row, n, out, err);
    mgr_aside_return(&w->aside);
    if (rc == MGR_OK)
        return look(w, &t, row, n, out, err);
    if (err->code == MGR_OK)
        mgr_fail(err, MGR_ERR_USAGE, "there are no rows from %llu on of tensor '%s'",
                 (unsigned long long)row, t.name);
    return err->code;
}

int mgr_checkpoint_writer_run(mgr_checkpoint_writer *w, mgr_checkpoint_rows *rows, void *context,
                              mgr_err *err)
{
    const mgr_write_options options = {.quiet = true, .journal = -1};
    mgr_job *const job = w->job;
    if (job->give)
        return mgr_fail(err, MGR_ERR_USAGE, "a writer writes once");
    job->give = give;
    job->give_context = w;
    w->rows = rows;
    w->context = context;
    MGR_TRY(mgr_aside_begin(&w->aside, err));
    const int rc = mgr_run_write(job, job->config.target.path, &options, err);
    mgr_aside_end(&w->aside);
    if (rc == MGR_ERR_EXISTS) /* the program's hint is an option of its own */
        snprintf(err->hint, sizeof err->hint, "choose another folder, or remove it");
    return rc;
}
