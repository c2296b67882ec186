/* 'sources': the entries of the list, each as 'source' has its keys. */
#include <assert.h>
#include <string.h>

#include "core/str.h"
#include "mgr/config.h"

static bool is_of_source(const mgr_place *place)
{
    return mgr_has_prefix(place->key, "source.");
}

void mgr_config_keep_source(mgr_config *c, uint32_t idx)
{
    mgr_config_listed *const to = &c->sources[idx];
    uint32_t left = 0;
    assert(idx < MGR_CONFIG_SOURCES);
    to->is = c->source;
    to->n_written = 0;
    for (uint32_t i = 0; i < c->n_written; i++) {
        const mgr_place place = c->written[i];
        assert(!is_of_source(&place) || to->n_written < MGR_CONFIG_SOURCE_KEYS);
        if (is_of_source(&place))
            to->written[to->n_written++] = place;
        else
            c->written[left++] = place;
    }
    memset(c->written + left, 0, (c->n_written - left) * sizeof *c->written);
    c->n_written = left;
}

void mgr_config_use_source(mgr_config *c, uint32_t idx)
{
    if (!c->n_sources)
        return;
    const mgr_config_listed *const from = &c->sources[idx];
    assert(idx < c->n_sources);
    for (uint32_t i = 0; i < c->n_written; i++)
        while (i < c->n_written && is_of_source(&c->written[i]))
            c->written[i] = c->written[--c->n_written];
    for (uint32_t i = 0; i < from->n_written && c->n_written < MGR_CONFIG_MAX_KEYS; i++)
        c->written[c->n_written++] = from->written[i];
    c->source = from->is;
}
