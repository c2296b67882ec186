/*
 * `method: from-scratch`: every tensor is drawn, in the shape of the source.
 */
#include <math.h>
#include <string.h>

#include "run/recipe.h"

/* All others are about the source's values. */
static int refuse_keys(const mgr_config *c, mgr_err *err)
{
    static const char *const allowed[] = {
        "upcycle.method",
        "upcycle.experts",
        "upcycle.top_k",
        "upcycle.expert_width",
        "upcycle.slices",
        "upcycle.router",
        "upcycle.router_std",
        "upcycle.router_file",
        "upcycle.seed",
        "upcycle.router_pre_softmax",
        "upcycle.moe_layer_freq",
        "upcycle.encoder_moe_layer_freq",
        "upcycle.init",
        "upcycle.init_std",
        NULL,
    };
    return mgr_config_keep_to(c, mgr_config_tables, allowed,
                              "about the source's weights, of which method from-scratch takes none",
                              err);
}

/* A router that is not asked for is drawn as all else is. */
static void settle_router(mgr_job *job, double std)
{
    mgr_config *const c = &job->config;
    if (mgr_config_place(c, "upcycle.router"))
        return;
    memset(c->upcycle.router, 0, sizeof c->upcycle.router);
    memcpy(c->upcycle.router, "normal", sizeof "normal");
    c->upcycle.router_std = std;
    job->router.kind = MGR_ROUTER_NORMAL;
}

int mgr_run_scratch(mgr_job *job, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const mgr_model *const m = &job->source.tensors.model;
    const double std = c->upcycle.init_std > 0 ? c->upcycle.init_std : m->init_std;
    const bool scaled = strcmp(c->upcycle.init, "megatron") == 0;
    if (m->experts)
        return mgr_config_fail(
            c, "upcycle.method", err,
            "method from-scratch draws a mixture in the shape of a dense source; "
            "this one is a mixture of %llu experts already",
            (unsigned long long)m->experts);
    MGR_TRY(refuse_keys(c, err));
    if (!(std > 0)) {
        mgr_config_fail(c, "upcycle.init_std", err, "the source says no std of its first weights");
        return mgr_hint(err, "set 'upcycle.init_std'");
    }
    for (uint32_t i = 0; i < job->source.tensors.n; i++) /* a stream has 2^34 numbers */
        if (job->source.tensors.list[i].opaque)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                            "the source has tensors that are moved without being understood, and "
                            "cannot be drawn");
        else if (job->source.tensors.list[i].rows * job->source.tensors.list[i].cols > UINT64_C(1)
                                                                                           << 34)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%s has more than 2^34 values to draw",
                            mgr_role_name(job->source.tensors.list[i].role));
    c->upcycle.init_std = std;
    job->init_std = (float)std;
    job->init_output_std = (float)(scaled ? std / sqrt(2.0 * (double)m->layers) : std);
    job->recipe.n_selected = job->recipe.width;
    settle_router(job, std);
    return MGR_OK;
}
