/*
 * A shared expert of the dense FFN, beside the routed ones. It is copied: methods change the routed
 * ones alone.
 */
#include <string.h>

#include "core/mem.h"
#include "run/recipe.h"

/* Keys that say more of a shared expert. */
static int check_keys(const mgr_config *c, bool shared, bool slices, mgr_err *err)
{
    if (c->upcycle.shared_slices != 1 && !slices)
        return mgr_config_fail(c, "upcycle.shared_slices", err,
                               "'upcycle.shared_slices' is for 'upcycle.shared_expert: slices'");
    if (c->upcycle.shared_gate && !shared)
        return mgr_config_fail(c, "upcycle.shared_gate", err,
                               "'upcycle.shared_gate' is for an 'upcycle.shared_expert'");
    return MGR_OK;
}

static int check_model(const mgr_job *job, mgr_err *err)
{
    const mgr_model *const m = &job->source.tensors.model;
    const char *const why = m->experts          ? "a dense source; this one is a mixture"
                            : m->encoder_layers ? "models of one stack of layers"
                            : m->bias_mlp       ? "FFNs without biases"
                            : m->passed || m->ffns_only
                                ? "sources of which every tensor is understood"
                                : NULL;
    return why ? mgr_config_fail(&job->config, "upcycle.shared_expert", err,
                                 "'upcycle.shared_expert' is for %s", why)
               : MGR_OK;
}

/* The first slices, which no routed expert is cut from. */
static int set_aside(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    mgr_recipe *const r = &job->recipe;
    const uint32_t n = r->source_width / r->width;
    if (c->upcycle.neurons_file[0])
        return mgr_config_fail(c, "upcycle.shared_expert", err,
                               "'upcycle.shared_expert: slices' beside 'upcycle.neurons_file', "
                               "which says the neurons of each expert");
    if (r->source_width % r->width != 0 || c->upcycle.shared_slices >= n) {
        mgr_config_fail(c, "upcycle.shared_expert", err,
                        "'upcycle.shared_expert: slices' takes %llu of the slices, but experts of "
                        "%u neurons do not leave one of the FFN's %u",
                        (unsigned long long)c->upcycle.shared_slices, r->width, r->source_width);
        return mgr_hint(err, "set 'upcycle.slices' to more than that");
    }
    r->set_aside = (uint32_t)c->upcycle.shared_slices * r->width;
    job->shared_width = r->set_aside;
    MGR_TRY(mgr_arena_alloc(&job->arena, &job->shared_origin,
                            r->set_aside * sizeof *job->shared_origin, err));
    for (uint32_t i = 0; i < r->set_aside; i++)
        job->shared_origin[i] = i;
    return MGR_OK;
}

int mgr_run_shared(mgr_job *job, mgr_err *err)
{
    const char *const how = job->config.upcycle.shared_expert;
    const bool slices = strcmp(how, "slices") == 0;
    const bool shared = how[0] != '\0' && strcmp(how, "none") != 0;
    MGR_TRY(check_keys(&job->config, shared, slices, err));
    if (!shared)
        return MGR_OK;
    MGR_TRY(check_model(job, err));
    if (slices)
        return set_aside(job, err);
    job->shared_width = job->recipe.source_width;
    job->recipe.part = strcmp(how, "half") == 0 ? 0.5f : 1;
    return MGR_OK;
}
