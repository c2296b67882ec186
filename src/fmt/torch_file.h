/*
 * One torch.save file: what is in it, without reading a tensor byte and without running anything.
 */
#ifndef MGR_FMT_TORCH_FILE_H
#define MGR_FMT_TORCH_FILE_H

#include <stdbool.h>

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

/* The same with what an optimizer that is not distributed keeps of each tensor
 * (fmt/torch_optimizer.h), and its `settings`. Local. */
int mgr_torch_file_read_stepped(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                bool settings, mgr_err *err) MGR_NODISCARD;

/* The same for what torch_dist saves apart from tensors: a dict that needs no "model", also as the
 * only element of a list. With `optimizer` the scalars of "optimizer" and "opt_param_scheduler" are
 * attributes, too: keys and places in lists joined with '.', a tensor of one element as its value.
 * Local. */
int mgr_torch_file_read_common(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               bool optimizer, mgr_err *err) MGR_NODISCARD;

/* An archive that holds one tensor and nothing else: add it under the name `name`. Local. */
int mgr_torch_file_read_tensor(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               const char *name, mgr_err *err) MGR_NODISCARD;

/* The same for a file that holds a state dict by itself, as Hugging Face's pytorch_model.bin does:
 * every entry is a tensor under its own key. Local. */
int mgr_torch_file_read_flat(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             mgr_err *err) MGR_NODISCARD;

#endif
