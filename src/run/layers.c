/*
 * Depth growth: which layers of the source the target has, and how often (Wu et al., LLaMA Pro,
 * arXiv 2401.02415; Orthogonal Growth, arXiv 2510.08008, repeats each in its place).
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "run/recipe.h"

static bool number(const char **at, uint64_t *out)
{
    char *end = NULL;
    while (**at == ' ')
        (*at)++;
    if (!isdigit((unsigned char)**at))
        return false;
    *out = strtoull(*at, &end, 10);
    *at = end;
    while (**at == ' ')
        (*at)++;
    return *out < UINT32_MAX;
}

uint64_t mgr_number_list(const char *text, uint64_t below, uint64_t most, uint32_t *out)
{
    const char *at = text;
    for (uint64_t n = 0;; at++) {
        uint64_t first, last;
        if (!number(&at, &first))
            return 0;
        last = first;
        if (*at == '-' && (at++, !number(&at, &last)))
            return 0;
        if (last < first || last >= below || n + (last - first) >= most)
            return 0;
        for (uint64_t e = first; e <= last; e++, n++)
            if (out)
                out[n] = (uint32_t)e;
        if (*at != ',')
            return *at == '\0' ? n : 0;
    }
}

/* "times 2": each layer so often, in its place. */
static uint64_t take_times(const char *text, uint64_t layers, uint32_t *out)
{
    const char *at = text + 5;
    uint64_t times;
    if (strncmp(text, "times", 5) != 0 || !number(&at, &times) || *at != '\0' || times == 0 ||
        times > MGR_MAX_LAYERS / layers)
        return 0;
    for (uint64_t l = 0; l < layers * times; l++)
        out[l] = (uint32_t)(l / times);
    return layers * times;
}

/* Of what nothing is known by layers, nothing can be repeated. */
static int check(const mgr_job *job, mgr_err *err)
{
    const mgr_tensors *const ts = &job->source.tensors;
    const char *const why = job->n_branches            ? "for one source"
                            : job->method->draws_all   ? "for what is made of the source's layers"
                            : ts->model.encoder_layers ? "for models of one stack of layers"
                            : ts->first_opaque < ts->n ? "for sources of which every tensor is "
                                                         "understood"
                                                       : NULL;
    return why ? mgr_config_fail(&job->config, "upcycle.layers_from", err,
                                 "'upcycle.layers_from' is %s", why)
               : MGR_OK;
}

int mgr_run_layers(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const char *const text = c->upcycle.layers_from;
    const uint64_t layers = job->source.tensors.model.layers;
    if (text[0] == '\0')
        return MGR_OK;
    MGR_TRY(check(job, err));
    MGR_TRY(mgr_arena_alloc(&job->arena, &job->layers_from,
                            MGR_MAX_LAYERS * sizeof *job->layers_from, err));
    uint64_t n = take_times(text, layers, job->layers_from);
    if (n == 0)
        n = mgr_number_list(text, layers, MGR_MAX_LAYERS, job->layers_from);
    if (n == 0)
        return mgr_config_fail(c, "upcycle.layers_from", err,
                               "'upcycle.layers_from' is '%s', must be 'times N', or numbers below "
                               "%llu and ranges of them, such as 0-3,2-5; %d at most",
                               text, (unsigned long long)layers, MGR_MAX_LAYERS);
    job->n_layers = (uint32_t)n;
    return MGR_OK;
}

uint64_t mgr_target_layers(const mgr_job *job)
{
    return job->layers_from ? job->n_layers
                            : mgr_model_stack_layers(&job->source.tensors.model, MGR_STACK_DECODER);
}

static void spread(const mgr_job *job, const uint8_t *from, uint8_t *to)
{
    for (uint32_t l = 0; l < job->n_layers; l++) {
        const uint32_t of = job->layers_from[l];
        if (from[of / 8] >> of % 8 & 1)
            to[l / 8] |= (uint8_t)(1u << l % 8);
    }
}

void mgr_layers_of(const mgr_job *job, mgr_model *model)
{
    const mgr_model *const from = &job->source.tensors.model;
    model->layers = job->n_layers;
    memset(model->dense_layers, 0, sizeof model->dense_layers);
    memset(model->window_layers, 0, sizeof model->window_layers);
    memset(model->nope_layers, 0, sizeof model->nope_layers);
    spread(job, from->dense_layers, model->dense_layers);
    spread(job, from->window_layers, model->window_layers);
    spread(job, from->nope_layers, model->nope_layers);
}
