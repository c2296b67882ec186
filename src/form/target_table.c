/* The target formats. A new one is a line here, and one in lib/settings.c if it needs no MPI. */
#include "form/target.h"

extern const mgr_target_format mgr_target_moe_recipes;
extern const mgr_target_format mgr_target_mixtral;
extern const mgr_target_format mgr_target_megatron_torch;
extern const mgr_target_format mgr_target_megatron_dist;
extern const mgr_target_format mgr_target_huggingface;
extern const mgr_target_format mgr_target_hdf5;
extern const mgr_target_format mgr_target_deepspeed;

const mgr_target_format *const mgr_target_table[] = {
    &mgr_target_huggingface,   &mgr_target_moe_recipes,
    &mgr_target_mixtral,       &mgr_target_megatron_torch,
    &mgr_target_megatron_dist, &mgr_target_hdf5,
    &mgr_target_deepspeed,     NULL,
};
