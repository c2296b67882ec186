/*
 * DeepSpeed's ZeRO layouts, as parts of parameters: which elements of a parameter lie where in the
 * flat tensors of the ranks (runtime/zero/stage3.py, stage_1_and_2.py; utils/zero_to_fp32.py).
 *
 *   ZeRO-3      of each parameter, rank r of D has elements r*p .. (r+1)*p with p = ceil(n/D), the
 *               last of them padding; a sub-group's flat tensor has one such part behind the other
 *   ZeRO-1, 2   a group's parameters lie one behind the other in a vector that is cut among the
 * ranks
 *   universal   each parameter is whole, in a file of its own
 *
 * The parameters themselves are tensors of Hugging Face's layouts: `view` is a catalogue of them,
 * as if the model lay in one file, and a box in it becomes boxes in the files.
 */
#ifndef MGR_MODEL_DEEPSPEED_H
#define MGR_MODEL_DEEPSPEED_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/catalogue.h"
#include "mgr/layout.h"
#include "model/huggingface.h"

/* Where the values of a parameter come from. */
typedef enum mgr_zero_kind {
    MGR_ZERO_GROUP,  /* the float32 masters of a group */
    MGR_ZERO_FROZEN, /* pieces in the model's files of all ranks, or one there */
    MGR_ZERO_WHOLE   /* a tensor of the module */
} mgr_zero_kind;

/* One tensor of `view`, by its number there. */
typedef struct mgr_zero_part {
    const char *name; /* under which it was saved; tied parameters have one, and two in the view */
    mgr_zero_kind kind;
    uint32_t group;                   /* GROUP */
    uint32_t stored[MGR_PLANE_COUNT]; /* WHOLE: in the catalogue of the files; or MGR_NONE */
    uint64_t numel;
    uint64_t at; /* GROUP: first element in the flat tensor of each rank, or in the vector of all */
} mgr_zero_part;

typedef struct mgr_deepspeed {
    mgr_catalogue view;   /* file 0: config.json; file 1: all parameters */
    mgr_huggingface hf;   /* of it */
    mgr_zero_part *parts; /* [view.n_stored] */
    bool zero3, universal;
    uint32_t ranks, groups;
    uint32_t model_file;             /* of rank 0; ZeRO-3 has one for each rank, from there on */
    uint32_t *flat[MGR_PLANE_COUNT]; /* [ranks][groups]: stored tensors; the weights are the
                                        masters; NULL of a plane that there is not */
    uint8_t *unneeded;               /* [stored of the files]: there, but not read */
} mgr_deepspeed;

/* Boxes of all files into `layout`, which is of a source. What is there and not read is counted as
 * skipped. Local. */
int mgr_deepspeed_layout(mgr_layout *layout, const mgr_deepspeed *ds, mgr_err *err) MGR_NODISCARD;

/* Boxes of the files for one box of `view`, which is a weight's, and of the planes that `into` has
 * of it; of a source or a target. MGR_ERR_UNSUPPORTED: there is no such plane. Local. */
int mgr_deepspeed_place(const mgr_deepspeed *ds, mgr_layout *into, const mgr_box *box,
                        mgr_err *err) MGR_NODISCARD;

void mgr_deepspeed_clear(mgr_deepspeed *ds);

#endif
