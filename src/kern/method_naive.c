/*
 * Sparse Upcycling: every expert is a copy.
 */
#include "kern/method.h"
#include "kern/method_keys.h"

const mgr_method mgr_method_naive = {
    .name = "naive",
    .keys = MGR_NO_KEYS(MGR_OWNER_METHOD, "naive"),
    .needs_selection = false,
    .needs_moments = false,
    .map = mgr_map_copies,
};
