/*
 * Weights in FP8 with a scale for each block, as DeepSeek and Qwen publish them: `X.weight` in
 * float8_e4m3fn, `X.weight_scale_inv` [rows/128, columns/128] (transformers'
 * quantizers/quantizer_finegrained_fp8.py). To everything else they are bfloat16 tensors at virtual
 * offsets, two for each byte of the file, whose bytes are made when they are asked for:
 * bfloat16(float32(weight) * float32(scale)).
 */
#ifndef MGR_FORM_HUGGINGFACE_FP8_H
#define MGR_FORM_HUGGINGFACE_FP8_H

#include <stdbool.h>

#include "mgr/catalogue.h"
#include "mgr/layout.h"

/* Make bfloat16 matrices of those in FP8 among the tensors from `first` on. Local. */
void mgr_huggingface_fp8_take(mgr_catalogue *cat, size_t first);

/* Is there one? Pure. */
bool mgr_huggingface_fp8_is(const mgr_catalogue *cat);

/* Each such weight needs its scales, in the blocks that config.json says. MGR_ERR_UNSUPPORTED,
 * MGR_ERR_FORMAT. Local. */
int mgr_huggingface_fp8_check(const mgr_catalogue *cat, mgr_err *err) MGR_NODISCARD;

/* The scales are part of their weights. Local. */
int mgr_huggingface_fp8_layout(mgr_layout *layout, mgr_err *err) MGR_NODISCARD;

/* As in mgr_source_format. */
int mgr_huggingface_fp8_fetch(void **reader, const mgr_catalogue *cat, uint32_t file,
                              uint64_t offset, void *out, size_t len, mgr_err *err) MGR_NODISCARD;
void mgr_huggingface_fp8_fetched(void *reader);

#endif
