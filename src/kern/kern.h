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

/* out[i] = the mean of element i of `n_sources` arrays: their sum in float64, one after the other,
 * divided by their number in float64, then rounded once to `to`, to nearest even. */
void mgr_average(void *out, mgr_dtype to, const void *const *sources, const mgr_dtype *from,
                 uint32_t n_sources, size_t n);

/* Magnitudes as bits: a value's without its sign. They are ordered as the values' magnitudes are;
 * infinity's come behind all finite ones, NaNs' behind that. Pure. */
uint32_t mgr_infinity_bits(mgr_dtype dtype);
/* The least magnitude of `from` that a cast makes an infinity in `to`; where there is none, that of
 * infinity. Pure. */
uint32_t mgr_overflow_bits(mgr_dtype from, mgr_dtype to);
/* The largest of `n` values; 0 for none. Pure. */
uint32_t mgr_largest_magnitude(const void *values, mgr_dtype dtype, size_t n);
/* The first value with low <= magnitude < high; `n` if there is none. Pure. */
size_t mgr_find_magnitude(const void *values, mgr_dtype dtype, size_t n, uint32_t low,
                          uint32_t high);

/* A 2-D copy of bytes between two strides. No overlap. */
void mgr_copy_2d(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t row_bytes,
                 size_t rows);

/* out[i] = mean + std * z(first + i), the product and the sum each rounded in float32, then once
 * into `to`. mean and std are finite. */
void mgr_normals_scaled(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                        void *out, mgr_dtype to);

#endif
