/*
 * The files of a DeepSpeed ZeRO checkpoint: what is in one, without reading a tensor byte
 * (DeepSpeed 0.19's engine.py, _common_checkpoint_state; stage3.py and stage_1_and_2.py,
 * state_dict; utils/zero_to_fp32.py).
 */
#ifndef MGR_FMT_DEEPSPEED_FILE_H
#define MGR_FMT_DEEPSPEED_FILE_H

#include <stdbool.h>

#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* Attributes and tensors by which a file is known in the catalogue. */
#define MGR_DS_VERSION "ds_version"        /* text */
#define MGR_DS_RANKS "dp_world_size"       /* of a model's file */
#define MGR_DS_MODEL_RANKS "mp_world_size" /* likewise */
#define MGR_DS_DIGEST "digest"             /* of names, shapes and groups; of a model's file */
#define MGR_DS_PARAM "param."              /* "param.GROUP.NAME": text, "2 3" for a matrix */
#define MGR_DS_FROZEN "frozen."            /* "frozen.NAME": the same; tensor: its piece */
#define MGR_DS_SHARED "shared."            /* "shared.NAME": text, another parameter's name */
#define MGR_DS_MODULE "module."            /* tensor: what the module's own state dict holds */
#define MGR_DS_STAGE "zero_stage"          /* of an optimizer's file: 3, or 2 for both others */
#define MGR_DS_PARTS "partition_count"     /* likewise */
#define MGR_DS_PADDING "padding."          /* "padding.GROUP": text, "0 1 0" behind parameters */
#define MGR_DS_MASTER "fp32."              /* tensor "fp32.GROUP" */
#define MGR_DS_EXP_AVG "exp_avg."       /* the same, and of a universal checkpoint "exp_avg.NAME" */
#define MGR_DS_EXP_AVG_SQ "exp_avg_sq." /* likewise */
#define MGR_DS_STEP "step."             /* "step.GROUP": number; what Adam has counted */
#define MGR_DS_SETTINGS "param_groups." /* "param_groups.N.lr": of torch's optimizer */
#define MGR_DS_SCHEDULER "lr_scheduler" /* its state, where it can be spelt */

/* Add file number `file`, of the model: what is said of all ranks where `whole`, and the rank's own
 * pieces of frozen parameters. What belongs to AutoEP is refused. Local. */
int mgr_deepspeed_read_model(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             bool whole, mgr_err *err) MGR_NODISCARD;

/* One parameter of a universal checkpoint, under `name`: a tensor, or a dict with "param". One of
 * AutoEP's is refused. Local. */
int mgr_deepspeed_read_param(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             const char *name, mgr_err *err) MGR_NODISCARD;

/* The same of an optimizer: the float32 masters of its rank. Moments and steps are counted as
 * skipped, or read where `moments`; then the settings of the groups, too, where `settings`. Local.
 */
int mgr_deepspeed_read_optimizer(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                 bool moments, bool settings, mgr_err *err) MGR_NODISCARD;

/* Steps and settings of a universal checkpoint: zero/optimizer_state.pt, and the step.pt of a
 * parameter. Local. */
int mgr_deepspeed_read_settings(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                mgr_err *err) MGR_NODISCARD;
int mgr_deepspeed_read_step(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                            mgr_err *err) MGR_NODISCARD;

#endif
