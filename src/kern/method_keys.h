/* Rows that several methods have in common (mgr/keys.h says how tables are made). */
#ifndef MGR_KERN_METHOD_KEYS_H
#define MGR_KERN_METHOD_KEYS_H

#include "mgr/keys.h"

/* clang-format off */
#define MGR_ROW_RATIO(what) \
    MGR_ROW_REAL("upcycle.ratio", upcycle.ratio, "0.5", 0, 1, \
                 "share of the FFN's neurons that each expert " what)
#define MGR_ROW_LAYER_RATIO \
    MGR_ROW_TEXT("upcycle.layer_ratio", upcycle.layer_ratio, "", \
                 "the ratio of each layer: from the first to the last in equal steps, such as 0.2 to 0.8, " \
                 "or one for each, such as 0.5,0.5,0.25; empty: 'upcycle.ratio' in all")
#define MGR_ROW_MATRIX_RATIO \
    MGR_ROW_TEXT("upcycle.matrix_ratio", upcycle.matrix_ratio, "", \
                 "what the ratio is multiplied by for gate, up and down, such as 1,1,0.5 " \
                 "(index_sets: independent); empty: 1,1,1")
#define MGR_ROW_INDEX_SETS \
    MGR_ROW_CHOICE("upcycle.index_sets", upcycle.index_sets, "shared", "shared|independent", \
                   "an expert's gate, up and down change the same neurons (the paper) or each its own")
#define MGR_ROWS_SHARED \
    MGR_ROW_CHOICE("upcycle.shared_expert", upcycle.shared_expert, "none", "none|whole|half|slices", \
                   "a shared expert: the dense FFN; the same with half the weight, and the routed " \
                   "experts with the other half; or the first slices of it, which no routed expert gets"), \
    MGR_ROW_UINT("upcycle.shared_slices", upcycle.shared_slices, "1", 1, MGR_MOST_I31, \
                 "how many of the slices the shared expert has (shared_expert: slices)"), \
    MGR_ROW_BOOL("upcycle.shared_gate", upcycle.shared_gate, "false", \
                 "the shared expert has a gate, as a class may have it that is written; one of zeros " \
                 "is 1/2, for which its down is doubled")
/* clang-format on */

#endif
