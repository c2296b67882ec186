#include "form/target.h"

#include <string.h>

extern const mgr_target_format mgr_target_moe_recipes;
extern const mgr_target_format mgr_target_mixtral;
extern const mgr_target_format mgr_target_megatron_torch;
extern const mgr_target_format mgr_target_megatron_dist;
extern const mgr_target_format mgr_target_huggingface;
extern const mgr_target_format mgr_target_hdf5;
extern const mgr_target_format mgr_target_deepspeed;

static const mgr_target_format *const table[] = {
    &mgr_target_huggingface,    &mgr_target_moe_recipes,   &mgr_target_mixtral,
    &mgr_target_megatron_torch, &mgr_target_megatron_dist, &mgr_target_hdf5,
    &mgr_target_deepspeed,
};

const mgr_target_format *mgr_target_at(size_t idx)
{
    return idx < sizeof table / sizeof table[0] ? table[idx] : NULL;
}

const mgr_target_format *mgr_target_find(const char *name)
{
    for (size_t i = 0; mgr_target_at(i); i++)
        if (strcmp(mgr_target_at(i)->name, name) == 0)
            return mgr_target_at(i);
    return NULL;
}
