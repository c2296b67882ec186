#include "run/recipe.h"

#include <stdio.h>
#include <string.h>

#include "model/moe_layers.h"

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

static int choose_of_stack(const mgr_config *c, const char *key, const char *text, mgr_stack stack,
                           mgr_model *model, mgr_err *err)
{
    if (mgr_moe_layers(text, stack, model) == 0)
        return MGR_OK;
    return mgr_config_fail(
        c, key, err,
        "'%s' is '%s', neither a number nor every-second, last-half or a list of 0 and 1 for each "
        "of the %llu layers",
        key, text, (unsigned long long)mgr_model_stack_layers(model, stack));
}

/* Which layers get experts; of an encoder as of the decoder, unless it is said. */
static int choose_layers(const mgr_config *c, mgr_model *model, mgr_err *err)
{
    static const char key[] = "upcycle.moe_layer_freq",
                      of_encoder[] = "upcycle.encoder_moe_layer_freq";
    const char *const said = c->upcycle.encoder_moe_layer_freq;
    if (said[0] && !model->encoder_layers)
        return mgr_config_fail(c, of_encoder, err, "'%s' is '%s', but the model has no encoder",
                               of_encoder, said);
    MGR_TRY(choose_of_stack(c, key, c->upcycle.moe_layer_freq, MGR_STACK_DECODER, model, err));
    if (model->encoder_layers)
        MGR_TRY(choose_of_stack(c, said[0] ? of_encoder : key,
                                said[0] ? said : c->upcycle.moe_layer_freq, MGR_STACK_ENCODER,
                                model, err));
    if (mgr_model_moe_layers(model) > 0)
        return MGR_OK;
    return mgr_config_fail(c, key, err, "'%s' is '%s', which gives none of the %llu layers experts",
                           key, c->upcycle.moe_layer_freq, (unsigned long long)model->layers);
}

int mgr_run_model(const mgr_job *job, mgr_model *model, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    *model = job->source.tensors.model;
    if (!job->method)
        return MGR_OK;
    model->experts = c->upcycle.experts;
    model->expert_ffn = job->recipe.width;
    model->top_k = c->upcycle.top_k;
    if (job->source.tensors.model.experts)
        return MGR_OK;
    model->router.unnormalised = c->upcycle.router_pre_softmax;
    /* with linear biases Megatron's router has one (transformer/moe/router.py, core 0.15) */
    model->bias_router = model->bias_mlp && model->bias_o;
    return choose_layers(c, model, err);
}
