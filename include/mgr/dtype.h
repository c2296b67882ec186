/*
 * Element types of stored tensors: sizes, names in each format, and exact scalar conversions.
 */
#ifndef MGR_DTYPE_H
#define MGR_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mgr_dtype {
    MGR_DTYPE_NONE = 0,
    MGR_DTYPE_BF16,
    MGR_DTYPE_F16,
    MGR_DTYPE_F32,
    MGR_DTYPE_F64,
    MGR_DTYPE_U8,
    MGR_DTYPE_I8,
    MGR_DTYPE_I16,
    MGR_DTYPE_I32,
    MGR_DTYPE_I64,
    MGR_DTYPE_BOOL,
    MGR_DTYPE_F8_E4M3, /* torch.float8_e4m3fn: a weight only with its scales */
    MGR_DTYPE_OTHER,   /* known to the format, never a weight for us (complex, other float8, ...) */
    MGR_DTYPE_COUNT
} mgr_dtype;

/* Bytes of one element; 0 for NONE and OTHER. */
size_t mgr_dtype_size(mgr_dtype dtype);

/* Names: "bfloat16" (torch, Hugging Face config), "BF16" (safetensors), "BFloat16Storage" (pickle).
 * NULL where a format has no name for it. */
const char *mgr_dtype_name(mgr_dtype dtype);
const char *mgr_dtype_safetensors(mgr_dtype dtype);
const char *mgr_dtype_storage(mgr_dtype dtype);

/* The way back; MGR_DTYPE_NONE for an unknown name. `mgr_dtype_from_name` also takes the short
 * spellings of a configuration file: bf16, fp16, fp32, float, half. */
mgr_dtype mgr_dtype_from_name(const char *name);
mgr_dtype mgr_dtype_from_safetensors(const char *name);
mgr_dtype mgr_dtype_from_storage(const char *name);

/* True for the types that model weights may have: BF16, F16, F32. */
static inline int mgr_dtype_is_weight(mgr_dtype d)
{
    return d == MGR_DTYPE_BF16 || d == MGR_DTYPE_F16 || d == MGR_DTYPE_F32;
}

static inline float mgr_bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t mgr_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float mgr_bf16_to_f32(uint16_t h)
{
    return mgr_bits_f32((uint32_t)h << 16);
}

/* Round to nearest even; a NaN stays a quiet NaN. */
static inline uint16_t mgr_f32_to_bf16(float f)
{
    const uint32_t bits = mgr_f32_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* IEEE 754 binary16, round to nearest even, subnormals kept. */
float mgr_f16_to_f32(uint16_t h);
uint16_t mgr_f32_to_f16(float f);

/* float8_e4m3fn: 4 bits of exponent (bias 7), 3 of mantissa, no infinities, NaN where all are set.
 */
float mgr_e4m3_to_f32(uint8_t bits);

#ifdef __cplusplus
}
#endif
#endif
