/*
 * The maps of experts that are copies of the source, or of a slice of it.
 */
#include <assert.h>

#include "kern/method.h"

bool mgr_recipe_has_origin(const mgr_recipe *r)
{
    return r->shuffle || r->width != r->source_width;
}

int mgr_map_copies(const mgr_recipe *r, uint32_t layer, uint32_t expert, mgr_map *map, mgr_err *err)
{
    const mgr_stream stream = {r->seed, MGR_PURPOSE_SHUFFLE, layer, expert};
    assert(r->width > 0 && r->source_width % r->width == 0);
    const uint32_t first = expert % (r->source_width / r->width) * r->width;
    for (int m = 0; m < MGR_MATRIX_COUNT; m++)
        map->scale[m] = 1;
    if (!mgr_recipe_has_origin(r))
        return MGR_OK;
    for (uint32_t i = 0; !r->shuffle && i < r->width; i++)
        map->origin[i] = i;
    if (r->shuffle)
        MGR_TRY(mgr_permutation(&stream, r->width, map->origin, err));
    for (uint32_t i = 0; i < r->width; i++)
        map->origin[i] += first;
    return MGR_OK;
}

int mgr_map_selected(const mgr_recipe *r, uint32_t layer, uint32_t expert, mgr_map *map,
                     mgr_err *err)
{
    mgr_stream stream = {r->seed, MGR_PURPOSE_SAMPLE, layer, expert};
    MGR_TRY(mgr_map_copies(r, layer, expert, map, err));
    if (r->n_selected == 0)
        return MGR_OK;
    if (!r->independent)
        return mgr_sample(&stream, r->width, r->n_selected, map->selected[0], err);
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        stream.purpose = MGR_PURPOSE_SAMPLE_GATE + m;
        MGR_TRY(mgr_sample(&stream, r->width, r->n_selected, map->selected[m], err));
    }
    return MGR_OK;
}
