/*
 * The maps of experts that are cut from copies of the source.
 */
#include <assert.h>
#include <string.h>

#include "kern/method.h"

bool mgr_recipe_has_origin(const mgr_recipe *r)
{
    return r->shuffle || r->replicas || r->neurons || r->set_aside || r->width != r->source_width;
}

uint32_t mgr_recipe_cut_width(const mgr_recipe *r)
{
    return r->source_width - r->set_aside;
}

static size_t list_of(const mgr_recipe *r, uint32_t layer)
{
    return r->list_of ? r->list_of[layer] : 0;
}

const uint32_t *mgr_recipe_from(const mgr_recipe *r, uint32_t layer)
{
    return r->from ? r->from + list_of(r, layer) * r->experts : NULL;
}

bool mgr_recipe_is_copy(const mgr_recipe *r, uint32_t layer, uint32_t expert)
{
    const uint32_t *const from = mgr_recipe_from(r, layer);
    for (uint32_t e = 0; from && e < expert; e++)
        if (from[e] == from[expert])
            return true;
    return false;
}

/* `cut: shuffled`: the neurons of each copy of the source have an order of their own. */
static int cut_replicas(const mgr_recipe *r, uint32_t layer, uint64_t first, mgr_map *map,
                        mgr_err *err)
{
    const uint32_t of = mgr_recipe_cut_width(r);
    uint64_t held = UINT64_MAX;
    for (uint32_t i = 0; i < r->width; i++) {
        const uint64_t replica = (first + i) / of;
        if (replica != held) {
            const mgr_stream stream = {r->seed, MGR_PURPOSE_REPLICA, layer, (uint32_t)replica};
            MGR_TRY(mgr_permutation(&stream, of, map->work, err));
            held = replica;
        }
        map->origin[i] = r->set_aside + map->work[(first + i) % of];
    }
    return MGR_OK;
}

int mgr_map_copies(const mgr_recipe *r, uint32_t layer, uint32_t expert, mgr_map *map, mgr_err *err)
{
    const mgr_stream stream = {r->seed, MGR_PURPOSE_SHUFFLE, layer, expert};
    const uint64_t first = (uint64_t)expert * r->width;
    assert(r->width > 0 && r->source_width > 0);
    for (int m = 0; m < MGR_MATRIX_COUNT; m++)
        map->scale[m] = r->scale[m];
    const uint32_t *const from = mgr_recipe_from(r, layer);
    map->source = from ? from[expert] : 0;
    memset(map->n_selected, 0, sizeof map->n_selected);
    if (!mgr_recipe_has_origin(r))
        return MGR_OK;
    if (r->neurons) {
        const size_t at = (list_of(r, layer) * r->experts + expert) * r->width;
        memcpy(map->origin, r->neurons + at, r->width * sizeof *map->origin);
        return MGR_OK;
    }
    if (r->replicas)
        return cut_replicas(r, layer, first, map, err);
    for (uint32_t i = 0; !r->shuffle && i < r->width; i++)
        map->origin[i] = i;
    if (r->shuffle)
        MGR_TRY(mgr_permutation(&stream, r->width, map->origin, err));
    for (uint32_t i = 0; i < r->width; i++)
        map->origin[i] =
            r->set_aside + (uint32_t)((first + map->origin[i]) % mgr_recipe_cut_width(r));
    return MGR_OK;
}

static int sample(const mgr_stream *stream, const mgr_recipe *r, uint32_t n, uint32_t *out,
                  mgr_err *err)
{
    return n && out ? mgr_sample(stream, r->width, n, out, err) : MGR_OK;
}

int mgr_map_selected(const mgr_recipe *r, uint32_t layer, uint32_t expert, mgr_map *map,
                     mgr_err *err)
{
    mgr_stream stream = {r->seed, MGR_PURPOSE_SAMPLE, layer, expert};
    MGR_TRY(mgr_map_copies(r, layer, expert, map, err));
    if (r->n_selected == 0 || (r->from && !mgr_recipe_is_copy(r, layer, expert)))
        return MGR_OK;
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++)
        map->n_selected[m] =
            r->counts ? r->counts[(size_t)layer * MGR_MATRIX_COUNT + m] : r->n_selected;
    if (!r->independent)
        return sample(&stream, r, map->n_selected[0], map->selected[0], err);
    for (uint32_t m = 0; m < MGR_MATRIX_COUNT; m++) {
        stream.purpose = MGR_PURPOSE_SAMPLE_GATE + m;
        MGR_TRY(sample(&stream, r, map->n_selected[m], map->selected[m], err));
    }
    return MGR_OK;
}
