/*
 * A dense model of a mixture: its experts side by side (arXiv 2605.28207). The source is seen as
 * that model before anything else happens (run/concat.c), so that nothing of an expert is left
 * here.
 */
#include "kern/method.h"
#include "kern/method_keys.h"

static const mgr_key keys[] = {
    MGR_ROW_REAL("upcycle.expert_weight", upcycle.expert_weight, "0", 0, 100,
                 "what each expert's output is multiplied by, for the router's weight that it had; "
                 "0: 1 over the number of experts"),
};

const mgr_method mgr_method_concat = {
    .name = "concatenate",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "concatenate", keys),
    .joins = true,
    .map = mgr_map_copies,
};
