/*
 * What holds at the first step of training. With normalised weights of the chosen experts, which
 * add up to 1, the layer is the dense FFN if every expert is, or if whole groups of experts are
 * chosen that are the FFN together.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "run/lists_file.h"
#include "run/recipe.h"

static mgr_step_zero not_identical(const char *fmt, ...) MGR_PRINTF(1, 2);

static mgr_step_zero not_identical(const char *fmt, ...)
{
    mgr_step_zero out = {.identical = false};
    va_list args;
    const int n = snprintf(out.text, sizeof out.text, "not identical to the source: ");
    va_start(args, fmt);
    (void)vsnprintf(out.text + n, sizeof out.text - (size_t)n, fmt, args);
    va_end(args);
    return out;
}

/* Scaled values are rounded once more, unless the factor is a power of two. */
static mgr_step_zero identical(const mgr_recipe *r)
{
    mgr_step_zero out = {.identical = true};
    int exponent;
    bool exact = true;
    for (int m = 0; m < MGR_MATRIX_COUNT; m++)
        exact = exact && frexpf(r->scale[m], &exponent) == 0.5f;
    snprintf(out.text, sizeof out.text, "identical to the source%s",
             exact ? "" : ", but for one more rounding of the scaled matrices");
    return out;
}

/* Does every expert compute `times` times what the dense FFN does? */
static bool whole_experts(const mgr_recipe *r)
{
    return r->width % mgr_recipe_cut_width(r) == 0;
}

/* Is the layer scaled by a root, which the gate's activation does not pass on? */
static bool scaled_by_root(const mgr_recipe *r)
{
    return r->scale[MGR_MATRIX_UP] != 1;
}

static mgr_step_zero of_slices(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    const mgr_model *const m = &job->target.tensors.model;
    const uint32_t of = mgr_recipe_cut_width(r), n = of / r->width;
    if (of % r->width != 0 || m->experts % n != 0)
        return not_identical("experts of %u neurons are no whole slices of %u", r->width, of);
    if (r->neurons && !mgr_lists_make_groups(r, n))
        return not_identical("the lists of neurons do not make up the FFN by %u experts in turn",
                             n);
    if (m->router.unnormalised)
        return not_identical("without normalisation the weights of the chosen experts add up to "
                             "less than 1, how much less depends on the token");
    if (job->router.kind == MGR_ROUTER_FILE)
        return not_identical(
            "that takes a router whose rows are equal for each %u experts in turn, "
            "which is not looked for in upcycle.router_file",
            n);
    if (job->router.kind != MGR_ROUTER_VIRTUAL_GROUPS)
        return not_identical("the router '%s' does not choose all %u slices of the FFN together",
                             mgr_router_name(job->router.kind), n);
    if (job->router.noise > 0)
        return not_identical("the router's rows of a group have noise of %g of their std",
                             job->router.noise);
    if (m->top_k % n != 0)
        return not_identical("top %llu are no whole groups of %u slices",
                             (unsigned long long)m->top_k, n);
    if (scaled_by_root(r))
        return not_identical("'scale: published' is the dense FFN to first order only");
    if (r->scale[MGR_MATRIX_DOWN] == r->part)
        return not_identical("each of %u slices has a weight of 1/%u or less; 'scale: exact' makes "
                             "up for it",
                             n, n);
    return identical(r);
}

/* Every expert is the dense FFN, so many times. */
static mgr_step_zero of_whole(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    const uint32_t times = r->width / mgr_recipe_cut_width(r);
    const mgr_model *const m = &job->target.tensors.model;
    if (scaled_by_root(r))
        return not_identical("'scale: published' is the dense FFN to first order only");
    const double share = m->router.unnormalised ? (double)m->top_k / (double)m->experts : 1;
    const bool whole = r->scale[MGR_MATRIX_DOWN] == (float)(1 / (times * share)) * r->part;
    if (m->router.unnormalised && job->router.kind == MGR_ROUTER_NORMAL && whole)
        return not_identical("the weights of the experts are 1/%llu, but for what a router of "
                             "router_std %g makes of each token",
                             (unsigned long long)m->experts, job->router.std);
    if (m->router.unnormalised && job->router.kind != MGR_ROUTER_ZEROS)
        return not_identical("without normalisation the weights of the chosen experts add up to "
                             "less than 1, how much less depends on the token");
    if (!whole) /* of zeros each weight is 1 over the number of experts */
        return not_identical(
            "the experts add up to %g times the dense FFN; 'scale: exact' makes up "
            "for it",
            times * share);
    return identical(r);
}

/* How many times every expert of the mixture is there; 0: not all equally often in each layer. */
static uint32_t times_each(const mgr_recipe *r)
{
    if (r->experts % r->sources != 0)
        return 0;
    for (uint32_t l = 0; l < (r->lists ? r->lists : 1); l++)
        for (uint32_t s = 0; s < r->sources; s++) {
            uint32_t n = 0;
            for (uint32_t e = 0; e < r->experts; e++)
                n += r->from[(size_t)l * r->experts + e] == s;
            if (n != r->experts / r->sources)
                return 0;
        }
    return r->experts / r->sources;
}

static mgr_step_zero of_mixture(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    const mgr_model *const from = &job->source.tensors.model, *const to =
                                                                  &job->target.tensors.model;
    const uint32_t times = times_each(r);
    char neurons[60];
    if (r->n_selected > 0)
        return not_identical("%s of each copy of an expert %s",
                             mgr_selected_text(job, neurons, sizeof neurons),
                             job->method->needs_moments ? "are drawn anew" : "have noise added");
    if (job->router.kind != MGR_ROUTER_SOURCE)
        return not_identical("the router is not the source's");
    if (job->router.noise > 0)
        return not_identical("the router's rows of copies have noise of %g of their std",
                             job->router.noise);
    if (times == 0)
        return not_identical("not every expert of the source is there equally often");
    if (to->top_k != times * from->top_k)
        return not_identical("top %llu of %u copies of each expert; the source's top %llu is %llu "
                             "here",
                             (unsigned long long)to->top_k, times, (unsigned long long)from->top_k,
                             (unsigned long long)(times * from->top_k));
    if (times > 1 && from->router.score == MGR_SCORE_SIGMOID && from->router.unnormalised)
        return not_identical("the weights of the copies are not normalised, and add up to %u times "
                             "as much",
                             times);
    return identical(r);
}

mgr_step_zero mgr_step_zero_of(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    char neurons[60];
    if (job->joined)
        return not_identical(
            "of each layer %u experts have the weight %g for every token, whatever "
            "the router said",
            job->joined, (double)job->joined_weight);
    if (job->method->draws_all)
        return not_identical("every weight is drawn anew");
    if (job->layers_from)
        return not_identical("the layers are other ones than the source's, '%s' of it",
                             job->config.upcycle.layers_from);
    if (job->n_branches)
        return not_identical("the experts are those of %u models", job->n_branches);
    if (r->from)
        return of_mixture(job);
    if (r->n_selected > 0)
        return not_identical("%s of each expert %s",
                             mgr_selected_text(job, neurons, sizeof neurons),
                             job->method->needs_moments ? "are drawn anew" : "have noise added");
    if (job->shared_width == r->source_width && r->part == 1)
        return not_identical("the shared expert is the dense FFN, to which the routed ones add");
    return whole_experts(r) ? of_whole(job) : of_slices(job);
}

const char *mgr_rest_of(const mgr_job *job, char *out, size_t size)
{
    const mgr_recipe *const r = &job->recipe;
    const uint64_t all = job->target.tensors.model.experts * r->width;
    const uint64_t of = mgr_recipe_cut_width(r), copies = (all + of - 1) / of;
    const uint64_t rest = copies * of - all;
    out[0] = '\0';
    if (r->neurons) {
        const uint32_t left = mgr_lists_leave(r);
        if (left)
            snprintf(out, size, "of some layer %u neurons are in no expert", left);
        return out;
    }
    if (r->width % of != 0)
        snprintf(out, size,
                 rest ? "%llu copies of the FFN, of which the last leaves %llu neurons"
                      : "%llu copies of the FFN",
                 (unsigned long long)copies, (unsigned long long)rest);
    return out;
}
