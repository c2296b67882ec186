/*
 * What both Megatron targets write beside tensors: args and the tracker file. args are those of a
 * Megatron source, but for what the job changes; without a source of that kind, fresh ones. They
 * hold builtin types and torch dtypes alone, which torch's restricted unpickler takes once
 * argparse.Namespace is allowed. What the loader compares and copies: check_checkpoint_args and
 * load_args_from_checkpoint in megatron/training/checkpointing.py.
 */
#ifndef MGR_FORM_MEGATRON_WRITE_H
#define MGR_FORM_MEGATRON_WRITE_H

#include <stdbool.h>

#include "core/str.h"
#include "form/target.h"
#include "mgr/config.h"
#include "mgr/model.h"
#include "model/megatron.h"

/* What args are made from. All borrowed. */
typedef struct mgr_megatron_args {
    const mgr_model *model;
    const mgr_megatron *megatron; /* the sizes in it; for torch_dist 1, 1, ... */
    const mgr_config *config;
    const mgr_origin *origin; /* NULL: there is no source */
    mgr_dtype dtype;
    const char *ckpt_format; /* "torch", "torch_dist" */
    bool layer_list;         /* moe_layer_freq is a list even where all layers are alike */
    bool hybrid;             /* of a HybridModel, which has a pattern in its place */
} mgr_megatron_args;

/* One arg of the output and what became of it. */
typedef struct mgr_megatron_arg {
    const char *name;
    mgr_attr value;       /* of DROPPED: the source's */
    const mgr_attr *was;  /* the source's; NULL: it has none */
    mgr_remark_kind fate; /* CARRIED, SET, ALTERED or DROPPED */
    const char *why;      /* of DROPPED */
} mgr_megatron_arg;

typedef struct mgr_megatron_arg_list {
    mgr_megatron_arg *list;
    size_t n, cap;
    mgr_arena arena;
} mgr_megatron_arg_list;

/* The args of the output: form/megatron_carry.c. `out` starts zeroed; clear it also after an error.
 * Local. */
int mgr_megatron_args_make(const mgr_megatron_args *args, mgr_megatron_arg_list *out,
                           mgr_err *err) MGR_NODISCARD;
void mgr_megatron_args_clear(mgr_megatron_arg_list *list);

/* The arg of that name that the output has, or NULL. */
const mgr_attr *mgr_megatron_args_get(const mgr_megatron_arg_list *list, const char *name);

/* What a job makes of the model, its layout and its type alone: form/megatron_write.c. */
int mgr_megatron_args_own(const mgr_megatron_args *args, mgr_megatron_arg_list *out,
                          mgr_err *err) MGR_NODISCARD;

/* Emit one value. */
int mgr_megatron_value_emit(const mgr_attr *value, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

/* Emit the keys and values of the Namespace (between open and close). */
int mgr_megatron_args_emit(const mgr_megatron_arg_list *list, mgr_buf *out,
                           mgr_err *err) MGR_NODISCARD;

/* What people should know of a Megatron source's args: those that nobody knows, those that are not
 * taken at their word, those that end here. */
int mgr_megatron_source_review(const mgr_catalogue *cat, const mgr_config *config,
                               mgr_remarks *remarks, mgr_err *err) MGR_NODISCARD;

/* What became of each arg, and how a trainer goes on with the output. */
int mgr_megatron_args_review(const mgr_megatron_arg_list *list, mgr_remarks *remarks,
                             mgr_err *err) MGR_NODISCARD;
int mgr_megatron_flags_review(const mgr_megatron_arg_list *list, const mgr_output *out,
                              mgr_remarks *remarks, mgr_err *err) MGR_NODISCARD;

/* Refuse, before any output, what Megatron's args cannot say of `model`: MGR_ERR_UNSUPPORTED naming
 * the feature. Local. */
int mgr_megatron_check_args(const mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* "iter_0000001", or "release" for iteration 0, into a caller's buffer; returns it. */
const char *mgr_megatron_folder(uint64_t iteration, char *out, size_t size);

/* The folder `tokenizer` in that of the iteration, as Megatron keeps it: all of a Megatron
 * source's, else what is carried along with the model (form/sidecar.h). Rank 0 only. */
int mgr_megatron_write_tokenizer(const mgr_output *out, const char *directory,
                                 mgr_err *err) MGR_NODISCARD;

/* What of that is known beforehand: what may not be copied is refused. Rank 0 only. */
int mgr_megatron_tokenizer_review(const mgr_output *out, mgr_remarks *remarks,
                                  mgr_err *err) MGR_NODISCARD;

/* Write latest_checkpointed_iteration.txt into `directory`. */
int mgr_megatron_write_tracker(const char *directory, uint64_t iteration,
                               mgr_err *err) MGR_NODISCARD;

/* The vocabulary of `config`'s target for `tensor_parallel` ranks: padded to a multiple of
 * make_vocab_size_divisible_by x tensor_parallel. Pure. */
uint64_t mgr_megatron_padded_vocab(const mgr_config *config, uint64_t vocab);

/* The padding of the vocabulary and the spec of a Megatron source are the target's, where the
 * configuration leaves them open. Pure. */
void mgr_megatron_settle(const mgr_origin *origin, mgr_config *config);

#endif
