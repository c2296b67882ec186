/*
 * Is a file what torch.save writes today? Other kinds are known by their first bytes, so that the
 * refusal can name them. Byte-level facts: src/fmt/README.md.
 */
#ifndef MGR_FMT_TORCH_KIND_H
#define MGR_FMT_TORCH_KIND_H

#include "io/reader.h"
#include "mgr/err.h"

/* MGR_OK for a zip archive. Errors: MGR_ERR_UNSUPPORTED naming the kind (older torch files, HDF5,
 * GGUF, safetensors, bare pickles), MGR_ERR_FORMAT for anything else or nothing. Local. */
int mgr_torch_kind_check(const mgr_reader *reader, mgr_err *err) MGR_NODISCARD;

#endif
