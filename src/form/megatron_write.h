/*
 * What both Megatron targets write beside tensors: fresh args and the tracker file. args hold
 * builtin types and torch dtypes alone, which torch's restricted unpickler takes once
 * argparse.Namespace is allowed. What the loader compares and copies: check_checkpoint_args and
 * load_args_from_checkpoint in megatron/training/checkpointing.py.
 */
#ifndef MGR_FORM_MEGATRON_WRITE_H
#define MGR_FORM_MEGATRON_WRITE_H

#include <stdbool.h>

#include "core/str.h"
#include "mgr/config.h"
#include "mgr/model.h"
#include "model/megatron.h"

typedef struct mgr_megatron_args {
    const mgr_model *model;
    const mgr_megatron *megatron; /* the sizes in it; for torch_dist 1, 1, ... */
    mgr_dtype dtype;
    uint64_t divisor;                               /* make_vocab_size_divisible_by */
    const char *ckpt_format;                        /* "torch", "torch_dist" */
    uint64_t first_stage_layers, last_stage_layers; /* 0: as the others */
    bool layer_list; /* moe_layer_freq is a list even where all layers are alike */
} mgr_megatron_args;

/* Emit the keys and values of the Namespace (between open and close). */
int mgr_megatron_write_args(const mgr_megatron_args *args, mgr_buf *out,
                            mgr_err *err) MGR_NODISCARD;

/* Refuse, before any output, what Megatron's args cannot say of `model`: MGR_ERR_UNSUPPORTED naming
 * the feature. Local. */
int mgr_megatron_check_args(const mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* "iter_0000001", or "release" for iteration 0, into a caller's buffer; returns it. */
const char *mgr_megatron_folder(uint64_t iteration, char *out, size_t size);

/* Write latest_checkpointed_iteration.txt into `directory`. */
int mgr_megatron_write_tracker(const char *directory, uint64_t iteration,
                               mgr_err *err) MGR_NODISCARD;

/* The vocabulary of `config`'s target for `tensor_parallel` ranks: padded to a multiple of
 * make_vocab_size_divisible_by x tensor_parallel. Pure. */
uint64_t mgr_megatron_padded_vocab(const mgr_config *config, uint64_t vocab);

#endif
