/*
 * Kernels on memory: pointers in, pointers out; no allocation, no I/O, no state.
 */
#ifndef MGR_KERN_KERN_H
#define MGR_KERN_KERN_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/dtype.h"
#include "mgr/rng.h"

/* `n` elements from type `from` to type `to` (BF16, F16, F32), rounded once to nearest even; equal
 * types are copied bit for bit. No overlap. */
void mgr_cast(void *dst, mgr_dtype to, const void *src, mgr_dtype from, size_t n);

/* Nonzero if any of `n` values is finite, and would be an infinity in float16: 65520 or more. */
int mgr_any_beyond_f16(const void *values, mgr_dtype dtype, size_t n);

/* A 2-D copy of bytes between two strides. No overlap. */
void mgr_copy_2d(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t row_bytes,
                 size_t rows);

/* out[i] = mean + std * z(first + i), the product and the sum each rounded in float32, then once
 * into `to`. mean and std are finite. */
void mgr_normals_scaled(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                        void *out, mgr_dtype to);

#endif
