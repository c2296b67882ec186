/*
 * Where the tensors of a safetensors file lie in larger ones: what torch's HuggingFaceStorageWriter
 * writes into the header of each rank's shard, "DCP_SHARDING_INFO" of __metadata__
 * (torch/distributed/checkpoint/_hf_utils.py).
 */
#ifndef MGR_FMT_SAFETENSORS_PIECES_H
#define MGR_FMT_SAFETENSORS_PIECES_H

#include <jansson.h>

#include "io/reader.h"
#include "mgr/err.h"

/* *info := {name: {"saved_offsets": [o, ...]}}, the caller's to decref. MGR_ERR_FORMAT without one.
 * Local. */
int mgr_safetensors_sharding(const mgr_reader *reader, json_t **info, mgr_err *err) MGR_NODISCARD;

#endif
