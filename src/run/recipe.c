#include "run/recipe.h"

#include <stdio.h>
#include <string.h>

/* The width of an expert, of either key. */
static int width_of(const mgr_config *c, uint64_t ffn, uint32_t *width, mgr_err *err)
{
    const uint64_t slices = c->upcycle.slices;
    *width = (uint32_t)(c->upcycle.expert_width ? c->upcycle.expert_width : ffn);
    if (!slices)
        return MGR_OK;
    if (c->upcycle.expert_width)
        return mgr_config_fail(
            c, "upcycle.slices", err,
            "'upcycle.slices' and 'upcycle.expert_width' say the same: give one");
    if (ffn % slices != 0) {
        mgr_config_fail(
            c, "upcycle.slices", err,
            "'upcycle.slices' is %llu, which does not divide the %llu neurons of the FFN",
            (unsigned long long)slices, (unsigned long long)ffn);
        return mgr_hint(err, "'upcycle.expert_width' takes any width");
    }
    *width = (uint32_t)(ffn / slices);
    return MGR_OK;
}

static int check_cut(const mgr_config *c, bool replicas, mgr_err *err)
{
    if (replicas && c->upcycle.shuffle)
        return mgr_config_fail(c, "upcycle.shuffle", err,
                               "'upcycle.cut: shuffled' shuffles the neurons already: remove "
                               "'upcycle.shuffle'");
    return MGR_OK;
}

/* The factor that makes the layer's output as large as the dense FFN's: an expert has w of F
 * neurons, and without normalisation top_k of E weights of about 1/E are added up. */
static double output_factor(const mgr_config *c, double ffn, double width)
{
    const double narrow = ffn / width;
    return c->upcycle.router_pre_softmax
               ? narrow * (double)c->upcycle.experts / (double)c->upcycle.top_k
               : narrow;
}

static int make_router(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const uint32_t ffn = job->recipe.source_width, width = job->recipe.width;
    job->router.std = c->upcycle.router_std;
    job->router.seed = c->upcycle.seed;
    job->router.group = 1;
    if (job->router.kind != MGR_ROUTER_VIRTUAL_GROUPS)
        return MGR_OK;
    if (width >= ffn || ffn % width != 0 || c->upcycle.experts % (ffn / width) != 0) {
        mgr_config_fail(c, "upcycle.router", err,
                        "'upcycle.router: virtual-groups' chooses all slices of an FFN together, "
                        "but %llu experts of %u neurons are no whole number of copies of %u, cut "
                        "in two or more",
                        (unsigned long long)c->upcycle.experts, width, ffn);
        return mgr_hint(err, "set 'upcycle.slices' to a divisor of both, or choose another router");
    }
    job->router.group = ffn / width;
    return MGR_OK;
}

int mgr_run_recipe(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const mgr_model *const m = &job->source.tensors.model;
    const uint32_t source = (uint32_t)mgr_model_expert_ffn(m);
    uint32_t width;
    if (!job->method)
        return MGR_OK;
    MGR_TRY(width_of(c, source, &width, err));
    const bool selects = job->method->needs_selection;
    job->recipe = (mgr_recipe){
        .seed = c->upcycle.seed,
        .source_width = source,
        .width = width,
        .n_selected = selects ? mgr_selected_count(c->upcycle.ratio, width) : 0,
        .shuffle = c->upcycle.shuffle,
        .replicas = strcmp(c->upcycle.cut, "shuffled") == 0,
        .independent = strcmp(c->upcycle.index_sets, "independent") == 0,
    };
    MGR_TRY(check_cut(c, job->recipe.replicas, err));
    MGR_TRY(job->method->draws_all ? mgr_run_scratch(job, err) : mgr_run_growth(job, err));
    mgr_scale_factors(mgr_scale_find(c->upcycle.scale), output_factor(c, source, width),
                      m->activation, job->recipe.scale);
    /* an empty S where the user asked for some neurons */
    if (selects && c->upcycle.ratio > 0 && job->recipe.n_selected == 0)
        return mgr_config_fail(c, "upcycle.ratio", err,
                               "'upcycle.ratio' %g of %u neurons selects none", c->upcycle.ratio,
                               width);
    job->moments = job->method->needs_moments && job->recipe.n_selected > 0;
    /* a draw's number is neuron * H + h, and a stream has 2^34 of them */
    if (job->recipe.n_selected * m->hidden > UINT64_C(1) << 34)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "an expert matrix redraws more than 2^34 values");
    return make_router(job, err);
}
