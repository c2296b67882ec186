/*
 * Branch-Train-MiX: experts are the FFNs of several models (Sukhbaatar et al., arXiv 2403.07816).
 */
#include "kern/method.h"
#include "kern/method_keys.h"

static const mgr_key keys[] = {
    MGR_ROW_CHOICE("upcycle.others", upcycle.others, "average", "average|base|equal",
                   "tensors beside the experts: the mean of all sources in float64, rounded once; "
                   "those of the first source; or the same in all, or it is an error"),
};

const mgr_method mgr_method_mix = {
    .name = "branch-train-mix",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "branch-train-mix", keys),
    .needs_selection = false,
    .needs_moments = false,
    .takes_sources = true,
    .map = mgr_map_copies,
};
