#include "par/places.h"

#include <stdlib.h>

#include "core/mem.h"

typedef struct lodger {
    uint64_t host;
    uint32_t rank, first; /* the lowest rank of its host */
} lodger;

static int by_host(const void *x, const void *y)
{
    const lodger *const a = x, *const b = y;
    if (a->host != b->host)
        return a->host < b->host ? -1 : 1;
    return a->rank < b->rank ? -1 : a->rank > b->rank;
}

static int by_first(const void *x, const void *y)
{
    const lodger *const a = x, *const b = y;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a->rank < b->rank ? -1 : a->rank > b->rank;
}

static void place(mgr_places *p, lodger *all, uint32_t n)
{
    qsort(all, n, sizeof *all, by_host);
    for (uint32_t i = 0; i < n; i++)
        all[i].first = i && all[i].host == all[i - 1].host ? all[i - 1].first : all[i].rank;
    qsort(all, n, sizeof *all, by_first);
    for (uint32_t i = 0; i < n; i++) {
        p->nodes += i == 0 || all[i].first != all[i - 1].first;
        p->rank[i] = all[i].rank;
        p->node[all[i].rank] = p->nodes - 1;
    }
}

int mgr_places_make(mgr_places *places, const uint64_t *host, uint32_t n, mgr_err *err)
{
    lodger *all = NULL;
    *places = (mgr_places){.n = n};
    int rc = mgr_alloc(&all, n, sizeof *all, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&places->node, n, sizeof *places->node, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&places->rank, n, sizeof *places->rank, err);
    for (uint32_t i = 0; rc == MGR_OK && i < n; i++)
        all[i] = (lodger){.host = host[i], .rank = i};
    if (rc == MGR_OK)
        place(places, all, n);
    else
        mgr_places_clear(places);
    mgr_free(all);
    return rc;
}

int mgr_places_even(mgr_places *places, uint32_t n, uint32_t each, mgr_err *err)
{
    uint64_t *host = NULL;
    MGR_TRY(mgr_alloc(&host, n, sizeof *host, err));
    for (uint32_t i = 0; i < n; i++)
        host[i] = i / each;
    const int rc = mgr_places_make(places, host, n, err);
    mgr_free(host);
    return rc;
}

void mgr_places_clear(mgr_places *places)
{
    mgr_free(places->node);
    mgr_free(places->rank);
    *places = (mgr_places){0};
}
