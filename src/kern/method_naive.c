/*
 * Sparse Upcycling: every expert is a copy.
 */
#include "kern/method.h"
#include "kern/method_keys.h"

static const mgr_key keys[] = {
    MGR_ROWS_SHARED,
};

const mgr_method mgr_method_naive = {
    .name = "naive",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "naive", keys),
    .needs_selection = false,
    .needs_moments = false,
    .map = mgr_map_copies,
};
