#include "run/recipe.h"
#include "run/lists_file.h"

#include <stdio.h>
#include <string.h>

#include "model/huggingface_passed.h"
#include "model/moe_layers.h"

/* The width of an expert, of either key. */
static int width_of(mgr_job *job, uint64_t ffn, uint32_t *width, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const uint64_t slices = c->upcycle.slices;
    if (c->upcycle.neurons_file[0])
        return mgr_lists_width(job, width, err);
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

/* The factor that makes the layer's output as large as that of the F neurons which the experts are
 * cut from: an expert has w of F, and without normalisation top_k of E weights of about 1/E are
 * added up. */
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
    const uint32_t ffn = mgr_recipe_cut_width(&job->recipe), width = job->recipe.width;
    job->router.std = c->upcycle.router_std;
    job->router.noise = c->upcycle.router_noise;
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

/* Keys that say how much changes, one against the other. */
static int check_ratios(const mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    if (c->upcycle.layer_ratio[0] && mgr_config_place(c, "upcycle.ratio"))
        return mgr_config_fail(c, "upcycle.layer_ratio", err,
                               "'upcycle.layer_ratio' and 'upcycle.ratio' say the same: give one");
    if ((c->upcycle.layer_ratio[0] || c->upcycle.matrix_ratio[0]) &&
        job->source.tensors.model.encoder_layers) {
        const char *const key =
            c->upcycle.layer_ratio[0] ? "upcycle.layer_ratio" : "upcycle.matrix_ratio";
        return mgr_config_fail(c, key, err,
                               "'%s' is for models of one stack of layers, this one has two", key);
    }
    return MGR_OK;
}

static int fail_ratio(const mgr_config *c, const char *key, uint64_t layers, uint32_t width,
                      mgr_err *err)
{
    if (strcmp(key, "upcycle.ratio") == 0)
        return mgr_config_fail(c, key, err, "'upcycle.ratio' %g of %u neurons selects none",
                               c->upcycle.ratio, width);
    if (strcmp(key, "upcycle.layer_ratio") == 0)
        return mgr_config_fail(c, key, err,
                               "'%s' is '%s', must be such as 0.2 to 0.8, or a number within 0 .. "
                               "1 for each of the %llu layers with commas between, and select at "
                               "least one of %u neurons where it is not 0",
                               key, c->upcycle.layer_ratio, (unsigned long long)layers, width);
    return mgr_config_fail(c, key, err,
                           "'%s' is '%s', must be three numbers within 0 .. 1 with commas between, "
                           "for gate, up and down",
                           key, c->upcycle.matrix_ratio);
}

/* |S| of each layer and matrix, and the most. */
static int count_selected(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    mgr_recipe *const r = &job->recipe;
    const uint64_t layers = mgr_target_layers(job);
    uint32_t *counts;
    MGR_TRY(check_ratios(job, err));
    MGR_TRY(mgr_arena_alloc(&job->arena, &counts, layers * MGR_MATRIX_COUNT * sizeof *counts, err));
    const char *const wrong = mgr_selected_counts(c, layers, r->width, counts);
    if (wrong)
        return fail_ratio(c, wrong, layers, r->width, err);
    bool differ = false;
    for (uint64_t i = 0; i < layers * MGR_MATRIX_COUNT; i++) {
        r->n_selected = counts[i] > r->n_selected ? counts[i] : r->n_selected;
        differ = differ || counts[i] != counts[0];
        if (!r->independent && counts[i] != counts[i / MGR_MATRIX_COUNT * MGR_MATRIX_COUNT]) {
            mgr_config_fail(c, "upcycle.matrix_ratio", err,
                            "'upcycle.matrix_ratio' gives the matrices of an expert sets of "
                            "different sizes, which cannot be shared");
            return mgr_hint(err, "set 'upcycle.index_sets: independent'");
        }
    }
    r->counts = differ ? counts : NULL;
    job->redraw_centred = strcmp(c->upcycle.redraw_mean, "zero") == 0;
    job->redraw_std = (float)c->upcycle.redraw_std;
    return MGR_OK;
}

uint32_t mgr_count_selected(const mgr_job *job, uint32_t layer, mgr_matrix matrix)
{
    const mgr_recipe *const r = &job->recipe;
    const uint32_t key = mgr_model_layer_key(&job->target.tensors.model, layer);
    return r->counts ? r->counts[(size_t)key * MGR_MATRIX_COUNT + (size_t)matrix] : r->n_selected;
}

const char *mgr_selected_text(const mgr_job *job, char *out, size_t size)
{
    const mgr_model *const m = &job->target.tensors.model;
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t l = 0; l < m->layers; l++)
        for (int k = mgr_model_is_gated(m) ? 0 : MGR_MATRIX_UP;
             mgr_model_is_moe(m, l) && k < MGR_MATRIX_COUNT; k++) {
            const uint32_t n = mgr_count_selected(job, l, (mgr_matrix)k);
            least = n < least ? n : least;
            most = n > most ? n : most;
        }
    if (least < most)
        snprintf(out, size, "%u to %u of %u neurons", least, most, job->recipe.width);
    else
        snprintf(out, size, "%u of %u neurons", most, job->recipe.width);
    return out;
}

int mgr_run_recipe(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const mgr_model *const m = &job->source.tensors.model;
    const uint32_t source = (uint32_t)mgr_model_expert_ffn(m);
    uint32_t width;
    if (!job->method)
        return MGR_OK;
    if (job->method->joins)
        return mgr_config_fail(c, "upcycle.method", err, "method '%s' is for mgr-upcycle",
                               job->method->name);
    MGR_TRY(width_of(job, source, &width, err));
    MGR_TRY(mgr_run_layers(job, err));
    const bool selects = job->method->needs_selection;
    job->recipe = (mgr_recipe){
        .seed = c->upcycle.seed,
        .source_width = source,
        .width = width,
        .part = 1,
        .shuffle = c->upcycle.shuffle,
        .replicas = strcmp(c->upcycle.cut, "shuffled") == 0,
        .independent = strcmp(c->upcycle.index_sets, "independent") == 0,
    };
    MGR_TRY(check_cut(c, job->recipe.replicas, err));
    MGR_TRY(mgr_run_shared(job, err));
    if (selects)
        MGR_TRY(count_selected(job, err));
    if (c->upcycle.neurons_file[0])
        MGR_TRY(mgr_lists_of_neurons(job, err));
    MGR_TRY(job->method->draws_all ? mgr_run_scratch(job, err) : mgr_run_growth(job, err));
    mgr_scale_factors(mgr_scale_find(c->upcycle.scale),
                      output_factor(c, mgr_recipe_cut_width(&job->recipe), width), m->activation,
                      job->recipe.scale);
    job->recipe.scale[MGR_MATRIX_DOWN] *= job->recipe.part;
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

/* What an expert could be made of where all but the FFNs is passed through. */
static int check_passed(const mgr_job *job, mgr_err *err)
{
    const mgr_tensors *const ts = &job->source.tensors;
    const char *const stray = mgr_huggingface_passed_stray(ts);
    if (!ts->model.passed || (!ts->model.experts && !stray))
        return MGR_OK;
    if (stray)
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "tensor '%s' belongs to an FFN of the source, which is no plain MLP with it: "
                 "experts cannot be made of that",
                 stray);
    else
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "the source is a mixture of experts of which all but the experts is passed "
                 "through unread: other mixtures cannot be made of it");
    return mgr_hint(err, "resharding moves it as it is: 'mode: reshard'");
}

int mgr_run_model(const mgr_job *job, mgr_model *model, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    *model = job->source.tensors.model;
    if (!job->method)
        return MGR_OK;
    MGR_TRY(check_passed(job, err));
    if (job->layers_from)
        mgr_layers_of(job, model);
    model->experts = c->upcycle.experts;
    model->expert_ffn = job->recipe.width;
    model->top_k = c->upcycle.top_k;
    if (job->shared_width)
        model->shared_ffn = job->shared_width;
    model->shared_switch = model->shared_switch || c->upcycle.shared_gate;
    if (job->source.tensors.model.experts)
        return MGR_OK;
    model->router.unnormalised = c->upcycle.router_pre_softmax;
    /* with linear biases Megatron's router has one (transformer/moe/router.py, core 0.15) */
    model->bias_router = model->bias_mlp && model->bias_o;
    return choose_layers(c, model, err);
}
