/*
 * Where ranks live: work is dealt by places, in which those of one node are neighbours, so that
 * they share files whatever the launcher's numbering.
 */
#ifndef MGR_PAR_PLACES_H
#define MGR_PAR_PLACES_H

#include <stdint.h>

#include "mgr/err.h"

typedef struct mgr_places {
    uint32_t *node;    /* [n]: of each rank, counted from 0 by the lowest rank of each */
    uint32_t *rank;    /* [n]: of each place: by node, then by rank */
    uint32_t n, nodes; /* 0: it is not known */
} mgr_places;

/* Of what names the nodes of n ranks; equal for those of one node. Pure but for allocation; free
 * with mgr_places_clear. Local. */
int mgr_places_make(mgr_places *places, const uint64_t *host, uint32_t n,
                    mgr_err *err) MGR_NODISCARD;

/* Of ranks that are numbered node by node, `each` on one. Likewise. */
int mgr_places_even(mgr_places *places, uint32_t n, uint32_t each, mgr_err *err) MGR_NODISCARD;

void mgr_places_clear(mgr_places *places);

#endif
