/*
 * The table of methods, and the questions that all of them ask.
 */
#include "kern/method.h"

#include <string.h>

static const mgr_method *const methods[] = {
    &mgr_method_drop, &mgr_method_naive,   &mgr_method_noise,
    &mgr_method_mix,  &mgr_method_scratch, &mgr_method_concat,
};

#define N_METHODS (sizeof methods / sizeof methods[0])

const mgr_method *mgr_method_at(size_t idx)
{
    return idx < N_METHODS ? methods[idx] : NULL;
}

const mgr_method *mgr_method_find(const char *name)
{
    for (size_t i = 0; i < N_METHODS; i++) {
        if (strcmp(methods[i]->name, name) == 0)
            return methods[i];
    }
    return NULL;
}

mgr_stream mgr_expert_stream(const mgr_expert *x, mgr_purpose base)
{
    return (mgr_stream){.seed = x->seed,
                        .purpose = (uint32_t)base + (uint32_t)x->matrix,
                        .layer = x->layer,
                        .expert = x->expert};
}
