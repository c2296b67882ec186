/*
 * safetensors: u64 header length, JSON header, tensor bytes without holes.
 * Byte-level facts: src/fmt/README.md; the format: github.com/huggingface/safetensors.
 */
#ifndef MGR_FMT_SAFETENSORS_H
#define MGR_FMT_SAFETENSORS_H

#include "core/str.h"
#include "io/reader.h"
#include "mgr/catalogue.h"
#include "mgr/err.h"

/* Add the tensors of file number `file` of the catalogue. Every rule of the format is checked:
 * header length (at most 100,000,000 bytes), JSON without duplicates, data_offsets that tile the
 * data exactly, dtype x shape = bytes; the error names tensor and byte. A dtype that we never use
 * as a weight becomes MGR_DTYPE_OTHER. Local. */
int mgr_safetensors_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                         mgr_err *err) MGR_NODISCARD;

/* One tensor to declare in a header; `begin` is relative to the start of the data. */
typedef struct mgr_safetensors_entry {
    const char *name;
    mgr_dtype dtype;
    uint32_t ndim;
    const uint64_t *shape;
    uint64_t begin, end;
} mgr_safetensors_entry;

/* The length word, the header and its padding with spaces to a multiple of `align` (a power of
 * two, at least 8), with __metadata__ {"format":"pt"} first. Deterministic bytes. Local. */
int mgr_safetensors_header(const mgr_safetensors_entry *entries, size_t n, uint32_t align,
                           mgr_buf *out, mgr_err *err) MGR_NODISCARD;

#endif
