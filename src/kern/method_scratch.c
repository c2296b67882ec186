/*
 * A mixture that is trained from the beginning: the baseline of every upcycling (FS in arXiv
 * 2502.19261). The engine draws all of it; nothing is made of the source but its shape.
 */
#include "kern/method.h"
#include "kern/method_keys.h"

static const mgr_key keys[] = {
    MGR_ROW_CHOICE("upcycle.init", upcycle.init, "huggingface", "huggingface|megatron",
                   "all weights from N(0, std^2), norms 1, biases 0; megatron: std / sqrt(2 x "
                   "layers) for the outputs of attention and FFN"),
    MGR_ROW_REAL("upcycle.init_std", upcycle.init_std, "0", 0, 100,
                 "the std; 0: the source's (initializer_range, init_method_std)"),
};

const mgr_method mgr_method_scratch = {
    .name = "from-scratch",
    .keys = MGR_KEY_TABLE(MGR_OWNER_METHOD, "from-scratch", keys),
    .needs_selection = false,
    .needs_moments = false,
    .draws_all = true,
    .map = mgr_map_selected, /* all of them */
};
