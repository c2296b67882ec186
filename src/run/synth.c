/* mgr-synth: the engine with a generator in the place of a source. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "run/run.h"

static int set_up(mgr_job *job, const mgr_synth_options *o, mgr_err *err)
{
    mgr_config *const c = &job->config;
    mgr_side *const t = &job->target;
    snprintf(c->target.path, sizeof c->target.path, "%s", o->out);
    snprintf(c->target.names, sizeof c->target.names, "%s", o->local_names ? "local" : "te");
    c->target.tensor_parallel = o->tensor_parallel;
    c->target.pipeline_parallel = o->pipeline_parallel;
    c->target.make_vocab_size_divisible_by = o->vocab_divisor;
    c->target.iteration = 1;
    c->memory_per_rank = (uint64_t)1 << 30;
    job->synth_seed = c->upcycle.seed = o->seed;
    c->target.max_shard_size = UINT64_C(5000000000);
    job->target_format = mgr_target_find(o->format);
    if (!job->target_format)
        return mgr_fail(err, MGR_ERR_USAGE, "no format '%s'", o->format);
    MGR_TRY(job->target_format->check(c, &o->model, err));
    if (o->model.layers % o->pipeline_parallel != 0)
        return mgr_fail(err, MGR_ERR_USAGE, "%llu layers do not divide among %llu pipeline stages",
                        (unsigned long long)o->model.layers,
                        (unsigned long long)o->pipeline_parallel);
    MGR_TRY(mgr_tensors_init(&t->tensors, &o->model, err));
    MGR_TRY(mgr_alloc(&job->defines, t->tensors.n, sizeof *job->defines, err));
    for (uint32_t i = 0; i < t->tensors.n; i++)
        job->defines[i] = (mgr_define){MGR_OP_SYNTH, MGR_NONE};
    MGR_TRY(mgr_layout_init(&t->layout, &t->tensors, &t->cat, true, o->dtype, err));
    MGR_TRY(job->target_format->layout(c, &t->layout, &job->target_state, err));
    MGR_TRY(mgr_layout_finish(&t->layout, err));
    return mgr_run_plan(job, 0, err);
}

int mgr_run_synth(mgr_comm *comm, const mgr_synth_options *o, mgr_err *err)
{
    mgr_job *job = NULL;
    char bytes[32];
    const mgr_write_options write = {.force = o->force, .journal = -1};
    int rc = mgr_agree(comm, mgr_alloc(&job, 1, sizeof *job, err), err);
    if (rc != MGR_OK) {
        mgr_free(job);
        return rc;
    }
    job->comm = comm;
    job->rank = (uint32_t)mgr_comm_rank(comm);
    job->ranks = (uint32_t)mgr_comm_size(comm);
    rc = mgr_agree(comm, set_up(job, o, err), err);
    if (rc == MGR_OK)
        rc = mgr_run_write(job, o->out, "synth", &write, err);
    if (rc == MGR_OK && job->rank == 0 && o->verbosity >= 0)
        printf("wrote %s: %zu files, %s\n", o->out, job->target.cat.n_files,
               mgr_format_bytes(job->plan.total_out, bytes, sizeof bytes));
    mgr_job_clear(job);
    mgr_free(job);
    return rc;
}
