/*
 * A mixture as the source: its experts each as often, or some of them.
 */
#include <string.h>

#include "core/mem.h"
#include "run/branches.h"
#include "run/lists_file.h"
#include "run/recipe.h"

#define MOST_EXPERTS 65536

/* All others are about cutting a dense FFN, or about layers that have none. */
static int refuse_dense_keys(const mgr_config *c, mgr_err *err)
{
    static const char *const allowed[] = {
        "upcycle.method",
        "upcycle.experts",
        "upcycle.top_k",
        "upcycle.experts_from",
        "upcycle.experts_file",
        "upcycle.layers_from",
        "upcycle.seed",
        "upcycle.router",
        "upcycle.router_std",
        "upcycle.router_file",
        "upcycle.router_noise",
        "upcycle.ratio",
        "upcycle.layer_ratio",
        "upcycle.matrix_ratio",
        "upcycle.index_sets",
        "upcycle.redraw_mean",
        "upcycle.redraw_std",
        "upcycle.noise_std",
        NULL,
    };
    return mgr_config_keep_to(
        c, mgr_config_tables, allowed,
        "for a dense source; this one is a mixture, whose experts are taken as "
        "they are",
        err);
}

int mgr_experts_list(mgr_job *job, uint64_t sources, uint32_t **out, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const char *const text = c->upcycle.experts_from;
    const uint64_t n = mgr_number_list(text, sources, MOST_EXPERTS, NULL);
    uint32_t *from;
    if (n == 0)
        return mgr_config_fail(c, "upcycle.experts_from", err,
                               "'upcycle.experts_from' is '%s', must be numbers below %llu and "
                               "ranges of them, such as 0-3,7",
                               text, (unsigned long long)sources);
    if (!mgr_config_place(c, "upcycle.experts"))
        c->upcycle.experts = n;
    if (c->upcycle.experts != n)
        return mgr_config_fail(c, "upcycle.experts_from", err,
                               "'upcycle.experts_from' names %llu experts, 'upcycle.experts' is "
                               "%llu",
                               (unsigned long long)n, (unsigned long long)c->upcycle.experts);
    MGR_TRY(mgr_arena_alloc(&job->arena, &from, n * sizeof *from, err));
    mgr_number_list(text, sources, MOST_EXPERTS, from);
    *out = from;
    return MGR_OK;
}

static int take_list(mgr_job *job, uint64_t sources, mgr_err *err)
{
    uint32_t *from = NULL;
    MGR_TRY(mgr_experts_list(job, sources, &from, err));
    job->recipe.from = from;
    return MGR_OK;
}

static int take_all(mgr_job *job, uint64_t sources, mgr_err *err)
{
    mgr_config *const c = &job->config;
    uint32_t *from;
    const uint64_t least = job->layers_from ? sources : 2 * sources; /* one each is enough there */
    if (job->layers_from && !mgr_config_place(c, "upcycle.experts"))
        c->upcycle.experts = sources;
    const uint64_t n = c->upcycle.experts;
    if (n < least || n % sources != 0) {
        mgr_config_fail(c, "upcycle.experts", err,
                        "the source is a mixture of %llu experts already, and 'upcycle.experts' "
                        "%llu%s is not two or more times that",
                        (unsigned long long)sources, (unsigned long long)n,
                        mgr_config_place(c, "upcycle.experts") ? "" : " by default");
        return mgr_hint(err, "set 'upcycle.experts' to a multiple, name experts in "
                             "'upcycle.experts_from', or set 'mode: reshard' to lay it out anew");
    }
    MGR_TRY(mgr_arena_alloc(&job->arena, &from, n * sizeof *from, err));
    for (uint32_t e = 0; e < n; e++)
        from[e] = (uint32_t)(e % sources);
    job->recipe.from = from;
    return MGR_OK;
}

static bool has_copies(const mgr_recipe *r)
{
    const uint32_t n = r->experts * (r->lists ? r->lists : 1);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t e = i / r->experts * r->experts; e < i; e++)
            if (r->from[e] == r->from[i])
                return true;
    return false;
}

/* As many of the experts for each token as keep the function, and the source's own router. */
static int settle(mgr_job *job, const mgr_model *m, mgr_err *err)
{
    mgr_config *const c = &job->config;
    const uint64_t times = c->upcycle.experts / m->experts, k = m->top_k * (times ? times : 1);
    if (!mgr_config_place(c, "upcycle.top_k"))
        c->upcycle.top_k = k < c->upcycle.experts ? k : c->upcycle.experts;
    if (c->upcycle.top_k > c->upcycle.experts)
        return mgr_config_fail(
            c, "upcycle.top_k", err, "'upcycle.top_k' is %llu, must not exceed the %llu experts",
            (unsigned long long)c->upcycle.top_k, (unsigned long long)c->upcycle.experts);
    if (!mgr_config_place(c, "upcycle.router")) {
        memset(c->upcycle.router, 0, sizeof c->upcycle.router);
        memcpy(c->upcycle.router, "source", sizeof "source");
        job->router.kind = MGR_ROUTER_SOURCE;
    }
    if (job->router.kind == MGR_ROUTER_VIRTUAL_GROUPS)
        return mgr_config_fail(c, "upcycle.router", err,
                               "'upcycle.router: virtual-groups' is for slices of a dense FFN");
    return MGR_OK;
}

int mgr_run_growth(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const mgr_model *const m = &job->source.tensors.model;
    mgr_recipe *const r = &job->recipe;
    if (c->upcycle.experts_file[0] && (!m->experts || c->upcycle.experts_from[0]))
        return mgr_config_fail(
            c, "upcycle.experts_file", err,
            m->experts ? "'upcycle.experts_file' and 'upcycle.experts_from' say the same: give one"
                       : "'upcycle.experts_file' is for a mixture; the source is dense");
    if (!m->experts && !job->n_branches && c->upcycle.experts_from[0] != '\0')
        return mgr_config_fail(c, "upcycle.experts_from", err,
                               "'upcycle.experts_from' is for a mixture; the source is dense");
    if (!m->experts && job->router.kind == MGR_ROUTER_SOURCE)
        return mgr_config_fail(c, "upcycle.router", err,
                               "'upcycle.router: source' is for a mixture; the source is dense");
    if (job->n_branches)
        return mgr_branches_recipe(job, err);
    if (!m->experts)
        return MGR_OK;
    MGR_TRY(refuse_dense_keys(c, err));
    if (m->router.groups)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "the source's router chooses from %llu groups of experts, whose experts "
                        "cannot be chosen or repeated",
                        (unsigned long long)m->router.groups);
    MGR_TRY(c->upcycle.experts_file[0]   ? mgr_lists_of_experts(job, err)
            : c->upcycle.experts_from[0] ? take_list(job, m->experts, err)
                                         : take_all(job, m->experts, err));
    r->experts = (uint32_t)c->upcycle.experts;
    r->sources = (uint32_t)m->experts;
    if (r->n_selected && !has_copies(r)) {
        mgr_config_fail(c, "upcycle.method", err,
                        "method '%s' changes the second and later copies of an expert, and there "
                        "is none",
                        job->method->name);
        return mgr_hint(err, "set 'upcycle.method: naive' to take experts as they are");
    }
    return settle(job, m, err);
}
