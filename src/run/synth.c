/* mgr-synth: the engine with a generator in the place of a source. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "run/run.h"

/* Options that have a key, as overrides: what the format does not own is refused. */
typedef struct overrides {
    char text[16][96];
    const char *list[16];
    size_t n;
} overrides;

static void add_size(overrides *o, const char *key, uint64_t value, uint64_t fallback)
{
    if (value == fallback)
        return;
    snprintf(o->text[o->n], sizeof o->text[0], "target.%s=%llu", key, (unsigned long long)value);
    o->n++;
}

static void add_text(overrides *o, const char *key, const char *value)
{
    snprintf(o->text[o->n++], sizeof o->text[0], "%s=%s", key, value);
}

/* The configuration that the options amount to. */
static int fill_config(mgr_config *c, const mgr_synth_options *o, mgr_err *err)
{
    overrides sets = {.n = 0};
    add_text(&sets, "source.path", "none");
    add_text(&sets, "target.path", "none");
    add_text(&sets, "mode", "reshard");
    add_text(&sets, "target.format", o->format);
    if (o->class && strcmp(o->format, "huggingface") == 0)
        add_text(&sets, "target.class", o->class);
    if (strcmp(o->names, "auto") != 0)
        add_text(&sets, "target.names", o->names);
    if (strcmp(o->dist_keys, "auto") != 0)
        add_text(&sets, "target.dist_keys", o->dist_keys);
    add_size(&sets, "tensor_parallel", o->tensor_parallel, 1);
    add_size(&sets, "pipeline_parallel", o->pipeline_parallel, 1);
    add_size(&sets, "virtual_pipeline", o->virtual_pipeline, 1);
    add_size(&sets, "expert_parallel", o->expert_parallel, 1);
    add_size(&sets, "expert_tensor_parallel", o->expert_tensor_parallel, 0);
    for (size_t i = 0; i < sets.n; i++)
        sets.list[i] = sets.text[i];
    MGR_TRY(
        mgr_config_parse(c, mgr_config_tables, "command line", "{}", 2, sets.list, sets.n, err));
    snprintf(c->target.path, sizeof c->target.path, "%s", o->out);
    c->target.make_vocab_size_divisible_by = o->vocab_divisor;
    c->target.iteration = 1;
    c->upcycle.seed = o->seed;
    c->memory_per_rank = (uint64_t)1 << 30;
    return MGR_OK;
}

/* All is as padding is: a new file's zeros. */
static int leave_zeros(mgr_job *job, mgr_err *err)
{
    mgr_layout *const to = &job->target.layout;
    const mgr_catalogue *const cat = &job->target.cat;
    mgr_plan_clear(&job->plan);
    job->plan.ranks = job->ranks;
    job->sparse = true;
    to->n_fills = 0;
    for (uint32_t i = 0; i < cat->n_stored; i++)
        MGR_TRY(mgr_layout_fill(to, i, 0, cat->stored[i].ndim ? cat->stored[i].shape[0] : 1, err));
    return MGR_OK;
}

static int set_up(mgr_job *job, const mgr_synth_options *o, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    mgr_side *const t = &job->target;
    MGR_TRY(fill_config(&job->config, o, err));
    job->synth_seed = o->seed;
    snprintf(job->id, sizeof job->id, "synth");
    job->target_format = mgr_target_find(o->format);
    if (!job->target_format)
        return mgr_fail(err, MGR_ERR_USAGE, "no format '%s'", o->format);
    mgr_model model = o->model;
    MGR_TRY(mgr_target_check(job->target_format, c, NULL, &model, err));
    MGR_TRY(mgr_tensors_init(&t->tensors, &o->model, err));
    MGR_TRY(mgr_alloc(&job->defines, t->tensors.n, sizeof *job->defines, err));
    for (uint32_t i = 0; i < t->tensors.n; i++)
        job->defines[i] = (mgr_define){MGR_OP_SYNTH, MGR_NONE};
    MGR_TRY(mgr_layout_init(&t->layout, &t->tensors, &t->cat, true, o->dtype, err));
    MGR_TRY(job->target_format->layout(c, NULL, &t->layout, &job->target_state, err));
    MGR_TRY(mgr_layout_finish(&t->layout, err));
    MGR_TRY(mgr_run_plan(job, 0, err));
    return o->sparse ? leave_zeros(job, err) : MGR_OK;
}

int mgr_run_synth(mgr_comm *comm, const mgr_synth_options *o, mgr_err *err)
{
    mgr_job *job = NULL;
    const mgr_write_options write = {.force = o->force, .quiet = true, .journal = -1};
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
        rc = mgr_run_write(job, o->out, &write, err);
    if (rc == MGR_OK && job->rank == 0 && o->verbosity >= 0)
        mgr_print_synth(job, o->out);
    mgr_job_clear(job);
    mgr_free(job);
    return rc;
}
