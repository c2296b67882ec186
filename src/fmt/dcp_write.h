/*
 * Writing the `.metadata` of a torch.distributed.checkpoint, so that every torch from 2.1 on reads
 * it. Byte-level facts: src/fmt/README.md.
 */
#ifndef MGR_FMT_DCP_WRITE_H
#define MGR_FMT_DCP_WRITE_H

#include "core/str.h"
#include "fmt/dcp.h"
#include "mgr/err.h"

/* Append the pickle of entries, chunks and items, each in its order, to *out. Of the entries are
 * used name, tensor, dtype, ndim, shape, first_chunk and n_chunks; `skipped` and the `found` flags
 * are not. Items may share a place. Chunks and items that fit no tensor are not looked for: what
 * mgr_dcp_read takes is what should be given. Local. */
int mgr_dcp_write(const mgr_dcp *dcp, mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
