/* Rows that several formats have in common (mgr/keys.h says how tables are made). */
#ifndef MGR_FORM_FORMAT_KEYS_H
#define MGR_FORM_FORMAT_KEYS_H

#include "mgr/keys.h"

/* clang-format off */
/* of sources */
#define MGR_ROW_SOURCE_ITERATION \
    MGR_ROW_CHOICE("source.iteration", source.iteration, "latest", "latest|release|N", \
                   "which iteration of a Megatron root")
#define MGR_ROW_UNKNOWN \
    MGR_ROW_CHOICE("source.unknown", source.unknown, "refuse", "refuse|warn", \
                   "a setting of the checkpoint that this program does not know")
#define MGR_ROW_MTP \
    MGR_ROW_CHOICE("source.mtp", source.mtp, "keep", "keep|drop", \
                   "layers for multi-token prediction: drop leaves them out")
#define MGR_ROW_SOURCE_CONFIG \
    MGR_ROW_PATH("source.config", source.config, "", \
                 "config.json of the model, or the folder with it and its tokenizer")

/* of targets */
#define MGR_ROW_EXPERT_PARALLEL \
    MGR_ROW_UINT("target.expert_parallel", target.expert_parallel, "1", 1, MGR_MOST_PARTS, \
                 "expert parallel size: no file holds experts of two ranks")
#define MGR_ROW_MAX_SHARD_SIZE \
    MGR_ROW_BYTES("target.max_shard_size", target.max_shard_size, "5GB", MGR_MIB, MGR_MOST_BYTES, \
                  "largest file to write, unless one tensor alone is larger")
#define MGR_ROW_OPTIMIZER \
    MGR_ROW_CHOICE("target.optimizer", target.optimizer, "none", "none|keep", \
                   "keep: the source's masters and Adam's moments, zeros for what is drawn anew")
#define MGR_ROW_CONFIG \
    MGR_ROW_MAP("target.config", target.config, \
                "fields of config.json to set, as a map: {use_cache: false}")

/* of Megatron's targets */
#define MGR_ROW_TENSOR_PARALLEL \
    MGR_ROW_UINT("target.tensor_parallel", target.tensor_parallel, "1", 1, MGR_MOST_PARTS, \
                 "tensor parallel size; of megatron-dist, the one that the vocabulary is padded for")
#define MGR_ROW_VOCAB_DIVISOR \
    MGR_ROW_UINT("target.make_vocab_size_divisible_by", target.make_vocab_size_divisible_by, "0", \
                 0, MGR_MOST_I31, \
                 "the vocabulary is padded with zeros to a multiple of this x tensor parallel; 0: as " \
                 "a Megatron source's args say, else 128")
#define MGR_ROW_MEGATRON_NAMES \
    MGR_ROW_CHOICE("target.names", target.names, "auto", "auto|te|local", \
                   "norms as Transformer Engine (te, the default) or the local spec names them")
#define MGR_ROW_TARGET_ITERATION \
    MGR_ROW_UINT("target.iteration", target.iteration, "0", 0, 1e9, \
                 "the iteration to write; 0: a release checkpoint")
/* clang-format on */

#endif
