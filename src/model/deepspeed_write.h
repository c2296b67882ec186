/*
 * DeepSpeed's layouts as targets: the parameters of a model of transformers in their order, in
 * float32, each in a file of its own or cut among the ranks of ZeRO-3.
 */
#ifndef MGR_MODEL_DEEPSPEED_WRITE_H
#define MGR_MODEL_DEEPSPEED_WRITE_H

#include "model/deepspeed.h"

/* Where files go, below the output, and how parameters are cut. */
typedef struct mgr_deepspeed_plan {
    const char *folder; /* of the step */
    uint32_t ranks;     /* 0: a universal checkpoint */
    uint64_t sub_group_size;
} mgr_deepspeed_plan;

/* Declare files and tensors of `into`. ds->hf is filled in; ds->view, parts and flat become what
 * they would be of a source: view's tensors stand in the order of the model's parameters. Local. */
int mgr_deepspeed_declare(mgr_layout *into, const mgr_deepspeed_plan *plan, mgr_deepspeed *ds,
                          mgr_err *err) MGR_NODISCARD;

#endif
