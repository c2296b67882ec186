#include "mgr/dtype.h"

#include <stdbool.h>

/* Rows in the order of the enum. Storage classes: torch/storage.py; safetensors names: its spec. */
static const struct {
    size_t size;
    const char *name, *safetensors, *storage;
} table[MGR_DTYPE_COUNT] = {
    {0, NULL, NULL, NULL},
    {2, "bfloat16", "BF16", "BFloat16Storage"},
    {2, "float16", "F16", "HalfStorage"},
    {4, "float32", "F32", "FloatStorage"},
    {8, "float64", "F64", "DoubleStorage"},
    {1, "uint8", "U8", "ByteStorage"},
    {1, "int8", "I8", "CharStorage"},
    {2, "int16", "I16", "ShortStorage"},
    {4, "int32", "I32", "IntStorage"},
    {8, "int64", "I64", "LongStorage"},
    {1, "bool", "BOOL", "BoolStorage"},
    {1, "float8_e4m3fn", "F8_E4M3", NULL},
    {0, NULL, NULL, NULL},
};

static const struct {
    const char *name;
    mgr_dtype dtype;
} aliases[] = {
    {"bf16", MGR_DTYPE_BF16},  {"fp16", MGR_DTYPE_F16},  {"half", MGR_DTYPE_F16},
    {"fp32", MGR_DTYPE_F32},   {"float", MGR_DTYPE_F32}, {"fp64", MGR_DTYPE_F64},
    {"double", MGR_DTYPE_F64}, {"long", MGR_DTYPE_I64},
};

size_t mgr_dtype_size(mgr_dtype dtype)
{
    return (unsigned)dtype < MGR_DTYPE_COUNT ? table[dtype].size : 0;
}

const char *mgr_dtype_name(mgr_dtype dtype)
{
    return (unsigned)dtype < MGR_DTYPE_COUNT ? table[dtype].name : NULL;
}

const char *mgr_dtype_safetensors(mgr_dtype dtype)
{
    return (unsigned)dtype < MGR_DTYPE_COUNT ? table[dtype].safetensors : NULL;
}

const char *mgr_dtype_storage(mgr_dtype dtype)
{
    return (unsigned)dtype < MGR_DTYPE_COUNT ? table[dtype].storage : NULL;
}

mgr_dtype mgr_dtype_from_name(const char *name)
{
    for (int d = 1; d < MGR_DTYPE_COUNT; d++)
        if (table[d].name && strcmp(table[d].name, name) == 0)
            return (mgr_dtype)d;
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (strcmp(aliases[i].name, name) == 0)
            return aliases[i].dtype;
    return MGR_DTYPE_NONE;
}

mgr_dtype mgr_dtype_from_safetensors(const char *name)
{
    for (int d = 1; d < MGR_DTYPE_COUNT; d++)
        if (table[d].safetensors && strcmp(table[d].safetensors, name) == 0)
            return (mgr_dtype)d;
    return MGR_DTYPE_NONE;
}

mgr_dtype mgr_dtype_from_storage(const char *name)
{
    for (int d = 1; d < MGR_DTYPE_COUNT; d++)
        if (table[d].storage && strcmp(table[d].storage, name) == 0)
            return (mgr_dtype)d;
    return MGR_DTYPE_NONE;
}

float mgr_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1fu;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31)
        return mgr_bits_f32(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) { /* zero and subnormals: mantissa * 2^-24 is exact */
        const float f = (float)mantissa * 0x1p-24f;
        return mgr_bits_f32(sign | mgr_f32_bits(f));
    }
    return mgr_bits_f32(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t mgr_f32_to_f16(float f)
{
    const uint32_t bits = mgr_f32_bits(f);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN, kept quiet */
        return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
    if (magnitude >= 0x477ff000u) /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* subnormal half: adding 0.5 rounds at the right bit */
        const float shifted = mgr_bits_f32(magnitude) + 0.5f;
        return (uint16_t)(sign | (mgr_f32_bits(shifted) & 0x7ffu));
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

float mgr_e4m3_to_f32(uint8_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x80u) << 24;
    const uint32_t exponent = (bits >> 3) & 0xfu, mantissa = bits & 0x7u;
    if (exponent == 15 && mantissa == 7)
        return mgr_bits_f32(sign | 0x7fc00000u);
    if (exponent == 0) /* zero and subnormals: mantissa * 2^-9 is exact */
        return mgr_bits_f32(sign | mgr_f32_bits((float)mantissa * 0x1p-9f));
    return mgr_bits_f32(sign | (exponent + 120) << 23 | mantissa << 20);
}
