/*
 * One torch.save file: what is in it, without reading a tensor byte and without running anything.
 */
#ifndef MGR_FMT_TORCH_FILE_H
#define MGR_FMT_TORCH_FILE_H

#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* Add file number `file` of the catalogue: every tensor below the top-level entries whose key
 * starts with "model" (dict keys joined with '.': "model.decoder.final_layernorm.weight"), each
 * with the zip member it lies in as its record, and as attributes all scalars of "args"
 * ("args.<name>") and the scalar top-level entries. Everything else is counted as skipped: keys
 * that end in "_extra_state" (EXTRA_STATE), "optimizer" and "opt_param_scheduler" (OPTIMIZER),
 * "rng_state" (RNG), the rest (OTHER).
 * Refused, with file and byte: see src/fmt/README.md. Local. */
int mgr_torch_file_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                        mgr_err *err) MGR_NODISCARD;

#endif
