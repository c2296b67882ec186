#include "run/optimizer.h"

#include <string.h>

static bool is_kept(const mgr_config *c)
{
    return strcmp(c->target.optimizer, "keep") == 0;
}

/* Constructions that have no one optimizer to take from. */
static const char *without_one(const mgr_job *job)
{
    return job->config.n_sources                   ? "'sources' have an optimizer each"
           : job->method && job->method->draws_all ? "nothing is taken from the source"
           : job->method && job->method->joins
               ? "experts that are joined have as many moments for one parameter"
               : NULL;
}

int mgr_optimizer_ask(mgr_job *job, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const char *const why = without_one(job);
    c->source.planes = 0;
    if (!is_kept(c))
        return MGR_OK;
    if (why)
        return mgr_config_fail(c, "target.optimizer", err,
                               "'target.optimizer' is 'keep', but %s: set it to none", why);
    if (!job->source_format->planes) {
        mgr_config_fail(c, "target.optimizer", err,
                        "'target.optimizer' is 'keep', but of format '%s' no optimizer is read",
                        job->source_format->name);
        return mgr_hint(err, "leave it out: weights alone are written");
    }
    if (strcmp(c->source.weights, "masters") != 0 &&
        !(job->source_format->masters && strcmp(c->source.weights, "copies") != 0)) {
        mgr_config_fail(c, "target.optimizer", err,
                        "'target.optimizer' is 'keep', which needs 'source.weights: masters'");
        return mgr_hint(err, "set source.weights to masters: weights and masters are made of them");
    }
    c->source.planes = MGR_PLANES_MOMENTS;
    return MGR_OK;
}

int mgr_optimizer_add(mgr_job *job, mgr_dtype dtype, mgr_err *err)
{
    if (!is_kept(&job->config))
        return MGR_OK;
    return mgr_tensors_add_planes(&job->target.tensors,
                                  job->target_format->planes(&job->origin, dtype), err);
}

mgr_define mgr_optimizer_define(const mgr_tensors *from, mgr_plane plane, const mgr_define *weight)
{
    mgr_define d = *weight;
    if (plane == MGR_PLANE_MASTER)
        return d;
    d.source = mgr_tensors_plane(from, d.source, plane);
    d.op = d.source == MGR_NONE ? MGR_OP_ZERO : d.op == MGR_OP_EXPERT ? MGR_OP_MOMENT : d.op;
    return d;
}
