/* The selection half of engine/engine.h: the maps of one layer's experts, and their moments. */
#include <math.h>
#include <string.h>

#include "core/mem.h"
#include "engine/engine.h"

static uint32_t sets(const mgr_recipe *r)
{
    return r->independent ? MGR_MATRIX_COUNT : 1;
}

uint64_t mgr_selection_bytes(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    if (!job->method)
        return 0;
    const uint64_t experts = job->target.tensors.model.experts;
    const uint64_t origins = mgr_recipe_has_origin(r) ? experts * r->width : 0;
    const uint64_t work = r->replicas ? r->source_width : 0;
    return (experts * sets(r) * r->n_selected + r->n_selected + origins + work + 6 * experts +
            (job->moments ? r->source_width : 0)) *
               sizeof(uint32_t) +
           experts * sizeof(mgr_map);
}

/* Give the maps their room. */
static void place_maps(mgr_selection *s, const mgr_recipe *r, uint64_t experts)
{
    uint32_t *selected = s->selected;
    for (uint64_t e = 0; e < experts; e++) {
        s->maps[e].origin = s->origin ? s->origin + e * r->width : NULL;
        s->maps[e].work = s->work;
        for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++)
            s->maps[e].selected[m] = selected + (r->independent ? m : 0) * (size_t)r->n_selected;
        selected += sets(r) * (size_t)r->n_selected;
    }
}

int mgr_selection_init(mgr_selection *s, const mgr_job *job, mgr_err *err)
{
    const uint64_t experts = job->target.tensors.model.experts;
    const mgr_recipe *const r = &job->recipe;
    *s = (mgr_selection){.layer = MGR_NONE};
    MGR_TRY(mgr_alloc(&s->maps, experts, sizeof *s->maps, err));
    MGR_TRY(mgr_alloc(&s->selected, experts * sets(r), (size_t)r->n_selected * 4, err));
    MGR_TRY(mgr_alloc(&s->source, r->n_selected, sizeof *s->source, err));
    MGR_TRY(mgr_alloc(&s->mean, experts * MGR_MATRIX_COUNT, sizeof *s->mean, err));
    MGR_TRY(mgr_alloc(&s->std, experts * MGR_MATRIX_COUNT, sizeof *s->std, err));
    if (job->moments)
        MGR_TRY(mgr_alloc(&s->every, r->source_width, sizeof *s->every, err));
    for (uint32_t i = 0; s->every && i < r->source_width; i++)
        s->every[i] = i;
    if (mgr_recipe_has_origin(r))
        MGR_TRY(mgr_alloc(&s->origin, experts, r->width * sizeof *s->origin, err));
    if (r->replicas)
        MGR_TRY(mgr_alloc(&s->work, r->source_width, sizeof *s->work, err));
    place_maps(s, r, experts);
    return MGR_OK;
}

void mgr_selection_clear(mgr_selection *s)
{
    mgr_free(s->maps);
    mgr_free(s->selected);
    mgr_free(s->origin);
    mgr_free(s->source);
    mgr_free(s->work);
    mgr_free(s->mean);
    mgr_free(s->std);
    mgr_free(s->every);
    *s = (mgr_selection){.layer = MGR_NONE};
}

/* Mean and std over exactly the entries that S selects: of the neurons of the source that the
 * expert's come from. */
static void moments(mgr_selection *s, const mgr_job *job, uint32_t expert, const mgr_sums *sums)
{
    const mgr_recipe *const r = &job->recipe;
    const mgr_map *const map = &s->maps[expert];
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        const uint32_t *neurons = map->selected[m];
        double mean = NAN, std = NAN;
        if (map->n_selected[m] == 0) { /* there is nothing to have them of */
            s->mean[expert * MGR_MATRIX_COUNT + m] = s->std[expert * MGR_MATRIX_COUNT + m] = NAN;
            continue;
        }
        if (map->origin) {
            for (uint32_t k = 0; k < map->n_selected[m]; k++)
                s->source[k] = map->origin[neurons[k]];
            neurons = s->source;
        }
        const size_t matrix = (size_t)map->source * MGR_MATRIX_COUNT + m;
        mgr_moments(sums + matrix * r->source_width, neurons, map->n_selected[m],
                    job->source.tensors.model.hidden, &mean, &std);
        s->mean[expert * MGR_MATRIX_COUNT + m] = job->redraw_centred ? 0 : (float)mean;
        s->std[expert * MGR_MATRIX_COUNT + m] = job->redraw_std > 0 ? job->redraw_std : (float)std;
    }
}

/* Of the source's whole matrices: what the ledger compares the experts with. */
static void source_moments(mgr_selection *s, const mgr_job *job, const mgr_sums *sums)
{
    const uint32_t width = job->recipe.source_width;
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        double mean, std;
        mgr_moments(sums + (size_t)m * width, s->every, width, job->source.tensors.model.hidden,
                    &mean, &std);
        s->source_moment[m] = (mgr_moment){(float)mean, (float)std};
    }
}

/* The layer as the random streams know it. */
static uint32_t layer_key(const mgr_job *job, uint32_t layer)
{
    return mgr_model_layer_key(&job->target.tensors.model, layer);
}

int mgr_selection_set(mgr_selection *s, const mgr_job *job, uint32_t layer, const mgr_sums *sums,
                      mgr_err *err)
{
    if (s->layer == layer)
        return MGR_OK;
    s->layer = layer;
    for (uint32_t e = 0; e < job->target.tensors.model.experts; e++) {
        MGR_TRY(job->method->map(&job->recipe, layer_key(job, layer), e, &s->maps[e], err));
        if (job->moments && sums)
            moments(s, job, e, sums);
    }
    if (job->moments && sums && !job->recipe.from) /* of a mixture each expert has its own */
        source_moments(s, job, sums);
    return MGR_OK;
}

mgr_expert mgr_selection_expert(const mgr_selection *s, const mgr_job *job, uint32_t expert,
                                mgr_matrix matrix)
{
    const mgr_map *const map = &s->maps[expert];
    const size_t at = (size_t)expert * MGR_MATRIX_COUNT + matrix;
    return (mgr_expert){
        .seed = job->recipe.seed,
        .layer = layer_key(job, s->layer),
        .expert = expert,
        .matrix = matrix,
        .width = job->recipe.width,
        .source_width = job->recipe.source_width,
        .hidden = job->source.tensors.model.hidden,
        .selected = map->selected[matrix],
        .n_selected = map->n_selected[matrix],
        .origin = map->origin,
        .scale = map->scale[matrix],
        .mean = job->moments ? s->mean[at] : 0,
        .std = job->moments ? s->std[at] : (float)job->config.upcycle.noise_std,
    };
}
